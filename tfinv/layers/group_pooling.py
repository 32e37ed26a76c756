"""Pooling over orientations, which makes equivariant maps invariant."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfinv")
class GroupPooling(keras.layers.Layer):
    """Maximum over the orientations of each channel, position by position.

    Turning the input turns the pooled maps but no longer changes their values.

    Input shape:
        Maps [N, H, W, R, C] of `GroupConv2D`.

    Output shape:
        [N, H, W, C]

    Reference:
        Cohen and Welling 2016, "Group Equivariant Convolutional Networks", section 6.3.
    """

    def call(self, inputs):
        return ops.max(inputs, axis=3)

    def compute_output_shape(self, input_shape):
        if len(input_shape) != 5:
            raise ValueError(
                f"GroupPooling needs maps [N, H, W, R, C]. Received: input_shape={tuple(input_shape)}"
            )
        return (*input_shape[:3], input_shape[4])
