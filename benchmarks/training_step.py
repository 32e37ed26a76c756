"""Time of a training step of the capsule networks, and what the routing adds to it.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --networks capsnet --dtypes float32 --csv docs/benchmarks

Times in interleaved rounds: the article's network with each routing implementation, and its convolutional
part alone (everything below the first routed layer, trained on the sum of squares of its output with the same
optimizer). Before that, one step of each implementation from the same weights must give the same loss.
Random images, batch of the article. Takes about 15 minutes on two cores for everything.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import tyro
from measuring import compiled, interleaved, train_function
from rich.console import Console
from rich.table import Table

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

FIRST_ROUTED = {"capsnet": "class_capsules", "em_capsnet": "conv_capsules_1"}
TOLERANCES = {"float32": 1e-4, "mixed_bfloat16": 2e-2}  # of the loss


@dataclass(frozen=True)
class Config:
    """Step time of the article's capsule networks."""

    networks: tuple[Literal["capsnet", "em_capsnet"], ...] = ("capsnet", "em_capsnet")
    dtypes: tuple[Literal["float32", "mixed_bfloat16"], ...] = ("float32", "mixed_bfloat16")
    implementations: tuple[Literal["fused", "reference"], ...] = ("fused", "reference")
    rounds: int = 5
    csv: Path | None = None
    """Folder for training_step.csv."""
    seed: int = 0


def whole(network: str, classes: int, seed: int, edge: int = 28, **changes):
    """The network's training model, compiled; and what turns a batch into its inputs and targets.

    Images are `edge` pixels high and wide; `changes` are of the article's configuration.
    """
    import keras

    from tfinv import models

    keras.utils.set_random_seed(seed)
    preset = models.get_preset(network, "article")
    config = replace(preset.model, **changes)
    objective = models.objective(network, models.get_model(network).build(config, (edge, edge, 1), classes))
    return compiled(objective, preset.training), objective.adapt


def convolutional_part(network: str, classes: int, seed: int):
    """What lies below the first routed layer, with a loss that reaches all of it."""
    import keras

    from tfinv import models, training

    keras.utils.set_random_seed(seed)
    preset = models.get_preset(network, "article")
    model = models.get_model(network).build(preset.model, (28, 28, 1), classes)
    below = keras.tree.flatten(model.get_layer(FIRST_ROUTED[network]).input)
    flat = [keras.layers.Flatten(dtype="float32")(value) for value in below]
    part = keras.Model(model.input, flat[0] if len(flat) == 1 else keras.layers.Concatenate()(flat))
    part.compile(training.make_optimizer(preset.training, 100), "mse", jit_compile=False)
    return part, lambda images, labels: (images, np.zeros((len(images), *part.output.shape[1:]), np.float32))


def step(model, data) -> Callable[[], float]:
    """A call that makes one training step on the batch `data`, inputs and targets, and returns its loss."""
    import tensorflow as tf

    iterator = iter(tf.data.Dataset.from_tensors(data).repeat())
    train = train_function(model)

    def run() -> float:
        model.reset_metrics()  # else it would be the mean over all steps so far
        return float(train(iterator)["loss"])

    return run


def steps(network: str, config: Config):
    """name -> a call that makes one training step and returns its loss."""
    from tfinv import models

    classes, batch = 8, models.get_preset(network, "article").training.batch_size
    rng = np.random.default_rng(config.seed)
    images = rng.random((batch, 28, 28, 1), dtype=np.float32)
    labels = rng.integers(0, classes, batch).astype(np.int32)
    found = {
        f"{name} routing": whole(network, classes, config.seed, implementation=name)
        for name in config.implementations
    }
    found["convolutional part"] = convolutional_part(network, classes, config.seed)
    return {name: step(model, adapt(images, labels)) for name, (model, adapt) in found.items()}


def check(losses: dict[str, float], dtype: str) -> None:
    values = [loss for name, loss in losses.items() if name.endswith("routing")]
    if max(values) - min(values) > TOLERANCES[dtype] * abs(values[0]):
        sys.exit(f"The implementations do not compute the same; nothing is timed: {losses}")


def measure(config: Config) -> list[dict]:
    from tfinv import training

    rows = []
    for network in config.networks:
        for dtype in config.dtypes:
            with training.dtype_policy(dtype):
                calls = steps(network, config)
            losses = {name: call() for name, call in calls.items()}
            print(f"{network}, {dtype}: first losses {losses}")
            check(losses, dtype)
            for number, name, seconds in interleaved(calls, config.rounds):
                row = {"network": network, "dtype": dtype, "part": name, "round": number}
                rows.append({**row, "seconds": seconds})
    return rows


def show(frame: pd.DataFrame) -> None:
    for (network, dtype), group in frame.groupby(["network", "dtype"], sort=False):
        times = group.groupby("part", sort=False)["seconds"].agg(["median", "min"]) * 1e3
        table = Table("", "median ms", "minimum ms", "of the convolutional part", title=f"{network}, {dtype}")
        for part, row in times.iterrows():
            ratio = row["median"] / times["median"]["convolutional part"]
            table.add_row(str(part), f"{row['median']:.0f}", f"{row['min']:.0f}", f"{ratio:.2f}")
        Console().print(table)


def main(config: Config) -> None:
    frame = pd.DataFrame(measure(config))
    show(frame)
    if config.csv:
        config.csv.mkdir(parents=True, exist_ok=True)
        frame.to_csv(config.csv / "training_step.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
