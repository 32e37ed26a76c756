"""The convolution that turns feature maps into the first capsules."""

import keras

from tfinv.layers._checks import check_at_least_one
from tfinv.ops import squash


@keras.saving.register_keras_serializable(package="tfinv")
class PrimaryCapsules(keras.layers.Layer):
    """Convolves feature maps into capsules and squashes them.

    Args:
        channels: Number of capsule channels; each position of the map yields that many capsules.
        pose_dim: Components of a capsule pose.
        kernel_size: Side of the convolution kernel.
        strides: Stride of the convolution.
        padding: "valid" or "same".
        kernel_initializer: Initializer of the kernel.

    Input shape:
        Feature maps [B, H, W, C].

    Output shape:
        Poses [B, H' * W' * channels, pose_dim], each of a length in [0, 1).

    Reference:
        Sabour et al. 2017, "Dynamic Routing Between Capsules", section 4.
    """

    def __init__(
        self,
        channels: int = 32,
        pose_dim: int = 8,
        kernel_size: int = 9,
        strides: int = 2,
        padding: str = "valid",
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_at_least_one(channels=channels, pose_dim=pose_dim)
        self.channels = channels
        self.pose_dim = pose_dim
        self.convolution = keras.layers.Conv2D(
            channels * pose_dim,
            kernel_size,
            strides,
            padding,
            kernel_initializer=kernel_initializer,
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.convolution.build(input_shape)

    def call(self, inputs):
        maps = self.convolution(inputs)  # [B, H', W', channels * pose_dim]
        capsules = self.compute_output_shape(inputs.shape)[1]
        if capsules is None:
            shape = (keras.ops.shape(maps)[0], -1, self.pose_dim)
        else:
            shape = (-1, capsules, self.pose_dim)
        return squash(keras.ops.reshape(maps, shape))

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = self.convolution.compute_output_shape(input_shape)
        capsules = None if None in (height, width) else height * width * self.channels
        return (batch, capsules, self.pose_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "pose_dim": self.pose_dim,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
