"""Learns a transformation by itself, and shows how far it reaches: a table and a figure."""

import logging
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from tfinv import figures, imagination, results
from tfinv.config import ImaginationConfig, check_range
from tfinv.data import Protocol, Split, get_protocol, load_dataset, render, seen_in_training, select
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError
from tfinv.files import check_writable, replacing
from tfinv.pictures import Strip, picture_grid

_COLUMNS = 12
ERRORS = "imagination.csv"
_DEFAULT = ImaginationConfig(imagination="operators")


def learn_transformation(
    imagining: ImaginationConfig = _DEFAULT,
    protocol: str = "rotate-34",
    dataset: str = "mnist",
    restricted_classes: tuple[int, ...] | None = None,
    excluded_classes: tuple[int, ...] | None = None,
    seed: int = 0,
    limit: int | None = None,
    step: float = 30.0,
    output: Path | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Learns a transformation from the free classes and compares it with the true one on test images.

    Args:
        imagining: What is learned, and how.
        protocol: Gives the transformation and the ranges.
        dataset: Name of a dataset, or path of an .npz.
        restricted_classes: Classes that nothing is learned from; the protocol's own if not given.
        excluded_classes: Classes left out; the protocol's own if not given.
        seed: Seed of classes, pairs and starts.
        limit: Use at most that many training images.
        step: Distance of two parameters of the table, in the unit of the transformation.
        output: Folder for imagination.keras, imagination.csv and, of restricted classes, imagination.png;
            nothing is written if not given.
        overwrite: Replace what is in the output folder.

    Returns:
        Tidy rows of the metric "relative_error".

    Raises:
        UsageError: On any bad input; found before anything is written.
    """
    check_range("step", step, low=0.01)
    check_range("seed", seed, low=0, high=2**31 - 1)
    check_range("limit", 1 if limit is None else limit, low=1)
    imagination.check_options(imagining)
    chosen = get_protocol(protocol).replace(restricted_classes, excluded_classes)
    data = load_dataset(dataset)
    train, test = select(chosen, data, "train", limit=limit), select(chosen, data, "test")
    imagination.check(chosen, train, imagining, seed)
    if output is not None:
        check_writable(output)
        if (output / ERRORS).exists() and not overwrite:
            raise UsageError(f"Results exist: {output / ERRORS}. Use --overwrite or another --output.")
    provenance = results.Provenance("", imagining.imagination, data.name, chosen.name, seed, "")
    learned = imagination.learn(chosen, train, imagining, seed)
    if imagining.learned_from == "moments":
        learned = imagination.nearer_direction(learned, chosen, train)
    steps = imagination.steps_of(chosen, imagining)
    rows = imagination.relative_errors(learned, chosen, test, step, provenance=provenance, steps=steps)
    Console().print(error_table(rows))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        with replacing(output / imagination.FILE) as partial:
            learned.save(partial)
        results.write_csv(output / ERRORS, rows)
        if test.restricted.any():
            figures.save(imagined_images(learned, chosen, test, steps), output / "imagination.png")
        logging.getLogger(__name__).info("Written to %s.", output)
    return rows


def error_table(rows: pd.DataFrame) -> Table:
    """Returns the relative errors, a row a parameter and a column a class.

    Args:
        rows: What `imagination.relative_errors` returned.
    """
    table = Table(
        title="Relative error of imagined test images [%]",
        caption="*: a restricted class outside its range, from which nothing was learned",
    )
    table.add_column("parameter", justify="right")
    for label in dict.fromkeys(rows.label):
        table.add_column(label, justify="right")
    for parameter, group in rows.groupby("parameter", sort=True):
        cells = [
            f"{100 * row.value:.3f}{' ' if row.in_training_range else '*'}" for row in group.itertuples()
        ]
        table.add_row(f"{parameter:g}", *cells)
    return table


def imagined_images(
    learned: keras.Model, protocol: Protocol, split: Split, steps: imagination.Steps
) -> Figure:
    """Draws an image of each restricted class under parameters of the free range: true above, imagined below.

    Args:
        learned: Learned transformation.
        protocol: Gives the transformation and the ranges.
        split: Images, some of a restricted class; of each of these the first is drawn.
        steps: What was learned.
    """
    transform = get_transform(protocol.transformation)
    grid = transform.grid(1.0)
    grid = grid[transform.contains(grid, protocol.free.low, protocol.free.high) & steps.covers(grid)]
    grid = grid[np.linspace(0, len(grid), _COLUMNS, endpoint=False).astype(int)]
    seen = seen_in_training(protocol, grid, restricted=True)
    strips = []
    for label in np.unique(split.labels[split.restricted]):
        image = tf.constant(split.images[np.flatnonzero(split.labels == label)[:1]].repeat(len(grid), axis=0))
        still = render(protocol, image, tf.zeros_like(tf.constant(grid)))
        imagined = imagination.render_learned(learned, protocol, still, tf.constant(grid))
        strips.append(Strip(render(protocol, image, tf.constant(grid)).numpy(), seen, "true"))
        strips.append(Strip(imagined.numpy(), seen, "imagined"))
    heading = (
        f"Imagined by {protocol.transformation} [{transform.UNIT}]; framed in orange: outside the range of "
        "these classes,\nfrom which nothing was learned"
    )
    return picture_grid(strips, grid, protocol, heading)
