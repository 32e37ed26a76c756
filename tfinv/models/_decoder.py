"""The decoder of capsule networks, and the objective that trains it with them."""

import dataclasses
import math

import keras
from keras import layers

from tfinv.layers import ClassMask
from tfinv.models._base import Objective, classification


def build_decoder(hidden: tuple[int, ...], code_size: int, image_shape: tuple[int, int, int]) -> keras.Model:
    """Builds the network "decoder" from masked poses [B, code_size] to images [B, H, W, C] in 0..1.

    Args:
        hidden: Units of the hidden layers.
        code_size: Components of the poses of all classes.
        image_shape: Height, width and channels of the images.

    Reference:
        Sabour et al. 2017, "Dynamic Routing Between Capsules", figure 2.
    """
    code = keras.Input((code_size,), name="masked_poses")
    values = code
    for units in hidden:
        values = layers.Dense(units, activation="relu")(values)
    values = layers.Dense(math.prod(image_shape), activation="sigmoid", dtype="float32")(values)
    return keras.Model(code, layers.Reshape(image_shape, dtype="float32")(values), name="decoder")


def reconstructing_objective(
    model: keras.Model,
    poses,
    loss: keras.losses.Loss,
    weight: float,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
) -> Objective:
    """The loss of the scores, plus the error of the image decoded from the capsule of the true class.

    Args:
        model: A capsule network with the outputs "scores" and, if it has a decoder, "reconstruction".
        poses: Its class poses [B, J, D].
        loss: Loss of the scores.
        weight: Factor on the mean squared error of the reconstruction.
        callbacks: Callbacks of the objective.
    """
    if "reconstruction" not in model.output:
        return dataclasses.replace(classification(model), loss={"scores": loss}, callbacks=callbacks)
    labels = keras.Input((), dtype="int32", name="labels")
    reconstruction = model.get_layer("decoder")(ClassMask(name="label_mask")([poses, labels]))
    training_model = keras.Model(
        {"images": model.input, "labels": labels},
        {"scores": model.get_layer("scores").output, "reconstruction": reconstruction},
        name=f"{model.name}_training",
    )
    return Objective(
        training_model,
        {"scores": loss, "reconstruction": keras.losses.MeanSquaredError()},
        {"scores": 1.0, "reconstruction": weight},
        lambda images, labels: (
            {"images": images, "labels": labels},
            {"scores": labels, "reconstruction": images},
        ),
        callbacks,
    )
