"""A dense layer whose weights are computed from a code."""

import itertools
import math

import keras
from keras import ops

from tfinv.layers._checks import check_at_least_one
from tfinv.layers._groups import group_size


@keras.saving.register_keras_serializable(package="tfinv")
class ControlledDense(keras.layers.Layer):
    """Applies a dense layer whose kernel, and bias, a control network makes from a code.

    The control network is dense layers; without hidden ones the kernel is an affine function of the code. Its
    last layer starts at zero, so that all codes start with the kernel that `kernel_initializer` makes, and
    depend on the code from the first step on.

    The kernel is made once a code, [G, I, U] for G codes, I inputs and U units, and applied to the N / G
    samples of that code in one batched product. With H units in the last hidden layer (the components of the
    code if there is none) and R rows a sample, forward costs about 2 I U (H G / N + R) operations a sample.
    Where the code is shared by many samples, pass it once.

    Kernels are computed in float32 at least, under any policy; the product is of the policy's precision.

    Args:
        units: Components of the output, U.
        hidden_units: Widths of the control network's hidden layers (ReLU).
        softmax: Whether the weights of each unit are made positive, with sum one over the inputs, by a
            softmax; then `kernel_initializer` makes their logits, divided by the square root of I, and
            "zeros" starts with means.
        use_bias: Whether to add a bias, which depends on the code like the kernel and starts at zero.
        kernel_initializer: Initializer of the kernel [I, U] that all codes start with.

    Input shape:
        List of values [N, ..., I] and codes [G, E], where G divides N: each code is that of N / G successive
        samples.

    Output shape:
        Values [N, ..., U].

    Raises:
        ValueError: If units or hidden_units are below 1, or G does not divide N, where both are known.

    Reference:
        Potapov et al. 2018, "HyperNets and their application to learning spatial transformations"
        (arXiv 1807.09226).
    """

    def __init__(
        self,
        units: int,
        hidden_units: tuple[int, ...] = (),
        softmax: bool = False,
        use_bias: bool = False,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        # Half precision would round codes and logits.
        super().__init__(**{"autocast": False, **kwargs})
        for count in hidden_units:
            check_at_least_one(hidden_units=count)
        check_at_least_one(units=units)
        self.units = units
        self.hidden_units = tuple(hidden_units)
        self.softmax = softmax
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        values, codes = input_shape
        if len(values) < 2 or len(codes) != 2 or None in (*values[1:], codes[1]):
            raise ValueError(
                "ControlledDense needs values [N, ..., I] and codes [G, E] of known size. "
                f"Received: input_shape={input_shape}"
            )
        sizes = (codes[1], *self.hidden_units)
        self.hidden_weights = [
            (
                self._add((size, units), "glorot_uniform", f"hidden_kernel_{number}"),
                self._add((units,), "zeros", f"hidden_bias_{number}"),
            )
            for number, (size, units) in enumerate(itertools.pairwise(sizes))
        ]
        shape = (values[-1], self.units)
        self.kernel = self._add(shape, self.kernel_initializer, "kernel")
        self.control_kernel = self._add((sizes[-1], shape[0] * shape[1]), "zeros", "control_kernel")
        if self.use_bias:
            self.bias = self._add((self.units,), "zeros", "bias")
            self.control_bias = self._add((sizes[-1], self.units), "zeros", "control_bias")

    def _add(self, shape, initializer, name: str):
        return self.add_weight(shape=shape, initializer=initializer, autocast=False, name=name)

    def call(self, inputs):
        values, codes = inputs
        control = self._control(codes)  # [G, H]
        # Without a -1, whose size nothing tells where there are no samples.
        shape = (
            ops.shape(codes)[0],
            group_size(values, codes) * math.prod(values.shape[1:-1]),
            values.shape[-1],
        )
        rows = ops.reshape(ops.cast(values, self.compute_dtype), shape)
        rows = ops.matmul(rows, ops.cast(self._kernels(control), self.compute_dtype))
        if self.use_bias:
            bias = ops.matmul(control, self._read(self.control_bias)) + self._read(self.bias)
            rows += ops.cast(ops.expand_dims(bias, 1), self.compute_dtype)
        return ops.reshape(rows, (-1, *values.shape[1:-1], self.units))

    def kernels(self, codes):
        """Returns the kernels [G, I, U] of codes [G, E], float32 at least."""
        return self._kernels(self._control(codes))

    def _control(self, codes):
        """The last hidden layer [G, H], or the codes if there is none."""
        control = ops.cast(codes, self._control_dtype)
        for kernel, bias in self.hidden_weights:
            control = ops.relu(ops.matmul(control, self._read(kernel)) + self._read(bias))
        return control

    def _kernels(self, control):
        kernels = ops.matmul(control, self._read(self.control_kernel))
        kernels = ops.reshape(kernels, (-1, *self.kernel.shape)) + self._read(self.kernel)
        if not self.softmax:
            return kernels
        # Of means over many inputs, the gradients by the logits vanish before the optimizer's epsilon.
        return ops.softmax(kernels * math.sqrt(self.kernel.shape[0]), axis=1)

    @property
    def _control_dtype(self) -> str:
        # Keras's result_type of float64 and float32 is float32.
        return "float64" if self.variable_dtype == "float64" else "float32"

    def _read(self, weight):
        return ops.cast(ops.convert_to_tensor(weight), self._control_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "hidden_units": self.hidden_units,
            "softmax": self.softmax,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
