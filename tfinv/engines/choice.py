"""Which engine the command line asks for."""

from dataclasses import dataclass

from tfinv.config import check_range
from tfinv.engines.base import Engine
from tfinv.engines.local import LocalEngine
from tfinv.errors import UsageError


@dataclass(frozen=True)
class Machines:
    """Where runs are made: on this machine, or on a Ray cluster."""

    jobs: int = 1
    """Runs at once on this machine; if there are more, each takes its part of the cores."""

    ray: str | None = None
    """Address of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for one started here and now
    (extra `ray`); without it, this machine makes them."""
    storage: str | None = None
    """Folder that all machines of the cluster reach, for what is finished of each run: a path or an fsspec
    URL such as s3://bucket/folder."""
    cpus_per_run: float = 1.0
    """CPUs that a run takes of a machine of the cluster, and threads of its operations."""
    gpus_per_run: float = 0.0
    """GPUs that a run takes of a machine of the cluster, a part of one or a whole number; 0 hides them."""

    def __post_init__(self) -> None:
        check_range("jobs", self.jobs, low=1)
        check_range("cpus_per_run", self.cpus_per_run, low=0.01)
        check_range("gpus_per_run", self.gpus_per_run, low=0.0)
        if self.gpus_per_run > 1 and self.gpus_per_run % 1:
            raise UsageError(
                "Invalid value for gpus_per_run. Expected a part of one GPU, or a whole number. "
                f"Received: {self.gpus_per_run}"
            )
        if self.ray is None and (self.storage, self.cpus_per_run, self.gpus_per_run) != (None, 1.0, 0.0):
            raise UsageError("--storage, --cpus-per-run and --gpus-per-run need --ray.")
        if self.ray is not None and self.jobs != 1:
            raise UsageError(
                "--jobs is for this machine alone; a Ray cluster takes as many runs as it has room for."
            )
        if self.ray is not None and self.storage is None:
            raise UsageError("--ray needs --storage, a folder that all machines of the cluster reach.")


def choose(machines: Machines) -> Engine:
    """Returns the engine that is asked for; loads Ray only if that is.

    Raises:
        UsageError: If the cluster is not reached, the storage cannot be written to, or an extra is missing.
    """
    if machines.ray is None or machines.storage is None:
        return LocalEngine(machines.jobs)
    from tfinv.engines.cluster import RayEngine

    return RayEngine(machines.ray, machines.storage, machines.cpus_per_run, machines.gpus_per_run)
