"""What every model file provides, beside its `build`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import keras

from tfinv.config import EvaluationConfig, TrainingConfig

# Generators are evaluated at every parameter of the protocol's own sweep, where nothing is random.
SWEEP = EvaluationConfig(repeats=1, grid_step=None)
QUICK_SWEEP = EvaluationConfig(repeats=1, grid_step=None, curve_images=2000)


@dataclass(frozen=True)
class Preset:
    """A named configuration: the network, its training and its evaluation.

    Attributes:
        model: Config of the model file.
        training: Its training.
        evaluation: Its evaluation.
        article: What the article's authors measured for this very network, by metric; empty if nothing.
        description: What the preset is for and what it costs.
        protocol: Protocol it is meant for; the usual one of its task if empty.
    """

    model: Any
    training: TrainingConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    article: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    protocol: str = ""


@dataclass(frozen=True)
class Objective:
    """What `fit` optimises.

    Attributes:
        model: The model to fit; shares its weights with the prediction model.
        loss: Loss by name of the output.
        loss_weights: Weight of each loss by name of the output.
        adapt: Maps a batch to the (inputs, targets) of `model`. For recognition a batch is (images
            [N, H, W, C], labels [N]), for generation ({"image": [N, H, W, C], "code": [N, E]},
            {"image": [N, H', W', C]}).
        callbacks: What else `fit` calls; what they do must depend on epoch and step alone, to be resumable,
            or also on the number of all epochs, where the module says EXTENDABLE = False.
        best_by: What chooses the best epoch: "accuracy" where the loss of two epochs cannot be compared.
    """

    model: keras.Model
    loss: dict[str, keras.losses.Loss]
    loss_weights: dict[str, float]
    adapt: Callable[[Any, Any], tuple[Any, Any]]
    callbacks: tuple[keras.callbacks.Callback, ...] = ()
    best_by: Literal["loss", "accuracy"] = "loss"


def classification(model: keras.Model) -> Objective:
    """The default objective: cross entropy between labels and the output "scores" (probabilities)."""
    return Objective(
        model,
        {"scores": keras.losses.SparseCategoricalCrossentropy()},
        {"scores": 1.0},
        lambda images, labels: (images, {"scores": labels}),
    )


def rendering(model: keras.Model) -> Objective:
    """The default objective of generators: mean squared error of the transformed image."""
    return Objective(
        model,
        {"image": keras.losses.MeanSquaredError()},
        {"image": 1.0},
        lambda inputs, targets: (inputs, targets),
    )
