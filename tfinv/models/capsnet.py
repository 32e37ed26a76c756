"""CapsNet with dynamic routing and a reconstructing decoder.

Reference:
    Sabour et al. 2017, "Dynamic Routing Between Capsules", figures 1 and 2.
"""

from dataclasses import dataclass

import keras
from keras import layers

from tfinv.config import EvaluationConfig, TrainingConfig
from tfinv.layers import PrimaryCapsules, RoutingCapsules
from tfinv.models._base import Preset
from tfinv.models._length_scores import length_outputs, margin_objective
from tfinv.ops import Implementation


@dataclass(frozen=True)
class Config:
    """Architecture of a capsule network; the defaults are the paper's."""

    conv_filters: int = 256
    """Feature maps of the first convolution."""
    kernel_size: int = 9
    """Side of the kernels of the first convolution and of the primary capsules."""
    primary_channels: int = 32
    """Capsule channels of the primary capsules."""
    primary_pose_dim: int = 8
    """Components of a primary capsule's pose."""
    class_pose_dim: int = 16
    """Components of a class capsule's pose."""
    num_iterations: int = 3
    """Routing iterations."""
    implementation: Implementation = "auto"
    """Routing implementation: auto, reference or fused."""
    decoder_units: tuple[int, ...] = (512, 1024)
    """Units of the decoder's hidden layers; empty for no decoder."""


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network; see tfinv.models for the contract."""
    images = keras.Input(input_shape, name="images")
    convolution = layers.Conv2D(
        config.conv_filters, config.kernel_size, activation="relu", name="convolution"
    )
    primary = PrimaryCapsules(
        config.primary_channels, config.primary_pose_dim, config.kernel_size, name="primary_capsules"
    )(convolution(images))
    poses = RoutingCapsules(
        num_classes,
        config.class_pose_dim,
        config.num_iterations,
        implementation=config.implementation,
        name="class_capsules",
    )(primary)
    outputs = length_outputs(poses, config.decoder_units, input_shape)
    return keras.Model(images, outputs, name="capsnet")


objective = margin_objective

PRESETS = {
    "quick": Preset(
        Config(conv_filters=64, primary_channels=8, decoder_units=(128, 256)),
        TrainingConfig(epochs=5, batch_size=100, learning_rate=2e-3, decay_rate=0.6),
        EvaluationConfig(repeats=10, curve_images=2000),
        description="the article's topology, narrower; under 10 minutes on 2 cores",
    ),
    "article": Preset(
        Config(),
        TrainingConfig(epochs=50, batch_size=100, learning_rate=1e-3, decay_rate=0.9),
        EvaluationConfig(repeats=100),
        article={"Ptest": 0.991, "Pin": 0.996, "Pout": 0.249, "Pinv": 0.009},
        description="the article's network; meant for a GPU",
    ),
}
