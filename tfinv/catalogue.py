"""Runs found by their configuration, whoever made them: which are finished, and how long an epoch takes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tfinv import models, runs
from tfinv.config import RunConfig
from tfinv.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """A run that is asked for.

    Attributes:
        config: Its configuration.
        directory: Where it is, or will be.
        epochs: Finished epochs.
        done: Whether it is trained, evaluated and exported.
    """

    config: RunConfig
    directory: Path
    epochs: int
    done: bool

    @property
    def state(self) -> str:
        """In words."""
        if self.done:
            return "done"
        return f"interrupted after epoch {self.epochs}" if self.epochs else "missing"


class Catalogue:
    """The runs below some folders.

    A run's address is `output / <digest of its configuration> / <run id>`: a changed configuration is
    another run, and an unchanged one is found again. Finished runs of the same configuration are found
    in the other folders, too, where nothing is ever written.

    Args:
        output: Folder of the addresses.
        searched: Other folders with run directories in them, or one level below.
    """

    def __init__(self, output: Path, searched: Iterable[Path] = ()):
        self._output = output
        self._known: list[tuple[RunConfig, Path]] = []
        for folder in (output, *searched):
            for pattern in (f"*/{runs.CONFIG}", f"*/*/{runs.CONFIG}"):
                for path in sorted(folder.glob(pattern)):
                    try:
                        self._known.append((models.read_run_config(path.parent), path.parent))
                    except (UsageError, OSError, TypeError, ValueError):
                        continue  # of another version, unreadable, or no run at all

    def find(self, config: RunConfig) -> Entry:
        """Returns the run of a configuration, a finished one if there is any."""
        same = [self._address(config), *(directory for known, directory in self._known if known == config)]
        done = [directory for directory in same if is_finished(directory, config)]
        # Under an older digest, if an option was added since: then it is of the same configuration, still.
        own = [directory for directory in same if directory.parent.parent == self._output]
        directory = done[0] if done else max(own, key=runs.epochs_of)
        return Entry(config, directory, runs.epochs_of(directory), bool(done))

    def seconds_an_epoch(self, config: RunConfig) -> float | None:
        """Returns the mean over the epochs of all known runs of that network; None if there is none."""
        directories = {
            self._address(config),
            *(path for known, path in self._known if _costs(known) == _costs(config)),
        }
        seconds = [history.seconds for path in directories if len(history := _history(path))]
        return float(np.mean(pd.concat(seconds))) if seconds else None

    def _address(self, config: RunConfig) -> Path:
        return self._output / runs.digest(config) / config.run_id


def is_finished(directory: Path, config: RunConfig) -> bool:
    """Returns whether a run directory holds the model, results and export of all epochs."""
    results, export = directory / runs.INVARIANCE, directory / runs.EXPORT
    if not ((directory / runs.MODEL).is_file() and results.is_file() and export.is_dir()):
        return False
    return runs.epochs_of(directory) >= config.training.epochs


def _history(directory: Path) -> pd.DataFrame:
    try:
        history = pd.read_csv(directory / runs.HISTORY)
    except (FileNotFoundError, ValueError):  # a foreign or cut-off one, too
        return pd.DataFrame()
    return history if "seconds" in history else pd.DataFrame()


def _costs(config: RunConfig) -> tuple:
    """What the time of an epoch depends on."""
    training = config.training
    data = (config.dataset, config.protocol, config.excluded_classes, config.limit)
    return config.model_name, config.model, training.batch_size, training.precision, config.imagining, data
