"""Convolutional matrix capsules: EM routing within each patch of a map."""

import math

import keras
from keras import ops

from tfinv.layers._checks import check_at_least_one
from tfinv.layers._em_layer import EMLayer, capsule_sizes
from tfinv.layers._fused import MayRunFusedOp
from tfinv.ops import EmVariant, Implementation, em_routing


@keras.saving.register_keras_serializable(package="tfinv")
class ConvEMCapsules(MayRunFusedOp, EMLayer):
    """Routes the capsules of each patch to the parent capsules of its position, by EM.

    The transformation matrices are the same at every position. A child in several patches is shared out
    among the parents of each patch by itself; in the paper all its parents, at all positions, compete.

    Args:
        channels: Number of parent capsules at each position, J.
        kernel_size: Side of a patch.
        strides: Distance of two patches.
        num_iterations: Routing iterations, at least 1.
        variant: "hinton2018" or "article"; see `tfinv.ops.em_routing`. The latter has one beta_u a
            component of the pose, the former one a parent.
        final_inverse_temperature: Factor on the logit of a parent's activation.
        implementation: "auto", "reference" or "fused". Under TensorFlow a layer that runs the fused op, which
            has no XLA form, says so in `supports_jit`.
        kernel_initializer: Initializer of the transformation matrices [I, J, P, P]; None for a truncated
            normal of standard deviation 1.
        kernel_regularizer: Regularizer of the transformation matrices.

    Input shape:
        List of poses [B, H, W, C, P, P] and activations [B, H, W, C]; the children of a patch are
        I = kernel_size * kernel_size * C.

    Output shape:
        Poses [B, H', W', J, P, P] and activations [B, H', W', J], H' = (H - kernel_size) // strides + 1.

    Reference:
        Hinton et al. 2018, "Matrix capsules with EM routing", section 4.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        strides: int = 1,
        num_iterations: int = 2,
        variant: EmVariant = "hinton2018",
        final_inverse_temperature: float = 0.01,
        implementation: Implementation = "auto",
        kernel_initializer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(
            num_iterations,
            variant,
            final_inverse_temperature,
            implementation,
            kernel_initializer,
            kernel_regularizer,
            **kwargs,
        )
        check_at_least_one(channels=channels, kernel_size=kernel_size, strides=strides)
        self.channels = channels
        self.kernel_size = kernel_size
        self.strides = strides

    def build(self, input_shape):
        channels, pose_size = capsule_sizes(self, input_shape)
        self._map_size(input_shape[0])
        children = self.kernel_size * self.kernel_size * channels
        self.add_routing_weights(children, self.channels, pose_size, pose_size * pose_size)

    def call(self, inputs):
        poses, activations = inputs
        channels, size = poses.shape[3], poses.shape[4]
        children = self.kernel_size * self.kernel_size * channels
        height, width = self._map_size(ops.shape(poses))
        routed, active = em_routing(
            ops.reshape(self._patches(poses), (-1, children, size, size)),
            ops.reshape(self._patches(activations), (-1, children)),
            ops.convert_to_tensor(self.kernel),
            implementation=self.implementation,
            **self.routing_arguments(),
        )
        return (
            ops.reshape(routed, (-1, height, width, self.channels, size, size)),
            ops.reshape(active, (-1, height, width, self.channels)),
        )

    def _patches(self, maps):
        """Returns the patches [B, H' * W' * kernel_size^2, C * ...] of maps [B, H, W, C, ...]."""
        height, width = ops.shape(maps)[1:3]
        rows, columns = (
            ops.expand_dims(ops.arange(count) * self.strides, 1) + ops.arange(self.kernel_size)
            for count in self._map_size(ops.shape(maps))
        )  # [H', kernel_size], [W', kernel_size]
        places = ops.expand_dims(rows * width, (1, 3)) + ops.expand_dims(columns, (0, 2))
        # One read, and one sum of what was read in the gradient: slices take several times as long.
        flat = ops.reshape(maps, (-1, height * width, math.prod(maps.shape[3:])))
        return ops.take(flat, ops.reshape(places, (-1,)), axis=1)

    def _map_size(self, shape) -> list:
        sizes = [
            None if size is None else (size - self.kernel_size) // self.strides + 1 for size in shape[1:3]
        ]
        if any(type(size) is int and size < 1 for size in sizes):
            raise ValueError(
                f"ConvEMCapsules of kernel_size={self.kernel_size} needs maps of at least that size. "
                f"Received: poses.shape={tuple(shape)}"
            )
        return sizes

    def compute_output_shape(self, input_shape):
        poses = input_shape[0]
        positions = (poses[0], *self._map_size(poses))
        return (*positions, self.channels, *poses[4:]), (*positions, self.channels)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }
