"""Figures drawn from result tables; saved, never shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tfinv.data import Protocol
from tfinv.data.transforms import get_transform
from tfinv.files import replacing

# Okabe and Ito's colours, told apart by the colour-blind; line style and marker repeat the distinction.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FREE = "#555555"
SHADE = "#F2E6C2"
NEVER = "#D9D9D9"
_TWO_LABELS = 22  # characters of a label of which two fit side by side over a panel
# Of each task: the metric of its curves, what that is, and what it answers.
_CURVES = {
    "recognition": (
        "accuracy",
        "accuracy on test images of {}",
        "can it recognise {}",
    ),
    "generation": ("mse", "error of rendered images of {}", "can it render {}"),
}


def accuracy_against_parameter(rows: pd.DataFrame, protocol: Protocol) -> Figure:
    """Draws the accuracy of each restricted class, and of the free ones, against the parameter."""
    accuracy = rows[rows.metric == "accuracy"].dropna(subset=["parameter"])
    restricted = [str(label) for label in protocol.restricted_classes]
    figure, axes = _axes(protocol)
    free = accuracy[~accuracy.label.isin(restricted)].groupby("parameter").value
    if len(free):
        mean = free.mean()
        axes.fill_between(mean.index, free.min(), free.max(), color="#BBBBBB", alpha=0.6, linewidth=0)
        axes.plot(mean.index, mean, color=FREE, linestyle="--", label="other classes: mean, worst to best")
    for index, label in enumerate(restricted):
        curve = accuracy[accuracy.label == label].sort_values("parameter")
        axes.plot(
            curve.parameter,
            curve.value,
            **_style(index),
            markersize=3.5,
            linewidth=1.8,
            label=f"class {label}",
        )
    _chance(axes, rows)
    axes.set(ylabel="accuracy on test images", ylim=(-0.02, 1.02))
    axes.set_title(title(rows, "Accuracy against transformation"), fontsize=10)
    # The curves fill the axes; below them the legend hides nothing.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def comparison(
    curves: Mapping[str, Sequence[pd.DataFrame]], protocol: Protocol, families: Mapping[str, str]
) -> Figure:
    """Draws accuracy or error, mean of the restricted classes, against the parameter, a panel a family.

    Args:
        curves: Rows of each seed of a network by the network's name.
        protocol: The networks' protocol.
        families: Family of each network by its name; the panels are in this order.

    Returns:
        A figure with a curve for each network, the mean over its seeds in a band from the lowest to the
        highest, before the grey curves of the other networks.
    """
    metric, quantity, question = _CURVES[protocol.task]
    restricted = {name: _restricted(tables, protocol, metric) for name, tables in curves.items()}
    everything = pd.concat([rows for tables in curves.values() for rows in tables])
    shown = _free(everything, protocol, metric).groupby("parameter").in_training_range.any()
    panels = [family for family in dict.fromkeys(families.values()) if family in map(families.get, curves)]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(7.2, 3.9 * columns), 0.7 + 3.5 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, family in zip(grid, panels, strict=False):
        _background(axes, protocol)
        shade_never_shown(axes, ~shown)
        members = [name for name in curves if families[name] == family]
        free = pd.concat([_free(rows, protocol, metric) for name in members for rows in curves[name]])
        free = free.groupby("parameter").value.mean()
        axes.plot(
            free.index, free, color=FREE, linestyle="--", label="other classes, mean of the panel's networks"
        )
        for curve in restricted.values():
            axes.plot(curve.index, curve.mean(axis=1), color="#BBBBBB", linewidth=0.8, zorder=1)
        for index, name in enumerate(members):
            curve, style = restricted[name], _style(index)
            axes.fill_between(
                curve.index, curve.min(axis=1), curve.max(axis=1), color=style["color"], alpha=0.3
            )
            axes.plot(
                curve.index,
                curve.mean(axis=1),
                **style,
                markersize=3.5,
                markevery=(2 * index, max(len(curve) // 10, 1)),
                linewidth=1.5,
                label=name,
            )
        if metric == "accuracy":
            _chance(axes, everything)
            axes.set_ylim(-0.02, 1.02)
        handles = [handle for handle in axes.lines if handle.get_label() in curves]
        # A legend wider than its panel would narrow the panels.
        longest = max((len(handle.get_label()) for handle in handles), default=0)
        axes.legend(
            handles=handles, title=family, loc="lower center", bbox_to_anchor=(0.5, 1.0),
            ncols=2 if longest <= _TWO_LABELS else 1, fontsize=7, title_fontsize=9, frameon=False,
        )  # fmt: skip
    if metric != "accuracy":
        grid[0].set_ylim(bottom=0)  # of all panels, and not before the last is drawn: its curves count, too
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    listed = " and ".join(map(str, protocol.restricted_classes))
    for index, axes in enumerate(grid[: len(panels)]):
        if index % columns == 0:
            axes.set_ylabel(quantity.format(listed))
        if index + columns >= len(panels):  # nothing below it
            axes.set_xlabel(f"{protocol.transformation} [{_unit(protocol)}]")
            axes.tick_params(labelbottom=True)
        axes.tick_params(labelsize=7)
    figure.suptitle(f"{protocol.name}: {question.format(listed)} where it never saw them?", fontsize=11)
    labelled = zip(*grid[0].get_legend_handles_labels(), strict=True)
    shared = [handle for handle, label in labelled if label not in curves]
    if len(panels) > 1:
        shared.append(Line2D([], [], color="#BBBBBB", linewidth=0.8, label="networks of the other panels"))
    figure.legend(handles=shared, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _restricted(tables: Sequence[pd.DataFrame], protocol: Protocol, metric: str) -> pd.DataFrame:
    """Returns the mean of a metric over the restricted classes by parameter, a column a seed."""
    labels = list(map(str, protocol.restricted_classes))
    seeds = [rows[(rows.metric == metric) & rows.label.isin(labels)] for rows in tables]
    return pd.concat([rows.groupby("parameter").value.mean() for rows in seeds], axis=1)


def _free(rows: pd.DataFrame, protocol: Protocol, metric: str) -> pd.DataFrame:
    """Returns the curves of a metric of the classes that are not restricted."""
    chosen = (rows.metric == metric) & ~rows.label.isin(map(str, protocol.restricted_classes))
    return rows[chosen].astype({"in_training_range": bool})


def taken_for(rows: pd.DataFrame, protocol: Protocol) -> Figure:
    """Draws, for each restricted class, what its images are recognised as at each parameter."""
    shares = rows[rows.metric.str.startswith("taken_for:")].copy()
    shares["taken"] = shares.metric.str.removeprefix("taken_for:")
    names = list(dict.fromkeys(shares.taken))
    labels = list(dict.fromkeys(shares.label))
    figure = Figure(figsize=(7.2, 1.1 + 2.2 * len(labels)), layout="constrained")
    grid = figure.subplots(len(labels), squeeze=False, sharex=True)[:, 0]
    image = None
    for axes, label in zip(grid, labels, strict=True):
        table = shares[shares.label == label].pivot(index="taken", columns="parameter", values="value")
        parameters, table = table.columns.to_numpy(), table.loc[names]
        image = axes.pcolormesh(parameters, np.arange(len(names)), table, vmin=0, vmax=1, cmap="cividis")
        axes.set_yticks(np.arange(len(names)), names)
        axes.set_ylabel(f"class {label} taken for")
        for edge in np.ravel(_training_ranges(protocol)):
            axes.axvline(edge, color="white", linestyle="--", linewidth=1.2)
        full_turn(axes, protocol)
    grid[-1].set_xlabel(
        f"{protocol.transformation} [{_unit(protocol)}]; dashed: training range of these classes"
    )
    if image is not None:
        figure.colorbar(image, ax=list(grid), label="share of images")
    figure.suptitle(title(rows, "What restricted classes are taken for"), fontsize=10)
    return figure


def training_curves(history: pd.DataFrame) -> Figure:
    """Draws losses, those that are negative at times apart, and accuracies against the epoch."""
    losses = [name for name in history.columns if name.endswith("loss")]
    panels = {
        "loss": [name for name in losses if (history[name] > 0).all()],
        "loss, of either sign": [name for name in losses if not (history[name] > 0).all()],
        "accuracy": [name for name in history.columns if name.endswith("accuracy")],
    }
    panels = {label: names for label, names in panels.items() if names}
    figure = Figure(figsize=(3.6 * len(panels), 3), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, names) in zip(grid, panels.items(), strict=True):
        for index, name in enumerate(names):
            axes.plot(history.epoch, history[name], **_style(index), label=name.replace("_", " "))
        axes.set(xlabel="epoch", ylabel=label, yscale="log" if label == "loss" else "linear")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)
    figure.suptitle(f"Training of {history.run_id.iloc[0]}", fontsize=10)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG and closes nothing: no global state is involved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, matplotlib.rc_context({"savefig.facecolor": "white"}):
        figure.savefig(partial, dpi=150)


def _style(index: int) -> dict[str, Any]:
    """Colour and marker of the curve number `index`."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _axes(protocol: Protocol) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    _background(axes, protocol)
    axes.set_xlabel(f"{protocol.transformation} [{_unit(protocol)}]")
    return figure, axes


def _background(axes: Axes, protocol: Protocol) -> None:
    shade_training_range(axes, protocol, "training range of the restricted classes")
    full_turn(axes, protocol)
    axes.grid(color="#DDDDDD", linewidth=0.6)


def shade_training_range(axes: Axes, protocol: Protocol, label: str) -> None:
    """Shades the parameters at which training shows restricted classes."""
    for index, (low, high) in enumerate(_training_ranges(protocol)):
        axes.axvspan(low, high, color=SHADE, zorder=0, linewidth=0, label=None if index else label)


def shade_never_shown(axes: Axes, mask: pd.Series) -> None:
    """Shades the parameters that no class was shown.

    Args:
        axes: With the parameter on the horizontal axis.
        mask: Whether a parameter is one of these, by the parameter.
    """
    # Each run of them from half a step before to half a step behind.
    places = mask.index.to_numpy()
    half = np.diff(places).min() / 2 if len(places) > 1 else 0.5
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.to_numpy(), [False]])))
    for number, (first, behind) in enumerate(edges.reshape(-1, 2)):
        left, right = places[first] - half, places[behind - 1] + half
        label = None if number else "never shown of any class"
        axes.axvspan(left, right, color=NEVER, zorder=0, linewidth=0, label=label)


def _chance(axes: Axes, rows: pd.DataFrame) -> None:
    level = 1 / rows[rows.metric == "accuracy"].label.nunique()
    axes.axhline(level, color="black", linewidth=0.8, linestyle=":")
    left = (axes.get_xlim()[0], level)
    axes.annotate("chance", left, (3, 3), textcoords="offset points", fontsize=8)


def _training_ranges(protocol: Protocol) -> list[tuple[float, float]]:
    """The restricted range; for a periodic parameter, as often as it shows in one period about 0."""
    low, high = protocol.restricted.low, protocol.restricted.high
    transform = _transform(protocol)
    period = transform.PERIOD
    if period is None:
        last = np.full((1, *transform.PARAMETER_SHAPE), high, np.float32)
        # A range without its end is of whole numbers, each in the middle of what is shaded for it.
        aside = 0.0 if transform.contains(last, low, high)[0] else 0.5
        return [(low - aside, high - aside)]
    turns = [(low + turn * period, high + turn * period) for turn in range(-2, 3)]
    return [(left, right) for left, right in turns if left < period / 2 and right > -period / 2]


def full_turn(axes: Axes, protocol: Protocol) -> None:
    """Has the horizontal axis show one period of a transformation that has one."""
    period = _transform(protocol).PERIOD
    if period is not None:
        axes.set_xticks(np.linspace(-period / 2, period / 2, 9))
        axes.set_xlim(-period / 2, period / 2)


def _transform(protocol: Protocol) -> ModuleType:
    return get_transform(protocol.transformation)


def _unit(protocol: Protocol) -> str:
    return _transform(protocol).UNIT


def title(rows: pd.DataFrame, text: str) -> str:
    """Returns a title with the runs below it that the rows are of."""
    names = ", ".join(str(name) for name in rows.run_id.dropna().unique())
    return f"{text}\n{names}" if names else text
