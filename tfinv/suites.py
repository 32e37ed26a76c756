"""The experiments that `scripts/reproduce.py` runs, as data: a row a network, a budget by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfinv import models, runs
from tfinv.config import RunConfig
from tfinv.errors import UsageError

BUDGETS = {
    "smoke": "every stage on a few images; its figures mean nothing",
    "cpu": "a night on 2 cores",
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
        cpu: Fields of a run, its training, evaluation or imagining at the budget "cpu".
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
        config = dataclasses.replace(models.default_run(self.model, self.preset), seed=seed)
        own = {"smoke": {**_SMOKE, **self.smoke}, "cpu": self.cpu, "article": {}}[budget]
        return runs.replace(config, **{**self.changes, **own})


def _cnn(preset: str, family: str, **rest: Any) -> Experiment:
    budget = {"epochs": 15, "learning_rate": 1e-3, "decay_rate": 0.8, "decay_steps": None}
    return Experiment("cnn", preset, family, budget, **rest)


def _cnn_pool(preset: str) -> Experiment:
    # Convolutions of stride 1: an epoch costs several of the others'.
    budget = {"epochs": 5, "learning_rate": 1e-3, "decay_rate": 0.5, "decay_steps": None}
    # And 100 million weights, which take longer to store than a smoke run takes otherwise.
    narrow = dataclasses.replace(models.get_preset("cnn", preset).model, dense_units=32)
    return Experiment("cnn", preset, "CNN with pooling of stride 1", budget, smoke={"model": narrow})


_FIGURES = ("reconstructions.png", "taken_for.png")
_FEW_PASSES = {"repeats": 5, "curve_images": 1000}
_EFFICIENT = {"epochs": 5, "batch_size": 100, "learning_rate": 2e-3, "decay_rate": 0.6, **_FEW_PASSES}
_GIVEN = "Given the transformation"
_TITLES = {"imagination": "what imagination depends on"}


# What little can be learned from few images; moments then need all the more angles.
_LITTLE = {
    "operator_pairs": 200,
    "address_steps": 5,
    "moment_components": 24,
    "moment_passes": 60,
    "limit": 600,
}


def _imagined(how: str, **changes: Any) -> Experiment:
    changes = {"imagination": how, **changes}
    seeds = (0, 1, 2)
    return _cnn(
        "cnn_bn_00", "Imagination", changes=changes, smoke=_LITTLE, seeds=seeds, pictures=("taken_for.png",)
    )


# One operator a pixel, the end of the range included.
_SHIFTS = {"protocol": "shift-34", "operator_steps": 14}


def _ablated(family: str, how: str = "operators", suffix: str = "", **changes: Any) -> Experiment:
    changes = {"imagination": how, **changes}
    return Experiment("cnn", "quick", family, smoke=_LITTLE, changes=changes, suffix=suffix)


# The order is that of the article's table.
SUITES: Mapping[str, tuple[Experiment, ...]] = {
    "recognition": (
        _cnn("cnn_00", "CNN"),
        _cnn("cnn_01", "CNN"),
        _cnn("cnn_02", "CNN"),
        _cnn("cnn_dropout_00", "CNN with dropout"),
        _cnn("cnn_dropout_01", "CNN with dropout"),
        _cnn("cnn_bn_00", "CNN with batch normalisation", pictures=("taken_for.png",)),
        _cnn("cnn_bn_01", "CNN with batch normalisation"),
        _cnn("cnn_bn_02", "CNN with batch normalisation"),
        _cnn_pool("cnn_pool_00"),
        _cnn_pool("cnn_pool_01"),
        _cnn_pool("cnn_pool_02"),
        Experiment("capsnet", "article", "Capsules", {"epochs": 3, **_FEW_PASSES}, pictures=_FIGURES),
        Experiment("em_capsnet", "article", "Capsules", {"epochs": 5, **_FEW_PASSES}, pictures=_FIGURES),
        Experiment("efficient_capsnet", "efficient_capsnet", "Capsules", _EFFICIENT, pictures=_FIGURES),
        Experiment("stn_cnn", "stn_cnn", _GIVEN),
        Experiment("group_cnn", "group_cnn_c4", _GIVEN),
        Experiment("group_cnn", "group_cnn_c8", _GIVEN),
        _imagined("operators"),
        _imagined("address"),
        _imagined("address", learned_from="moments"),
        _imagined("true"),
    ),
    "imagination": (
        _ablated("Quick network", "none"),
        _ablated("Quick network", "operators"),
        _ablated("Quick network", "address"),
        _ablated("Quick network", "true"),
        _ablated("Without pairs", learned_from="moments"),
        _ablated("Without pairs", "address", learned_from="moments"),
        *(_ablated("Free classes", operator_classes=count) for count in (1, 2, 3, 4, 5)),
        *(_ablated("Operators", operator_steps=count) for count in (8, 12, 18, 36)),
        *(_ablated("Share of imagined images", imagined_share=share) for share in (0.25, 0.5, 0.75)),
        _ablated("Who is imagined, from where", imagined_classes="restricted"),
        _ablated("Who is imagined, from where", imagined_from="range"),
        *(
            _ablated("Fashion-MNIST", how, "-fashion_mnist", dataset="fashion_mnist", excluded_classes=())
            for how in ("none", "operators", "address", "true")
        ),
        *(_ablated("Shifts", how, "-shift", **_SHIFTS) for how in ("none", "operators", "address", "true")),
    ),
}


def select(suite: str, names: Sequence[str] = ()) -> list[Experiment]:
    """Returns the rows of a suite, in its order.

    Args:
        suite: One of SUITES.
        names: Rows to keep; all if empty.

    Raises:
        UsageError: If a name is unknown; the message lists the known ones.
    """
    if suite not in SUITES:
        raise UsageError(f"Unknown suite. Expected one of {', '.join(SUITES)}. Received: suite={suite}")
    rows = {row.name: row for row in SUITES[suite]}
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise UsageError(
            f"Unknown row of {suite}. Expected some of {', '.join(rows)}. Received: {', '.join(unknown)}"
        )
    return [row for name, row in rows.items() if name in names or not names]


def title_of(suite: str) -> str:
    """Returns the heading of a suite's networks in a report; empty for the article's."""
    return _TITLES.get(suite, "")


def place_of(config: RunConfig) -> tuple[str, int, str]:
    """Returns the suite, the place in it and the family of the row that a run is of, whatever its budget.

    The suite is empty for a run that no row asks for.
    """
    for suite, rows in SUITES.items():
        for place, row in enumerate(rows):
            if _identity(row.config("article", 0)) == _identity(config):
                return suite, place, row.family
    return "", 0, "Others"


def _identity(config: RunConfig) -> tuple[str, str, str]:
    return config.label, config.dataset, config.protocol
