"""A network whose filters come in all orientations, so that it is invariant to rotation by construction.

The article's convolutional network, its channels shared out among the orientations. In place of the dense
layer, which would tell one orientation from another, a last convolution covers the whole map in all of them.

Reference:
    Cohen and Welling 2016, "Group Equivariant Convolutional Networks".
"""

from dataclasses import dataclass

import keras
from keras import layers

from tfinv.config import TrainingConfig, check_range
from tfinv.layers import GroupConv2D, GroupPooling
from tfinv.models._base import Preset


@dataclass(frozen=True)
class Config:
    """Architecture of a rotation-equivariant network; the defaults cost what the article's best CNN costs."""

    num_rotations: int = 8
    """Orientations of each filter: 1, 2, 4 or 8."""
    filters: tuple[int, ...] = (8, 16)
    """Feature maps of each convolution in each orientation."""
    kernel_size: int = 4
    """Side of each kernel, or one more where only that is symmetric on the map."""
    strides: int = 2
    """Stride of each convolution."""
    dense_filters: int = 128
    """Features of the convolution over the whole map, in each orientation."""
    batch_normalization: bool = True
    """Normalise behind each convolution's activation."""
    dropout_rate: float = 0.5
    """Share of the features dropped in training, 0..1."""
    negative_slope: float = 0.1
    """Slope of LeakyReLU below zero."""

    def __post_init__(self) -> None:
        for value in self.filters:
            check_range("filters", value, low=1)
        for name in ("kernel_size", "strides", "dense_filters"):
            check_range(name, getattr(self, name), low=1)
        check_range("kernel_size", self.kernel_size, low=self.strides)  # or it leaves out pixels of one side
        check_range("dropout_rate", self.dropout_rate, low=0.0, high=1.0)
        check_range("negative_slope", self.negative_slope)


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network, invariant for square images; see tfinv.models for the contract."""
    images = keras.Input(input_shape, name="images")
    maps = images
    for filters in config.filters:
        kernel_size = symmetric_kernel(config.kernel_size, config.strides, maps.shape[1])
        maps = GroupConv2D(filters, kernel_size, config.strides, "same", config.num_rotations)(maps)
        maps = layers.LeakyReLU(config.negative_slope)(maps)
        if config.batch_normalization:
            maps = layers.BatchNormalization()(maps)
    # One position remains of a square map.
    whole = min(maps.shape[1:3])
    maps = GroupConv2D(config.dense_filters, whole, num_rotations=config.num_rotations)(maps)
    maps = layers.LeakyReLU(config.negative_slope)(maps)
    features = layers.GlobalMaxPooling2D()(GroupPooling()(maps))
    if config.dropout_rate > 0:
        features = layers.Dropout(config.dropout_rate)(features)
    logits = layers.Dense(num_classes)(features)
    scores = layers.Softmax(dtype="float32", name="scores")(logits)
    return keras.Model(images, {"scores": scores}, name="group_cnn")


def symmetric_kernel(kernel_size: int, strides: int, size: int) -> int:
    """Returns the kernel size, or one more, with which "same" pads a map equally on both sides."""
    positions = -(-size // strides)
    padding = (positions - 1) * strides + kernel_size - size
    return kernel_size + padding % 2


# As cnn_bn_00 has them, 64 and 128 maps and 1024 dense units in all.
_TRAINING = TrainingConfig(epochs=15, batch_size=128, learning_rate=1e-3, decay_rate=0.8)
PRESETS = {
    "quick": Preset(
        Config(filters=(4, 8), dense_filters=32),
        TrainingConfig(epochs=4, batch_size=128, learning_rate=2e-3, decay_rate=0.5),
        description="C8, narrower",
    ),
    "group_cnn_c8": Preset(Config(), _TRAINING, description="eight orientations"),
    "group_cnn_c4": Preset(
        Config(4, (16, 32), dense_filters=256), _TRAINING, description="four orientations"
    ),
}
