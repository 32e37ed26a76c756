"""Datasets as folders of array_record shards: written whole or not at all, read image by image.

A folder holds `dataset.json`, the labels of each split as a .npy, and shards whose records are the bytes of
one image each. The labels are in memory, for a protocol asks for classes; the images never are.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfinv import runs
from tfinv.config import dataset_name
from tfinv.data.dataset import Dataset
from tfinv.data.npz import reason
from tfinv.data.stored import StoredImages, array_record
from tfinv.errors import UsageError
from tfinv.files import check_writable, remove_partial, replacing

MANIFEST = "dataset.json"
FORMAT = "tfinv-shards-1"
SPLITS = ("train", "test")
SHARD_SIZE = 100_000
# Records are kept in groups, and a call to read anything from a shard takes time for each of its groups: of
# 100,000 groups .3 ms. A group is read whole, so it has few bytes, too.
_GROUP_BYTES, _MOST_IN_GROUP = 2**14, 16

Chunk = tuple[np.ndarray, np.ndarray]


def write_shards(
    path: str | os.PathLike[str],
    splits: Mapping[str, Iterable[Chunk]],
    class_names: tuple[str, ...] = (),
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
) -> Path:
    """Writes a dataset; an interruption at any moment leaves nothing that loads.

    Args:
        path: Folder to make.
        splits: For "train" and "test" the pieces to write: images [n, H, W, C], uint8 or floating point in
            0..1, and labels [n], integers. Taken one after the other, so they may be made on the way.
        class_names: Names of the labels, kept for the reader.
        shard_size: Images a file.
        overwrite: Replace an earlier dataset.

    Returns:
        The folder.

    Raises:
        UsageError: If the folder exists, another process writes it, or the images are of different shapes or
            types, or none.
        OSError: If the folder cannot be written.
    """
    path = Path(path).expanduser().absolute()
    if shard_size < 1:
        raise UsageError(f"Invalid value for shard_size. Expected at least 1. Received: {shard_size}")
    with runs.locked(path):
        remove_partial(path.parent, path.name)
        check_target(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.mkdir()
            manifest: dict[str, Any] = {"format": FORMAT, "class_names": list(class_names), "splits": {}}
            for split in SPLITS:
                writer = _Writer(partial, split, shard_size, manifest)
                for images, labels in splits[split]:
                    writer.add(images, labels)
                manifest["splits"][split] = writer.finish()
            # Last, because a folder without it is no dataset.
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return path


def check_target(path: Path, overwrite: bool) -> None:
    """Raises UsageError if a dataset cannot be written to `path`, or would replace what is no dataset."""
    check_writable(path.parent)
    if path.exists() and not (overwrite and (path / MANIFEST).is_file()):
        what = "Use --overwrite or another --output." if (path / MANIFEST).is_file() else "It is no dataset."
        raise UsageError(f"There is something already: {path}. {what}")


class _Writer:
    """Writes the images of a split, shard by shard."""

    def __init__(self, folder: Path, split: str, shard_size: int, manifest: dict[str, Any]):
        self._folder, self._split, self._size, self._manifest = folder, split, shard_size, manifest
        self._shards: list[dict[str, Any]] = []
        self._labels: list[np.ndarray] = []
        self._writer: Any = None

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        if not len(images):
            return
        Dataset("the images to write", images, labels, images, labels)  # refuses what is no dataset
        kind = {"image_shape": list(images.shape[1:]), "dtype": images.dtype.name}
        for key, value in kind.items():
            if self._manifest.setdefault(key, value) != value:
                raise UsageError(
                    f"Images of one dataset must be alike. Expected {key} {self._manifest[key]}, as the "
                    f"first ones. Received: {value} in {self._split}"
                )
        self._labels.append(labels.astype(np.uint16))
        for image in images:
            if self._writer is None or self._shards[-1]["count"] == self._size:
                self._open(image.nbytes)
            self._writer.write(image.tobytes())
            self._shards[-1]["count"] += 1

    def finish(self) -> dict[str, Any]:
        self._close()
        if not self._shards:
            raise UsageError(f"There is no image for the {self._split} part.")
        np.save(self._folder / f"{self._split}-labels.npy", np.concatenate(self._labels))
        return {"shards": self._shards}

    def _open(self, size: int) -> None:
        self._close()
        name = f"{self._split}-{len(self._shards):05d}.array_record"
        group = min(max(_GROUP_BYTES // size, 1), _MOST_IN_GROUP)
        self._writer = array_record().ArrayRecordWriter(str(self._folder / name), f"group_size:{group}")
        self._shards.append({"file": name, "count": 0})

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            shard = self._shards[-1]
            shard["bytes"] = (self._folder / shard["file"]).stat().st_size
            self._writer = None


def load_shards(path: str | os.PathLike[str]) -> Dataset:
    """Loads a dataset that `write_shards` wrote; its images are read when they are looked at.

    Args:
        path: Its folder, or the dataset.json in it.

    Returns:
        The dataset, named after the folder.

    Raises:
        UsageError: If there is none, or a file is missing, cut short or of something else.
    """
    path = Path(path).expanduser()
    folder = path.parent if path.suffix == ".json" else path
    manifest = folder / MANIFEST
    if not manifest.is_file() or (path.suffix == ".json" and path.name != MANIFEST):
        raise UsageError(f"No dataset in {path}. Expected a folder that scripts/make_dataset.py wrote.")
    array_record()
    try:
        described = json.loads(manifest.read_text())
        if described["format"] != FORMAT:
            raise ValueError(f"format {described['format']}, expected {FORMAT}")
        height, width, channels = map(int, described["image_shape"])
        dtype = np.dtype(described["dtype"])
        shards = {split: described["splits"][split]["shards"] for split in SPLITS}
        parts = [
            (_stored(folder, shards[split], (height, width, channels), dtype), _labels(folder, split))
            for split in SPLITS
        ]
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"Damaged file: {manifest} ({type(error).__name__}: {error}).") from error
    (x_train, y_train), (x_test, y_test) = parts
    return Dataset(dataset_name(path), x_train, y_train, x_test, y_test)


def _stored(folder: Path, shards: list[dict[str, Any]], shape: tuple[int, int, int], dtype) -> StoredImages:
    if not shards:
        raise ValueError("a part without shards")
    paths, counts = [], []
    for shard in shards:
        file = folder / shard["file"]
        if not file.is_file():
            raise UsageError(f"Missing shard: {file}. Make the dataset again.")
        if file.stat().st_size != shard["bytes"]:
            raise UsageError(
                f"Damaged shard: {file}. Expected {shard['bytes']} bytes. Received: {file.stat().st_size}"
            )
        paths.append(file)
        counts.append(int(shard["count"]))
    return StoredImages(tuple(paths), tuple(counts), shape, dtype)


def _labels(folder: Path, split: str) -> np.ndarray:
    file = folder / f"{split}-labels.npy"
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = reason(error) if file.exists() else "missing"
        raise UsageError(f"Cannot read the labels: {file} ({why}). Make the dataset again.") from error


def pieces(dataset: Dataset, split: str, size: int = 1000) -> Iterator[Chunk]:
    """Yields the images and labels of a split of any dataset, `size` at a time."""
    images, labels = dataset.images(split), dataset.labels(split)
    for start in range(0, len(labels), size):
        yield images[start : start + size], labels[start : start + size]
