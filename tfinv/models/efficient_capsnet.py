"""Efficient-CapsNet: few capsules, self-attention routing and a reconstructing decoder.

Other than the authors' code, transformation matrices start at a truncated normal of 0.1, as in capsnet.

Reference:
    Mazzia et al. 2021, "Efficient-CapsNet: Capsule Network with Self-Attention Routing".
"""

from dataclasses import dataclass

import keras
from keras import layers

from tfinv.config import EvaluationConfig, TrainingConfig
from tfinv.errors import UsageError
from tfinv.layers import DepthwisePrimaryCapsules, SelfAttentionCapsules
from tfinv.models._base import Preset
from tfinv.models._length_scores import length_outputs, margin_objective


@dataclass(frozen=True)
class Config:
    """Architecture of an Efficient-CapsNet; the defaults are the paper's for MNIST."""

    filters: tuple[int, ...] = (32, 64, 64, 128)
    """Feature maps of each convolution."""
    kernel_sizes: tuple[int, ...] = (5, 3, 3, 3)
    """Side of the kernels of each convolution."""
    strides: tuple[int, ...] = (1, 1, 1, 2)
    """Stride of each convolution."""
    primary_pose_dim: int = 8
    """Components of a primary capsule's pose; it divides the last entry of filters."""
    class_pose_dim: int = 16
    """Components of a class capsule's pose."""
    decoder_units: tuple[int, ...] = (512, 1024)
    """Units of the decoder's hidden layers; empty for no decoder."""

    def __post_init__(self) -> None:
        for name in ("kernel_sizes", "strides"):
            values = getattr(self, name)
            if len(values) != len(self.filters):
                raise UsageError(
                    f"Invalid value for {name}. Expected one entry for each of the {len(self.filters)} "
                    f"convolutions. Received: {name}={values}"
                )


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network; see tfinv.models for the contract."""
    images = keras.Input(input_shape, name="images")
    maps = images
    for number, (filters, kernel_size, strides) in enumerate(
        zip(config.filters, config.kernel_sizes, config.strides, strict=True), start=1
    ):
        maps = layers.Conv2D(
            filters,
            kernel_size,
            strides,
            activation="relu",
            kernel_initializer="he_normal",
            name=f"convolution_{number}",
        )(maps)
        maps = layers.BatchNormalization(name=f"normalization_{number}")(maps)
    primary = DepthwisePrimaryCapsules(config.primary_pose_dim, name="primary_capsules")(maps)
    poses = SelfAttentionCapsules(num_classes, config.class_pose_dim, name="class_capsules")(primary)
    outputs = length_outputs(poses, config.decoder_units, input_shape)
    return keras.Model(images, outputs, name="efficient_capsnet")


objective = margin_objective

PRESETS = {
    "quick": Preset(
        Config(filters=(16, 32, 32, 64), decoder_units=(128, 256)),
        TrainingConfig(epochs=4, batch_size=100, learning_rate=3e-3, decay_rate=0.5),
        EvaluationConfig(repeats=10, curve_images=1000),
        description="the paper's topology, narrower; under 5 minutes on 2 cores",
    ),
    "efficient_capsnet": Preset(
        Config(),
        TrainingConfig(epochs=150, batch_size=16, learning_rate=5e-4, decay_rate=0.97),
        EvaluationConfig(repeats=100),
        description="the paper's network and training",
    ),
}
