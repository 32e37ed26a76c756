"""The fully connected capsule layer with self-attention routing."""

import keras

from tfinv.layers._checks import check_at_least_one
from tfinv.ops import self_attention_routing


@keras.saving.register_keras_serializable(package="tfinv")
class SelfAttentionCapsules(keras.layers.Layer):
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
        super().__init__(**kwargs)
        check_at_least_one(num_capsules=num_capsules, pose_dim=pose_dim)
        self.num_capsules = num_capsules
        self.pose_dim = pose_dim
        self.use_bias = use_bias
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.TruncatedNormal(stddev=0.1)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        _, children, child_dim = input_shape
        if children is None or child_dim is None:
            raise ValueError(
                "SelfAttentionCapsules needs a known number of child capsules and child pose components. "
                f"Received: input_shape={input_shape}"
            )
        self.kernel = self.add_weight(
            shape=(children, self.num_capsules, child_dim, self.pose_dim),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        self.bias = (
            self.add_weight(shape=(children, self.num_capsules), initializer="zeros", name="bias")
            if self.use_bias
            else None
        )

    def call(self, inputs):
        return self_attention_routing(
            inputs,
            keras.ops.convert_to_tensor(self.kernel),
            None if self.bias is None else keras.ops.convert_to_tensor(self.bias),
        )

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_capsules, self.pose_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "num_capsules": self.num_capsules,
            "pose_dim": self.pose_dim,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
