"""Rotation about the image centre; the parameter is an angle in degrees, counter-clockwise."""

import math

import numpy as np
import tensorflow as tf

from tfinv.data import projective

PARAMETER_SHAPE = ()
PERIOD = 360.0
UNIT = "degrees"
SWEEP = "angle, counter-clockwise"
CODE_SIZE = 2

# About right angles pixels fall on pixels, and nothing is blurred.
_SHARP_EVERY, _SHARP_WITHIN = 90.0, 2.0


def matrices(degrees: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Output-to-input maps [N, 8] of rotations about the centre, as tensorflow-addons computes them."""
    radians = tf.cast(degrees, tf.float32) * (math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    w, h = tf.cast(width - 1, tf.float32), tf.cast(height - 1, tf.float32)
    x_offset = (w - (cos * w - sin * h)) / 2.0
    y_offset = (h - (sin * w + cos * h)) / 2.0
    zero = tf.zeros_like(cos)
    return tf.stack([cos, -sin, x_offset, sin, cos, y_offset, zero, zero], axis=-1)


def apply(images: tf.Tensor, parameters: tf.Tensor, fill_value: float = 0.0, margin: int = 0) -> tf.Tensor:
    """Rotates each image by its own angle, bilinear.

    Args:
        images: Floating point images [N, H, W, C].
        parameters: Angles in degrees, counter-clockwise [N].
        fill_value: Value outside the image.
        margin: Pixels by which each side is widened, at least 0.

    Returns:
        Rotated images [N, H + 2 margin, W + 2 margin, C].

    Reference:
        `tfa.image.rotate` of tensorflow-addons 0.23, whose results it equals (tests/oracle).
    """
    images = projective.widened(images, margin, fill_value)
    shape = tf.shape(images)
    return projective.resample(images, matrices(parameters, shape[1], shape[2]), fill_value)


def sample(uniforms: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Maps uniforms in [0, 1) [N] to angles from low to high [N]; low and high are [N]."""
    return low + uniforms * (high - low)


def grid(step: float) -> np.ndarray:
    """Angles [M] in [-180, 180): the multiples of `step` degrees."""
    steps = 180.0 / step
    return (np.arange(-math.floor(steps + 1e-6), math.ceil(steps - 1e-6)) * step).astype(np.float32)


def contains(parameters, low: float, high: float):
    """Tells which angles [M] lie in [low, high], modulo 360 degrees."""
    if not tf.is_tensor(parameters):
        parameters = np.asarray(parameters)
    return (parameters - low) % 360.0 <= high - low


def code(parameters: tf.Tensor) -> tf.Tensor:
    """Cosines and sines of angles in degrees [N]: [N, 2]."""
    radians = tf.cast(parameters, tf.float32) * (math.pi / 180.0)
    return tf.stack([tf.cos(radians), tf.sin(radians)], axis=-1)


def comparable(parameters: np.ndarray) -> np.ndarray:
    """Tells which angles [M] are more than 2 degrees from every right angle."""
    beyond = np.asarray(parameters) % _SHARP_EVERY
    return np.minimum(beyond, _SHARP_EVERY - beyond) > _SHARP_WITHIN
