"""Loading models: SavedModels with the library of the fused ops where they need it, and .keras files."""

import re
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfinv.layers  # noqa: F401  registers the layers that a .keras file may contain
from tfinv.errors import UsageError, reason_of
from tfinv.export.portable import functional
from tfinv.ops import build_info
from tfinv.ops._library import build_command

# TensorFlow's name for the folder of files that come along with a SavedModel.
EXTRA = "assets.extra"

_KERAS_FILES = (".keras", ".h5", ".hdf5")
_FUSED_OP = re.compile(rb"Tfinv>\w+")


def load(directory: str | Path) -> Any:
    """Loads a SavedModel as `tf.saved_model.load` does, after the library of the fused ops if it has any.

    The library is that of this installation, compiled if it never was, or else the SavedModel's own copy.

    Args:
        directory: Folder of the SavedModel.

    Returns:
        The loaded object; its `signatures` are the endpoints.

    Raises:
        UsageError: If the library can neither be had nor loaded; the message says how to get it.
        OSError: If there is no SavedModel.
    """
    directory = Path(directory)
    found = fused_ops(directory)
    if found:
        _load_library(directory, found)
    return tf.saved_model.load(str(directory))


def load_model(path: str | Path) -> Any:
    """Loads a .keras file or a SavedModel folder as a callable on images, for generation on a dict.

    Raises:
        UsageError: If there is nothing at `path`, or it cannot be read as a model.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"No model at {path}. Expected a .keras file or a SavedModel folder.")
    if path.is_file() and path.suffix not in _KERAS_FILES:
        raise UsageError(f"Cannot read a model from {path}. Expected a .keras file or a SavedModel folder.")
    try:
        if path.is_dir():
            module = load(path)
            signatures = module.signatures
            known = [name for name in ("classify", "generate", "serving_default") if name in signatures]
            if not known:
                raise ValueError("it has no signature classify, generate or serving_default")
            module.tfinv_signature = signatures[known[0]]
            return module
        return functional(keras.models.load_model(path, compile=False))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"Cannot read a model from {path}: {reason_of(error)}") from None


def is_generator(model: Any) -> bool:
    """Tells whether a loaded model renders images, by its inputs."""
    if isinstance(model, keras.Model):
        return isinstance(model.input, dict) and "image" in model.input
    signature = getattr(model, "tfinv_signature", None)
    return signature is not None and "image" in signature.structured_outputs


def fused_ops(directory: Path) -> list[str]:
    """Returns the names of the fused ops that a SavedModel contains."""
    path = directory / "saved_model.pb"
    names = _FUSED_OP.findall(path.read_bytes()) if path.is_file() else []
    return sorted({name.decode() for name in names})


def _load_library(directory: Path, found: list[str]) -> None:
    info = build_info()
    reason = info.reason
    if info.available and info.binding == "tensorflow":
        return
    for copy in sorted((directory / EXTRA).glob("*.so")):
        try:
            tf.load_op_library(str(copy))
            return
        except tf.errors.OpError as error:
            reason = f"{reason} {copy.name}: {reason_of(error)}"
    raise UsageError(
        f"{directory} contains fused ops ({', '.join(found)}), and there is no library for them: "
        f"{' '.join(reason.split())} Compile it where g++ is installed: {build_command('tensorflow')}. "
        "Or export the model again without --fused."
    )
