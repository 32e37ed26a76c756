"""Matrix capsules with EM routing and a reconstructing decoder.

Reference:
    Hinton et al. 2018, "Matrix capsules with EM routing", figure 1 and section 4.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers, ops

from tfinv.config import EvaluationConfig, TrainingConfig
from tfinv.errors import UsageError
from tfinv.layers import ClassMask, ConvEMCapsules, EMCapsules, PrimaryMatrixCapsules
from tfinv.losses import SpreadLoss
from tfinv.models._base import Objective, Preset
from tfinv.models._decoder import build_decoder, reconstructing_objective
from tfinv.models._margin_schedule import MarginSchedule
from tfinv.ops import EmVariant, Implementation

EXTENDABLE = False  # the margin's rise takes a share of all epochs
# On the mean squared error, for each number of an image.
RECONSTRUCTION_WEIGHT = 0.05


@dataclass(frozen=True)
class Config:
    """Architecture of a matrix capsule network; the defaults are the paper's with A = B = C = D = 32."""

    conv_filters: int = 32
    """Feature maps of the first convolution, A."""
    primary_channels: int = 32
    """Primary capsules at each position, B."""
    capsule_channels: tuple[int, ...] = (32, 32)
    """Capsules at each position of each convolutional capsule layer, C and D."""
    capsule_strides: tuple[int, ...] = (2, 1)
    """Stride of each convolutional capsule layer."""
    kernel_size: int = 3
    """Side of the patches of the convolutional capsules."""
    pose_size: int = 4
    """Edge of the pose matrices."""
    num_iterations: int = 2
    """Routing iterations."""
    variant: EmVariant = "hinton2018"
    """hinton2018 is the paper's routing, article that of the article's authors."""
    final_inverse_temperature: float = 0.01
    """Factor on the logits of activations at the last iterations, lambda."""
    implementation: Implementation = "auto"
    """Routing implementation: auto, reference or fused."""
    batch_normalization: bool = False
    """Normalise the images over the batch."""
    weight_decay: float = 0.0
    """L2 penalty of convolution kernels and transformation matrices."""
    decoder_units: tuple[int, ...] = (512, 1024)
    """Units of the decoder's hidden layers; empty for no decoder."""

    def __post_init__(self) -> None:
        if len(self.capsule_strides) != len(self.capsule_channels):
            raise UsageError(
                "Invalid value for capsule_strides. Expected one entry for each of the "
                f"{len(self.capsule_channels)} entries of capsule_channels. "
                f"Received: capsule_strides={self.capsule_strides}"
            )


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network; see tfinv.models for the contract."""
    penalty = keras.regularizers.L2(config.weight_decay) if config.weight_decay else None
    routing: dict[str, Any] = {
        "num_iterations": config.num_iterations,
        "variant": config.variant,
        "final_inverse_temperature": config.final_inverse_temperature,
        "implementation": config.implementation,
        "kernel_regularizer": penalty,
    }
    images = keras.Input(input_shape, name="images")
    maps = layers.BatchNormalization(name="normalization")(images) if config.batch_normalization else images
    maps = layers.Conv2D(
        config.conv_filters, 5, 2, activation="relu", kernel_regularizer=penalty, name="convolution"
    )(maps)
    capsules = PrimaryMatrixCapsules(
        config.primary_channels, config.pose_size, kernel_regularizer=penalty, name="primary_capsules"
    )(maps)
    for number, (channels, strides) in enumerate(
        zip(config.capsule_channels, config.capsule_strides, strict=True), start=1
    ):
        capsules = ConvEMCapsules(
            channels, config.kernel_size, strides, name=f"conv_capsules_{number}", **routing
        )(capsules)
    poses, activations = EMCapsules(num_classes, name="class_capsules", **routing)(capsules)
    scores = layers.Activation("linear", dtype="float32", name="scores")(activations)
    outputs = {"scores": scores}
    if config.decoder_units:
        decoder = build_decoder(config.decoder_units, num_classes * poses.shape[-1], input_shape)
        # top_k, not argmax: argmax on floats breaks the export to ONNX and LiteRT.
        most_active = ops.top_k(scores, k=1)[1]
        outputs["reconstruction"] = decoder(ClassMask(name="class_mask")([poses, most_active]))
    return keras.Model(images, outputs, name="em_capsnet")


def objective(model: keras.Model) -> Objective:
    """Spread loss, plus the error of the image decoded from the capsule of the true class.

    The margin of the spread loss rises from 0.2 to 0.9 over the first fifth of the epochs, and the loss with
    it, so the best epoch is that of the highest accuracy.
    """
    spread = SpreadLoss()
    poses, _ = model.get_layer("class_capsules").output
    weight = RECONSTRUCTION_WEIGHT * math.prod(model.input.shape[1:])
    rising = reconstructing_objective(model, poses, spread, weight, (MarginSchedule(spread),))
    return dataclasses.replace(rising, best_by="accuracy")


PRESETS = {
    "quick": Preset(
        Config(
            conv_filters=16,
            primary_channels=4,
            capsule_channels=(8, 8),
            decoder_units=(128, 256),
            variant="article",
            batch_normalization=True,
        ),
        TrainingConfig(epochs=5, batch_size=50, learning_rate=6e-3, decay_rate=0.6),
        EvaluationConfig(repeats=10, curve_images=1000),
        description="the article's topology, narrower",
    ),
    "article": Preset(
        Config(
            conv_filters=32,
            primary_channels=8,
            capsule_channels=(16, 16),
            variant="article",
            batch_normalization=True,
        ),
        TrainingConfig(epochs=100, batch_size=50, learning_rate=1e-3),
        EvaluationConfig(repeats=100),
        article={"Ptest": 0.976, "Pin": 0.989, "Pout": 0.218, "Pinv": 0.090},
        description="the article's network; meant for a GPU",
    ),
}
