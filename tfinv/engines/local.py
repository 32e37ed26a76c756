"""The engine of one machine: some runs at once, each in a process of its own."""

import functools
import os
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tfinv import catalogue, runs
from tfinv.catalogue import Entry
from tfinv.config import RunConfig, to_json
from tfinv.engines import process
from tfinv.engines.base import Failure, Watcher, log_of

_Told = queue.SimpleQueue[Callable[[], tuple[Entry, Failure | None] | None]]


class _StoppedError(Exception):
    """The sweep ended; its runs end with it."""


class LocalEngine:
    """See `tfinv.engines.base.Engine`.

    Args:
        jobs: Runs at once, at least 1; if there are more, each takes its part of the cores.
    """

    def __init__(self, jobs: int = 1):
        self._jobs = jobs

    def finish(
        self, entries: Sequence[Entry], command: Callable[[RunConfig], list[str]], watcher: Watcher
    ) -> Generator[tuple[Entry, Failure | None], None, None]:
        """Finishes runs in their order."""
        # A thread waits for each process; what it has to tell is told here, by the caller's thread.
        told: _Told = queue.SimpleQueue()
        stop = threading.Event()
        jobs = max(1, min(self._jobs, len(entries)))
        environment = _share(jobs)
        pool = ThreadPoolExecutor(jobs)

        def work(entry: Entry) -> Failure | None:
            told.put(functools.partial(watcher.begin, entry))
            try:
                return _finish(entry, command(entry.config), environment, watcher, told, stop)
            except OSError as error:  # of its own folder or process, and no other run's
                return Failure.of(entry, repr(error), "")

        def submit(entry: Entry) -> None:
            ended = pool.submit(work, entry)
            ended.add_done_callback(lambda _: told.put(lambda: (entry, ended.result())))

        try:
            for entry in entries:
                submit(entry)
            for _ in entries:
                while (outcome := told.get()()) is None:
                    pass
                yield outcome
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _share(jobs: int) -> dict[str, str] | None:
    """Returns the variables of one of so many processes that share this machine."""
    if jobs == 1:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Or the first would take all memory of a GPU.
    return {**process.threads(cores / jobs), "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def _finish(
    entry: Entry,
    command: list[str],
    environment: dict[str, str] | None,
    watcher: Watcher,
    told: _Told,
    stop: threading.Event,
) -> Failure | None:
    output, log = entry.directory.parent, log_of(entry)
    output.mkdir(parents=True, exist_ok=True)
    shown = None

    def watch() -> None:
        nonlocal shown
        if stop.is_set():
            raise _StoppedError
        epochs = runs.epochs_of(entry.directory)
        if epochs != shown:
            told.put(functools.partial(watcher.show, entry, epochs))
            shown = epochs

    with log.open("a") as file:
        start = file.tell()
        code = process.work(to_json(entry.config), output, command, file, watch, environment)
    if code == 0 and catalogue.is_finished(entry.directory, entry.config):
        return None
    with log.open("rb") as said:
        said.seek(start)
        return Failure.of(entry, process.reason_of(code), said.read().decode(errors="replace"))
