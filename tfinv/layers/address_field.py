"""A learned field of source addresses, controlled by a parameter."""

import itertools
import math

import keras
import numpy as np
from keras import ops

from tfinv.layers._bilinear import corners
from tfinv.layers._checks import check_at_least_one
from tfinv.layers._groups import group_size


@keras.saving.register_keras_serializable(package="tfinv")
class AddressField(keras.layers.Layer):
    """Reads each output cell from an address in the input map that a network computes from the parameter.

    The network is dense layers; without hidden ones each address is an affine function of the code. It starts
    with every cell reading itself, whatever the parameter. A cell is read as a mean of the four about the
    address with weights relu(1 - |dx|) relu(1 - |dy|), zero outside the map. These depend on the address
    through the nearest cells only, so start from addresses near the right ones, or fit blurred images first
    (`tfinv.imagination.learn_address_field`).

    Args:
        hidden_units: Widths of hidden dense layers (ReLU).
        period: Period of a scalar parameter, above 0, which is then coded as its cosine and sine; None takes
            the parameter, divided by `scale`, for the code.
        scale: What a parameter without period is divided by, above 0.
        output_size: Height and width of the output, at least 1; those of the input if not given.
        grid: Rows and columns, at least 2 each, of places spread evenly over the output at which the network
            gives addresses relative to the untrained ones; cells between follow their four neighbours
            bilinearly. A place for each cell if not given.

    Input shape:
        List of maps [N, H, W, C] and parameters [G] or [G, E], where G divides N: each parameter is that of
        N / G successive maps.

    Output shape:
        Maps [N, H', W', C].

    Raises:
        ValueError: If an argument is out of its range, the maps' size is unknown, the parameters are of
            another shape or, if periodic, more than one number each, or G does not divide N, where both are
            known.

    Reference:
        Potapov et al. 2018, "HyperNets and their application to learning spatial transformations"
        (arXiv 1807.09226), and its authors' address variant.
    """

    def __init__(
        self,
        hidden_units: tuple[int, ...] = (),
        period: float | None = None,
        scale: float = 1.0,
        output_size: tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
        **kwargs,
    ):
        # Half precision would misplace the addresses.
        super().__init__(**{"autocast": False, **kwargs})
        for units in hidden_units:
            check_at_least_one(hidden_units=units)
        for name, value in (("period", period), ("scale", scale)):
            if value is not None and not value > 0:
                raise ValueError(
                    f"Invalid value for argument {name}. Expected more than 0. Received: {name}={value}"
                )
        self.hidden_units = tuple(hidden_units)
        self.period = period
        self.scale = scale
        self.output_size = None if output_size is None else tuple(output_size)
        if self.output_size is not None and (len(self.output_size) != 2 or min(self.output_size) < 1):
            raise ValueError(
                "Invalid value for argument output_size. Expected two numbers of at least 1. "
                f"Received: output_size={output_size}"
            )
        self.grid = None if grid is None else tuple(grid)
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 2):
            raise ValueError(
                f"Invalid value for argument grid. Expected two numbers of at least 2. Received: grid={grid}"
            )

    def build(self, input_shape):
        maps, parameters = input_shape
        if None in maps[1:3]:
            raise ValueError(f"AddressField needs maps of known size. Received: input_shape={input_shape}")
        if len(parameters) > 2 or (self.period is not None and math.prod(parameters[1:]) != 1):
            raise ValueError(
                "AddressField needs parameters of shape [G] or [G, E], and one number each if periodic. "
                f"Received: input_shape={input_shape}"
            )
        height, width = self.grid or self.output_size or maps[1:3]
        sizes = (2 if self.period else math.prod(parameters[1:]), *self.hidden_units, height * width * 2)
        self.layer_weights = [
            (
                self.add_weight(
                    shape=(size, units),
                    initializer="zeros" if number == len(sizes) - 2 else "glorot_uniform",
                    autocast=False,
                    name=f"kernel_{number}",
                ),
                self.add_weight(shape=(units,), initializer="zeros", autocast=False, name=f"bias_{number}"),
            )
            for number, (size, units) in enumerate(itertools.pairwise(sizes))
        ]

    def codes(self, parameters):
        """Returns what the network sees of parameters [G] or [G, E]: [G, E], float32."""
        parameters = ops.cast(parameters, "float32")
        if self.period is None:
            return ops.reshape(parameters / self.scale, (-1, self.layer_weights[0][0].shape[0]))
        turns = ops.reshape(parameters, (-1,)) * (2.0 * math.pi / self.period)
        return ops.stack([ops.cos(turns), ops.sin(turns)], axis=-1)

    def addresses(self, parameters, input_size: tuple[int, int]):
        """Returns the row and column, in input cells, that each output cell is read from.

        Args:
            parameters: [G] or [G, E].
            input_size: Height and width of the input.

        Returns:
            [G, H' * W', 2], float32.
        """
        values = self.codes(parameters)
        for number, (kernel, bias) in enumerate(self.layer_weights):
            values = ops.relu(values) if number else values
            values = ops.matmul(values, ops.convert_to_tensor(kernel)) + ops.convert_to_tensor(bias)
        offsets = ops.reshape(values, (-1, values.shape[-1] // 2, 2))
        if self.grid is not None:
            sides = zip(self.output_size or input_size, self.grid, strict=True)
            shares = np.kron(*(_shares(cells, places) for cells, places in sides))
            offsets = ops.matmul(ops.convert_to_tensor(shares), offsets)
        return offsets + ops.convert_to_tensor(self.initial_addresses(input_size), "float32")

    def initial_addresses(self, input_size: tuple[int, int]) -> list[tuple[float, float]]:
        """Returns what each output cell [H' * W'] reads untrained: the input cell at its own place."""
        rows, columns = (
            [(place + 0.5) * cells / count - 0.5 for place in range(count)]
            for cells, count in zip(input_size, self.output_size or input_size, strict=True)
        )
        return [(row, column) for row in rows for column in columns]

    def call(self, inputs):
        maps, parameters = inputs
        _, height, width, channels = maps.shape
        addresses = self.addresses(parameters, (height, width))
        groups, cells = ops.shape(addresses)[0], addresses.shape[1]
        rows = ops.reshape(ops.cast(maps, self.compute_dtype), (-1, channels))  # of all cells of all images
        first = ops.arange(ops.shape(maps)[0]) * (height * width)  # of each image
        first = ops.reshape(first, (groups, group_size(maps, parameters), 1))
        read = 0.0
        for index, weights in corners(addresses[..., 0], addresses[..., 1], height, width):
            index = first + ops.reshape(index, (groups, 1, cells))
            weights = ops.reshape(ops.cast(weights, self.compute_dtype), (groups, 1, cells, 1))
            read += ops.take(rows, index, axis=0) * weights
        return ops.reshape(read, (-1, *(self.output_size or (height, width)), channels))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape[0]
        return (batch, *(self.output_size or (height, width)), channels)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "period": self.period,
            "scale": self.scale,
            "output_size": self.output_size,
            "grid": self.grid,
        }


def _shares(cells: int, places: int) -> np.ndarray:
    """Share [cells, places] of each of the places along a side in each of its cells."""
    at = np.linspace(0.0, places - 1.0, cells)
    distances = np.abs(at[:, np.newaxis] - np.arange(places))
    return np.maximum(0.0, 1.0 - distances).astype(np.float32)
