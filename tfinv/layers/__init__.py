"""Reusable Keras layers; importing this package registers them for loading saved models."""

from tfinv.layers.capsule_readout import ClassMask, Length, Squash
from tfinv.layers.primary_capsules import PrimaryCapsules
from tfinv.layers.routing_capsules import RoutingCapsules

__all__ = ["ClassMask", "Length", "PrimaryCapsules", "RoutingCapsules", "Squash"]
