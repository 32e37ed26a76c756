"""Networks, one module each; adding a file adds a model.

A model module defines:

    Config                          frozen dataclass of the architecture
    PRESETS                         dict of tfinv.models.Preset by name
    build(config, input_shape, num_classes)
                                    keras.Model from images [N, H, W, C] in 0..1 to a dict with
                                    "scores" [N, num_classes] and, if it has a decoder, "reconstruction"
    objective(model)                optional: the tfinv.models.Objective to fit; cross entropy otherwise
"""

from pathlib import Path
from types import ModuleType

import keras

from tfinv import registry, runs
from tfinv.config import RunConfig, from_dict
from tfinv.errors import UsageError
from tfinv.models._base import Objective, Preset, classification

__all__ = [
    "Objective",
    "Preset",
    "available",
    "build",
    "get_model",
    "get_preset",
    "objective",
    "read_run_config",
]


def available() -> list[str]:
    """Returns the names of all models."""
    return registry.names(__name__)


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
    module = get_model(name)
    values = vars(get_preset(name, preset).model) if preset else {}
    fields = module.Config.__dataclass_fields__
    unknown = [key for key in config if key not in fields]
    if unknown:
        raise UsageError(
            f"Unknown configuration of {name}. Expected some of {', '.join(fields)}. "
            f"Received: {', '.join(unknown)}"
        )
    return module.build(module.Config(**{**values, **config}), input_shape, num_classes)


def read_run_config(directory: Path) -> RunConfig:
    """Returns the configuration of a run directory, with that of its model.

    Raises:
        UsageError: If the directory holds no readable configuration of a known model.
    """
    values = runs.read_config(directory)
    module = get_model(values.get("model_name", ""))
    return from_dict(RunConfig[module.Config], values)  # type: ignore[name-defined]


def objective(name: str, model: keras.Model) -> Objective:
    """Returns what `fit` optimises for a model that `build(name, ...)` made."""
    return getattr(get_model(name), "objective", classification)(model)
