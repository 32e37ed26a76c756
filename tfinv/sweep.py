"""The runs of a sweep that are missing, finished by an engine, and how far it is."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tfinv import models, summary
from tfinv.catalogue import Catalogue, Entry
from tfinv.config import DEFAULT_PROTOCOLS, RunConfig, dataset_name
from tfinv.engines.base import Engine, Failure
from tfinv.report import headline


def name_of(config: RunConfig) -> str:
    """Returns what a run is called in a sweep."""
    usual = DEFAULT_PROTOCOLS[models.task_of(config.model_name)], "mnist"
    given = (config.protocol, dataset_name(config.dataset))
    unusual = [name for name, expected in zip(given, usual, strict=True) if name != expected]
    return " ".join([config.label, *unusual, f"s{config.seed}"])


def sweep(
    entries: Sequence[Entry],
    known: Catalogue,
    command: Callable[[RunConfig], list[str]],
    console: Console,
    engine: Engine,
) -> list[Failure]:
    """Finishes the runs that are not done and shows how far it is; interrupted ones are resumed.

    Args:
        entries: All runs of the sweep.
        known: Gives the time of an epoch.
        command: Returns the command line that makes a run, for its environment.json.
        console: Where progress is shown: a live line on a terminal, a line an epoch elsewhere.
        engine: Finishes them.

    Returns:
        What failed.
    """
    waiting = [entry for entry in entries if not entry.done]
    failures = []
    # The engine is closed at once, however this ends: what is reported as interrupted is not at work.
    with (
        _Display(entries, known, console) as display,
        contextlib.closing(engine.finish(waiting, command, display)) as ended,
    ):
        for entry, failure in ended:
            if failure is None:
                display.end(entry, f"done: {_figures(entry)}")
            else:
                failures.append(failure)
                display.end(entry, f"FAILED ({failure.reason}): {''.join(failure.tail[-1:])}")
    return failures


class _Display(Progress):
    """A live line on a terminal, a line an epoch elsewhere; a line a run on both."""

    def __init__(self, entries: Sequence[Entry], known: Catalogue, console: Console):
        columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
        super().__init__(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._left = {entry.config: entry for entry in entries if not entry.done}
        self._known = known
        self._count, self._done = len(entries), len(entries) - len(self._left)
        self._begun: dict[RunConfig, tuple[int, float]] = {}  # place in the sweep, time
        self._ended = 0  # epochs of the runs that ended
        total = sum(entry.config.training.epochs for entry in self._left.values())
        self._task = self.add_task("", total=total)

    def begin(self, entry: Entry, where: str = "") -> None:
        """A run is at work; on another machine, if that is named."""
        self._begun.setdefault(entry.config, (self._done + len(self._begun) + 1, time.monotonic()))
        if where:
            self.say(f"at work on {where}", entry)

    def show(self, entry: Entry, epochs: int) -> None:
        """Shows how many epochs of a run are finished."""
        self._left[entry.config] = dataclasses.replace(entry, epochs=epochs)
        left = time_left(list(self._left.values()), self._known)
        text = f"{self._name(entry)}: epoch {epochs}/{entry.config.training.epochs}, {left}"
        at_work = sum(self._left[config].epochs for config in self._begun if config in self._left)
        self.update(self._task, completed=self._ended + at_work, description=text)
        if not self.console.is_terminal:
            self._print(text)

    def end(self, entry: Entry, text: str) -> None:
        """Says how a run ended."""
        self.begin(entry)
        minutes = (time.monotonic() - self._begun[entry.config][1]) / 60
        self._print(f"{self._name(entry)} {text} ({minutes:.1f} min)")
        self._ended += entry.config.training.epochs
        del self._left[entry.config]

    def say(self, text: str, entry: Entry | None = None) -> None:
        """Says what happened, to a run if one is given."""
        if entry is not None:
            self.begin(entry)
            text = f"{self._name(entry)}: {text}"
        self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _name(self, entry: Entry) -> str:
        return f"[{self._begun[entry.config][0]}/{self._count}] {name_of(entry.config)}"


def time_left(entries: Sequence[Entry], known: Catalogue) -> str:
    """Returns the training time that is left, as far as it is known, in words.

    Args:
        entries: Runs; those that are done need none.
        known: Gives the time of an epoch.
    """
    seconds, complete = 0.0, True
    for entry in entries:
        if entry.done:
            continue
        per_epoch = known.seconds_an_epoch(entry.config)
        complete &= per_epoch is not None
        seconds += (per_epoch or 0.0) * (entry.config.training.epochs - entry.epochs)
    if not complete and not seconds:
        return "time left unknown"
    return f"{'about' if complete else 'more than'} {timedelta(seconds=round(seconds))} of training left"


def _figures(entry: Entry) -> str:
    return headline(summary.result(entry.directory, entry.config))
