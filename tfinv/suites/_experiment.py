"""What a row of a suite is: a network, with a budget by name."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfinv import models, runs
from tfinv.config import RunConfig

BUDGETS = {
    "smoke": "every stage on a few images; its figures mean nothing",
    "cpu": "a night or two on 2 cores",
    "article": "what each preset says; meant for a GPU",
}
_SMOKE = {
    "epochs": 1,
    "validation_fraction": 0.0,
    "repeats": 1,
    "grid_step": 45.0,
    "curve_images": 100,
    "limit": 200,
}


@dataclass(frozen=True)
class Experiment:
    """A network of a suite.

    Attributes:
        model: Module of tfinv.models.
        preset: Preset of that model, from which all values start.
        family: Networks drawn together.
        cpu: Fields of a run, its training, evaluation or imagining at the budget "cpu"; also "preset", to
            start from another.
        smoke: What else is changed at the budget "smoke".
        changes: The same at every budget.
        seeds: Seeds if the command line gives none.
        pictures: Figures of its first run that a report shows.
        suffix: What its name has beside its label, where another row has the same label.
    """

    model: str
    preset: str
    family: str
    cpu: Mapping[str, Any] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    pictures: tuple[str, ...] = ()
    suffix: str = ""

    @property
    def name(self) -> str:
        """The row's name on the command line."""
        return self.config("article", 0).label + self.suffix

    def config(self, budget: str, seed: int) -> RunConfig:
        """Returns the run of one seed at one of BUDGETS."""
        own = {"smoke": {**_SMOKE, **self.smoke}, "cpu": self.cpu, "article": {}}[budget]
        changes = {"preset": self.preset, **self.changes, **own}
        config = models.default_run(self.model, changes.pop("preset"))
        return runs.replace(dataclasses.replace(config, seed=seed), **changes)

    @functools.cached_property
    def identities(self) -> frozenset[tuple[str, str, str]]:
        """What `identity` says of its runs, at all budgets."""
        return frozenset(identity(self.config(budget, 0)) for budget in BUDGETS)


def identity(config: RunConfig) -> tuple[str, str, str]:
    """Returns what tells the runs of a row from those of others, whatever their training."""
    return config.label, config.dataset, config.protocol


def cnn(preset: str, family: str, **rest: Any) -> Experiment:
    """Returns the row of one of the article's CNNs; `rest` are further fields."""
    budget = {"epochs": 15, "learning_rate": 1e-3, "decay_rate": 0.8, "decay_steps": None}
    return Experiment("cnn", preset, family, budget, **rest)


def little(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a smoke run changes of an imagination, unless the row's own `changes` do."""
    return {name: value for name, value in _LITTLE.items() if name not in changes}


# What little can be learned of a transformation from few images; moments then need all the more angles.
# No row asks for as many steps: each run is another.
_LITTLE = {
    "operator_steps": 10,
    "operator_pairs": 200,
    "address_steps": 5,
    "moment_components": 24,
    "moment_passes": 60,
    "limit": 600,
}
