"""The fully connected capsule layer with dynamic routing."""

import keras

from tfinv.layers._checks import check_at_least_one
from tfinv.ops import Implementation, dynamic_routing, runs_fused


@keras.saving.register_keras_serializable(package="tfinv")
class RoutingCapsules(keras.layers.Layer):
    """Routes every child capsule to every parent capsule by agreement.

    Args:
        num_capsules: Number of parent capsules, J.
        pose_dim: Components of a parent pose, D.
        num_iterations: Routing iterations, at least 1.
        use_bias: Whether to learn the initial routing logits [I, J] (zeros otherwise).
        implementation: "auto", "reference" or "fused". Under TensorFlow the fused op has no XLA form: a layer
            that runs it sets `supports_jit` to False when it is built, and Keras compiles the model
            without XLA.
        kernel_initializer: Initializer of the transformation matrices [I, J, K, D]; None for a truncated
            normal of standard deviation 0.1. (Keras's Glorot rule would take I and J for a receptive
            field; the article's class capsules then start about 900 times shorter.)
        kernel_regularizer: Regularizer of the transformation matrices.

    Input shape:
        Child poses [B, I, K].

    Output shape:
        Parent poses [B, J, D], each of a length in [0, 1).

    Reference:
        Sabour et al. 2017, "Dynamic Routing Between Capsules", procedure 1.
    """

    def __init__(
        self,
        num_capsules: int,
        pose_dim: int,
        num_iterations: int = 3,
        use_bias: bool = False,
        implementation: Implementation = "auto",
        kernel_initializer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_at_least_one(num_capsules=num_capsules, pose_dim=pose_dim, num_iterations=num_iterations)
        self.num_capsules = num_capsules
        self.pose_dim = pose_dim
        self.num_iterations = num_iterations
        self.use_bias = use_bias
        self.implementation = implementation
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.TruncatedNormal(stddev=0.1)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        if keras.backend.backend() == "tensorflow" and runs_fused(self.implementation, self.compute_dtype):
            self.supports_jit = False
        _, children, child_dim = input_shape
        if children is None or child_dim is None:
            raise ValueError(
                "RoutingCapsules needs a known number of child capsules and child pose components. "
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
        return dynamic_routing(
            inputs,
            keras.ops.convert_to_tensor(self.kernel),
            self.num_iterations,
            None if self.bias is None else keras.ops.convert_to_tensor(self.bias),
            self.implementation,
        )

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_capsules, self.pose_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "num_capsules": self.num_capsules,
            "pose_dim": self.pose_dim,
            "num_iterations": self.num_iterations,
            "use_bias": self.use_bias,
            "implementation": self.implementation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
