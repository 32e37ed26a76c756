"""What an engine is: it finishes runs and tells how far each of them is."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tfinv.catalogue import Entry
from tfinv.config import RunConfig

LOG = "log.txt"
_TAIL = 6


@dataclass(frozen=True)
class Failure:
    """A run that did not finish.

    Attributes:
        entry: The run.
        reason: Exit code or signal of its process, or what was lost.
        tail: Last lines of its output.
        log: All of its output.
    """

    entry: Entry
    reason: str
    tail: tuple[str, ...]
    log: Path

    @classmethod
    def of(cls, entry: Entry, reason: str, said: str) -> "Failure":
        """Returns the failure of a run whose process said `said`, which is in its log already."""
        lines = [line for line in said.splitlines() if line.strip()]
        return cls(entry, reason, tuple(lines[-_TAIL:]), log_of(entry))


def log_of(entry: Entry) -> Path:
    """Returns where the output of a run's process is kept."""
    return entry.directory.parent / LOG


class Watcher(Protocol):
    """Whoever wants to know how far the runs are."""

    def begin(self, entry: Entry, where: str = "") -> None:
        """A run is at work; `where` names the machine if it may be another."""

    def show(self, entry: Entry, epochs: int) -> None:
        """So many epochs of a run at work are finished."""

    def say(self, text: str, entry: Entry | None = None) -> None:
        """Something happened that is worth a line, to a run or to all of them."""


class Engine(Protocol):
    """Finishes runs."""

    def finish(
        self, entries: Sequence[Entry], command: Callable[[RunConfig], list[str]], watcher: Watcher
    ) -> Generator[tuple[Entry, Failure | None], None, None]:
        """Finishes runs, interrupted ones from where they stopped; one that fails stops no other.

        Args:
            entries: Runs that are not done.
            command: Returns the command line that makes a run, for its environment.json.
            watcher: Is told how far the runs are.

        Yields:
            Each run when it ended, and how it failed if it did. What is done is in its directory then.
        """
