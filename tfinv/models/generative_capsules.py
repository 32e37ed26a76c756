"""Generative capsules: parts found in the image, moved by the parameter, drawn on a map.

The encoder sees the image alone. What depends on the parameter are weights that all capsules share, from
poses to places and features; so what is learned about moving a part holds for that part in any class.

    addressed       a capsule a feature map; a softmax over its cells chooses the place
    continuous      a capsule has a continuous position and features, drawn bilinearly
    digits          the same, but all capsules are made from a choice of ten (softmax) and a pose

Two transposed convolutions turn the map into the image.

Reference:
    The networks behind "Can Deep Networks Learn Invariants?" (SingularityNET), whose authors describe them as
    follow-ups; placement, weights and sizes that they leave open are chosen here.
"""

import math
from dataclasses import dataclass
from typing import Literal

import keras
from keras import layers

from tfinv.config import TrainingConfig
from tfinv.errors import UsageError
from tfinv.layers import CapsuleCanvas, ControlledDense
from tfinv.models._base import QUICK_SWEEP, SWEEP, Preset
from tfinv.models._generator import assembled, cells_of, convolved, decoder_inputs, drawn

TASK = "generation"
# On rotate-49, where this makes -0.9, the error of a 4 within its range is 0.055 after 5 epochs of
# "continuous" (seed 0); from grey, which training blackens first, it was 0.079. On the canvas of shifts this
# makes -0.98; from -0.9 nothing was learned there, and at a rate of 2e-3 from neither.
_LIGHT = 0.1


@dataclass(frozen=True)
class Config:
    """Architecture of generative capsules."""

    variant: Literal["addressed", "continuous", "digits"] = "continuous"
    """How capsules are made and find their place."""
    capsules: int = 32
    """Number of capsules."""
    capsule_length: int = 8
    """Components of a capsule's pose."""
    features: int = 32
    """Features that a capsule draws (continuous, digits)."""
    control_units: tuple[int, ...] = (32,)
    """Hidden units of the network that controls the features."""
    encoder_filters: tuple[int, int] = (32, 64)
    """Feature maps of the encoder's convolutions."""
    encoder_units: int = 256
    """Units of the encoder's dense layer."""
    choices: int = 10
    """Components of the softmax (digits)."""
    pose_size: int = 10
    """Components of the pose beside it (digits)."""
    decoder_filters: int = 32
    """Feature maps between the two transposed convolutions."""


def build(
    config: Config, input_shape: tuple[int, int, int], output_shape: tuple[int, int, int], code_size: int
) -> keras.Model:
    """Builds the network; see tfinv.models for the contract. Latents are the poses of the capsules.

    Raises:
        UsageError: If variant is unknown.
    """
    places = {"addressed": _addressed, "continuous": _continuous, "digits": _continuous}
    if config.variant not in places:
        raise UsageError(
            f"Invalid value for variant. Expected one of {', '.join(places)}. Received: {config.variant}"
        )
    images = keras.Input(input_shape, name="image")
    encoder = keras.Model(images, _capsules(config, images), name="encoder")
    inputs = decoder_inputs(encoder, code_size)
    maps = places[config.variant](config, inputs["latent"], inputs["code"], cells_of(output_shape))
    images = drawn(maps, config.decoder_filters, input_shape, output_shape, _LIGHT)
    decoder = keras.Model(inputs, images, name="decoder")
    return assembled(encoder, decoder, "generative_capsules")


def _capsules(config: Config, images):
    """Poses of the capsules [N, K, L]."""
    features = layers.Flatten()(convolved(images, config.encoder_filters))
    features = layers.Dense(config.encoder_units, activation="relu")(features)
    if config.variant == "digits":
        choice = layers.Dense(config.choices, activation="softmax", name="choice")(features)
        pose = layers.Dense(config.pose_size, name="pose")(features)
        features = layers.Concatenate(name="latent")([choice, pose])
        features = layers.Dense(config.encoder_units, activation="relu")(features)
    poses = layers.Dense(config.capsules * config.capsule_length)(features)
    return layers.Reshape((config.capsules, config.capsule_length))(poses)


def _continuous(config: Config, capsules, codes, cells: tuple[int, int]):
    """The map on which each capsule draws its features at its position, which is affine in the code."""
    positions = ControlledDense(2, use_bias=True, dtype="float32", name="positions")
    features = ControlledDense(config.features, config.control_units, use_bias=True, name="features")
    activations = layers.Activation("sigmoid")(features([capsules, codes]))
    return CapsuleCanvas(cells, name="canvas")([positions([capsules, codes]), activations])


def _addressed(config: Config, capsules, codes, cells: tuple[int, int]):
    """The map [N, H, W, K] on which each capsule, as far as it is present, marks the cells it chooses."""
    logits = ControlledDense(math.prod(cells), config.control_units, use_bias=True, name="places")
    present = ControlledDense(1, config.control_units, use_bias=True, name="presence")
    marks = layers.Softmax()(logits([capsules, codes]))  # [N, K, H * W]
    marks = layers.Multiply()([marks, layers.Activation("sigmoid")(present([capsules, codes]))])
    return layers.Reshape((*cells, config.capsules))(layers.Permute((2, 1))(marks))


_TRAINING = TrainingConfig(epochs=5, learning_rate=2e-3, decay_rate=0.6, images_per_code=4)

_CONTINUOUS = "capsules with a continuous position, drawn bilinearly"

PRESETS = {
    "quick": Preset(
        Config(),
        _TRAINING,
        QUICK_SWEEP,
        description=f"{_CONTINUOUS}; 2,000 images evaluated",
    ),
    "addressed": Preset(
        Config("addressed", capsules=128, capsule_length=4),
        _TRAINING,
        SWEEP,
        description="a capsule a feature map, in the cell that a softmax chooses",
    ),
    "continuous": Preset(Config(), _TRAINING, SWEEP, description=_CONTINUOUS),
    "digits": Preset(
        Config("digits", capsules=20, capsule_length=10),
        _TRAINING,
        SWEEP,
        description="the same, made from a choice of ten and a pose",
    ),
}
