"""The decoder of capsule networks."""

import math

import keras
from keras import layers


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
