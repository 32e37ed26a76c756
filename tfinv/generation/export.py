"""Exports a generator as a SavedModel."""

from pathlib import Path

import keras
import tensorflow as tf

from tfinv.export import write_archive


def export_generator(model: keras.Model, directory: Path) -> None:
    """Writes a SavedModel; an existing one is replaced only when the new one is complete.

    Its endpoint generate maps `image` [N, H, W, C] and, unless the model takes images alone, `code` [G, E],
    float32, to `image` [N, H', W', C], as the model itself does, see tfinv.models.

    Args:
        model: Generator.
        directory: Where to write.

    Raises:
        OSError: If the folder cannot be written.
    """
    specs = {
        name: tf.TensorSpec((None, *values.shape[1:]), tf.float32, name=name)
        for name, values in model.input.items()
    }

    def generate(*values):
        return model(dict(zip(specs, values, strict=True)), training=False)

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("generate", generate, input_signature=list(specs.values()))
    write_archive(archive, directory)
