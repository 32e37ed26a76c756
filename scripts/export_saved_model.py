"""Exports a run directory or a .keras file as a SavedModel with named endpoints, as ONNX and as LiteRT.

    python scripts/export_saved_model.py saved_models/cnn_quick-mnist-rotate-34-s0 --overwrite
    python scripts/export_saved_model.py model.keras --onnx model.onnx --litert model.tflite

A few seconds, a minute for large capsule networks. Who loads the SavedModel needs TensorFlow only; with
--fused it keeps the fused routing op, which is faster, and its library. docs/export.md has the endpoints.
"""

from tfinv import cli

if __name__ == "__main__":
    cli.export(__doc__)
