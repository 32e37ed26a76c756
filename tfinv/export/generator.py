"""Endpoints of a network that renders images."""

import keras
import tensorflow as tf

from tfinv.data import Protocol, scale_pixels
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError
from tfinv.export.endpoint import Endpoint, at_least_one


def generator_endpoints(model: keras.Model, protocol: Protocol) -> dict[str, Endpoint]:
    """Returns the endpoints of a SavedModel, each for any number of images N, also none.

        transform: "image" [N, H, W, C], float32 in 0..1, and "parameter" [G, *PARAMETER_SHAPE] in the
            transformation's own unit (degrees, pixels), each that of N / G successive images, to
            "transformed" [N, H', W', C] in 0..1.
        generate: the network itself, from "image" in the protocol's pixel range and "code" [G, E] to "image".

    A network that reads the code off the image itself (see tfinv.models.hypernet) has no input "code", and
    "transform" no "parameter".

    Args:
        model: Generator.
        protocol: What it was trained under; gives the transformation and the pixel range.

    Raises:
        UsageError: If its codes are not those of the protocol's transformation.
    """
    single = generator_endpoint(model, protocol)

    def transform(image, *parameter):
        count = tf.shape(image)[0]
        outputs = single.call(at_least_one(image), *map(at_least_one, parameter))
        return {"transformed": outputs["transformed"][:count]}

    def generate(image, *code):
        count = tf.shape(image)[0]
        return {"image": _render(model, at_least_one(image), *map(at_least_one, code))[:count]}

    specs = tuple(
        tf.TensorSpec((None, *model.input[name].shape[1:]), tf.float32, name=name)
        for name in ("image", "code")
        if name in model.input
    )
    return {"transform": Endpoint(transform, single.signature), "generate": Endpoint(generate, specs)}


def generator_endpoint(model: keras.Model, protocol: Protocol) -> Endpoint:
    """Returns "transform", as `generator_endpoints` has it but for one image or more."""
    transformation = get_transform(protocol.transformation)
    black, white = protocol.pixel_range
    signature = [tf.TensorSpec((None, *model.input["image"].shape[1:]), tf.float32, name="image")]
    if "code" in model.input:
        size = model.input["code"].shape[1]
        if size != transformation.CODE_SIZE:
            raise UsageError(
                f"The network takes codes of {size} numbers. Expected the protocol it was trained under. "
                f"Received: protocol={protocol.name}, codes of {transformation.CODE_SIZE}"
            )
        shape = (None, *transformation.PARAMETER_SHAPE)
        signature.append(tf.TensorSpec(shape, tf.float32, name="parameter"))

    def transform(image, *parameter):
        rendered = _render(model, scale_pixels(protocol, image), *map(transformation.code, parameter))
        return {"transformed": tf.clip_by_value((rendered - black) / (white - black), 0.0, 1.0)}

    return Endpoint(transform, tuple(signature))


def is_generator(model: keras.Model) -> bool:
    """Tells whether a network renders images, by its inputs."""
    return isinstance(model.input, dict) and "image" in model.input


def _render(model: keras.Model, image: tf.Tensor, *code: tf.Tensor) -> tf.Tensor:
    """Returns what a generator renders; its output is one image in the range of its training."""
    inputs = dict(zip(("image", "code"), (image, *code), strict=False))
    return model(inputs, training=False)["image"]
