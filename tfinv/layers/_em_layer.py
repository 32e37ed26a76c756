"""What the layers with EM routing share: its options, its weights and its inputs."""

import keras

from tfinv.ops._options import check_em_options, check_implementation


class EMLayer(keras.layers.Layer):
    """Options and weights of EM routing; the subclasses document them."""

    def __init__(
        self,
        num_iterations,
        variant,
        final_inverse_temperature,
        implementation,
        kernel_initializer,
        kernel_regularizer,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_implementation(implementation)
        check_em_options(num_iterations, variant, final_inverse_temperature)
        self.num_iterations = num_iterations
        self.variant = variant
        self.final_inverse_temperature = final_inverse_temperature
        self.implementation = implementation
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.TruncatedNormal(stddev=1.0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def add_routing_weights(self, children: int, parents: int, pose_size: int, components: int) -> None:
        """Adds the transformations [I, J, P, P] and the costs; `components` are those of a vote."""
        self.kernel = self.add_weight(
            shape=(children, parents, pose_size, pose_size),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        each = (parents, components) if self.variant == "article" else (parents,)
        # Costs are added up in float32 whatever the policy: beside -9, bfloat16 has steps of 1/16.
        self.beta_u = self.add_weight(shape=each, initializer="zeros", autocast=False, name="beta_u")
        self.beta_a = self.add_weight(shape=(parents,), initializer="zeros", autocast=False, name="beta_a")

    def routing_arguments(self) -> dict:
        """Keyword arguments of the routing that come from this layer."""
        return {
            "beta_u": keras.ops.convert_to_tensor(self.beta_u),
            "beta_a": keras.ops.convert_to_tensor(self.beta_a),
            "num_iterations": self.num_iterations,
            "variant": self.variant,
            "final_inverse_temperature": self.final_inverse_temperature,
        }

    def get_config(self):
        return {
            **super().get_config(),
            "num_iterations": self.num_iterations,
            "variant": self.variant,
            "final_inverse_temperature": self.final_inverse_temperature,
            "implementation": self.implementation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


def capsule_sizes(layer: keras.layers.Layer, input_shape) -> tuple[int, int]:
    """Returns channels and pose size of the inputs [poses, activations].

    Raises:
        ValueError: If the shapes are not those of a map of matrix capsules.
    """
    if (
        len(input_shape) != 2
        or [len(shape) for shape in input_shape] != [6, 4]
        or input_shape[0][4] != input_shape[0][5]
        or None in input_shape[0][3:]
        or input_shape[0][3] != input_shape[1][3]
    ):
        raise ValueError(
            f"{type(layer).__name__} expects poses [B, H, W, C, P, P] and activations [B, H, W, C], "
            f"C and P known. Received: input_shape={input_shape}"
        )
    return input_shape[0][3], input_shape[0][4]
