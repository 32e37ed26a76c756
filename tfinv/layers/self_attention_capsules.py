"""The fully connected capsule layer with self-attention routing."""

import keras

from tfinv.layers._fully_connected_capsules import FullyConnectedCapsules
from tfinv.ops import self_attention_routing


@keras.saving.register_keras_serializable(package="tfinv")
class SelfAttentionCapsules(FullyConnectedCapsules):
    """Routes every child capsule to every parent capsule by the attention among the votes, in one pass.

    Args:
        num_capsules: Number of parent capsules, J.
        pose_dim: Components of a parent pose, D.
        use_bias: Whether to learn what is added to the coupling [I, J], the log priors (zeros otherwise).
        kernel_initializer: Initializer of the transformation matrices [I, J, K, D]; None for a truncated
            normal of standard deviation 0.1, as in `RoutingCapsules`.
        kernel_regularizer: Regularizer of the transformation matrices.

    Input shape:
        Child poses [B, I, K].

    Output shape:
        Parent poses [B, J, D], each of a length in [0, 1).

    Reference:
        Mazzia et al. 2021, "Efficient-CapsNet: Capsule Network with Self-Attention Routing".
    """

    def __init__(
        self,
        num_capsules: int,
        pose_dim: int,
        use_bias: bool = True,
        kernel_initializer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(num_capsules, pose_dim, use_bias, kernel_initializer, kernel_regularizer, **kwargs)

    def call(self, inputs):
        return self_attention_routing(inputs, *self.weights_and_bias())
