"""The article's tables and figures, each with what runs of the same network have beside it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tfinv import figures, page, report, results, summary
from tfinv.config import DEFAULT_PROTOCOLS, RunConfig
from tfinv.data import get_protocol
from tfinv.suites import recognition
from tfinv.summary import Network, Result

FIGURE = Path("figures") / "article-errors.png"
_TABLES = {"Convolutional networks": ("cnn",), "Capsule networks": ("capsnet", "em_capsnet")}
_AUTOENCODERS = ("autoencoder", "adversarial_autoencoder")
# Mean squared error of the authors' adversarial autoencoder after 100,000 iterations, by angle and digit.
_ERRORS = {
    0.0: {"3": 0.055, "4": 0.045, "9": 0.038},
    -65.0: {"3": 0.054, "4": 0.068, "9": 0.051},
    -79.0: {"3": 0.053, "4": 0.090, "9": 0.059},
    -115.0: {"3": 0.053, "4": 0.109, "9": 0.068},
    -165.0: {"3": 0.053, "4": 0.110, "9": 0.074},
}
_DIGITS = ("3", "4", "9")
_NEAR = 1.0
# What the article shows in pictures: of which models, under which protocol, and which file of a run is that.
_PICTURES = (
    ("digits decoded from capsules, upright and turned", ("capsnet",), "rotate-34", "reconstructions.png"),
    ("digits turned by autoencoders, expected beside rendered", _AUTOENCODERS, "rotate-49", "panel.png"),
    ("the error of each digit against the angle", _AUTOENCODERS, "rotate-49", "errors.png"),
    ("4 and 9 at angles never shown of them", _AUTOENCODERS, "rotate-49", "animation.gif"),
    ("digits shifted by autoencoders", _AUTOENCODERS, "shift-49", "panel.png"),
    ("shifts never shown of any digit", _AUTOENCODERS, "shift-unseen", "panel.png"),
)
_INTRODUCTION = """\
## The article's figures beside ours

Every network that the article's authors measured, and what it has here; - is a network that no run in this
report is of. Mind the budgets.
"""
_CURVE = """\
### Error against the angle

Mean squared error of rendered digits 3 / 4 / 9, pixels -1 to 1: read off the file of the article's
adversarial autoencoder, and ours at the nearest angle. 4 and 9 were shown within ±45 degrees only, 3 at all
angles.
"""


def sections(found: Sequence[Result]) -> Iterator[str]:
    """Yields the parts of a report that put the article's tables and figures beside ours, if it has MNIST."""
    if all(result.config.dataset != "mnist" for result in found):
        return
    yield _INTRODUCTION
    ours = _longest(found)
    for title, names in _TABLES.items():
        configs = [row.config("article", 0) for row in recognition.ROWS if row.model in names]
        yield f"### {title}\n"
        yield page.table(_row(config, ours) for config in configs if _article_of(config))
    drawn = curves(found)
    if drawn:
        yield _CURVE
        yield page.table([_authors(), *(_errors(name, curve) for name, curve in drawn.items())])
        yield page.picture("Error of rendered digits against the angle, the article's beside ours", FIGURE)
    yield "### Pictures\n"
    yield page.table(
        {"the article shows": what, "ours, below": _runs(found, names, protocol, picture)}
        for what, names, protocol, picture in _PICTURES
    )


def figure(drawn: dict[str, pd.DataFrame]) -> Figure:
    """Draws the error of each digit that the article's authors have, against the angle; black: their points.

    Args:
        drawn: What `curves` returned; at least one network.
    """
    result = Figure(figsize=(11.5, 4.6), layout="constrained")
    grid = result.subplots(1, len(_DIGITS), sharey=True)
    protocol = get_protocol(DEFAULT_PROTOCOLS["generation"])
    for axes, digit in zip(grid, _DIGITS, strict=True):
        for index, (name, curve) in enumerate(drawn.items()):
            colour = figures.COLOURS[index % (len(figures.COLOURS) - 1)]  # black is the article's
            line = ("-", "--", ":")[index // (len(figures.COLOURS) - 1) % 3]
            axes.plot(curve.index, curve[digit], color=colour, linestyle=line, linewidth=1.3, label=name)
        points = [_ERRORS[angle][digit] for angle in _ERRORS]
        label = "the article's adversarial autoencoder"
        axes.plot(list(_ERRORS), points, "k*", markersize=9, label=label)
        if digit in map(str, protocol.restricted_classes):
            figures.shade_training_range(axes, protocol, "shown in training")
        figures.full_turn(axes, protocol)
        axes.tick_params(labelsize=7)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set(title=f"digit {digit}", xlabel="rotation [degrees]")
    grid[0].set_ylim(bottom=0)
    grid[0].set_ylabel("mean squared error on test images")
    result.legend(*grid[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return result


def curves(found: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """Returns the error by angle (rows) and digit (columns), mean over seeds, of each network that has it."""
    protocol = DEFAULT_PROTOCOLS["generation"]
    own = [
        result
        for result in found
        if (result.config.dataset, result.config.protocol) == ("mnist", protocol)
        and report.protocol_of(result.config) == get_protocol(protocol)
    ]
    tables = {network.name: _curve(network) for network in summary.networks(own)}
    return {name: table for name, table in tables.items() if set(_DIGITS) <= set(table.columns)}


def _curve(network: Network) -> pd.DataFrame:
    rows = pd.concat([result.rows for result in network.results])
    return rows[rows.metric == "mse"].pivot_table(index="parameter", columns="label", values="value")


def _article_of(config: RunConfig) -> dict[str, float]:
    return report.article_figures(config, report.protocol_of(config), config.dataset)


def _longest(found: Sequence[Result]) -> dict[tuple[str, str], Network]:
    """Returns the network that was trained longest, by model and preset, of those the article has."""
    able = [network for network in summary.networks(found) if _article_of(network.config)]
    by_epochs = sorted(able, key=lambda network: network.epochs)
    return {(network.config.model_name, network.config.preset): network for network in by_epochs}


def _row(config: RunConfig, ours: dict[tuple[str, str], Network]) -> dict[str, str]:
    network = ours.get((config.model_name, config.preset))
    cells = report.network_row(network) if network else {}
    row = {"network": config.label}
    for name, value in _article_of(config).items():
        row[f"{name} (article)"] = f"{value:.4f}"
        row[f"{name} (ours)"] = cells.get(name, page.NOTHING)
    return row | {name: cells.get(name, page.NOTHING) for name in ("seeds", "budget")}


def _authors() -> dict[str, str]:
    cells = {
        f"{angle:g}°": " / ".join(f"{errors[digit]:g}" for digit in _DIGITS)
        for angle, errors in _ERRORS.items()
    }
    return {"network": "the article's adversarial autoencoder", **cells}


def _errors(name: str, curve: pd.DataFrame) -> dict[str, str]:
    row = {"network": name}
    for angle in _ERRORS:
        nearest = min(curve.index, key=lambda place: abs(place - angle))
        near = abs(nearest - angle) <= _NEAR  # a smoke run has few angles
        errors = [results.number(curve.loc[nearest, digit]) for digit in _DIGITS]
        row[f"{angle:g}°"] = " / ".join(errors) if near else page.NOTHING
    return row


def _runs(found: Sequence[Result], names: Sequence[str], protocol: str, picture: str) -> str:
    """Returns the runs that have a picture, each a link to where it is shown."""
    having = [
        f"[`{result.folder.name}`](#{page.anchor(result.folder.name)})"
        for result in found
        if result.config.model_name in names
        and result.config.protocol == protocol
        and (result.folder / picture).is_file()
    ]
    return ", ".join(having) or page.NOTHING
