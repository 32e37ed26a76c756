"""Exports a trained model as a SavedModel with named endpoints, self-contained and in float32."""

from pathlib import Path

import keras
import tensorflow as tf

from tfinv.files import replacing


def export_saved_model(model: keras.Model, directory: Path, class_names: tuple[str, ...]) -> None:
    """Writes a SavedModel; an existing one is replaced only when the new one is complete.

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
    try:
        with replacing(directory) as partial:
            archive.write_out(str(partial), verbose=False)
    except tf.errors.OpError as error:
        raise OSError(f"Cannot write {directory}: {error.message}") from None
