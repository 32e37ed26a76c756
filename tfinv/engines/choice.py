"""Which engine the command line asks for."""

from dataclasses import dataclass

from tfinv.config import check_range
from tfinv.engines.base import Engine
from tfinv.engines.local import LocalEngine
from tfinv.errors import UsageError


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that makes the runs, instead of this machine alone."""

    ray: str | None = None
    """Address of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for one started here and now
    (extra `ray`); without it, this machine makes one run after the other."""
    storage: str | None = None
    """Folder that all machines of the cluster reach, for what is finished of each run: a path or an fsspec
    URL such as s3://bucket/folder."""
    cpus_per_run: float = 1.0
    """CPUs that a run takes of a machine of the cluster, and threads of its operations."""
    gpus_per_run: float = 0.0
    """GPUs that a run takes of a machine of the cluster; 0 hides them."""

    def __post_init__(self) -> None:
        check_range("cpus_per_run", self.cpus_per_run, low=0.01)
        check_range("gpus_per_run", self.gpus_per_run, low=0.0)
        if self.ray is None and (self.storage, self.cpus_per_run, self.gpus_per_run) != (None, 1.0, 0.0):
            raise UsageError("--storage, --cpus-per-run and --gpus-per-run need --ray.")
        if self.ray is not None and self.storage is None:
            raise UsageError("--ray needs --storage, a folder that all machines of the cluster reach.")


def choose(cluster: Cluster) -> Engine:
    """Returns the engine that is asked for; loads Ray only if that is.

    Raises:
        UsageError: If the cluster is not reached, the storage cannot be written to, or an extra is missing.
    """
    if cluster.ray is None or cluster.storage is None:
        return LocalEngine()
    from tfinv.engines.cluster import RayEngine

    return RayEngine(cluster.ray, cluster.storage, cluster.cpus_per_run, cluster.gpus_per_run)
