"""The engine of many machines: a run is a task of a Ray cluster, and its directory comes back by storage."""

import logging
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tfinv import catalogue, runs
from tfinv.catalogue import Entry
from tfinv.config import RunConfig, to_json
from tfinv.engines import node
from tfinv.engines.base import Failure, Watcher, log_of
from tfinv.engines.process import reason_of, threads
from tfinv.engines.storage import EXTRA, Progress, Storage
from tfinv.errors import UsageError, one_line

# Attempts of a run whose machine, or whose process, was taken away.
ATTEMPTS = 4
_POLL_SECONDS = 1.0
# Of a cluster that is started for the sweep: what travels through it are configurations and logs.
_OBJECT_STORE_BYTES = 100 * 2**20
# Variables that change what is computed; others, such as where data is, are each machine's own.
_INHERITED = (runs.ONEDNN, "TF_CPP_MIN_LOG_LEVEL", "TFINV_DISABLE_FUSED", "TFINV_REQUIRE_FUSED")


@dataclass
class _Task:
    """A run at the cluster."""

    entry: Entry
    job: node.Job
    first: int
    """Attempt it began with: those before are of earlier sweeps."""
    shown: Progress = field(default_factory=Progress)


class RayEngine:
    """See `tfinv.engines.base.Engine`.

    Args:
        address: Of the cluster, as `ray.init` takes it; "local" starts one.
        storage: URL of the storage.
        cpus: CPUs a run.
        gpus: GPUs a run.

    Raises:
        UsageError: If Ray is not installed, the storage cannot be written to or the cluster is not reached.
    """

    def __init__(self, address: str, storage: str, cpus: float, gpus: float):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a library reports nothing about its users
        try:
            import ray
        except ImportError:
            raise UsageError(f"--ray needs Ray: {EXTRA}") from None
        self._ray: Any = ray
        self._storage = Storage(storage)
        self._storage.check()
        self._cpus, self._gpus = cpus, gpus
        self._connect(address)

    def _connect(self, address: str) -> None:
        options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            options.update(include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES)
            options.update(_node_ip_address="127.0.0.1")  # nobody else's business
        try:
            self._ray.init(**options)
        except Exception as error:  # of many classes, depending on the address
            raise UsageError(f"No Ray cluster at --ray {address}: {one_line(error)[:200]}") from None

    def finish(
        self, entries: Sequence[Entry], command: Callable[[RunConfig], list[str]], watcher: Watcher
    ) -> Generator[tuple[Entry, Failure | None], None, None]:
        """Finishes runs wherever there is room."""
        try:
            yield from self._finish(entries, command, watcher)
        finally:
            self._ray.shutdown()  # ends what is still at work

    def _finish(
        self, entries: Sequence[Entry], command: Callable[[RunConfig], list[str]], watcher: Watcher
    ) -> Generator[tuple[Entry, Failure | None], None, None]:
        self._say_if_nothing_fits(watcher)
        stored = self._storage.progress()
        tasks: dict[Any, _Task] = {}
        for entry in entries:
            key = f"{entry.directory.parent.name}/{entry.directory.name}"
            known = stored.get(key, Progress())
            if known.finished and self._collect(entry, key) is None:
                yield entry, None
                continue
            if entry.epochs > known.epochs:  # it was begun here
                self._storage.save(key, entry.directory, entry.epochs)
            environment = _environment(self._cpus, self._gpus)
            words, attempt = tuple(command(entry.config)), known.attempt + 1
            job = node.Job(key, to_json(entry.config), words, self._storage.url, attempt, environment)
            task = _Task(entry, job, attempt)
            tasks[self._start(job)] = task
        while tasks:
            ended, _ = self._ray.wait(list(tasks), num_returns=1, timeout=_POLL_SECONDS)
            self._show(list(tasks.values()), watcher)
            for reference in ended:
                task = tasks.pop(reference)
                again, failure = self._end(reference, task)
                if again:
                    job = replace(task.job, attempt=task.job.attempt + 1)
                    count = f"attempt {job.attempt - task.first + 1} of {ATTEMPTS}"
                    watcher.say(f"{again}; it goes on where there is room ({count})", task.entry)
                    tasks[self._start(job)] = replace(task, job=job)
                else:
                    yield task.entry, failure

    def _start(self, job: node.Job) -> Any:
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": 0}
        return self._ray.remote(scheduling_strategy="SPREAD", **options)(node.work).remote(job)

    def _end(self, reference: Any, task: _Task) -> tuple[str, Failure | None]:
        """Returns why another attempt is due, or how the run failed, if it did."""
        errors = self._ray.exceptions
        said = ""
        try:
            outcome = self._ray.get(reference)
            reason, said, lost = reason_of(outcome.code), outcome.said, outcome.taken_away
        except errors.RayTaskError as error:  # raised by the task: the storage, as a rule
            cause = " ".join(str(error.cause).split())
            reason, lost = f"{type(error.cause).__name__}: {cause}", False
        except errors.RayError as error:  # its node or its process is gone
            reason, lost = f"lost with its machine, {type(error).__name__}", True
        log = log_of(task.entry)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{said}\n" if said else f"({reason})\n")
        if lost and task.job.attempt - task.first + 1 < ATTEMPTS:
            return reason, None
        failure = self._collect(task.entry, task.job.key)
        return "", failure if reason == reason_of(0) else Failure.of(task.entry, reason, said)

    def _collect(self, entry: Entry, key: str) -> Failure | None:
        """Brings the run directory from the storage to this machine."""
        try:
            self._storage.restore(key, entry.directory)
        except Exception as error:  # each file system has its own; the other runs go on
            return Failure.of(entry, "its results could not be fetched from the storage", repr(error))
        if catalogue.is_finished(entry.directory, entry.config):
            return None
        where = f"{self._storage.url}/{key}"
        reason = "ended, but its results are not in the storage"
        return Failure.of(entry, reason, f"{where}: do all machines of the cluster reach it?")

    def _show(self, tasks: Sequence[_Task], watcher: Watcher) -> None:
        try:
            stored = self._storage.progress()
        except Exception:  # what passes by is not worth a sweep; what stays, the runs complain about
            return
        for task in tasks:
            now, before = stored.get(task.job.key, Progress()), task.shown
            if now.attempt < task.first:
                continue
            if now.attempt != before.attempt:
                watcher.begin(task.entry, now.where)
            if now.epochs != before.epochs:
                watcher.show(task.entry, now.epochs)
            task.shown = now

    def _say_if_nothing_fits(self, watcher: Watcher) -> None:
        """Ray would wait in silence; rightly so if the cluster grows on demand."""
        needs = {"CPU": self._cpus, "GPU": self._gpus}
        nodes = [known["Resources"] for known in self._ray.nodes() if known["Alive"]]
        if not any(all(has.get(name, 0) >= need for name, need in needs.items()) for has in nodes):
            wanted = f"{self._cpus:g} CPUs and {self._gpus:g} GPUs"
            watcher.say(f"No machine of the cluster has {wanted}; waiting for one that has.")


def _environment(cpus: float, gpus: float) -> dict[str, str]:
    """Returns the variables of a run's process."""
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment |= threads(cpus)
    if gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif gpus < 1:
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # or the first would take all of its memory
    return environment
