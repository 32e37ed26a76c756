"""SavedModels with named endpoints, self-contained unless the fused op is asked for."""

import shutil
from pathlib import Path

import keras
import tensorflow as tf

from tfinv import ops
from tfinv.data import Protocol
from tfinv.errors import UsageError
from tfinv.export.classifier import classifier_endpoints
from tfinv.export.endpoint import Endpoint
from tfinv.export.generator import generator_endpoints
from tfinv.export.loading import EXTRA
from tfinv.export.portable import chooses_implementation, portable
from tfinv.files import replacing

_HOW_TO_LOAD = """This SavedModel contains fused ops of tfinv. Load it with

    import tfinv.export
    model = tfinv.export.load(FOLDER)

or, on Linux with TensorFlow {version} and without tfinv, after the library beside this file:

    import tensorflow as tf
    tf.load_op_library(FOLDER + "/{extra}/{library}")
    model = tf.saved_model.load(FOLDER)
"""


def export_saved_model(
    model: keras.Model, directory: Path, class_names: tuple[str, ...], fused: bool = False
) -> None:
    """Writes the SavedModel of a network that recognises images; replaces an earlier one when complete.

    It computes in float32. Whoever loads it needs TensorFlow only, unless `fused`.

    Args:
        model: Network, see `tfinv.export.classifier_endpoints` for it and for the endpoints.
        directory: Where to write.
        class_names: Name of each class.
        fused: Keep the fused routing op, which is faster; `tfinv.export.load` finds its library, and a copy
            of that is written into the SavedModel.

    Raises:
        UsageError: If the fused op is asked for and cannot be had, or the model has none.
        OSError: If the folder cannot be written.
    """
    copy = _copy(model, fused)
    _write(copy, classifier_endpoints(copy, class_names), directory, fused)


def export_generator(model: keras.Model, directory: Path, protocol: Protocol, fused: bool = False) -> None:
    """Writes the SavedModel of a generator; the twin of `export_saved_model`.

    Args:
        model: Generator, see `tfinv.export.generator_endpoints` for it and for the endpoints.
        directory: Where to write.
        protocol: What it was trained under.
        fused: As for `export_saved_model`.

    Raises:
        UsageError: As `export_saved_model`, or if the protocol is another than that of its training.
        OSError: If the folder cannot be written.
    """
    copy = _copy(model, fused)
    _write(copy, generator_endpoints(copy, protocol), directory, fused)


def write_endpoints(model: keras.Model, endpoints: dict[str, Endpoint], directory: Path) -> None:
    """Writes a SavedModel of functions that call `model`; the first one is its default, too."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, endpoint in endpoints.items():
        archive.add_endpoint(name, endpoint.call, input_signature=list(endpoint.signature))
    archive.write_out(str(directory), verbose=False)


def check_fused(model: keras.Model) -> None:
    """Raises UsageError unless a model can be exported with the fused ops."""
    if not chooses_implementation(model):
        raise UsageError("The model has no layer with a fused op. Export it without --fused.")
    ops.resolve_implementation("fused")


def _copy(model: keras.Model, fused: bool) -> keras.Model:
    if fused:
        check_fused(model)
    return portable(model, "fused" if fused else "reference")


def _write(model: keras.Model, endpoints: dict[str, Endpoint], directory: Path, fused: bool) -> None:
    try:
        with replacing(directory) as partial:
            write_endpoints(model, endpoints, partial)
            if fused:
                _add_library(partial / EXTRA)
    except tf.errors.OpError as error:
        raise OSError(f"Cannot write {directory}: {error.message}") from None


def _add_library(folder: Path) -> None:
    """Copies the library of the fused ops into a SavedModel, and says how to load it."""
    library = Path(ops.build_info().library)
    folder.mkdir()
    shutil.copy(library, folder)
    text = _HOW_TO_LOAD.format(version=tf.__version__, extra=EXTRA, library=library.name)
    (folder / "README.txt").write_text(text)
