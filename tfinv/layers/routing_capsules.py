"""The fully connected capsule layer with dynamic routing."""

import keras

from tfinv.layers._fully_connected_capsules import FullyConnectedCapsules
from tfinv.layers._fused import MayRunFusedOp
from tfinv.ops import Implementation, dynamic_routing
from tfinv.ops._options import check_implementation, check_iterations


@keras.saving.register_keras_serializable(package="tfinv")
class RoutingCapsules(MayRunFusedOp, FullyConnectedCapsules):
    """Routes every child capsule to every parent capsule by agreement.

    Args:
        num_capsules: Number of parent capsules, J.
        pose_dim: Components of a parent pose, D.
        num_iterations: Routing iterations, at least 1.
        use_bias: Whether to learn the initial routing logits [I, J] (zeros otherwise).
        implementation: "auto", "reference" or "fused". Under TensorFlow the fused op has no XLA form: a layer
            that runs it says so in `supports_jit`, and Keras compiles the model without XLA.
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
        super().__init__(num_capsules, pose_dim, use_bias, kernel_initializer, kernel_regularizer, **kwargs)
        check_iterations(num_iterations)
        check_implementation(implementation)
        self.num_iterations = num_iterations
        self.implementation = implementation

    def call(self, inputs):
        weights, bias = self.weights_and_bias()
        return dynamic_routing(inputs, weights, self.num_iterations, bias, self.implementation)

    def get_config(self):
        return {
            **super().get_config(),
            "num_iterations": self.num_iterations,
            "implementation": self.implementation,
        }
