"""Pictures in a folder with a sub-folder for each class, decoded a few at a time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfinv.errors import UsageError

_CHUNK = 1000
# Classes come one after the other, but the first images of a dataset should be of all classes.
_SEED = 0


@dataclass(frozen=True)
class Pictures:
    """The files of one part of a dataset, in a random order that is always the same.

    Attributes:
        files: Paths; their number is what limits a folder, for each takes about 100 bytes of memory.
        labels: Class of each [N].
    """

    files: list[str]
    labels: np.ndarray

    def split(self, share: float) -> tuple["Pictures", "Pictures"]:
        """Returns all but the last `share`, and that; at least one of each."""
        if len(self.files) < 2:
            raise UsageError("At least two images are needed, one to train and one to test.")
        cut = min(max(round(len(self.files) * (1 - share)), 1), len(self.files) - 1)
        return (
            Pictures(self.files[:cut], self.labels[:cut]),
            Pictures(self.files[cut:], self.labels[cut:]),
        )


def find_classes(folder: Path) -> tuple[str, ...]:
    """Returns the names of the classes: sub-folders in order, by number if all names are numbers.

    Raises:
        UsageError: If there are no sub-folders.
    """
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    if not names:
        raise UsageError(f"No classes in {folder}. Expected a sub-folder with images for each class.")
    return tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names))


def find_pictures(folder: Path, classes: tuple[str, ...]) -> Pictures:
    """Lists the images of a folder of classes.

    Args:
        folder: Its sub-folders hold the images; hidden files are left out.
        classes: Names of the sub-folders; an image's label is the place of its class.

    Raises:
        UsageError: If a sub-folder is none of them, one has a folder in it, or there are no images.
    """
    unknown = sorted(set(find_classes(folder)) - set(classes))
    if unknown:
        raise UsageError(f"Unknown class: {folder / unknown[0]}. Expected one of {', '.join(classes)}.")
    files: list[str] = []
    counts = []
    for name in classes:
        entries = list(os.scandir(folder / name)) if (folder / name).is_dir() else []
        own = [entry for entry in entries if not entry.name.startswith(".")]
        if nested := next((entry.path for entry in own if entry.is_dir()), None):
            raise UsageError(
                f"A folder among the images of a class: {nested}. Expected a folder for each class, or two "
                "called train and test with these in each."
            )
        files += sorted(entry.path for entry in own)
        counts.append(len(own))
    if not files:
        raise UsageError(f"No images in {folder}. Expected image files in its sub-folders.")
    order = np.random.default_rng(_SEED).permutation(len(files))
    labels = np.repeat(np.arange(len(classes), dtype=np.uint16), counts)
    return Pictures([files[place] for place in order], labels[order])


def read_pictures(
    pictures: Pictures, canvas: int | None = None, channels: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images [n, H, W, C], uint8, and labels [n], a bounded number at a time.

    Args:
        pictures: Files (PNG, JPEG, BMP, or the first frame of a GIF).
        canvas: Side of a black square that each image is put in the middle of.
        channels: 1 for grey or 3 for colour, converted if need be; as in the files if None.

    Raises:
        UsageError: If a file cannot be read, or its image is not of the first one's shape.
    """
    shape: tuple[int, ...] | None = None
    for start in range(0, len(pictures.files), _CHUNK):
        chunk = []
        for path in pictures.files[start : start + _CHUNK]:
            image = _decoded(path, channels)
            if canvas is not None:
                image = centred(image[np.newaxis], canvas, path)[0]
            shape = shape or image.shape
            if image.shape != shape:
                raise UsageError(
                    f"Images of one dataset must have one shape. Expected {shape} (or --canvas SIDE, "
                    f"--channels 1 or 3). Received: {path} with {image.shape}"
                )
            chunk.append(image)
        yield np.stack(chunk), pictures.labels[start : start + _CHUNK]


def centred(images: np.ndarray, canvas: int, name: str) -> np.ndarray:
    """Puts images [N, H, W, C] in the middle of black ones of `canvas` times `canvas` pixels.

    Raises:
        UsageError: If they are larger; `name` says which.
    """
    height, width = images.shape[1:3]
    if max(height, width) > canvas:
        raise UsageError(f"Too large for a canvas of {canvas} pixels: {name}, {height} x {width}.")
    top, left = (canvas - height) // 2, (canvas - width) // 2
    margins = ((0, 0), (top, canvas - height - top), (left, canvas - width - left), (0, 0))
    return np.pad(images, margins)


def _decoded(path: str, channels: int | None) -> np.ndarray:
    try:
        image = tf.io.decode_image(tf.io.read_file(path), channels or 0, expand_animations=False).numpy()
    except (tf.errors.OpError, OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "message", error)).split())[:120]
        raise UsageError(f"Cannot read the image {path} ({reason}).") from None
    if image.shape[-1] not in (1, 3):
        raise UsageError(
            f"Expected an image of 1 or 3 channels (choose with --channels). "
            f"Received: {path} with {image.shape[-1]}"
        )
    return image
