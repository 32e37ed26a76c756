"""Networks, one module each; adding a file adds a model.

A model module defines:

    TASK                            optional: "generation"; "recognition" otherwise
    Config                          frozen dataclass of the architecture
    PRESETS                         dict of tfinv.models.Preset by name
    build(...)                      keras.Model, see below
    objective(model)                optional: the tfinv.models.Objective to fit; otherwise cross entropy of
                                    scores for recognition, mean squared error of the image for generation
    EXTENDABLE                      optional: False if a schedule of the objective depends on the number of
                                    all epochs, so that more of them later do not make the longer run
    PRIOR                           optional, of a generator with an encoder and a decoder: (low, high) of the
                                    uniform prior of its latents; a run then has samples of it

The module has a docstring, whose first line describes the network in its card. The model has the module's
name, and its outputs are float32 under mixed precision, too. Two fields of Config mean the same everywhere:
`implementation` is what `tfinv.ops.resolve_implementation` takes, and `unchanged` the code of the
transformation that leaves images as they are, which training compares with the protocol's.

For recognition:

    build(config, input_shape, num_classes)
                                    from images [N, H, W, C] in 0..1 to a dict with "scores" [N, num_classes]
                                    and, if it has a decoder, "reconstruction". Scores are in 0..1:
                                    probabilities, not logits, unless `objective` has a loss for others

For generation (a generator renders an image transformed):

    build(config, input_shape, output_shape, code_size)
                                    from {"image": [N, H, W, C], "code": [G, E]} to {"image": [N, H', W', C]},
                                    pixels in the protocol's range, -1..1; without "code" for protocols that
                                    ask for upright images and tell no parameter

The code is what a network sees of the parameter of a transformation, see tfinv.data.transforms. G divides N:
each code is that of N / G successive images, so that a network whose weights depend on the code makes them
once a group; another one repeats the codes (tfinv.layers.RepeatCodes). Training has groups of
`TrainingConfig.images_per_code`, evaluation has G = 1. Of a generator that is nothing but layers "encoder"
(images to latents) and "decoder" ({"latent", "code"} to images), evaluation encodes every image once.
"""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import keras

from tfinv import registry, runs
from tfinv.config import DEFAULT_PROTOCOLS, RunConfig, Task, from_dict
from tfinv.errors import UsageError
from tfinv.models._base import Objective, Preset, classification, rendering

__all__ = [
    "Objective",
    "Preset",
    "available",
    "build",
    "build_generator",
    "default_run",
    "extendable",
    "get_model",
    "get_preset",
    "objective",
    "read_run_config",
    "run_of",
    "task_of",
]


def available(task: Task | None = None) -> list[str]:
    """Returns the names of the models for a task; of all models without one."""
    return [name for name in registry.names(__name__) if task is None or task_of(name) == task]


def task_of(name: str) -> Task:
    """Returns what the model `name` is for: "recognition" or "generation"."""
    return getattr(get_model(name), "TASK", "recognition")


def extendable(name: str) -> bool:
    """Returns whether a run of the model `name` may be resumed with more epochs than it was started with."""
    return getattr(get_model(name), "EXTENDABLE", True)


def get_model(name: str) -> ModuleType:
    """Returns the model module `name`; raises UsageError that lists the known ones."""
    return registry.find(__name__, name, "model")


def get_preset(name: str, preset: str) -> Preset:
    """Returns a preset of the model `name`; raises UsageError that lists the known ones."""
    presets = get_model(name).PRESETS
    if preset not in presets:
        raise UsageError(
            f"Unknown preset of {name}. Expected one of {', '.join(presets)}. Received: preset={preset}"
        )
    return presets[preset]


def build(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    preset: str | None = None,
    **config,
) -> keras.Model:
    """Builds a network.

    Args:
        name: One of `available()`.
        input_shape: Height, width and channels of the images.
        num_classes: Number of scores.
        preset: Preset to start from; the defaults of the model's Config if not given.
        **config: Fields of the model's Config to set.

    Returns:
        A model from images [N, H, W, C] in 0..1 to {"scores": [N, num_classes], ...}.

    Raises:
        UsageError: If the name, the preset or a field is unknown; the message lists the known ones.
    """
    return get_model(name).build(_config(name, "recognition", preset, config), input_shape, num_classes)


def build_generator(
    name: str,
    input_shape: tuple[int, int, int],
    output_shape: tuple[int, int, int],
    code_size: int,
    preset: str | None = None,
    **config,
) -> keras.Model:
    """Builds a generator; the twin of `build`.

    Args:
        name: One of `available("generation")`.
        input_shape: Height, width and channels of the images.
        output_shape: Height, width and channels of the transformed images.
        code_size: Numbers of a code.
        preset: Preset to start from; the defaults of the model's Config if not given.
        **config: Fields of the model's Config to set.

    Returns:
        A model from {"image": [N, H, W, C], "code": [G, E]} to {"image": [N, H', W', C]}.

    Raises:
        UsageError: As `build`.
    """
    values = _config(name, "generation", preset, config)
    return get_model(name).build(values, input_shape, output_shape, code_size)


def _config(name: str, task: Task, preset: str | None, changes: dict[str, Any]) -> Any:
    """Returns the Config of a model for a task, with changes."""
    module = get_model(name)
    if task_of(name) != task:
        raise UsageError(
            f"Wrong kind of model. Expected one for {task}: {', '.join(available(task))}. "
            f"Received: {name}, for {task_of(name)}"
        )
    values = vars(get_preset(name, preset).model) if preset else {}
    fields = module.Config.__dataclass_fields__
    unknown = [key for key in changes if key not in fields]
    if unknown:
        raise UsageError(
            f"Unknown configuration of {name}. Expected some of {', '.join(fields)}. "
            f"Received: {', '.join(unknown)}"
        )
    return module.Config(**{**values, **changes})


def default_run(name: str, preset: str, protocol: str | None = None) -> RunConfig:
    """Returns the run of a preset.

    Args:
        name: Module of tfinv.models.
        preset: One of its presets.
        protocol: Name of the protocol; by default the one the preset is meant for. The curve of another one
            has that protocol's own step: the preset's may be of another unit.
    """
    chosen = get_preset(name, preset)
    own = chosen.protocol or DEFAULT_PROTOCOLS[task_of(name)]
    evaluation = chosen.evaluation
    if protocol not in (None, own):
        evaluation = dataclasses.replace(evaluation, grid_step=None)
    return RunConfig(name, preset, chosen.model, chosen.training, evaluation, protocol=protocol or own)


def read_run_config(directory: Path) -> RunConfig:
    """Returns the configuration of a run directory, with that of its model.

    Raises:
        UsageError: If the directory holds no readable configuration of a known model.
    """
    values = runs.read_config(directory)
    module = get_model(values.get("model_name", ""))
    return from_dict(RunConfig[module.Config], values)  # type: ignore[name-defined]


def run_of(model: Path) -> tuple[Path, RunConfig | None]:
    """Returns the run directory that a model is in, or is, and its configuration; None if it is in none.

    Raises:
        UsageError: As `read_run_config`.
    """
    for directory in (model, model.parent):
        # A model of another library may lie beside a config.json of another kind.
        if (directory / runs.CONFIG).is_file() and "model_name" in runs.read_config(directory):
            return directory, read_run_config(directory)
    return model.parent, None


def objective(name: str, model: keras.Model) -> Objective:
    """Returns what `fit` optimises for a model that `build(name, ...)` made."""
    default = {"recognition": classification, "generation": rendering}[task_of(name)]
    return getattr(get_model(name), "objective", default)(model)
