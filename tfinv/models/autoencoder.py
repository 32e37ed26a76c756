"""The article's autoencoder: a latent code of the image, decoded under the transformation's code.

The transformation is told to the decoder only, which renders a class beyond the range in which it was shown
only as far as it carries over what it learned from others.
"""

import math
from dataclasses import dataclass

import keras
from keras import layers

from tfinv.config import TrainingConfig
from tfinv.errors import UsageError
from tfinv.layers import RepeatCodes
from tfinv.models._base import QUICK_SWEEP, SWEEP, Preset
from tfinv.models._generator import assembled

TASK = "generation"


@dataclass(frozen=True)
class Config:
    """Architecture of an autoencoder; the defaults are the article's."""

    encoder_filters: tuple[int, ...] = (64, 128)
    """Feature maps of each convolution of the encoder (4x4, stride 2)."""
    decoder_filters: tuple[int, ...] = ()
    """Feature maps of the decoder's dense layer and of all but the last of its transposed convolutions (4x4,
    stride 2); if empty the article's: 128 and 64, or 256 and 128 on a canvas wider than the image."""
    dense_units: int = 1024
    """Units of the hidden dense layer of the encoder, and of that of the decoder."""
    latent_size: int = 10
    """Numbers that describe an image."""
    negative_slope: float = 0.1
    """Slope of the encoder's LeakyReLU below zero."""


def build(
    config: Config, input_shape: tuple[int, int, int], output_shape: tuple[int, int, int], code_size: int
) -> keras.Model:
    """Builds the network; see tfinv.models for the contract, and `build_decoder` for what it raises."""
    encoder = build_encoder(config, input_shape)
    return assembled(encoder, build_decoder(config, input_shape, output_shape, code_size), "autoencoder")


def build_encoder(config: Config, input_shape: tuple[int, int, int]) -> keras.Model:
    """Builds the network "encoder" from images [N, H, W, C] to latents [N, latent_size]."""
    images = keras.Input(input_shape, name="image")
    maps = images
    for filters in config.encoder_filters:
        maps = layers.Conv2D(filters, 4, 2, padding="same")(maps)
        maps = layers.LeakyReLU(config.negative_slope)(maps)
    features = layers.Dense(config.dense_units)(layers.Flatten()(maps))
    features = layers.LeakyReLU(config.negative_slope)(features)
    return keras.Model(images, layers.Dense(config.latent_size, name="latent")(features), name="encoder")


def build_decoder(
    config: Config, input_shape: tuple[int, int, int], output_shape: tuple[int, int, int], code_size: int
) -> keras.Model:
    """Builds the network "decoder" from {"latent": [N, L], "code": [G, E]} to images [N, H', W', C] in -1..1.

    Raises:
        UsageError: If a side of the output cannot be halved once for each transposed convolution.
    """
    larger = any(out > given for out, given in zip(output_shape[:2], input_shape[:2], strict=True))
    widths = config.decoder_filters or ((256, 128) if larger else (128, 64))
    scale = 2 ** len(widths)
    height, width, channels = output_shape
    if height % scale or width % scale:
        raise UsageError(
            f"The decoder doubles its maps {len(widths)} times. Expected sides that are multiples of "
            f"{scale}. Received: output_shape={output_shape}"
        )
    cells = (height // scale, width // scale, widths[0])
    latents = keras.Input((config.latent_size,), name="latent")
    codes = keras.Input((code_size,), name="code")
    inputs = layers.Concatenate()([latents, RepeatCodes()([codes, latents])])
    hidden = layers.Dense(config.dense_units, activation="relu")(inputs)
    maps = layers.Reshape(cells)(layers.Dense(math.prod(cells), activation="relu")(hidden))
    for filters in widths[1:]:
        maps = layers.Conv2DTranspose(filters, 4, 2, padding="same", activation="relu")(maps)
    images = layers.Conv2DTranspose(channels, 4, 2, padding="same", activation="tanh", dtype="float32")(maps)
    return keras.Model({"latent": latents, "code": codes}, images, name="decoder")


PRESETS = {
    "quick": Preset(
        Config((32, 64), (64, 32), dense_units=256),
        TrainingConfig(epochs=5, optimizer="rmsprop"),
        QUICK_SWEEP,
        description="narrower, 2,345 steps on MNIST; under 10 minutes on 2 cores",
    ),
    "article": Preset(
        Config(),
        TrainingConfig(epochs=214, optimizer="rmsprop"),
        SWEEP,
        description="the article's network, 100,366 iterations on MNIST; meant for a GPU",
    ),
}
