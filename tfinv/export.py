"""Exports a trained model as a SavedModel with named endpoints, self-contained and in float32."""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfinv.files import replacing


def export_saved_model(model: keras.Model, directory: Path, class_names: tuple[str, ...]) -> None:
    """Writes a SavedModel; an existing one is replaced only when the new one is complete.

    The SavedModel routes by the reference, so that whoever loads it needs TensorFlow only.

    Endpoints, each on `images` [N, H, W, C], float32 in 0..1, any N:
        classify: "scores" [N, classes], "class_index" [N], "class_name" [N].
        reconstruct: "reconstruction" [N, H, W, C]; only if the model has a decoder.

    Args:
        model: Prediction model with the output "scores".
        directory: Where to write.
        class_names: Name of each class.

    Raises:
        OSError: If the folder cannot be written.
    """
    model = with_reference(model)
    images = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")
    names = tf.constant(class_names)

    def outputs_of(images):
        # oneDNN's convolution gives no images the wrong shape, so that none become one black one.
        count = tf.shape(images)[0]
        missing = tf.cast(tf.equal(count, 0), tf.int32)
        padded = tf.concat([images, tf.zeros((missing, *model.input_shape[1:]))], axis=0)
        return {name: values[:count] for name, values in model(padded, training=False).items()}

    def classify(images):
        scores = outputs_of(images)["scores"]
        # top_k, not argmax: argmax on floats breaks later conversions to ONNX and LiteRT.
        index = tf.math.top_k(scores, k=1).indices[:, 0]
        return {"scores": scores, "class_index": index, "class_name": tf.gather(names, index)}

    def reconstruct(images):
        return {"reconstruction": outputs_of(images)["reconstruction"]}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("classify", classify, input_signature=[images])
    if "reconstruction" in model.output:
        archive.add_endpoint("reconstruct", reconstruct, input_signature=[images])
    write_archive(archive, directory)


def write_archive(archive: keras.export.ExportArchive, directory: Path) -> None:
    """Writes a SavedModel at once, in place of an earlier one; raises OSError if that fails."""
    try:
        with replacing(directory) as partial:
            archive.write_out(str(partial), verbose=False)
    except tf.errors.OpError as error:
        raise OSError(f"Cannot write {directory}: {error.message}") from None


def with_reference(model: keras.Model) -> keras.Model:
    """Returns a model with the same weights whose tfinv layers run the reference implementation.

    Args:
        model: Any model that can be made from its configuration.

    Returns:
        A copy, or `model` itself if none of its layers chooses an implementation.
    """
    config, changed = _with_reference(model.get_config())
    if not changed:
        return model
    copy = model.__class__.from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def _with_reference(config, of_tfinv: bool = False) -> tuple[Any, bool]:
    """Returns a configuration with each tfinv layer's implementation "reference", and if that changed it."""
    if isinstance(config, dict):
        here = str(config.get("registered_name")).startswith("tfinv>")
        parts = {key: _with_reference(value, here and key == "config") for key, value in config.items()}
        copy = {key: part for key, (part, _) in parts.items()}
        found = any(changed for _, changed in parts.values())
        if of_tfinv and copy.get("implementation", "reference") != "reference":
            return copy | {"implementation": "reference"}, True
        return copy, found
    if isinstance(config, list | tuple):
        items = [_with_reference(value) for value in config]
        return type(config)(part for part, _ in items), any(changed for _, changed in items)
    return config, False
