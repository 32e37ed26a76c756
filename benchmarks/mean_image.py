"""What a generator errs that knows no digit: the mean training image, at the right place.

    python benchmarks/mean_image.py --csv docs/generation/mean_image.csv     # two minutes on two cores

A network is of use where its error is below that. The mean is over all classes, each as often as it occurs;
the errors are those of `tfinv.generation.evaluate_generation`, of the whole test set.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@dataclass(frozen=True)
class Config:
    """Error of the mean training image."""

    protocols: tuple[str, ...] = ("rotate-49", "upright-49", "shift-49", "shift-unseen", "affine")
    dataset: str = "mnist"
    csv: Path | None = None
    """File for the figures."""


def evaluate(protocol: str, dataset: str):
    """Returns the metrics of each class, tidy rows without the curve."""
    import tensorflow as tf

    from tfinv import generation
    from tfinv.data import get_protocol, load_dataset, seen_in_training, select
    from tfinv.data.transforms import get_transform
    from tfinv.results import Provenance, to_frame

    chosen = get_protocol(protocol)
    loaded = load_dataset(dataset)
    train, test = (select(chosen, loaded, split) for split in ("train", "test"))
    mean = tf.constant(train.images.mean(axis=0, keepdims=True, dtype=np.float64) / 255.0, tf.float32)
    grid = get_transform(chosen.transformation).grid(chosen.grid_step)
    renderer = generation.Renderer(None, chosen)

    @tf.function(reduce_retracing=True, autograph=False)
    def errors(images, parameter):
        difference = renderer.expected(mean, parameter) - renderer.expected(images, parameter)
        return tf.reduce_mean(tf.square(difference), axis=(1, 2, 3))

    origin = Provenance("mean_image", "mean_image", loaded.name, chosen.name, 0, "")
    rows = []
    for label, name in enumerate(test.class_names):
        own = test.labels == label
        seen = seen_in_training(chosen, grid, bool(test.restricted[own][0]))
        images = tf.constant(test.images[own])
        for parameter, inside in zip(grid, seen, strict=True):
            value = float(tf.reduce_mean(errors(images, tf.constant(parameter))))
            rows.append(origin.row("mse", value, name, float(np.ravel(parameter)[0]), bool(inside)))
    return generation.summarise(to_frame(rows), chosen, grid, origin)


def main() -> None:
    """Evaluates, and prints a table."""
    import pandas as pd

    config = tyro.cli(Config, description=__doc__)
    rows = pd.concat([evaluate(protocol, config.dataset) for protocol in config.protocols])
    rows = rows[["protocol", "metric", "label", "value"]]
    if config.csv:
        rows.to_csv(config.csv, index=False)
    table = Table("protocol", "metric", *map(str, range(10)), title="Error of the mean training image")
    for (protocol, metric), part in rows.groupby(["protocol", "metric"], sort=False):
        by_label = part.set_index("label").value
        table.add_row(
            protocol, metric, *(f"{by_label[x]:.4f}" if x in by_label else "" for x in map(str, range(10)))
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
