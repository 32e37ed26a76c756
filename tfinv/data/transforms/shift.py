"""Translation by whole pixels; the parameter is (dx, dy) in pixels, right and down."""

import math

import numpy as np
import tensorflow as tf

from tfinv.errors import UsageError

PARAMETER_SHAPE = (2,)
PERIOD = None
UNIT = "pixels"
SWEEP = "dx = dy, to the right and down"
CODE_SIZE = 2

_WIDEST = 20.0


def apply(images: tf.Tensor, parameters: tf.Tensor, fill_value: float = 0.0, margin: int = 0) -> tf.Tensor:
    """Shifts each image by its own (dx, dy), bilinear for fractions of a pixel.

    Args:
        images: Floating point images [N, H, W, C].
        parameters: Shifts (dx, dy) in pixels, right and down [N, 2].
        fill_value: Value of the area that is uncovered.
        margin: Pixels by which each side is widened, at least 0.

    Returns:
        Shifted images [N, H + 2 margin, W + 2 margin, C], of their type.

    Raises:
        UsageError: If images are of integers, which would cut off the weights of fractions.

    Reference:
        `tfa.image.translate` of tensorflow-addons 0.23, whose results it equals (tests/oracle). Rows are
        moved whole, along one side and then the other: on a canvas a third of the time of pixel by pixel.
    """
    images, shifts = tf.convert_to_tensor(images), tf.cast(parameters, tf.float32)
    if not images.dtype.is_floating:
        raise UsageError(f"Expected floating point images. Received: images of {images.dtype.name}")
    columns = _moved(tf.transpose(images, (0, 2, 1, 3)), shifts[:, 0], fill_value, margin)
    return _moved(tf.transpose(columns, (0, 2, 1, 3)), shifts[:, 1], fill_value, margin)


def _moved(rows: tf.Tensor, offsets: tf.Tensor, fill_value: float, margin: int) -> tf.Tensor:
    """Moves the rows [N, L, W, C] of each image by its own offset [N], to [N, L + 2 margin, W, C]."""
    length = rows.shape[1] or tf.shape(rows)[1]
    # Farther shifts show nothing of the image either, and numbers of rows have to stay exact.
    farthest = tf.cast(length + margin + 1, tf.float32)
    offsets = tf.clip_by_value(offsets, -farthest, farthest)
    places = tf.cast(tf.range(-margin, length + margin), tf.float32) - offsets[:, tf.newaxis]
    before = tf.floor(places)
    # Beyond the image all rows are as the one that is put on either side of it.
    filled = tf.pad(rows, [[0, 0], [1, 1], [0, 0], [0, 0]], constant_values=fill_value)

    def part(place, weight):
        row = tf.cast(tf.clip_by_value(place + 1.0, 0.0, tf.cast(length + 1, tf.float32)), tf.int32)
        weight = tf.cast(weight, rows.dtype)[..., tf.newaxis, tf.newaxis]
        return weight * tf.gather(filled, row, batch_dims=1)

    return part(before, before + 1.0 - places) + part(before + 1.0, places - before)


def sample(uniforms: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Maps uniforms in [0, 1) [N, 2] to whole shifts in [low, high) [N, 2]; low and high are whole [N]."""
    low, high = low[:, tf.newaxis], high[:, tf.newaxis]
    return low + tf.floor(uniforms * (high - low))  # floor(low + ...) could round up to high


def grid(step: float) -> np.ndarray:
    """Diagonal shifts dx = dy [M, 2] in [-20, 20): the whole pixels below the multiples of `step` pixels."""
    steps = _WIDEST / step
    multiples = np.arange(-math.floor(steps + 1e-6), math.ceil(steps - 1e-6)) * step
    diagonal = np.unique(np.floor(multiples + 1e-6)).astype(np.float32)
    return np.stack([diagonal, diagonal], axis=-1)


def contains(parameters, low: float, high: float):
    """Tells which shifts [M, 2] lie in the square [low, high)^2; if low = high, which equal it."""
    if not tf.is_tensor(parameters):
        parameters = np.asarray(parameters)
    inside = (parameters == low) | ((parameters > low) & (parameters < high))
    return tf.reduce_all(inside, axis=-1) if tf.is_tensor(parameters) else np.all(inside, axis=-1)


def code(parameters: tf.Tensor) -> tf.Tensor:
    """Shifts [N, 2] in units of 20 pixels."""
    return tf.cast(parameters, tf.float32) / _WIDEST


def comparable(parameters: np.ndarray) -> np.ndarray:
    """Tells that all shifts [M, 2] are: they are whole, and blur nothing."""
    return np.ones(len(parameters), bool)
