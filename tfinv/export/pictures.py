"""Encoded pictures as a network wants them; part of the exported graph."""

import tensorflow as tf

# Rec. 601; its sum is 1, so that grey pixels keep their value.
_LUMA = (0.299, 0.587, 0.114)


def decode(image_bytes: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """Decodes pictures, makes them grey or coloured and stretches them to a network's size.

    Args:
        image_bytes: PNG or JPEG files of any size [N], string. Transparency is ignored.
        shape: Height, width and channels (1 or 3; other numbers take that many copies of grey).

    Returns:
        Images [N, H, W, C], float32 in 0..1; shrunk with antialiasing, untouched if of the right size.

    Raises:
        tf.errors.InvalidArgumentError: If one of them is no such picture; when it runs.
    """
    height, width, channels = shape

    def decode_one(encoded):
        # Of any of the formats, whatever its name says; both widen grey to three equal channels.
        # Shrunk as bytes: as floats, a picture of many pixels would take several times its memory.
        picture = tf.image.resize(tf.io.decode_png(encoded, channels=3), (height, width), antialias=True)
        if channels != 3:
            grey = tf.reduce_sum(picture * tf.constant(_LUMA), axis=-1, keepdims=True)
            picture = tf.repeat(grey, channels, axis=-1)
        return tf.ensure_shape(tf.cast(picture, tf.float32), shape) / 255.0

    # One at a time, for the same reason.
    spec = tf.TensorSpec(shape, tf.float32)
    pictures = tf.map_fn(decode_one, image_bytes, parallel_iterations=1, fn_output_signature=spec)
    return tf.clip_by_value(pictures, 0.0, 1.0)
