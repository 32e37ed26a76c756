"""Reusable Keras layers; importing this package registers them for loading saved models."""

from tfinv.layers.address_field import AddressField
from tfinv.layers.capsule_canvas import CapsuleCanvas
from tfinv.layers.capsule_readout import ClassMask, Length, Squash
from tfinv.layers.controlled_dense import ControlledDense
from tfinv.layers.conv_em_capsules import ConvEMCapsules
from tfinv.layers.depthwise_primary_capsules import DepthwisePrimaryCapsules
from tfinv.layers.em_capsules import EMCapsules
from tfinv.layers.group_conv import GroupConv2D
from tfinv.layers.group_pooling import GroupPooling
from tfinv.layers.linear_operators import LinearOperators
from tfinv.layers.primary_capsules import PrimaryCapsules
from tfinv.layers.primary_matrix_capsules import PrimaryMatrixCapsules
from tfinv.layers.repeat_codes import RepeatCodes
from tfinv.layers.routing_capsules import RoutingCapsules
from tfinv.layers.self_attention_capsules import SelfAttentionCapsules
from tfinv.layers.spatial_transformer import SpatialTransformer

__all__ = [
    "AddressField",
    "CapsuleCanvas",
    "ClassMask",
    "ControlledDense",
    "ConvEMCapsules",
    "DepthwisePrimaryCapsules",
    "EMCapsules",
    "GroupConv2D",
    "GroupPooling",
    "Length",
    "LinearOperators",
    "PrimaryCapsules",
    "PrimaryMatrixCapsules",
    "RepeatCodes",
    "RoutingCapsules",
    "SelfAttentionCapsules",
    "SpatialTransformer",
    "Squash",
]
