"""The form every dataset takes: labels in memory, images in memory or in shards on disk."""

from dataclasses import dataclass

import numpy as np

from tfinv.data.stored import Images, StoredImages
from tfinv.errors import UsageError


@dataclass(frozen=True)
class Dataset:
    """Labelled images, split in a training and a test part.

    Attributes:
        name: Short name, used in run ids.
        x_train, x_test: Images [N, H, W, C], uint8 in 0..255 or floating point in 0..1; C is 1 or 3. Those of
            a sharded dataset are read when they are looked at.
        y_train, y_test: Integer class labels [N], 0..num_classes-1.
    """

    name: str
    x_train: Images
    y_train: np.ndarray
    x_test: Images
    y_test: np.ndarray

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            _check_images(self.name, f"x_{split}", self.images(split))
            _check_labels(self.name, f"y_{split}", self.labels(split), len(self.images(split)))
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise UsageError(
                f"Images of one dataset must have one shape. Received in {self.name}: "
                f"x_train.shape={self.x_train.shape}, x_test.shape={self.x_test.shape}"
            )

    def images(self, split: str) -> Images:
        return {"train": self.x_train, "test": self.x_test}[split]

    def labels(self, split: str) -> np.ndarray:
        return {"train": self.y_train, "test": self.y_test}[split]

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur, in ascending order."""
        return tuple(int(label) for label in np.union1d(np.unique(self.y_train), np.unique(self.y_test)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.x_train.shape[1:]
        return height, width, channels


def _check_images(name: str, key: str, images: Images) -> None:
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise UsageError(
            f"Invalid images in {name}. Expected {key} of shape [N, H, W, C] with 1 or 3 channels and "
            f"at least one image. Received: {key}.shape={images.shape}"
        )
    if images.dtype == np.uint8:
        return
    if images.dtype not in (np.float16, np.float32, np.float64):
        raise UsageError(
            f"Invalid images in {name}. Expected {key} as uint8 in 0..255 or as floating point in 0..1. "
            f"Received: {key}.dtype={images.dtype}"
        )
    if isinstance(images, StoredImages):  # checked when they were written
        return
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):  # also catches NaN
        raise UsageError(
            f"Invalid images in {name}. Expected floating point {key} within 0..1 (divide by 255?). "
            f"Received: minimum {low}, maximum {high}"
        )


def _check_labels(name: str, key: str, labels: np.ndarray, count: int) -> None:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"Invalid labels in {name}. Expected {key} as {count} integers, one for each image. "
            f"Received: {key}.shape={labels.shape}, {key}.dtype={labels.dtype}"
        )
    if labels.min() < 0 or labels.max() > 9999:
        raise UsageError(
            f"Invalid labels in {name}. Expected {key} in 0..num_classes-1. "
            f"Received: minimum {labels.min()}, maximum {labels.max()}"
        )
