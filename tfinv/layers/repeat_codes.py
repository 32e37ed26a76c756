"""Codes of a transformation, each shared by a group of images."""

import keras
from keras import ops

from tfinv.layers._groups import group_size


@keras.saving.register_keras_serializable(package="tfinv")
class RepeatCodes(keras.layers.Layer):
    """Gives each image the code of its group.

    Input shape:
        List of codes [G, E] and anything of the images [N, ...], where G divides N: each code is that of
        N / G successive images.

    Output shape:
        Codes [N, E], of the type that they came in.

    Raises:
        ValueError: If codes have another shape, or G does not divide N, where both are known.
    """

    def __init__(self, **kwargs):
        # Half precision would round the codes.
        super().__init__(**{"autocast": False, **kwargs})

    def build(self, input_shape):
        if len(input_shape[0]) != 2:
            raise ValueError(f"RepeatCodes needs codes [G, E]. Received: input_shape={input_shape}")

    def call(self, inputs):
        codes, features = inputs
        # From what each image brings along, because N / G is known to tensors only.
        ones = ops.ones_like(features[(slice(None), *(0 for _ in features.shape[1:]))], dtype=codes.dtype)
        ones = ops.reshape(ones, (ops.shape(codes)[0], group_size(features, codes), 1))
        return ops.reshape(ones * ops.expand_dims(codes, 1), (-1, codes.shape[-1]))

    def compute_output_spec(self, inputs):
        codes, features = inputs
        return keras.KerasTensor(self.compute_output_shape((codes.shape, features.shape)), codes.dtype)

    def compute_output_shape(self, input_shape):
        codes, features = input_shape
        return (features[0], codes[-1])
