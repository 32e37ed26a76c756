"""Convolutions that are equivariant to rotations: each filter is applied in several orientations."""

import math

import keras
import numpy as np
from keras import ops

from tfinv.layers._checks import check_at_least_one

NUM_ROTATIONS = (1, 2, 4, 8)


@keras.saving.register_keras_serializable(package="tfinv")
class GroupConv2D(keras.layers.Layer):
    """Convolves images, or maps of such a layer, with each filter turned to R equidistant orientations.

    Orientation r is the answer to the filter turned by r * 360 / R degrees counter-clockwise. Turning the
    input by that angle therefore turns the maps and rolls them by r along the orientation axis. This is exact
    for multiples of 90 degrees, which move the weights of a filter. For 45 degrees weights are interpolated
    bilinearly, and with R = 8 the filters are confined to the disc in their square.

    It is exact only if the filter is applied at places symmetric about the centre. With padding "valid" the
    size of the map less the kernel's must be a multiple of the stride. With "same" the map must be padded
    equally on both sides: at stride 1 that takes an odd kernel, at stride 2 an even kernel on maps of even
    size and an odd one on maps of odd size.

    What follows must treat all orientations alike: activations do, and so does
    `keras.layers.BatchNormalization()`, which normalises each channel (the last axis) over all other axes.
    `GroupPooling` makes the maps invariant to the orientation.

    Args:
        filters: Channels of each orientation, F.
        kernel_size: Side of the square filters.
        strides: Stride of the convolution.
        padding: "valid" or "same".
        num_rotations: Orientations, R: 8 (C8), 4 (C4), 2, or 1 for a plain convolution.
        use_bias: Whether to add a bias, one for all orientations of a channel.
        kernel_initializer: Initializer of the filters at orientation 0.
        kernel_regularizer: Regularizer of the filters at orientation 0.

    Input shape:
        Images [N, H, W, C], which are lifted to orientations, or maps [N, H, W, R, C].

    Output shape:
        Maps [N, H', W', R, F].

    Reference:
        Cohen and Welling 2016, "Group Equivariant Convolutional Networks", equations 10 and 11, for C4; the
        interpolated filters in a disc are one of those compared in Weiler and Cesa 2019, "General
        E(2)-Equivariant Steerable CNNs".
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        padding: str = "valid",
        num_rotations: int = 8,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_at_least_one(filters=filters, kernel_size=kernel_size, strides=strides)
        if padding not in ("valid", "same"):
            raise ValueError(
                f'Invalid value for argument padding. Expected "valid" or "same". Received: padding={padding}'
            )
        if num_rotations not in NUM_ROTATIONS:
            raise ValueError(
                f"Invalid value for argument num_rotations. Expected one of {NUM_ROTATIONS}. "
                f"Received: num_rotations={num_rotations}"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.num_rotations = num_rotations
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        self._map_size(input_shape)
        # Images have, so to say, one orientation.
        orientations = input_shape[3] if len(input_shape) == 5 else 1
        self.kernel = self.add_weight(
            (self.kernel_size, self.kernel_size, orientations, input_shape[-1], self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        if self.use_bias:
            self.bias = self.add_weight((self.filters,), initializer="zeros", name="bias")

    def call(self, inputs):
        if len(inputs.shape) == 5:
            orientations, channels = inputs.shape[3:]
            inputs = ops.reshape(inputs, (*ops.shape(inputs)[:3], orientations * channels))
        bank = filter_bank(ops.convert_to_tensor(self.kernel), self.num_rotations)
        maps = self._convolve(inputs, bank)
        maps = ops.reshape(maps, (*ops.shape(maps)[:3], self.num_rotations, self.filters))
        return maps + self.bias if self.use_bias else maps

    def _convolve(self, inputs, bank):
        size, _, channels, answers = bank.shape
        if self.padding == "same" or tuple(inputs.shape[1:3]) != (size, size):
            return ops.conv(inputs, bank, self.strides, self.padding, data_format="channels_last")
        # A filter of the size of the map is a dense layer. As a convolution, forward and backward took
        # 4.0 s in place of 0.15 s for 128 maps of 7x7x128 and 1024 answers, by TensorFlow on one core.
        maps = ops.matmul(ops.reshape(inputs, (-1, size * size * channels)), ops.reshape(bank, (-1, answers)))
        return ops.reshape(maps, (-1, 1, 1, answers))

    def _map_size(self, shape) -> list:
        if len(shape) not in (4, 5) or (len(shape) == 5 and shape[3] != self.num_rotations):
            raise ValueError(
                f"GroupConv2D needs images [N, H, W, C] or maps [N, H, W, {self.num_rotations}, C]. "
                f"Received: input_shape={tuple(shape)}"
            )
        same = self.padding == "same"
        reach = 1 if same else self.kernel_size
        sizes = [None if size is None else (size - reach) // self.strides + 1 for size in shape[1:3]]
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(
                f"GroupConv2D of kernel_size={self.kernel_size} needs maps of at least that size. "
                f"Received: input_shape={tuple(shape)}"
            )
        return sizes

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self._map_size(input_shape), self.num_rotations, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "num_rotations": self.num_rotations,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


def filter_bank(kernel, num_rotations: int):
    """Turns filters to all orientations, as the kernel of one plain convolution.

    Turned by r steps, a filter reads input orientation s as the original reads orientation s - r.

    Args:
        kernel: Filters at orientation 0 [k, k, S, C, F]; S is `num_rotations`, or 1 for filters of images.
        num_rotations: Orientations R, one of `NUM_ROTATIONS`.

    Returns:
        Kernel [k, k, S * C, R * F].
    """
    size, _, orientations, channels, filters = kernel.shape
    cells = size * size
    rows = ops.reshape(kernel, (cells, -1))
    if num_rotations == 8:
        turns = ops.convert_to_tensor(_turns_in_disc(size), dtype=kernel.dtype)
        rows = ops.matmul(turns, rows)  # [2 * k * k, S * C * F], at 0 and at 45 degrees
    # Where each row of F weights of the bank comes from: [k, k, S, C, R].
    index = np.empty((size, size, orientations, channels, num_rotations), np.int32)
    cell, channel = np.arange(cells).reshape(size, size, 1, 1), np.arange(channels)
    for turn in range(num_rotations):
        quarters, diagonal = divmod(turn * 8 // num_rotations, 2)
        source = (np.arange(orientations)[:, np.newaxis] - turn) % orientations
        turned = diagonal * cells + np.rot90(cell, quarters)
        index[..., turn] = (turned * orientations + source) * channels + channel
    weights = ops.take(ops.reshape(rows, (-1, filters)), index.ravel(), axis=0)
    return ops.reshape(weights, (size, size, orientations * channels, num_rotations * filters))


def _turns_in_disc(size: int) -> np.ndarray:
    """Returns the maps [2 * k * k, k * k] of a filter's weights to those turned by 0 and by 45 degrees.

    Both leave out what lies outside the disc of diameter k.
    """
    places = np.arange(size) - (size - 1) / 2
    x, y = (axis.ravel() for axis in np.meshgrid(places, -places))  # y points up
    inside = np.hypot(x, y) <= size / 2
    # Turned counter-clockwise, a filter has at (x, y) what it had at that place turned clockwise.
    half = math.sqrt(0.5)
    read_x, read_y = half * (x + y), half * (y - x)
    weights = np.maximum(1 - np.abs(read_x[:, None] - x), 0) * np.maximum(1 - np.abs(read_y[:, None] - y), 0)
    return np.concatenate([np.eye(size * size), weights]) * np.tile(inside, 2)[:, None] * inside
