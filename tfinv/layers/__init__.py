"""Reusable Keras layers; importing this package registers them for loading saved models."""

from tfinv.layers.capsule_readout import ClassMask, Length, Squash
from tfinv.layers.conv_em_capsules import ConvEMCapsules
from tfinv.layers.em_capsules import EMCapsules
from tfinv.layers.primary_capsules import PrimaryCapsules
from tfinv.layers.primary_matrix_capsules import PrimaryMatrixCapsules
from tfinv.layers.routing_capsules import RoutingCapsules

__all__ = [
    "ClassMask",
    "ConvEMCapsules",
    "EMCapsules",
    "Length",
    "PrimaryCapsules",
    "PrimaryMatrixCapsules",
    "RoutingCapsules",
    "Squash",
]
