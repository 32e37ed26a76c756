"""Class capsules whose length is the score of their class: outputs and objective.

Reference:
    Sabour et al. 2017, "Dynamic Routing Between Capsules", sections 3 and 4.1.
"""

import keras

from tfinv.layers import ClassMask, Length
from tfinv.losses import MarginLoss
from tfinv.models._base import Objective
from tfinv.models._decoder import build_decoder, reconstructing_objective

# The paper sums squared errors over 784 pixels and scales by 0.0005; on the mean that is 0.392.
RECONSTRUCTION_WEIGHT = 0.392


def length_outputs(poses, decoder_units: tuple[int, ...], image_shape: tuple[int, int, int]) -> dict:
    """Returns "scores" and, with a decoder, "reconstruction" of the longest capsule.

    Args:
        poses: Poses [B, J, D] of the layer "class_capsules".
        decoder_units: Units of the decoder's hidden layers; empty for no decoder.
        image_shape: Height, width and channels of the images.
    """
    outputs = {"scores": Length(dtype="float32", name="scores")(poses)}
    if decoder_units:
        decoder = build_decoder(decoder_units, poses.shape[1] * poses.shape[2], image_shape)
        outputs["reconstruction"] = decoder(ClassMask(name="class_mask")(poses))
    return outputs


def margin_objective(model: keras.Model) -> Objective:
    """Margin loss, plus the error of the image decoded from the capsule of the true class."""
    poses = model.get_layer("class_capsules").output
    return reconstructing_objective(model, poses, MarginLoss(), RECONSTRUCTION_WEIGHT)
