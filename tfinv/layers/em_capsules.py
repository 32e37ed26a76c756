"""Class capsules: EM routing of a whole map of matrix capsules, with coordinate addition."""

import keras
import numpy as np
from keras import ops

from tfinv.layers._checks import check_at_least_one
from tfinv.layers._em_layer import EMLayer, capsule_sizes
from tfinv.ops import EmVariant, Implementation, em_routing_from_votes


@keras.saving.register_keras_serializable(package="tfinv")
class EMCapsules(EMLayer):
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
        implementation: "auto", "reference" or "fused", the same choice as for other layers. The coordinates
            change the votes, which the fused op never forms: this layer runs the reference in any case.
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

    def call(self, inputs):
        poses, activations = inputs
        _, height, width, channels, size, _ = ops.shape(poses)
        components = self._components(size)
        # Positions as one axis: LiteRT transposes no seven axes.
        flat = ops.reshape(poses, (-1, channels, size, size))
        votes = ops.einsum("bcpq,cjqr->bcjpr", flat, ops.convert_to_tensor(self.kernel))
        votes = ops.reshape(votes, (-1, height * width, channels, self.num_capsules, size * size))
        votes = ops.pad(votes, [(0, 0)] * 4 + [(0, components - size * size)])
        places = self._places(height, width, size, components)  # [H * W, components]
        votes = votes + ops.expand_dims(ops.cast(places, votes.dtype), (1, 2))
        if self.variant == "article":
            routed, active = em_routing_from_votes(
                ops.reshape(votes, (-1, channels, self.num_capsules, components)),
                ops.reshape(activations, (-1, channels)),
                implementation="reference",
                **self.routing_arguments(),
            )
            routed = ops.reshape(routed, (-1, height * width, self.num_capsules, components))
            active = ops.reshape(active, (-1, height * width, self.num_capsules))
            return ops.mean(routed, axis=1), ops.mean(active, axis=1)
        children = height * width * channels
        return em_routing_from_votes(
            ops.reshape(votes, (-1, children, self.num_capsules, components)),
            ops.reshape(activations, (-1, children)),
            implementation="reference",
            **self.routing_arguments(),
        )

    def _places(self, height, width, size: int, components: int):
        """What to add to the votes of each position: its row and column, and zeros."""
        where = (size * size, size * size + 1) if self.variant == "article" else (size - 1, 2 * size - 1)
        row_unit, column_unit = np.eye(components, dtype="float32")[list(where)]
        rows, columns = (
            (ops.cast(ops.arange(count), "float32") + 0.5) / ops.cast(count, "float32")
            for count in (height, width)
        )
        places = ops.reshape(rows, (-1, 1, 1)) * row_unit + ops.reshape(columns, (1, -1, 1)) * column_unit
        return ops.reshape(places, (-1, components))

    def _components(self, pose_size: int) -> int:
        return pose_size * pose_size + (2 if self.variant == "article" else 0)

    def compute_output_shape(self, input_shape):
        batch, pose_size = input_shape[0][0], input_shape[0][4]
        return (batch, self.num_capsules, self._components(pose_size)), (batch, self.num_capsules)

    def get_config(self):
        return {**super().get_config(), "num_capsules": self.num_capsules}
