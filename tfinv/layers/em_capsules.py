"""Class capsules: EM routing of a whole map of matrix capsules, with coordinate addition."""

import math

import keras
import numpy as np
from keras import ops

from tfinv.layers._checks import check_at_least_one
from tfinv.layers._em_layer import EMLayer, capsule_sizes
from tfinv.layers._fused import MayRunFusedOp
from tfinv.ops import EmVariant, Implementation, em_routing, em_routing_from_votes
from tfinv.ops.em_reference import VARIANCE_FLOOR


@keras.saving.register_keras_serializable(package="tfinv")
class EMCapsules(MayRunFusedOp, EMLayer):
    """Routes all capsules of a map to one set of parent capsules, by EM.

    The transformation matrices are the same at every position; what position a vote comes from is told by
    its row and column, scaled to 0..1 (the centre of the first of n rows is 0.5 / n).

    Args:
        num_capsules: Number of parent capsules, J.
        num_iterations: Routing iterations, at least 1.
        variant: "hinton2018" adds row and column to the first two elements of the vote's last column and
            routes the votes of all positions together. "article" appends them to the vote, routes those of
            each position by themselves and averages poses and activations over the positions. See also
            `tfinv.ops.em_routing`.
        final_inverse_temperature: Factor on the logit of a parent's activation.
        implementation: "auto", "reference" or "fused". In the variant "hinton2018" the coordinates change the
            votes, which the fused op never forms: it runs the reference in any case.
        kernel_initializer: Initializer of the transformation matrices [C, J, P, P]; None for a truncated
            normal of standard deviation 1.
        kernel_regularizer: Regularizer of the transformation matrices.

    Input shape:
        List of poses [B, H, W, C, P, P] and activations [B, H, W, C].

    Output shape:
        Flattened poses [B, J, P * P], or [B, J, P * P + 2] in the variant "article", and activations [B, J].

    Reference:
        Hinton et al. 2018, "Matrix capsules with EM routing", section 4.
    """

    def __init__(
        self,
        num_capsules: int,
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
        check_at_least_one(num_capsules=num_capsules)
        self.num_capsules = num_capsules

    def build(self, input_shape):
        channels, pose_size = capsule_sizes(self, input_shape)
        if self.variant == "hinton2018" and pose_size < 2:
            raise ValueError(
                "EMCapsules adds two coordinates to a column of the pose matrix: P must be at least 2. "
                f"Received: input_shape={input_shape}"
            )
        self.add_routing_weights(channels, self.num_capsules, pose_size, self._components(pose_size))

    def runs_fused_op(self) -> bool:
        """Returns whether the layer runs the fused op of the backend."""
        return self.variant == "article" and super().runs_fused_op()

    def call(self, inputs):
        return self._route_positions(*inputs) if self.variant == "article" else self._route_map(*inputs)

    def _route_positions(self, poses, activations):
        """Routes each position by itself and averages, without forming the coordinates.

        All votes of a position have the same two: the variance of these is the floor and nothing is far from
        their mean. So they only add its logarithm and their beta_u to what a parent pays for each unit of its
        children, and average to a half over the map.
        """
        _, height, width, channels, size, _ = ops.shape(poses)
        weights = self.routing_arguments()
        cost = ops.sum(weights["beta_u"], axis=-1) + math.log(VARIANCE_FLOOR)  # of all components
        routed, active = em_routing(
            ops.reshape(poses, (-1, channels, size, size)),
            ops.reshape(activations, (-1, channels)),
            ops.convert_to_tensor(self.kernel),
            implementation=self.implementation,
            **weights | {"beta_u": cost / (size * size)},
        )
        routed = ops.mean(ops.reshape(routed, (-1, height * width, self.num_capsules, size * size)), axis=1)
        active = ops.mean(ops.reshape(active, (-1, height * width, self.num_capsules)), axis=1)
        half = ops.expand_dims(ops.full_like(active, 0.5), -1)
        return ops.concatenate([routed, half, half], axis=-1), active

    def _route_map(self, poses, activations):
        """Routes all positions together, their coordinates added to the votes."""
        _, height, width, channels, size, _ = ops.shape(poses)
        # Positions as one axis: LiteRT transposes no seven axes.
        flat = ops.reshape(poses, (-1, channels, size, size))
        votes = ops.einsum("bcpq,cjqr->bcjpr", flat, ops.convert_to_tensor(self.kernel))
        votes = ops.reshape(votes, (-1, height * width, channels, self.num_capsules, size * size))
        places = self._places(height, width, size)  # [H * W, P * P]
        votes = votes + ops.expand_dims(ops.cast(places, votes.dtype), (1, 2))
        children = height * width * channels
        return em_routing_from_votes(
            ops.reshape(votes, (-1, children, self.num_capsules, size * size)),
            ops.reshape(activations, (-1, children)),
            implementation="reference",
            **self.routing_arguments(),
        )

    def _places(self, height, width, size: int):
        """What to add to the votes of each position: its row and column, and zeros."""
        row_unit, column_unit = np.eye(size * size, dtype="float32")[[size - 1, 2 * size - 1]]
        rows, columns = (
            (ops.cast(ops.arange(count), "float32") + 0.5) / ops.cast(count, "float32")
            for count in (height, width)
        )
        places = ops.reshape(rows, (-1, 1, 1)) * row_unit + ops.reshape(columns, (1, -1, 1)) * column_unit
        return ops.reshape(places, (-1, size * size))

    def _components(self, pose_size: int) -> int:
        return pose_size * pose_size + (2 if self.variant == "article" else 0)

    def compute_output_shape(self, input_shape):
        batch, pose_size = input_shape[0][0], input_shape[0][4]
        return (batch, self.num_capsules, self._components(pose_size)), (batch, self.num_capsules)

    def get_config(self):
        return {**super().get_config(), "num_capsules": self.num_capsules}
