"""Affine maps; the parameter is how its six numbers (a, b, c, d, e, f) differ from those of the identity.

With x and y counted from the image's centre in halves of its width and height, the pixel (x, y) of the output
shows what the input has at ((1 + a) x + b y + c, d x + (1 + e) y + f).
"""

import math

import numpy as np
import tensorflow as tf

from tfinv.data import projective

PARAMETER_SHAPE = (6,)
PERIOD = None
UNIT = "parts"
SWEEP = "s of the parameter s (1, 1, 1, -1, 1, -1)"
CODE_SIZE = 6

# The sweep turns, zooms and moves at once: always invertible, unlike equal numbers.
_DIRECTION = np.array([1, 1, 1, -1, 1, -1], np.float32)
_WIDEST = 0.3


def apply(images: tf.Tensor, parameters: tf.Tensor, fill_value: float = 0.0, margin: int = 0) -> tf.Tensor:
    """Maps each image by its own six numbers, bilinear.

    Args:
        images: Floating point images [N, H, W, C].
        parameters: Differences from the identity [N, 6].
        fill_value: Value outside the image.
        margin: Pixels by which each side is widened, at least 0.

    Returns:
        Mapped images [N, H + 2 margin, W + 2 margin, C].
    """
    images = projective.widened(images, margin, fill_value)
    shape = tf.shape(images)
    right, down = (tf.cast(shape[axis] - 1, tf.float32) / 2.0 for axis in (2, 1))
    aspect = tf.maximum(right, 0.5) / tf.maximum(down, 0.5)  # of images of a single row, too
    a, b, c, d, e, f = tf.unstack(tf.cast(parameters, tf.float32), axis=-1)
    b, d = b * aspect, d / aspect
    x_offset = c * right - a * right - b * down
    y_offset = f * down - d * right - e * down
    zero = tf.zeros_like(a)
    maps = tf.stack([1.0 + a, b, x_offset, d, 1.0 + e, y_offset, zero, zero], axis=-1)
    return projective.resample(images, maps, fill_value)


def sample(uniforms: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Maps uniforms in [0, 1) [N, 6] to parameters from low to high [N, 6]; low and high are [N]."""
    low, high = low[:, tf.newaxis], high[:, tf.newaxis]
    return low + uniforms * (high - low)


def grid(step: float) -> np.ndarray:
    """Parameters s (1, 1, 1, -1, 1, -1) [M, 6] for the multiples s of `step` in [-0.3, 0.3)."""
    steps = _WIDEST / step
    values = np.arange(-math.floor(steps + 1e-6), math.ceil(steps - 1e-6)) * step
    return values.astype(np.float32)[:, np.newaxis] * _DIRECTION


def contains(parameters, low: float, high: float):
    """Tells which parameters [M, 6] have all their numbers in [low, high]."""
    if not tf.is_tensor(parameters):
        parameters = np.asarray(parameters)
    inside = (parameters >= np.float32(low)) & (parameters <= np.float32(high))
    return tf.reduce_all(inside, axis=-1) if tf.is_tensor(parameters) else np.all(inside, axis=-1)


def code(parameters: tf.Tensor) -> tf.Tensor:
    """The six numbers themselves [N, 6]."""
    return tf.cast(parameters, tf.float32)


def comparable(parameters: np.ndarray) -> np.ndarray:
    """All but the identity [M], which blurs nothing."""
    return np.any(np.asarray(parameters) != 0.0, axis=-1)
