"""Figures of generation: error against parameter, and expected beside rendered images."""

from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure

from tfinv.data import Protocol, Split, seen_in_training
from tfinv.data.transforms import get_transform
from tfinv.figures import COLOURS, MARKERS, full_turn, shade_never_shown, shade_training_range, title
from tfinv.generation.errors import Renderer
from tfinv.pictures import Strip, picture_grid


def error_against_parameter(rows: pd.DataFrame, protocol: Protocol) -> Figure:
    """Draws the error of each class against the parameter; restricted ones in colour, their range shaded.

    Args:
        rows: Of one run, from `evaluate_generation`.
        protocol: Gives the ranges.

    Returns:
        A figure of one panel.
    """
    table = rows[rows.metric == "mse"].pivot(index="parameter", columns="label", values="value")
    seen = rows[rows.metric == "mse"].pivot(index="parameter", columns="label", values="in_training_range")
    restricted = [str(label) for label in protocol.restricted_classes if str(label) in table.columns]
    free = [label for label in table.columns if label not in restricted]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    if restricted:
        shade_training_range(axes, protocol, f"training range of {' and '.join(restricted)}")
    if free:
        shade_never_shown(axes, ~seen.astype(bool).any(axis=1))
    for index, label in enumerate(free):
        style = ("-", "--", ":", "-.")[index % 4]
        grey = str(0.35 + 0.35 * (index // 4) / max((len(free) - 1) // 4, 1))
        axes.plot(table.index, table[label], color=grey, linestyle=style, linewidth=1.0, label=label)
    for index, label in enumerate(restricted):
        axes.plot(
            table.index,
            table[label],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            markevery=max(len(table) // 20, 1),
            linewidth=1.8,
            label=f"{label}, restricted",
        )
    black, white = protocol.pixel_range
    axes.set_xlabel(_sweep(protocol))
    if get_transform(protocol.transformation).PERIOD is not None:  # at right angles, of rotation
        axes.set_xlabel(
            f"{_sweep(protocol)}\n(peaks: where resampling blurs nothing, there is more to render)"
        )
    axes.set_ylabel(f"mean squared error on test images\n(pixels {black:g} to {white:g})")
    axes.set_ylim(bottom=0)
    axes.set_xlim(table.index.min(), table.index.max())
    full_turn(axes, protocol)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_title(title(rows, "Error of rendered images against transformation"), fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _sweep(protocol: Protocol) -> str:
    transform = get_transform(protocol.transformation)
    return f"{protocol.transformation}: {transform.SWEEP} [{transform.UNIT}]"


def panel(model: Any, split: Split, protocol: Protocol, parameters: np.ndarray, images: int = 2) -> Figure:
    """Draws transformed images above rendered ones: of each restricted class, and of one that is free.

    Args:
        model: As for `Renderer`.
        split: Test images.
        protocol: Gives the transformation and the ranges.
        parameters: [M, *PARAMETER_SHAPE], one column each.
        images: Test images of each restricted class; one of the free class.

    Returns:
        A figure with a column a parameter, what the network never saw framed.
    """
    renderer, strips = Renderer(model, protocol), []
    for place in examples(split, images):
        seen = seen_in_training(protocol, parameters, bool(split.restricted[place]))
        name = split.class_names[split.labels[place]]
        pairs = [beside_rendered(renderer, split.images[place], parameter) for parameter in parameters]
        for kind, shown in zip((beside_name(protocol), "rendered"), zip(*pairs, strict=True), strict=True):
            strips.append(Strip(shown, seen, f"{name}\n{kind}"))
    heading = f"{_sweep(protocol)}; framed in orange: never shown to the network of this class"
    if protocol.upright:
        heading += "; asked for is the image at 0"
    return picture_grid(strips, parameters, protocol, heading)


def examples(split: Split, count: int) -> list[int]:
    """Returns the first `count` images of each restricted class, and the first of a free one."""
    restricted = [
        np.flatnonzero(split.labels == label)[:count] for label in np.unique(split.labels[split.restricted])
    ]
    return [int(place) for places in (*restricted, np.flatnonzero(~split.restricted)[:1]) for place in places]


def beside_rendered(
    renderer: Renderer, image: np.ndarray, parameter: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image [H, W, C] transformed [H', W', C], and what a model renders."""
    raw, parameter = tf.constant(image[np.newaxis]), tf.constant(parameter)
    rendered = renderer.rendered(renderer.features(raw), parameter)
    return np.asarray(renderer.transformed(raw, parameter)[0]), np.asarray(rendered[0])


def beside_name(protocol: Protocol) -> str:
    """Returns what the transformed image beside the rendered one is: what is asked for, or what is given."""
    return "given" if protocol.upright else "expected"
