"""Configurations as frozen dataclasses, and their JSON form.

The dataclasses are the truth: command lines are generated from them and runs store them as config.json.
"""

import dataclasses
import json
import math
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from tfinv.errors import UsageError

ModelConfig = TypeVar("ModelConfig")

Task = Literal["recognition", "generation"]
DEFAULT_PROTOCOLS: dict[Task, str] = {"recognition": "rotate-34", "generation": "rotate-49"}


def check_range(name: str, value: float, low: float | None = None, high: float | None = None) -> None:
    """Raises UsageError unless low <= value <= high and value is finite."""
    too_low, too_high = low is not None and not value >= low, high is not None and not value <= high
    if too_low or too_high or not math.isfinite(value):
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        bounds += ["finite"] * (not math.isfinite(value))
        raise UsageError(
            f"Invalid value for {name}. Expected {' and '.join(bounds)}. Received: {name}={value}"
        )


def check_choices(config: Any) -> None:
    """Raises UsageError unless each field of a dataclass that has a Literal type holds one of its values."""
    for name, kind in typing.get_type_hints(type(config)).items():
        choices, value = typing.get_args(kind), getattr(config, name)
        if typing.get_origin(kind) is Literal and value not in choices:
            raise UsageError(
                f"Invalid value for {name}. Expected one of {', '.join(map(str, choices))}. "
                f"Received: {name}={value}"
            )


def dataset_name(dataset: str | os.PathLike[str]) -> str:
    """Returns what a dataset is called: its name, that of its .npz file or that of its folder.

    It does not depend on what exists, so that a run keeps its name where its dataset is not.
    """
    path = Path(os.path.abspath(os.path.expanduser(dataset)))
    if path.suffix == ".npz":
        return path.stem
    return path.parent.name if path.suffix == ".json" else path.name


def check_batches(batch_size: int, images_per_code: int = 1) -> None:
    """Raises UsageError unless batches are whole groups of images that share a code, neither empty."""
    check_range("batch_size", batch_size, low=1)
    check_range("images_per_code", images_per_code, low=1)
    if batch_size % images_per_code:
        raise UsageError(
            f"Invalid value for images_per_code. Expected a divisor of batch_size={batch_size}. "
            f"Received: images_per_code={images_per_code}"
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained: by which optimizer, with an exponentially decaying learning rate."""

    epochs: int = 10
    """Passes over the training images, at least 0."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 1e-3
    """The optimizer's learning rate at the first step."""
    decay_rate: float = 1.0
    """Factor on the learning rate every decay-steps steps (staircase)."""
    decay_steps: int | None = None
    """Steps between two decays; one epoch if not given."""
    beta_1: float = 0.9
    """Adam's decay of the first moment."""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """Arithmetic of the layers; mixed_bfloat16 is faster on processors that have it."""
    validation_fraction: float = 0.0
    """Part of the training images held out to choose the best epoch; 0 chooses by training loss."""
    tensorboard: bool = False
    """Write TensorBoard logs too (needs the extra `tensorboard`)."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimizer."""
    images_per_code: int = 1
    """Images of a batch that share a parameter, in generation: networks whose weights depend on it make them
    once for all of these."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range("epochs", self.epochs, low=0)
        check_batches(self.batch_size, self.images_per_code)
        check_range("learning_rate", self.learning_rate, low=0.0)
        check_range("decay_rate", self.decay_rate, low=0.0, high=1.0)
        check_range("decay_steps", 1 if self.decay_steps is None else self.decay_steps, low=1)
        check_range("beta_1", self.beta_1, low=0.0, high=0.9999)
        check_range("validation_fraction", self.validation_fraction, low=0.0, high=0.9)


@dataclass(frozen=True)
class EvaluationConfig:
    """How thoroughly a model is evaluated."""

    repeats: int = 20
    """Passes over the test images, each with fresh random parameters, at least 1."""
    grid_step: float | None = 5.0
    """Distance of two points of the curve, in the unit of the transformation; the protocol's own if None."""
    curve_images: int | None = None
    """Test images used for the curve; all if not given."""

    def __post_init__(self) -> None:
        check_range("repeats", self.repeats, low=1)
        check_range("grid_step", 1.0 if self.grid_step is None else self.grid_step, low=0.01)
        check_range("curve_images", 1 if self.curve_images is None else self.curve_images, low=1)


@dataclass(frozen=True)
class ImaginationConfig:
    """Training on images beyond the range of their class, by a transformation that is learned."""

    imagination: Literal["none", "operators", "address", "true"] = "none"
    """What imagines: nothing, linear operators or an address field learned from pairs of the free classes, or
    the true transformation of all classes, beside which a learned one is held."""
    operator_steps: int = 72
    """Linear operators, one a step of each component of the parameter."""
    operator_classes: int | None = None
    """Free classes the transformation is learned from, drawn by the seed; all if not given."""
    operator_pairs: int = 10_000
    """Pairs of images each operator is learned from, at most."""
    learned_from: Literal["pairs", "moments"] = "pairs"
    """What operators are learned from: pairs of images with a known step between them, or the moments of
    images whose parameters nobody knows."""
    moment_components: int = 64
    """Principal components of the images that moments are taken of."""
    moment_passes: int = 8
    """Passes over the free images, each with fresh parameters, that moments are taken of."""
    ridge: float | None = None
    """Strength of the ridge, relative to the mean square of a pixel; chosen on held-out free images if not
    given."""
    address_steps: int = 1000
    """Gradient steps of the address field, which starts from what the operators imply."""
    imagined_from: Literal["identity", "range"] = "identity"
    """What imagined images start from: the image as it is, or anything in the range of restricted classes."""
    imagined_share: float = 1.0
    """Part of each batch that is imagined; with less than all, where an image lies tells something of its
    class."""
    imagined_classes: Literal["all", "restricted"] = "all"
    """Classes that are imagined; if only the restricted ones are, blur may tell them from the others."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range("operator_steps", self.operator_steps, low=2)
        check_range("operator_classes", 1 if self.operator_classes is None else self.operator_classes, low=1)
        check_range("operator_pairs", self.operator_pairs, low=1)
        check_range("moment_components", self.moment_components, low=8)
        check_range("moment_passes", self.moment_passes, low=1)
        check_range("ridge", 0.0 if self.ridge is None else self.ridge, low=0.0)
        check_range("address_steps", self.address_steps, low=0)
        check_range("imagined_share", self.imagined_share, low=0.0, high=1.0)


@dataclass(frozen=True)
class RunConfig(Generic[ModelConfig]):
    """One experiment: a model on a dataset under a protocol."""

    model_name: Annotated[str, tyro.conf.Suppress]
    """Module of tfinv.models that builds the network."""
    preset: str
    """Named configuration all other values start from."""
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    imagining: ImaginationConfig = ImaginationConfig()
    dataset: str = "mnist"
    """Name of a dataset, or path of an .npz with x_train, y_train, x_test, y_test, or of a folder that
    scripts/make_dataset.py wrote."""
    protocol: str = "rotate-34"
    """Which class is seen under which transformations."""
    restricted_classes: tuple[int, ...] | None = None
    """Classes seen in the restricted range only; the protocol's own if not given."""
    excluded_classes: tuple[int, ...] | None = None
    """Classes left out; the protocol's own if not given."""
    seed: int = 0
    """Seed of weights, order, parameters and dropout."""
    limit: int | None = None
    """Use only that many training and test images."""

    def __post_init__(self) -> None:
        check_choices(self.model)
        check_range("seed", self.seed, low=0, high=2**31 - 1)
        check_range("limit", 1 if self.limit is None else self.limit, low=1)

    @property
    def label(self) -> str:
        """Name of the network in tables and run ids: the preset, if that names a network by itself.

        What imagines, if anything does, is appended, and those of its options that are not the default.
        """
        label = self.preset if self.preset.startswith(self.model_name) else f"{self.model_name}_{self.preset}"
        if self.preset == "article":
            label = self.model_name
        if self.imagining.imagination == "none":
            return label
        values, default = vars(self.imagining), vars(ImaginationConfig(self.imagining.imagination))
        changed = [f"{key}_{value}" for key, value in values.items() if value != default[key]]
        return "_".join([label, self.imagining.imagination, *changed])

    @property
    def run_id(self) -> str:
        """Name of the run directory."""
        return f"{self.label}-{dataset_name(self.dataset)}-{self.protocol}-s{self.seed}"


# Options that came later are written only where they are not left at their default: runs from before they
# existed keep their digest and can be resumed.
_LATER: dict[type, tuple[str, ...]] = {
    RunConfig: ("imagining",),
    TrainingConfig: ("optimizer", "images_per_code"),
    ImaginationConfig: ("learned_from", "moment_components", "moment_passes"),
}


def to_json(config: Any) -> str:
    """Returns the JSON text of a dataclass."""
    return json.dumps(_to_dict(config), indent=2) + "\n"


def _to_dict(config: Any) -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _LATER.get(type(config), ()) or value != field.default:
            values[field.name] = _to_dict(value) if dataclasses.is_dataclass(value) else value
    return values


def from_dict(cls: Any, values: dict[str, Any]) -> Any:
    """Rebuilds a (nested, possibly generic) dataclass from what `to_json` wrote.

    Raises:
        UsageError: If `values` is no dictionary, has keys the dataclass does not know, or lacks some.
    """
    origin = typing.get_origin(cls) or cls
    if not isinstance(values, dict):
        raise UsageError(
            f"Invalid value for {origin.__name__}. Expected names and values. Received: {values}"
        )
    arguments = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(cls), strict=False))
    hints = typing.get_type_hints(origin)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UsageError(
            f"Unknown keys for {origin.__name__}. Expected some of {', '.join(hints)}. "
            f"Received: {', '.join(unknown)}"
        )
    converted = {key: _convert(arguments.get(hints[key], hints[key]), value) for key, value in values.items()}
    try:
        return origin(**converted)
    except TypeError as error:
        raise UsageError(f"Incomplete {origin.__name__}: {error}") from None


def _convert(hint: Any, value: Any) -> Any:
    """JSON knows neither tuples nor dataclasses; the type hint does."""
    if isinstance(hint, types.UnionType):
        choices = [choice for choice in typing.get_args(hint) if choice is not type(None)]
        return None if value is None else _convert(choices[0], value)
    if typing.get_origin(hint) is tuple:
        return tuple(_convert(typing.get_args(hint)[0], item) for item in value)
    if dataclasses.is_dataclass(typing.get_origin(hint) or hint):
        return from_dict(hint, value)
    return value
