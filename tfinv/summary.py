"""From runs to networks: means and spreads over seeds, and who leads.

Two spreads are kept apart: over the seeds of a network, that is over trainings, and over the passes of one
trained network, that is over the random parameters of its test.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from tfinv import models, results, runs, suites
from tfinv.config import EvaluationConfig, RunConfig
from tfinv.errors import UsageError

PTEST_TO_LEAD = 0.97


@dataclass(frozen=True)
class Result:
    """The tables of one run.

    Attributes:
        folder: Where they are.
        config: Its configuration.
        rows: Its invariance.csv.
    """

    folder: Path
    config: RunConfig
    rows: pd.DataFrame

    @cached_property
    def values(self) -> pd.Series:
        """The value of each test, its variance over passes, and the number of passes; see `results.whole`."""
        return results.whole(self.rows)


@dataclass(frozen=True)
class Network:
    """Runs that differ in their seed alone.

    Attributes:
        name: Name in tables; with its budget where another network has the same.
        results: A run a seed, in the order of the seeds.
    """

    name: str
    results: tuple[Result, ...]

    @property
    def config(self) -> RunConfig:
        """Configuration of the first seed."""
        return self.results[0].config

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(result.config.seed for result in self.results)

    @property
    def epochs(self) -> int:
        """Epochs of training."""
        return self.config.training.epochs

    def mean(self, *metrics: str) -> float:
        """Returns the mean over seeds, of several metrics that of their mean."""
        return float(self._values(metrics).mean(skipna=False))

    def spread(self, *metrics: str) -> float:
        """Returns the standard deviation over seeds of what `mean` averages, with n - 1; NaN for one seed."""
        return float(self._values(metrics).std(ddof=1, skipna=False))

    def _values(self, metrics: tuple[str, ...]) -> pd.Series:
        return pd.Series([result.values[list(metrics)].mean(skipna=False) for result in self.results])


def read(folder: Path) -> list[Result]:
    """Returns the runs of a folder with one folder a run; one without results is left out.

    Raises:
        UsageError: If one with results is not complete.
    """
    # What a kill has left of a folder that was being written has a name with a dot.
    folders = sorted(path.parent for path in folder.glob(f"[!.]*/{runs.INVARIANCE}"))
    for path in folders:
        if not (path / runs.ENVIRONMENT).is_file():
            raise UsageError(f"Incomplete run: {path} has results and no {runs.ENVIRONMENT}.")
    return [result(path, models.read_run_config(path)) for path in folders]


def result(folder: Path, config: RunConfig) -> Result:
    """Returns the tables of a run."""
    return Result(folder, config, results.read_csv(folder / runs.INVARIANCE))


def networks(found: Iterable[Result]) -> list[Network]:
    """Groups runs into networks, in the order of the suites, then by name and budget.

    Raises:
        UsageError: If one training is there twice, evaluated differently: it is no second seed.
    """
    groups: dict[RunConfig, dict[int, Result]] = {}  # of each network a result by its seed
    for result in found:
        # More passes or points of the curve do not make another network.
        key = dataclasses.replace(result.config, seed=0, evaluation=EvaluationConfig())
        seed = result.config.seed
        other = groups.setdefault(key, {}).setdefault(seed, result)
        if other is not result:
            raise UsageError(
                f"Two evaluations of one training. Expected one run for seed {seed} of {key.label}: "
                f"remove one folder. Received: {other.folder}, {result.folder}"
            )

    def order(config: RunConfig) -> tuple:
        suite, place, _ = suites.place_of(config)
        number = list(suites.SUITES).index(suite) if suite else len(suites.SUITES)
        return number, place, config.label, config.training.epochs, budget(config)

    return [
        Network(_name(config, groups), tuple(result for _, result in sorted(groups[config].items())))
        for config in sorted(groups, key=order)
    ]


def _name(config: RunConfig, others: Iterable[RunConfig]) -> str:
    """Returns the shortest name that no other network has."""
    same = [other for other in others if other.label == config.label and other != config]
    if not same:
        return config.label
    if budget(config) not in map(budget, same):
        return f"{config.label}, {budget(config)}"
    return f"{config.label}, {runs.digest(config)}"


def budget(config: RunConfig) -> str:
    """Returns in words how long and how a network was trained."""
    training = config.training
    text = f"{training.epochs} epochs, rate {training.learning_rate:g}"
    if training.decay_rate < 1:
        every = f"{training.decay_steps:,} steps" if training.decay_steps else "epoch"
        text += f" x {training.decay_rate:g} every {every}"
    if training.precision != "float32":
        text += f", {training.precision}"
    return text + (f", {config.limit} images" if config.limit else "")


def leaderboard(found: Sequence[Network]) -> tuple[list[Network], list[Network]]:
    """Returns the networks with a Ptest of PTEST_TO_LEAD by descending Pinv, and those with less."""
    able = [network for network in found if network.mean("Ptest") >= PTEST_TO_LEAD]
    others = [network for network in found if network not in able]
    return sorted(able, key=lambda network: _measured_first(-network.mean("Pinv"))), others


def by_error(found: Sequence[Network], errors: Sequence[str]) -> list[Network]:
    """Returns the networks by the mean of some metrics, the smallest first."""
    return sorted(found, key=lambda network: _measured_first(network.mean(*errors)))


def _measured_first(value: float) -> tuple[bool, float]:
    return math.isnan(value), value
