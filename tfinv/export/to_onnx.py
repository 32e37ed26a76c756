"""ONNX files, by tf2onnx."""

import importlib
import importlib.util
import json
import logging
from pathlib import Path

import keras

from tfinv.data import Protocol
from tfinv.errors import UsageError, reason_of
from tfinv.export.single import single_endpoint
from tfinv.files import replacing

# tf2onnx's default, which every runtime of the last years takes.
_OPSET = 15


def export_onnx(
    model: keras.Model, path: Path, class_names: tuple[str, ...] = (), protocol: Protocol | None = None
) -> None:
    """Writes an ONNX file, in float32 and without custom ops; replaces an earlier one when complete.

    Inputs and outputs are named as those of the SavedModel: "images" [N, H, W, C] to "scores",
    "probabilities", "class_index" and, of a model with a decoder, "reconstruction"; of a generator "image"
    and "parameter" to "transformed". Any N but 0.

    Args:
        model: Network, as for `export_saved_model` or `export_generator`.
        path: Where to write.
        class_names: Name of each class; a JSON list, under "class_names" of the file's metadata.
        protocol: What a generator was trained under.

    Raises:
        UsageError: If tf2onnx is not installed, or cannot convert the model.
        OSError: If the file cannot be written.
    """
    check_onnx()
    converter, onnx = importlib.import_module("tf2onnx.convert"), importlib.import_module("onnx")
    _, endpoint = single_endpoint(model, protocol)
    log = logging.getLogger("tf2onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        proto, _ = converter.from_function(
            endpoint.function(), input_signature=list(endpoint.signature), opset=_OPSET
        )
        _name_batches(proto.graph)
        if class_names:
            onnx.helper.set_model_props(proto, {"class_names": json.dumps(class_names)})
        onnx.checker.check_model(proto)  # tf2onnx leaves ops that it cannot convert as they are
    except Exception as error:
        raise UsageError(f"The model {model.name} cannot be converted to ONNX: {reason_of(error)}") from error
    finally:
        log.setLevel(level)
    with replacing(path) as partial:
        partial.write_bytes(proto.SerializeToString())


def check_onnx() -> None:
    """Raises UsageError if what converts to ONNX is not installed."""
    if importlib.util.find_spec("tf2onnx") is None:
        raise UsageError("tf2onnx, which converts to ONNX, is not installed: pip install 'tfinv[onnx]'")


def _name_batches(graph) -> None:
    """Names the first axis of inputs and outputs, which tf2onnx numbers: N, of parameters G."""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "G" if value.name == "parameter" else "N"
