"""Data-parallel training: each replica has its part of every batch, and gradients are summed over replicas.

Any number of replicas does what one alone would, but for rounding and for what docs/distributed.md names.
"""

from tfinv.distributed.cluster import StrategyName, losses_named, read_cluster, start
from tfinv.distributed.loop import SharedStatistics, fit
from tfinv.distributed.team import ALONE, Team

__all__ = [
    "ALONE",
    "SharedStatistics",
    "StrategyName",
    "Team",
    "fit",
    "losses_named",
    "read_cluster",
    "start",
]
