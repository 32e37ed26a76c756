"""Batched projective resampling, with the matrices and conventions of tensorflow-addons.

A matrix [a0, a1, a2, b0, b1, b2, c0, c1] maps the output pixel (x, y) to the input position
((a0 x + a1 y + a2) / k, (b0 x + b1 y + b2) / k) with k = c0 x + c1 y + 1.
"""

import tensorflow as tf


def widened(images: tf.Tensor, margin: int, fill_value: float) -> tf.Tensor:
    """Puts `margin` pixels of a value around images [N, H, W, C]."""
    around = [margin, margin]
    return tf.pad(images, [[0, 0], around, around, [0, 0]], constant_values=fill_value) if margin else images


def resample(images: tf.Tensor, matrices: tf.Tensor, fill_value: float = 0.0) -> tf.Tensor:
    """Reads `images` bilinearly at projectively mapped positions.

    Args:
        images: Floating point images [N, H, W, C].
        matrices: Output-to-input maps [N, 8].
        fill_value: Value of everything outside the input image.

    Returns:
        Images [N, H, W, C] of the dtype of `images`.
    """
    resampled = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=matrices,
        output_shape=tf.shape(images)[1:3],
        fill_value=fill_value,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    # In a graph the op forgets height and width, which a model built from the stream needs.
    return tf.ensure_shape(resampled, images.shape)
