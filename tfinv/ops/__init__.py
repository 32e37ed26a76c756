"""Capsule operations: squashing and routing."""

from tfinv.ops._library import BuildInfo, build_info
from tfinv.ops._options import EM_VARIANTS, IMPLEMENTATIONS, EmVariant, Implementation
from tfinv.ops.attention_routing import (
    exponential_squash,
    self_attention_routing,
    self_attention_routing_from_votes,
)
from tfinv.ops.reference import length, squash
from tfinv.ops.routing import (
    dynamic_routing,
    dynamic_routing_from_votes,
    em_routing,
    em_routing_from_votes,
    resolve_implementation,
    runs_fused,
)

__all__ = [
    "EM_VARIANTS",
    "IMPLEMENTATIONS",
    "BuildInfo",
    "EmVariant",
    "Implementation",
    "build_info",
    "dynamic_routing",
    "dynamic_routing_from_votes",
    "em_routing",
    "em_routing_from_votes",
    "exponential_squash",
    "length",
    "resolve_implementation",
    "runs_fused",
    "self_attention_routing",
    "self_attention_routing_from_votes",
    "squash",
]
