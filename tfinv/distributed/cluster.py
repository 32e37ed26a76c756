"""Strategies by name, and what happens when a worker of a cluster is missing or lost."""

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Literal

import tensorflow as tf

from tfinv.distributed.team import ALONE, Team
from tfinv.errors import UsageError, one_line

StrategyName = Literal["none", "mirrored", "multiworker"]

_CLUSTER = "TF_CONFIG"
_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
# What TensorFlow raises in a worker when another one is gone.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


def start(name: StrategyName) -> Team:
    """Makes a strategy, before TensorFlow computes anything; waits for all other workers.

    Raises:
        UsageError: If `TF_CONFIG` is missing or malformed, or its address cannot be used.
    """
    if name == "none":
        return ALONE
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Team(name, tf.distribute.MirroredStrategy([device.name for device in devices]))
    index, addresses = read_cluster(os.environ.get(_CLUSTER, ""))
    others = [address for number, address in enumerate(addresses) if number != index]
    logging.getLogger(__name__).info("Worker %d waits for %s", index, ", ".join(others) or "nobody")
    kinds = tf.distribute.experimental.CommunicationImplementation
    # Rings are TensorFlow's own on CPUs; on GPUs, NCCL's are faster.
    implementation = kinds.AUTO if tf.config.list_physical_devices("GPU") else kinds.RING
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    try:
        with _interruptible():
            strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except (tf.errors.OpError, RuntimeError) as error:
        reason = one_line(error)[:200]
        raise UsageError(f"Worker {index} cannot start at {addresses[index]}: {reason}") from None
    return Team(name, strategy, index, len(addresses))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets Ctrl-C end the process at once, since TensorFlow's waiting never returns to Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_cluster(text: str) -> tuple[int, list[str]]:
    """Reads TF_CONFIG.

    Args:
        text: Its JSON text.

    Returns:
        The number of this worker and the addresses of all; that of the chief is the first.

    Raises:
        UsageError: If it is empty, malformed, or of a cluster that is not workers alone.
    """
    try:
        values = json.loads(text)
        jobs, task = dict(values["cluster"]), dict(values["task"])
        groups = {job: [str(address) for address in list(jobs.pop(job, []))] for job in ("chief", "worker")}
        addresses = [*groups["chief"], *groups["worker"]]
        index = int(task["index"])
        own = groups[task["type"]][index]
        ports = [int(address.rpartition(":")[2]) for address in addresses if address.rpartition(":")[0]]
        if jobs or index < 0 or len(set(addresses)) < len(ports) or len(groups["chief"]) > 1:
            raise ValueError
        if len(ports) < len(addresses) or not all(0 < port < 1 << 16 for port in ports):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError):
        raise UsageError(
            f"{_CLUSTER} does not tell the workers. Expected {_EXAMPLE} with the index of each in its own. "
            f"Received: {_CLUSTER}={' '.join(text.split())[:200]!r}"
        ) from None
    return addresses.index(own), addresses


@contextlib.contextmanager
def losses_named(team: Team) -> Iterator[None]:
    """Turns what TensorFlow says where another worker is gone into one line.

    Raises:
        ConnectionError: With that line.
    """
    try:
        yield
    except _LOST:
        if team.workers == 1:
            raise
        raise ConnectionError(
            f"Worker {team.index} lost another worker, which has stopped or cannot be reached: see what that "
            "one says. Finished epochs are kept; start all workers again with --resume"
        ) from None
