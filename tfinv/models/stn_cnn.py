"""The article's network behind a spatial transformer, which a localisation network steers.

Reference:
    Jaderberg et al. 2015, "Spatial Transformer Networks".
"""

from dataclasses import dataclass
from typing import Literal

import keras
from keras import layers

from tfinv.config import TrainingConfig
from tfinv.layers import SpatialTransformer
from tfinv.layers.spatial_transformer import TRANSFORMATIONS
from tfinv.models import cnn
from tfinv.models._base import Preset


@dataclass(frozen=True)
class Config(cnn.Config):
    """Architecture of the classifier, and that of the localisation network before it."""

    transformation: Literal["affine", "rotation"] = "affine"
    """What the localisation network may do to an image."""
    localisation_filters: tuple[int, ...] = (16, 32)
    """Feature maps of its convolutions, 5x5 with stride 2."""
    localisation_units: int = 64
    """Units of its hidden dense layer."""


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network; see tfinv.models for the contract."""
    images = keras.Input(input_shape, name="images")
    maps = images
    for filters in config.localisation_filters:
        maps = layers.Conv2D(filters, 5, 2, padding="same", activation="relu")(maps)
    features = layers.Dense(config.localisation_units, activation="relu")(layers.Flatten()(maps))
    # Zeros, so that training starts from the images as they are; float32, so that pixels are found.
    parameters = layers.Dense(
        TRANSFORMATIONS[config.transformation],
        kernel_initializer="zeros",
        dtype="float32",
        name="localisation",
    )(features)
    seen = SpatialTransformer(config.transformation, name="transformer")([images, parameters])
    return keras.Model(images, {"scores": cnn.classify(config, seen, num_classes)}, name="stn_cnn")


PRESETS = {
    "quick": Preset(
        Config((32, 64), batch_normalization=True, dense_units=128, dropout_rate=0.5),
        TrainingConfig(epochs=4, batch_size=128, learning_rate=1e-3, decay_rate=0.5),
        description="narrower",
    ),
    "stn_cnn": Preset(
        Config((64, 128), batch_normalization=True, dropout_rate=0.5),
        TrainingConfig(epochs=15, batch_size=128, learning_rate=1e-3, decay_rate=0.8),
        description="before cnn_bn_00",
    ),
}
