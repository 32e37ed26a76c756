"""Encoded pictures as a network wants them; part of the exported graph."""

import tensorflow as tf

# Rec. 601; its sum is 1, so that grey pixels keep their value.
_LUMA = (0.299, 0.587, 0.114)
# 200 MB when decoded. A file of a few kilobytes may say that it has a thousand times as many.
MAX_PIXELS = 2**26


def decode(image_bytes: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """Decodes pictures, makes them grey or coloured and stretches them to a network's size.

    Args:
        image_bytes: PNG or JPEG files of any size [N], string. Transparency is ignored.
        shape: Height, width and channels (1 or 3; other numbers take that many copies of grey).

    Returns:
        Images [N, H, W, C], float32 in 0..1; shrunk with antialiasing, untouched if of the right size.

    Raises:
        tf.errors.InvalidArgumentError: If one of them is no such picture or has more than MAX_PIXELS; when it
            runs.
    """
    height, width, channels = shape

    def decode_one(encoded):
        # Of either format, whatever its name says; both widen grey to three equal channels.
        picture = tf.io.decode_png(_checked(encoded), channels=3)
        # Shrunk as bytes: as floats, a picture of many pixels would take several times its memory.
        picture = tf.image.resize(picture, (height, width), antialias=True)
        if channels != 3:
            grey = tf.reduce_sum(picture * tf.constant(_LUMA), axis=-1, keepdims=True)
            picture = tf.repeat(grey, channels, axis=-1)
        return tf.ensure_shape(tf.cast(picture, tf.float32), shape) / 255.0

    # One at a time, for the same reason.
    spec = tf.TensorSpec(shape, tf.float32)
    pictures = tf.map_fn(decode_one, image_bytes, parallel_iterations=1, fn_output_signature=spec)
    return tf.clip_by_value(pictures, 0.0, 1.0)


def _checked(encoded: tf.Tensor) -> tf.Tensor:
    """Returns a file [] as it is, once its first bytes have told its format and size."""
    kind = tf.strings.substr(encoded, 0, 2)
    known = tf.debugging.Assert(
        tf.reduce_any(tf.equal(kind, [b"\x89P", b"\xff\xd8"])), ["Expected PNG or JPEG files."]
    )
    with tf.control_dependencies([known]):
        sides = tf.cond(
            kind == b"\x89P",
            # Width and height, at their place in every PNG.
            lambda: tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False),
            lambda: tf.image.extract_jpeg_shape(encoded)[:2],
        )
    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    few = tf.debugging.assert_less_equal(
        pixels, tf.constant(MAX_PIXELS, tf.int64), f"Expected pictures of at most {MAX_PIXELS} pixels."
    )
    with tf.control_dependencies([few]):
        return tf.identity(encoded)
