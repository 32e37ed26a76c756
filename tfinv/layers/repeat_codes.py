"""Codes of a transformation, each shared by a group of images."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfinv")
class RepeatCodes(keras.layers.Layer):
    """Gives each image the code of its group.

    Input shape:
        List of codes [G, E] and anything of the images [N, ...], where G divides N: each code is that of
        N / G successive images.

    Output shape:
        Codes [N, E].
    """

    def call(self, inputs):
        codes, features = inputs
        groups, size = ops.shape(codes)[0], codes.shape[-1]
        # From what each image brings along, because N / G is known to tensors only.
        ones = ops.ones_like(ops.reshape(features, (ops.shape(features)[0], -1))[:, :1], dtype=codes.dtype)
        ones = ops.reshape(ones, (groups, -1, 1))  # [G, N / G, 1]
        return ops.reshape(ones * ops.expand_dims(codes, 1), (-1, size))

    def compute_output_shape(self, input_shape):
        codes, features = input_shape
        return (features[0], codes[-1])
