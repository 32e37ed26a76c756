"""Export of trained models, in float32: SavedModel with named endpoints, ONNX, LiteRT."""

from tfinv.export.classifier import classifier_endpoints
from tfinv.export.endpoint import Endpoint
from tfinv.export.generator import generator_endpoints
from tfinv.export.loading import fused_ops, is_generator, load, load_model
from tfinv.export.portable import portable, with_implementation
from tfinv.export.saved_model import export_generator, export_saved_model
from tfinv.export.to_litert import export_litert
from tfinv.export.to_onnx import export_onnx

__all__ = [
    "Endpoint",
    "classifier_endpoints",
    "export_generator",
    "export_litert",
    "export_onnx",
    "export_saved_model",
    "fused_ops",
    "generator_endpoints",
    "is_generator",
    "load",
    "load_model",
    "portable",
    "with_implementation",
]
