"""What layers share that connect every child capsule to every parent capsule."""

import keras

from tfinv.layers._checks import check_at_least_one


class FullyConnectedCapsules(keras.layers.Layer):
    """Transformation matrices [I, J, K, D] and an optional bias [I, J], from child poses to parent poses.

    A subclass defines `call`, in which `weights_and_bias` gives both.

    Args:
        num_capsules: Number of parent capsules, J.
        pose_dim: Components of a parent pose, D.
        use_bias: Whether to learn a bias, which starts at zero.
        kernel_initializer: Initializer of the matrices; None for a truncated normal of standard deviation
            0.1. (Keras's Glorot rule would take I and J for a receptive field.)
        kernel_regularizer: Regularizer of the matrices.
    """

    def __init__(
        self,
        num_capsules: int,
        pose_dim: int,
        use_bias: bool,
        kernel_initializer,
        kernel_regularizer,
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
        if len(input_shape) != 3 or None in input_shape[1:]:
            raise ValueError(
                f"{type(self).__name__} needs child poses [B, I, K], of known numbers I and K. "
                f"Received: input_shape={input_shape}"
            )
        _, children, child_dim = input_shape
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

    def weights_and_bias(self):
        """Returns the matrices and the bias, or None for it, as tensors."""
        bias = None if self.bias is None else keras.ops.convert_to_tensor(self.bias)
        return keras.ops.convert_to_tensor(self.kernel), bias

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
