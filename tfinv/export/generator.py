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
        UsageError: If its codes or images are not those of the protocol, or the protocol asks for no images.
    """
    single = generator_endpoint(model, protocol)

    def transform(image, *parameter):
        count = _shared(image, *parameter)
        outputs = single.call(at_least_one(image), *map(at_least_one, parameter))
        return {"transformed": outputs["transformed"][:count]}

    def generate(image, *code):
        count = _shared(image, *code)
        return {"image": _render(model, at_least_one(image), *map(at_least_one, code))[:count]}

    specs = tuple(
        tf.TensorSpec((None, *model.input[name].shape[1:]), tf.float32, name=name)
        for name in ("image", "code")
        if name in model.input
    )
    return {"transform": Endpoint(transform, single.signature), "generate": Endpoint(generate, specs)}


def _shared(images, *codes):
    """Returns the number of images, if each code is for as many of them as every other."""
    count = tf.shape(images)[0]
    for number in (tf.shape(values)[0] for values in codes):
        fits = tf.equal(count, 0) | ((number > 0) & tf.equal(count % tf.maximum(number, 1), 0))
        tf.debugging.Assert(fits, ["Expected as many parameters as divide the images. Received:", number])
    return count


def generator_endpoint(model: keras.Model, protocol: Protocol) -> Endpoint:
    """Returns "transform", as `generator_endpoints` has it but for one image or more."""
    transformation = get_transform(protocol.transformation)
    black, white = protocol.pixel_range
    _check(model, protocol)
    signature = [tf.TensorSpec((None, *model.input["image"].shape[1:]), tf.float32, name="image")]
    if "code" in model.input:
        shape = (None, *transformation.PARAMETER_SHAPE)
        signature.append(tf.TensorSpec(shape, tf.float32, name="parameter"))

    def transform(image, *parameter):
        rendered = _render(model, scale_pixels(protocol, image), *map(transformation.code, parameter))
        return {"transformed": tf.clip_by_value((rendered - black) / (white - black), 0.0, 1.0)}

    return Endpoint(transform, tuple(signature))


def _check(model: keras.Model, protocol: Protocol) -> None:
    codes = f"codes of {get_transform(protocol.transformation).CODE_SIZE} numbers"
    image = f"images of {protocol.output_shape(model.input['image'].shape[1:])}"
    taken = f"codes of {model.input['code'].shape[1]} numbers" if "code" in model.input else codes
    rendered = f"images of {tuple(model.output['image'].shape[1:])}"
    if (taken, rendered, protocol.task) != (codes, image, "generation"):
        raise UsageError(
            f"The network renders {rendered} from {taken}. Expected the protocol it was trained under. "
            f"Received: protocol={protocol.name}, which is of {protocol.task}, {image} and {codes}"
        )


def _render(model: keras.Model, image: tf.Tensor, *code: tf.Tensor) -> tf.Tensor:
    """Returns what a generator renders; its output is one image in the range of its training."""
    inputs = dict(zip(("image", "code"), (image, *code), strict=False))
    return model(inputs, training=False)["image"]
