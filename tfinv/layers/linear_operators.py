"""Learned linear pixel-to-pixel operators, one a step of a parameter."""

import math
from typing import Literal

import keras
from keras import ops

from tfinv.layers._checks import check_at_least_one
from tfinv.layers._groups import group_size

Interpolation = Literal["nearest", "linear"]


@keras.saving.register_keras_serializable(package="tfinv")
class LinearOperators(keras.layers.Layer):
    """Renders images under a parameter by the linear operator of the nearest step, or of the two about it.

    The operators know nothing of the transformation: they start as identities and are fitted, by gradients or
    in closed form (`tfinv.imagination.learn_operators`). All channels share them.

    The operator of each parameter is gathered, [G, P, P] for G parameters and P pixels. Where samples share a
    parameter, sort them by it and pass it once for the whole group.

    Args:
        num_steps: Number of operators, S.
        low: Parameter of the first step.
        high: Parameter of the last step; of a periodic parameter, where the first step comes again.
        periodic: Whether the parameter repeats itself after `high - low`. Else, parameters outside
            low..high are taken for the nearer end.
        interpolation: "nearest" takes the nearest step; "linear" the mean of the two steps about the
            parameter, weighted by nearness.

    Input shape:
        List of images [N, H, W, C] and parameters [G], where G divides N: each parameter is that of N / G
        successive images.

    Output shape:
        Images [N, H, W, C].

    Raises:
        ValueError: If an argument is out of its range, the inputs have other shapes or an unknown size, or G
            does not divide N, where both are known.

    Reference:
        Potapov et al. 2018, "HyperNets and their application to learning spatial transformations"
        (arXiv 1807.09226): there, a network controls one pixel-to-pixel matrix; here, each step has its own.
    """

    def __init__(
        self,
        num_steps: int,
        low: float = 0.0,
        high: float = 360.0,
        periodic: bool = True,
        interpolation: Interpolation = "nearest",
        **kwargs,
    ):
        # Half precision would round the parameters to the wrong step.
        super().__init__(**{"autocast": False, **kwargs})
        check_at_least_one(num_steps=num_steps)
        if not low < high:
            raise ValueError(
                f"Invalid value for argument high. Expected more than low={low}. Received: high={high}"
            )
        if interpolation not in ("nearest", "linear"):
            raise ValueError(
                "Invalid value for argument interpolation. Expected one of nearest, linear. "
                f"Received: interpolation={interpolation}"
            )
        self.num_steps = num_steps
        self.low = low
        self.high = high
        self.periodic = periodic
        self.interpolation = interpolation

    @property
    def step_size(self) -> float:
        """Distance of two steps, in the unit of the parameter."""
        return (self.high - self.low) / max(self.num_steps - (not self.periodic), 1)

    def build(self, input_shape):
        images, parameters = input_shape
        size = images[1:3]
        if len(images) != 4 or len(parameters) != 1 or None in size:
            raise ValueError(
                "LinearOperators needs images [N, H, W, C] of known size and parameters [G]. "
                f"Received: input_shape={input_shape}"
            )
        pixels = math.prod(size)
        self.kernel = self.add_weight(
            shape=(self.num_steps, pixels, pixels),  # [S, input pixel, output pixel]
            # Repeated, not broadcast: PyTorch would let all operators share one memory.
            initializer=lambda shape, dtype=None: ops.tile(ops.eye(pixels, dtype=dtype), (shape[0], 1, 1)),
            name="kernel",
        )

    def call(self, inputs):
        images, parameters = inputs
        _, height, width, channels = images.shape
        rows = ops.transpose(ops.cast(images, self.compute_dtype), (0, 3, 1, 2))
        shared = group_size(images, parameters) * channels
        rows = ops.reshape(rows, (ops.shape(parameters)[0], shared, height * width))  # [G, N / G * C, P]
        rows = ops.matmul(rows, self._operators(parameters))
        return ops.transpose(ops.reshape(rows, (-1, channels, height, width)), (0, 2, 3, 1))

    def _operators(self, parameters):
        """The operator of each parameter [G, P, P]."""
        kernel = ops.cast(ops.convert_to_tensor(self.kernel), self.compute_dtype)
        places = (ops.cast(parameters, "float32") - self.low) / self.step_size
        if self.interpolation == "nearest":
            return ops.take(kernel, self._index(ops.round(places)), axis=0)
        lower = ops.floor(places)
        weights = ops.cast(ops.reshape(places - lower, (-1, 1, 1)), kernel.dtype)
        first, second = (ops.take(kernel, self._index(lower + offset), axis=0) for offset in (0, 1))
        return (1.0 - weights) * first + weights * second

    def _index(self, places):
        """Numbers of existing steps for whole `places`."""
        last = self.num_steps - 1
        places = ops.mod(places, self.num_steps) if self.periodic else ops.clip(places, 0, last)
        return ops.cast(places, "int32")

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {
            **super().get_config(),
            "num_steps": self.num_steps,
            "low": self.low,
            "high": self.high,
            "periodic": self.periodic,
            "interpolation": self.interpolation,
        }
