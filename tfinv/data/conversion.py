"""Turns pictures in folders, an .npz or any other dataset into a sharded dataset on disk."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import tyro

from tfinv.data.datasets import available, load_dataset
from tfinv.data.folder import centred, find_classes, find_pictures, read_pictures
from tfinv.data.shards import MANIFEST, SHARD_SIZE, SPLITS, Chunk, check_target, pieces, write_shards
from tfinv.errors import UsageError


def convert(
    source: tyro.conf.Positional[str],
    output: tyro.conf.Positional[Path],
    canvas: int | None = None,
    channels: int | None = None,
    test_fraction: float = 0.1,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
) -> Path:
    """Writes a sharded dataset; see `tfinv.data.write_shards`.

    Args:
        source: Folder with a sub-folder of images for each class, or with `train` and `test` that have these;
            path of an .npz or of a sharded dataset; or name of a dataset.
        output: Folder to make, for `--dataset`.
        canvas: Put each image in the middle of a black square of that many pixels.
        channels: Decode the pictures of a folder as grey, 1, or colour, 3; as they are if not given.
        test_fraction: Part of the pictures that is taken for the test, where there is no folder `test`.
        shard_size: Images a file.
        overwrite: Replace an earlier dataset.

    Returns:
        The folder written.

    Raises:
        UsageError: On any bad input.
        OSError: If the folder cannot be written.
    """
    if channels not in (None, 1, 3):
        raise UsageError(f"Invalid value for channels. Expected 1 or 3. Received: channels={channels}")
    if not 0.0 < test_fraction < 1.0:
        raise UsageError(
            f"Invalid value for test_fraction. Expected within 0..1. Received: test_fraction={test_fraction}"
        )
    if canvas is not None and canvas < 1:
        raise UsageError(f"Invalid value for canvas. Expected at least 1. Received: canvas={canvas}")
    output = output.expanduser()
    check_target(output.absolute(), overwrite)
    folder = Path(source).expanduser()
    names: tuple[str, ...] = ()
    if source not in available() and folder.is_dir() and not (folder / MANIFEST).is_file():
        names, splits = _pictures(folder, canvas, channels, test_fraction)
    else:
        if channels is not None:
            raise UsageError(f"Only pictures in a folder are decoded. Received: --channels for {source}")
        dataset = load_dataset(source)
        splits = {split: _on_canvas(pieces(dataset, split), canvas, source) for split in SPLITS}
    return write_shards(output, splits, names, shard_size, overwrite)


def _pictures(
    folder: Path, canvas: int | None, channels: int | None, test_fraction: float
) -> tuple[tuple[str, ...], dict[str, Iterable[Chunk]]]:
    names = find_classes(folder)
    if set(names) == set(SPLITS):
        names = find_classes(folder / "train")
        train, test = (find_pictures(folder / split, names) for split in SPLITS)
    else:
        train, test = find_pictures(folder, names).split(test_fraction)
    return names, {
        split: read_pictures(pictures, canvas, channels)
        for split, pictures in zip(SPLITS, (train, test), strict=True)
    }


def _on_canvas(chunks: Iterable[Chunk], canvas: int | None, name: str) -> Iterator[Chunk]:
    for images, labels in chunks:
        yield images if canvas is None else centred(images, canvas, name), labels
