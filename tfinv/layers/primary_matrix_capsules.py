"""The convolution that turns feature maps into the first matrix capsules."""

import keras
from keras import ops

from tfinv.layers._checks import check_at_least_one


@keras.saving.register_keras_serializable(package="tfinv")
class PrimaryMatrixCapsules(keras.layers.Layer):
    """Convolves feature maps into capsules with a pose matrix and an activation each.

    Args:
        channels: Number of capsules at each position.
        pose_size: Edge of the square pose matrices, P.
        kernel_size: Side of the convolution kernel.
        strides: Stride of the convolution.
        padding: "valid" or "same".
        kernel_initializer: Initializer of the kernel.
        kernel_regularizer: Regularizer of the kernel.

    Input shape:
        Feature maps [B, H, W, C].

    Output shape:
        Poses [B, H', W', channels, P, P] and activations [B, H', W', channels] in [0, 1].

    Reference:
        Hinton et al. 2018, "Matrix capsules with EM routing", section 4.
    """

    def __init__(
        self,
        channels: int = 32,
        pose_size: int = 4,
        kernel_size: int = 1,
        strides: int = 1,
        padding: str = "valid",
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_at_least_one(channels=channels, pose_size=pose_size)
        self.channels = channels
        self.pose_size = pose_size
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.convolution = keras.layers.Conv2D(
            channels * (pose_size * pose_size + 1),
            kernel_size,
            strides,
            padding,
            kernel_initializer=kernel_initializer,
            kernel_regularizer=kernel_regularizer,
            dtype=self.dtype_policy,
            name="convolution",
        )

    def build(self, input_shape):
        self.convolution.build(input_shape)

    def call(self, inputs):
        maps = self.convolution(inputs)
        positions = ops.shape(maps)[:3]
        components = self.channels * self.pose_size * self.pose_size
        poses, logits = ops.split(maps, [components], axis=-1)  # whose gradient is one concatenation
        poses = ops.reshape(poses, (*positions, self.channels, self.pose_size, self.pose_size))
        return poses, ops.sigmoid(logits)

    def compute_output_shape(self, input_shape):
        positions = self.convolution.compute_output_shape(input_shape)[:3]
        return (*positions, self.channels, self.pose_size, self.pose_size), (*positions, self.channels)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "pose_size": self.pose_size,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
