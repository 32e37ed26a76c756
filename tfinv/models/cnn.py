"""The article's convolutional networks: convolutions, one wide dense layer, softmax.

All eleven are presets of one configuration; names, widths and training are those of the
authors' experiments, in which a convolution is 4x4 with stride 2 unless stated.
"""

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from tfinv.config import TrainingConfig, check_range
from tfinv.errors import UsageError
from tfinv.models._base import Preset


@dataclass(frozen=True)
class Config:
    """Architecture of a convolutional network; one entry a convolution, or one for all of them."""

    filters: tuple[int, ...] = (64, 128)
    """Feature maps of each convolution."""
    kernel_sizes: tuple[int, ...] = (4,)
    """Side of each kernel."""
    strides: tuple[int, ...] = (2,)
    """Stride of each convolution."""
    pool_sizes: tuple[int, ...] = (1,)
    """Side of the max pooling (stride 1) behind each convolution; 1 for none."""
    batch_normalization: bool = False
    """Normalise behind each convolution's activation."""
    dense_units: int = 1024
    """Units of the hidden dense layer."""
    dropout_rate: float = 0.0
    """Share of the dense units dropped in training, 0..1."""
    negative_slope: float = 0.1
    """Slope of LeakyReLU below zero."""

    def __post_init__(self) -> None:
        for name in ("kernel_sizes", "strides", "pool_sizes"):
            values = getattr(self, name)
            if len(values) not in (1, len(self.filters)):
                raise UsageError(
                    f"Invalid value for {name}. Expected one entry, or one for each of the "
                    f"{len(self.filters)} convolutions. Received: {name}={values}"
                )
        for name in ("filters", "kernel_sizes", "strides", "pool_sizes"):
            for value in getattr(self, name):
                check_range(name, value, low=1)
        check_range("dense_units", self.dense_units, low=1)
        check_range("dropout_rate", self.dropout_rate, low=0.0, high=1.0)
        check_range("negative_slope", self.negative_slope)

    def convolutions(self) -> list[tuple[int, int, int, int]]:
        """Returns filters, kernel size, stride and pool size of each convolution."""
        count = len(self.filters)
        rest = [
            values * count if len(values) == 1 else values
            for values in (self.kernel_sizes, self.strides, self.pool_sizes)
        ]
        return list(zip(self.filters, *rest, strict=True))


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network; see tfinv.models for the contract."""
    images = keras.Input(input_shape, name="images")
    return keras.Model(images, {"scores": classify(config, images, num_classes)}, name="cnn")


def classify(config: Config, images, num_classes: int):
    """Returns the scores [N, num_classes] that the network of `config` gives to images [N, H, W, C]."""
    maps = images
    for filters, kernel_size, strides, pool_size in config.convolutions():
        maps = layers.Conv2D(filters, kernel_size, strides, padding="same")(maps)
        maps = layers.LeakyReLU(config.negative_slope)(maps)
        if config.batch_normalization:
            maps = layers.BatchNormalization()(maps)
        if pool_size > 1:
            maps = layers.MaxPooling2D(pool_size, strides=1, padding="same")(maps)
    features = layers.Dense(config.dense_units)(layers.Flatten()(maps))
    features = layers.LeakyReLU(config.negative_slope)(features)
    if config.dropout_rate > 0:
        features = layers.Dropout(config.dropout_rate)(features)
    logits = layers.Dense(num_classes)(features)
    return layers.Softmax(dtype="float32", name="scores")(logits)


# 300 epochs are the authors' budget; a run states its own with --epochs.
_TRAINING = TrainingConfig(
    epochs=300, batch_size=128, learning_rate=1e-4, decay_rate=0.9, decay_steps=10_000, beta_1=0.95
)


def _article(config: Config, *measured: float) -> Preset:
    """A row of the authors' table; `measured` is their Ptest, Pin, Pout and Pinv."""
    return Preset(
        config,
        _TRAINING,
        article=dict(zip(("Ptest", "Pin", "Pout", "Pinv"), measured, strict=True)),
        description="a network of the article",
    )


def _normalized(*filters: int, **rest: Any) -> Config:
    return Config(filters, batch_normalization=True, dropout_rate=0.5, **rest)


# Three networks have stride-1 convolutions, each followed by a 2x2 pooling of stride 1.
PRESETS = {
    "cnn_bn_00": _article(_normalized(64, 128), 0.99283, 0.99636, 0.25672, 0.04065),
    "cnn_bn_01": _article(_normalized(32, 64, 128), 0.99253, 0.99625, 0.26723, 0.03791),
    "cnn_bn_02": _article(_normalized(64, 128, 256), 0.99359, 0.99689, 0.27004, 0.03740),
    "cnn_00": _article(Config((64, 128)), 0.98874, 0.99127, 0.21183, 0.00306),
    "cnn_01": _article(Config((64, 128, 256)), 0.99041, 0.99381, 0.23292, 0.00755),
    "cnn_02": _article(Config((32, 64, 128, 256)), 0.99082, 0.99471, 0.24506, 0.00181),
    "cnn_dropout_00": _article(Config((32, 64, 128), dropout_rate=0.5), 0.99253, 0.99285, 0.23983, 0.03892),
    "cnn_dropout_01": _article(Config((64, 128, 256), dropout_rate=0.5), 0.99059, 0.99468, 0.25016, 0.03763),
    "cnn_pool_00": _article(
        _normalized(64, 128, kernel_sizes=(5,), strides=(1,), pool_sizes=(2,)),
        *(0.98573, 0.99485, 0.25211, 0.04563),
    ),
    "cnn_pool_01": _article(
        _normalized(32, 64, 128, kernel_sizes=(5, 5, 3), strides=(1,), pool_sizes=(2, 2, 1)),
        *(0.98942, 0.99716, 0.25010, 0.04311),
    ),
    "cnn_pool_02": _article(
        _normalized(64, 128, 256, kernel_sizes=(5, 5, 4), strides=(1, 1, 2), pool_sizes=(2, 2, 1)),
        *(0.99274, 0.99788, 0.26453, 0.04294),
    ),
    "quick": Preset(
        Config((32, 64), batch_normalization=True, dense_units=128, dropout_rate=0.5),
        TrainingConfig(epochs=4, batch_size=128, learning_rate=1e-3, decay_rate=0.5),
        description="cnn_bn_00, narrower; 90 seconds on 2 cores",
    ),
}
