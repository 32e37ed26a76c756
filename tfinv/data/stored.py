"""Images that stay on disk until they are looked at: what a dataset larger than memory has for arrays."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfinv.errors import UsageError, one_line

# Files of a split that are open at once: a quarter of what a process may have, as a rule.
_OPEN_SHARDS = 256


class StoredImages:
    """Images [N, H, W, C] in shards of array_record files, read by index.

    Shape, type and length are those of an array; square brackets read what they select, and nothing else.
    """

    def __init__(
        self,
        shards: tuple[Path, ...],
        counts: tuple[int, ...],
        image_shape: tuple[int, int, int],
        dtype: np.dtype,
        places: np.ndarray | None = None,
    ):
        """Opens nothing yet.

        Args:
            shards: The files, in order.
            counts: Number of images in each.
            image_shape: Height, width and channels.
            dtype: Type of the pixels.
            places: Which of the images these are, in order [N]; all of them if None.
        """
        self._shards, self._counts, self._places = shards, counts, places
        self._ends = np.cumsum(counts)
        self._readers: dict[int, Any] = {}
        self.dtype = np.dtype(dtype)
        length = int(self._ends[-1]) if places is None else len(places)
        self.shape = (length, *image_shape)

    ndim = 4

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, places: np.ndarray) -> "StoredImages":
        """Returns the images at `places`, indices or a mask, without reading them."""
        chosen = np.arange(len(self), dtype=_index_type(self._ends[-1]))[places]
        if self._places is not None:
            chosen = self._places[chosen]
        selected = StoredImages(self._shards, self._counts, self.shape[1:], self.dtype, chosen)
        selected._readers = self._readers  # an open file serves all selections
        return selected

    def fingerprint(self) -> bytes:
        """Returns a digest of the files' names and sizes and of which images these are; reads none."""
        files = [(path.name, path.stat().st_size) for path in self._shards]
        digest = hashlib.sha256(repr((files, self.shape, self.dtype.name)).encode())
        if self._places is not None:
            digest.update(self._places.tobytes())
        return digest.digest()

    def __getitem__(self, key: Any) -> np.ndarray:
        """Reads one image, a slice, or the images at indices.

        Raises:
            UsageError: If a shard is missing or damaged.
        """
        if isinstance(key, (int, np.integer)):
            return self[[key]][0]
        if self._places is not None:
            places = self._places[key]
        elif isinstance(key, slice):
            places = np.arange(*key.indices(len(self)))
        else:
            key = np.asarray(key)
            places = np.flatnonzero(key) if key.dtype == bool else np.where(key < 0, key + len(self), key)
        return self._read(places)

    def _read(self, places: np.ndarray) -> np.ndarray:
        if not len(places):
            return np.empty((0, *self.shape[1:]), self.dtype)
        images = np.empty((len(places), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self._ends, places, side="right")
        for shard in np.unique(shards):
            own = np.flatnonzero(shards == shard)
            first = int(self._ends[shard]) - self._counts[shard]
            images[own] = self._records(int(shard), (places[own] - first).tolist())
        return images

    def _records(self, shard: int, indices: list[int]) -> np.ndarray:
        path = self._shards[shard]
        try:
            reader = self._readers.get(shard) or open_shard(path)
            self._readers[shard] = reader
            # Whoever reads from one that is given up keeps it. A list, as other threads add some meanwhile.
            for oldest in list(self._readers)[:-_OPEN_SHARDS]:
                self._readers.pop(oldest, None)
            content = b"".join(reader.read(indices))
            return np.frombuffer(content, self.dtype).reshape(len(indices), *self.shape[1:])
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            reason = one_line(error)[:160]
            raise UsageError(f"Damaged shard: {path} ({reason}). Make the dataset again.") from error


Images = np.ndarray | StoredImages


def open_shard(path: Path) -> Any:
    """Opens an array_record file for reading by index.

    Raises:
        UsageError: If the file or the package array_record is missing.
        RuntimeError: If the file is damaged.
    """
    if not path.is_file():
        raise UsageError(f"Missing shard: {path}. Make the dataset again.")
    # Reading ahead is for those who read in order.
    return array_record().ArrayRecordReader(str(path), "readahead_buffer_size:0")


def array_record() -> Any:
    """Returns the module array_record; raises UsageError with what to do if it is not installed."""
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise UsageError("Sharded datasets need array_record: pip install 'tfinv[shards]'") from None
    return array_record_module


def fingerprint(images: Images) -> bytes:
    """Returns a digest by which two processes can tell whether they have the same images."""
    return (
        images.fingerprint()
        if isinstance(images, StoredImages)
        else hashlib.sha256(images.tobytes()).digest()
    )


def take(images: Images, places: np.ndarray) -> Images:
    """Returns the images at `places`, indices or a mask; stored ones are not read."""
    return images.take(places) if isinstance(images, StoredImages) else images[places]


def reader(images: Images) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function for pipelines, from indices [B] to images [B, H, W, C]."""
    if not isinstance(images, StoredImages):
        values = tf.constant(images)
        return lambda indices: tf.gather(values, indices)
    stored = images

    def read(indices: tf.Tensor) -> tf.Tensor:
        # A stateful function would be called one batch at a time in TensorFlow's deterministic mode.
        batch = tf.numpy_function(stored.__getitem__, [indices], stored.dtype, stateful=False)
        return tf.ensure_shape(batch, (indices.shape[0], *stored.shape[1:]))

    return read


def _index_type(count: int) -> type:
    return np.int32 if count < 2**31 else np.int64
