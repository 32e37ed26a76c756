"""Endpoints of a network that recognises images."""

import keras
import tensorflow as tf

from tfinv.errors import UsageError
from tfinv.export.endpoint import Endpoint, at_least_one
from tfinv.export.pictures import decode

# Less than any network gives all classes together; keeps no scores at all from becoming NaN.
_LEAST_TOTAL = 1e-30


def classifier_endpoints(model: keras.Model, class_names: tuple[str, ...]) -> dict[str, Endpoint]:
    """Returns the endpoints of a SavedModel.

    Each is for any number of images N, also none:

        classify: "images" [N, H, W, C], float32 in 0..1, to "scores" and "probabilities" [N, classes],
            "class_index" [N] and "class_name" [N]. Probabilities are the scores divided by their sum: the
            same where scores are probabilities; of capsules, whose scores are lengths or activations of each
            class for itself, shares in 0..1 that nobody has calibrated.
        classify_png: "image_bytes" [N], each a PNG or JPEG of any size, to the same; see `decode`.
        reconstruct: "images" to "reconstruction" [N, H, W, C]; only if the model has a decoder.

    Args:
        model: From images to scores [N, classes], none below 0, or to a dict with "scores".
        class_names: Name of each class.

    Raises:
        UsageError: If there are not as many names as classes.
    """
    scores = model.output.get("scores") if isinstance(model.output, dict) else model.output
    classes = getattr(scores, "shape", (None,))[-1]
    if classes is not None and len(class_names) != classes:
        raise UsageError(
            f"Expected a name for each of the {classes} classes. Received: {', '.join(map(str, class_names))}"
        )
    shape = tuple(model.input_shape[1:])
    images = tf.TensorSpec((None, *shape), tf.float32, name="images")
    names = tf.constant(class_names)

    # One graph for all endpoints: a network may take seconds to trace.
    @tf.function(input_signature=[images], autograph=False)
    def run(images):
        padded = at_least_one(tf.ensure_shape(images, (None, *shape)))
        return {name: values[: tf.shape(images)[0]] for name, values in outputs_of(model, padded).items()}

    def classify(images):
        outputs = recognised(run(images)["scores"])
        return {**outputs, "class_name": tf.gather(names, outputs["class_index"])}

    def classify_png(image_bytes):
        return classify(decode(image_bytes, shape))

    def reconstruct(images):
        return {"reconstruction": run(images)["reconstruction"]}

    endpoints = {
        "classify": Endpoint(classify, (images,)),
        "classify_png": Endpoint(classify_png, (tf.TensorSpec((None,), tf.string, name="image_bytes"),)),
    }
    if isinstance(model.output, dict) and "reconstruction" in model.output:
        endpoints["reconstruct"] = Endpoint(reconstruct, (images,))
    return endpoints


def classifier_endpoint(model: keras.Model) -> Endpoint:
    """Returns all numeric outputs as one endpoint, for formats that have but one: no names, no bytes."""
    images = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")

    def predict(images):
        outputs = outputs_of(model, images)
        return {**outputs, **recognised(outputs["scores"])}

    return Endpoint(predict, (images,))


def outputs_of(model: keras.Model, images: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the named outputs of a model; a single one without a name is "scores"."""
    outputs = model(images, training=False)
    return dict(outputs) if isinstance(outputs, dict) else {"scores": outputs}


def recognised(scores: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns scores [N, classes], their shares, and the class of the highest [N]."""
    total = tf.reduce_sum(scores, axis=-1, keepdims=True)
    return {
        "scores": scores,
        "probabilities": scores / tf.maximum(total, _LEAST_TOTAL),
        # top_k, not argmax: argmax on floats breaks later conversions to ONNX and LiteRT.
        "class_index": tf.math.top_k(scores, k=1).indices[:, 0],
    }
