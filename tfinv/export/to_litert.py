"""LiteRT (TensorFlow Lite) files, by the converter that TensorFlow brings."""

import tempfile
import zipfile
from pathlib import Path

import keras
import tensorflow as tf

from tfinv.data import Protocol
from tfinv.errors import UsageError, reason_of
from tfinv.export.saved_model import write_endpoints
from tfinv.export.single import single_endpoint
from tfinv.files import replacing

SIGNATURE = "predict"
LABELS = "labels.txt"


def export_litert(
    model: keras.Model, path: Path, class_names: tuple[str, ...] = (), protocol: Protocol | None = None
) -> None:
    """Writes a .tflite file of builtin ops in float32; replaces an earlier one when complete.

    Its signature "predict" has the inputs and outputs of the ONNX file, see `export_onnx`.

    Args:
        model: Network, as for `export_saved_model` or `export_generator`.
        path: Where to write.
        class_names: Name of each class; the file carries them as labels.txt, one a line, as a zip archive
            at its end, which is where LiteRT's tools look for labels.
        protocol: What a generator was trained under.

    Raises:
        UsageError: If the model cannot be converted.
        OSError: If the file cannot be written.
    """
    copy, endpoint = single_endpoint(model, protocol)
    with tempfile.TemporaryDirectory() as folder:
        write_endpoints(copy, {SIGNATURE: endpoint}, Path(folder))
        # From the function itself, the converter would leave out what Keras's variables hold.
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        try:
            content = converter.convert()
        except Exception as error:
            raise UsageError(
                f"The model {model.name} cannot be converted to LiteRT: {reason_of(error)}"
            ) from error
    with replacing(path) as partial:
        partial.write_bytes(content)
        if class_names:
            with zipfile.ZipFile(partial, "a") as archive:
                archive.writestr(LABELS, "\n".join(class_names))
