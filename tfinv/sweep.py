"""Many runs one after the other, each in a process of its own, so that one failing loses no other."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tfinv import catalogue, models, results, runs
from tfinv.catalogue import Catalogue, Entry
from tfinv.config import DEFAULT_PROTOCOLS, RunConfig, to_json
from tfinv.report import headline
from tfinv.summary import Result

LOG = "log.txt"
_POLL_SECONDS = 0.5
_TAIL = 6


@dataclass(frozen=True)
class Failure:
    """A run that did not finish.

    Attributes:
        entry: The run.
        reason: Exit code or signal of its process.
        tail: Last lines of its output.
        log: All of its output.
    """

    entry: Entry
    reason: str
    tail: tuple[str, ...]
    log: Path


def name_of(config: RunConfig) -> str:
    """Returns what a run is called in a sweep."""
    usual = DEFAULT_PROTOCOLS[models.task_of(config.model_name)], "mnist"
    given = (config.protocol, Path(config.dataset).stem)
    unusual = [name for name, expected in zip(given, usual, strict=True) if name != expected]
    return " ".join([config.label, *unusual, f"s{config.seed}"])


def sweep(
    entries: Sequence[Entry],
    known: Catalogue,
    command: Callable[[RunConfig], list[str]],
    console: Console,
) -> list[Failure]:
    """Finishes the runs that are not done and shows how far it is; interrupted ones are resumed.

    Args:
        entries: All runs of the sweep.
        known: Gives the time of an epoch.
        command: Returns the command line that makes a run, for its environment.json.
        console: Where progress is shown: a live line on a terminal, a line an epoch elsewhere.

    Returns:
        What failed.
    """
    display = _Display(entries, known, console)
    failures = []
    with display:
        for entry in display.waiting:
            display.begin(entry)
            failure = _finish(entry, command(entry.config), display.show)
            if failure is None:
                display.end(f"done: {_figures(entry)}")
            else:
                failures.append(failure)
                display.end(f"FAILED ({failure.reason}): {''.join(failure.tail[-1:])}")
    return failures


class _Display(Progress):
    """A live line on a terminal, a line an epoch elsewhere; a line a run on both."""

    def __init__(self, entries: Sequence[Entry], known: Catalogue, console: Console):
        columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
        super().__init__(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.waiting = [entry for entry in entries if not entry.done]
        self._known = known
        self._place, self._count = len(entries) - len(self.waiting), len(entries)
        self._epochs = 0  # of the runs before this one
        self._started = 0.0
        self._task = self.add_task("", total=sum(entry.config.training.epochs for entry in self.waiting))

    def begin(self, entry: Entry) -> None:
        """Starts the next run of `waiting`."""
        self._entry, self._place, self._started = entry, self._place + 1, time.monotonic()

    def show(self, epochs: int) -> None:
        """Shows how many epochs of the run are finished."""
        config = self._entry.config
        left = time_left(self.waiting[self.waiting.index(self._entry) + 1 :], self._known, (config, epochs))
        text = f"{self._name()}: epoch {epochs}/{config.training.epochs}, {left}"
        self.update(self._task, completed=self._epochs + epochs, description=text)
        if not self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self, text: str) -> None:
        """Says how the run ended."""
        minutes = (time.monotonic() - self._started) / 60
        line = f"{self._name()} {text} ({minutes:.1f} min)"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._epochs += self._entry.config.training.epochs

    def _name(self) -> str:
        return f"[{self._place}/{self._count}] {name_of(self._entry.config)}"


def time_left(
    entries: Sequence[Entry], known: Catalogue, current: tuple[RunConfig, int] | None = None
) -> str:
    """Returns the training time that is left, as far as it is known, in words.

    Args:
        entries: Runs that are not begun, or interrupted.
        known: Gives the time of an epoch.
        current: Configuration of the run at work, and its finished epochs.
    """
    parts = [(entry.config, entry.epochs) for entry in entries if not entry.done]
    seconds, complete = 0.0, True
    for config, epochs in [current, *parts] if current else parts:
        per_epoch = known.seconds_an_epoch(config)
        complete &= per_epoch is not None
        seconds += (per_epoch or 0.0) * (config.training.epochs - epochs)
    if not complete and not seconds:
        return "time left unknown"
    return f"{'about' if complete else 'more than'} {timedelta(seconds=round(seconds))} of training left"


def _finish(entry: Entry, command: list[str], show: Callable[[int], None]) -> Failure | None:
    output = entry.directory.parent
    output.mkdir(parents=True, exist_ok=True)
    log = output / LOG
    with log.open("a") as file:
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tfinv.worker", str(output), *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # CTRL-C reaches this process alone, which then ends that one
        )
    try:
        _watch(process, entry, show)
    finally:
        _end(process)
    if process.returncode == 0 and catalogue.is_finished(entry.directory, entry.config):
        return None
    code = process.returncode
    reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return Failure(entry, reason, tuple(line for line in lines if line.strip())[-_TAIL:], log)


def _watch(process: subprocess.Popen, entry: Entry, show: Callable[[int], None]) -> None:
    """Shows each epoch until the process ends."""
    if process.stdin is None:
        raise RuntimeError("The worker has no stdin.")
    with contextlib.suppress(BrokenPipeError):  # it ended at once; its log says why
        process.stdin.write(to_json(entry.config).replace("\n", " ") + "\n")
        process.stdin.flush()
    shown = None
    while process.poll() is None:
        epochs = catalogue.epochs_of(entry.directory)
        if epochs != shown:
            show(epochs)
            shown = epochs
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)


def _end(process: subprocess.Popen) -> None:
    """Ends the process if it is still there."""
    if process.poll() is None:
        process.kill()  # nothing to tidy up: files are replaced atomically
        process.wait()
    with contextlib.suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()


def _figures(entry: Entry) -> str:
    rows = results.read_csv(entry.directory / runs.INVARIANCE)
    return headline(Result(entry.directory, entry.config, rows))
