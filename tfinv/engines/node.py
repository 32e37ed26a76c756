"""A run on a machine of a cluster: from its stored state, in a process of its own, stored after each epoch.

Knows neither Ray nor TensorFlow: the one calls it, the other is loaded by the process that it starts.
"""

import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tfinv
from tfinv import runs
from tfinv.engines import process
from tfinv.engines.storage import Storage

# An operator, a scheduler or the system ended the process, not the run itself.
_TAKEN_AWAY = (-signal.SIGKILL, -signal.SIGTERM)
# What is returned of a log is its end.
_LOG_BYTES = 1 << 20
# Seconds between tries where a run cannot do without the storage: at its beginning and its end.
_WAITS = (1.0, 5.0, 30.0, 120.0)
# What another try does not mend: a package that is missing, a mistake of ours.
_HOPELESS = (ImportError, TypeError, AttributeError)
_Returned = TypeVar("_Returned")


@dataclass(frozen=True)
class Job:
    """What a machine is told of a run.

    Attributes:
        key: Where in the storage.
        config: Its configuration as JSON.
        command: Command line for its environment.json.
        storage: URL of the storage.
        attempt: How often it was begun, this time included.
        environment: Variables of its process.
        version: Of tfinv, where the sweep was started.
    """

    key: str
    config: str
    command: tuple[str, ...]
    storage: str
    attempt: int
    environment: Mapping[str, str]
    version: str = tfinv.__version__


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        code: Exit code of the process, or minus the signal that killed it.
        said: What the process said, or the end of it.
        where: Name of the machine.
    """

    code: int
    said: str
    where: str

    @property
    def taken_away(self) -> bool:
        """Whether another attempt may end otherwise."""
        return self.code in _TAKEN_AWAY


def work(job: Job) -> Outcome:
    """Finishes a run from its last stored state; where it fails, what there is of it is stored, too."""
    where = socket.gethostname()
    if job.version != tfinv.__version__:
        return Outcome(2, f"{where} has tfinv {tfinv.__version__}, the sweep is by {job.version}.", where)
    storage = Storage(job.storage)
    _patiently(lambda: storage.begin(job.key, job.attempt, where))
    with tempfile.TemporaryDirectory(prefix="tfinv-") as temporary:
        directory = Path(temporary, job.key)
        state = _patiently(lambda: storage.restore(job.key, directory))
        if state is not None and state.finished:
            return Outcome(0, "", where)
        keeper = _Keeper(storage, job.key, directory)
        with Path(temporary, "log.txt").open("w+b") as log:
            output, variables = directory.parent, job.environment
            output.mkdir(parents=True, exist_ok=True)
            code = process.work(job.config, output, job.command, log, keeper.look, variables)
            log.seek(max(0, log.seek(0, 2) - _LOG_BYTES))
            said = log.read().decode(errors="replace") + keeper.trouble
        if directory.is_dir():
            epochs = runs.epochs_of(directory)
            _patiently(lambda: storage.save(job.key, directory, epochs, finished=code == 0))
        return Outcome(code, said, where)


def _patiently(action: Callable[[], _Returned]) -> _Returned:
    """Does something with the storage; if that is away, again until `_WAITS` are over."""
    for wait in _WAITS:
        try:
            return action()
        except _HOPELESS:
            raise
        except Exception as error:  # each file system has its own
            print(f"The storage failed, next try in {wait:.0f} s: {error!r}", file=sys.stderr, flush=True)
            time.sleep(wait)
    return action()


class _Keeper:
    """Stores a run's directory whenever there is a new checkpoint."""

    def __init__(self, storage: Storage, key: str, directory: Path):
        self._storage, self._key, self._directory = storage, key, directory
        self._stored = self._stamp()
        self._next_try = 0.0
        self.trouble = ""

    def look(self) -> None:
        """Stores what is new; a storage that is away costs the run nothing, unless that outlasts it."""
        stamp = self._stamp()
        if stamp == self._stored or time.monotonic() < self._next_try:
            return
        try:
            self._storage.save(self._key, self._directory, runs.epochs_of(self._directory))
            self._stored = stamp
        except Exception as error:  # each file system has its own
            self.trouble = f"\nNot stored after epoch {runs.epochs_of(self._directory)}: {error!r}\n"
            self._next_try = time.monotonic() + 10 * process.POLL_SECONDS

    def _stamp(self) -> int:
        path = self._directory / runs.CHECKPOINT
        return path.stat().st_mtime_ns if path.is_file() else 0
