"""What generators are made of: an encoder and a decoder, and the convolutions of both."""

import math

import keras
from keras import layers


def assembled(encoder: keras.Model, decoder: keras.Model, name: str) -> keras.Model:
    """Makes a generator of an encoder, images to latents, and a decoder of {"latent", "code"} to images."""
    images = keras.Input(encoder.input.shape[1:], name="image")
    codes = keras.Input(decoder.input["code"].shape[1:], name="code")
    rendered = decoder({"latent": encoder(images), "code": codes})
    return keras.Model({"image": images, "code": codes}, {"image": rendered}, name=name)


def decoder_inputs(encoder: keras.Model, code_size: int) -> dict:
    """Returns the inputs "latent" and "code" of a decoder."""
    latent = keras.Input(encoder.output.shape[1:], name="latent")
    return {"latent": latent, "code": keras.Input((code_size,), name="code")}


def convolved(images, filters: tuple[int, int]):
    """Two convolutions 5x5 of stride 2: images [N, H, W, C] to maps of a quarter of their size."""
    for count in filters:
        images = layers.Conv2D(count, 5, 2, padding="same", activation="relu")(images)
    return images


def cells_of(output_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Returns height and width of the map that `drawn` makes such an image of."""
    return -(-output_shape[0] // 4), -(-output_shape[1] // 4)


def drawn(maps, filters: int, input_shape, output_shape: tuple[int, int, int], light: float):
    """Two transposed convolutions 4x4 of stride 2: maps to images [N, H', W', C'] in -1..1, float32.

    Untrained, all pixels are of about one shade: the mean of a canvas on which an image lies, of whose area a
    share `light` is white. The right one matters: most pixels are black, from too light a shade training
    blackens them first, and may silence all features to that end.
    """
    covered = math.prod(input_shape[:2]) / math.prod(output_shape[:2])
    shade = -1.0 + light * min(covered, 1.0)
    bias = keras.initializers.Constant(math.atanh(shade))
    maps = layers.Conv2DTranspose(filters, 4, 2, padding="same", activation="relu")(maps)
    maps = layers.Conv2DTranspose(output_shape[2], 4, 2, padding="same", bias_initializer=bias)(maps)
    excess = [have - want for have, want in zip(maps.shape[1:3], output_shape[:2], strict=True)]
    if any(excess):
        maps = layers.Cropping2D([(0, count) for count in excess])(maps)
    return layers.Activation("tanh", dtype="float32")(maps)
