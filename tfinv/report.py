"""Tables for people, made from result rows: on the terminal, and docs/results.md."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.table import Table

from tfinv import figures, models, runs, suites, summary
from tfinv.config import RunConfig
from tfinv.data import Protocol, get_protocol
from tfinv.errors import UsageError
from tfinv.files import replacing
from tfinv.summary import Network, Result

_INTRODUCTION = """\
# Results

Made from the tables in `docs/results/`, one folder a run; do not edit by hand.
`python scripts/reproduce.py recognition --publish docs` trains what is missing and adds its tables;
`python scripts/render_results.py` makes this page from them.

A test's figure is the mean over passes of the whole test set with fresh random parameters, and where a
network was trained with several seeds, the mean over these ± their standard deviation. A figure without ± is
that of *one* training, whose spread is unknown. Our budgets are far below the article's (300 epochs for
CNNs), so compare the character of a row, not its last digit.
"""
_PER_RUN = """\
### Every run

The figure behind ± is here the standard deviation *over passes* of one trained network: how far its test
depends on the random parameters, not on the training.
"""
_TABLES = (runs.CONFIG, runs.ENVIRONMENT, runs.HISTORY, runs.INVARIANCE)


def invariance_table(
    rows: pd.DataFrame, protocol: Protocol, article: Mapping[str, float], title: str
) -> Table:
    """Returns the protocol's tests beside the article's figures.

    Args:
        rows: What `evaluate_invariance` returned.
        protocol: Its protocol.
        article: The article's figure of each test; empty for none.
        title: Heading.
    """
    values = rows.set_index("metric").value
    repeats = f"{values['repeats']:.0f}"
    table = Table(
        title=title, caption=f"mean and variance over {repeats} passes with fresh random parameters"
    )
    table.add_column("test")
    table.add_column("what")
    table.add_column("mean", justify="right")
    table.add_column("variance", justify="right")
    if article:
        table.add_column("article", justify="right")
    for name, test in protocol.evaluations.items():
        variance = values[f"{name}_variance"]
        spread = "-" if math.isnan(variance) else f"{variance:.1e}"
        cells = [name, test.description, f"{values[name]:.4f}", spread]
        table.add_row(*cells, *([f"{article[name]:.4f}"] if name in article else []))
    return table


def article_figures(config: RunConfig, protocol: Protocol, dataset: str) -> dict[str, float]:
    """Returns what the article's authors measured for the network of a run; empty if they did not.

    Args:
        config: Configuration of the run.
        protocol: What the network is tested under.
        dataset: Name or path of what it is tested on.
    """
    if dataset != "mnist" or protocol != get_protocol("rotate-34"):
        return {}
    preset = models.get_model(config.model_name).PRESETS.get(config.preset)
    return dict(preset.article) if preset is not None and preset.model == config.model else {}


def add_run(docs: Path, directory: Path, pictures: Sequence[str] = ()) -> None:
    """Copies the small files of a finished run to docs/results/<run>/; an older run of that name gives way.

    Args:
        docs: Folder that `render_results` is to render.
        directory: The run directory.
        pictures: Names of its figures that are to be shown.
    """
    with replacing(docs / "results" / directory.name) as folder:
        folder.mkdir(parents=True)
        copied = [
            *(directory / name for name in _TABLES),
            *(directory / runs.FIGURES / name for name in pictures),
        ]
        for path in copied:
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def render_results(docs: Path) -> None:
    """Writes docs/results.md and its figures from the runs in docs/results/.

    Args:
        docs: Folder with results/<run>/{config.json, environment.json, history.csv, invariance.csv}, and
            any of the run's figures that are to be shown.

    Raises:
        UsageError: If there is no run, or one is incomplete.
    """
    found = summary.read(docs / "results")
    if not found:
        raise UsageError(f"No runs in {docs / 'results'}. Copy the tables of finished runs there.")
    groups: dict[tuple, list[Result]] = {}
    for result in found:
        groups.setdefault(_section_of(result.config), []).append(result)
    text = [_INTRODUCTION, *(part for members in groups.values() for part in _section(members, docs))]
    docs.mkdir(parents=True, exist_ok=True)
    with replacing(docs / "results.md") as partial:
        partial.write_text("\n".join(filter(None, text)))


def network_tables(networks: Sequence[Network], title: str) -> list[Table]:
    """Returns the tables of networks, all of one protocol and dataset, for the terminal.

    Args:
        networks: At least one.
        title: Heading of the first table.
    """
    leading, _ = _leaders(networks)
    rows = {title: list(map(_network_row, networks)), _leader_title(): leading}
    return [_terminal_table(heading, cells) for heading, cells in rows.items() if cells]


def _section(members: Sequence[Result], docs: Path) -> Iterator[str]:
    """Yields the parts of results.md on one dataset, protocol and choice of classes."""
    dataset, name, restricted, _ = _section_of(members[0].config)
    protocol, networks = _protocol(members[0].config), summary.networks(members)
    others = "" if restricted is None else f", restricted classes {', '.join(map(str, restricted))}"
    figure = Path("figures") / f"{'-'.join([name, Path(dataset).stem, *map(str, restricted or ())])}.png"
    known = suites.families()
    families = {network.name: known.get(network.config.label, "Others") for network in networks}
    curves = {network.name: [result.rows for result in network.results] for network in networks}
    figures.save(figures.comparison(curves, protocol, _in_order(families)), docs / figure)
    leading, below = _leaders(networks)
    yield f"## {name} on {dataset}{others}\n"
    yield _markdown(map(_network_row, networks))
    yield f"Chance is {1 / _num_classes(members[0]):.4g}.\n"
    if leading or below:
        yield f"### {_leader_title()}\n"
        yield _markdown(leading)
        yield f"Below that: {', '.join(below)}.\n" if below else ""
    yield f"![Accuracy of the restricted classes against the parameter]({figure})\n"
    yield _PER_RUN
    yield _markdown(_run_row(result, protocol) for network in networks for result in network.results)
    yield "### Commands and devices\n"
    yield _markdown(_command_row(result) for network in networks for result in network.results)
    yield from (_pictures(result.folder) for network in networks for result in network.results)


def _section_of(config: RunConfig) -> tuple:
    return config.dataset, config.protocol, config.restricted_classes, config.excluded_classes


def _protocol(config: RunConfig) -> Protocol:
    return get_protocol(config.protocol).replace(config.restricted_classes, config.excluded_classes)


def _num_classes(result: Result) -> int:
    return result.rows[result.rows.metric == "accuracy"].label.nunique()


def _in_order(families: Mapping[str, str]) -> dict[str, str]:
    """Returns the families with those that no suite knows at the end."""
    return dict(sorted(families.items(), key=lambda item: item[1] == "Others"))


def _network_row(network: Network) -> dict[str, str]:
    protocol = _protocol(network.config)
    article = article_figures(network.config, protocol, network.config.dataset)
    row = {"network": network.name}
    for name in protocol.evaluations:
        row[name] = _mean(network, name)
        row[f"{name} (article)"] = f"{article[name]:.4f}" if name in article else "-"
    return row | _budget_cells(network)


def _leader_title() -> str:
    return f"Leaderboard: Pinv, of networks with a Ptest of at least {summary.PTEST_TO_LEAD}"


def _leaders(networks: Sequence[Network]) -> tuple[list[dict[str, str]], list[str]]:
    """Returns the rows of the leaderboard, and who is not on it; nothing if there are no such tests."""
    if not {"Ptest", "Pinv"} <= set(_protocol(networks[0].config).evaluations):
        return [], []
    able, below = summary.leaderboard(networks)
    rows = [
        {
            "place": str(place),
            "network": network.name,
            "Pinv": _mean(network, "Pinv"),
            "Ptest": _mean(network, "Ptest"),
            **_budget_cells(network),
        }
        for place, network in enumerate(able, 1)
    ]
    return rows, [f"{network.name} (Ptest {_mean(network, 'Ptest')})" for network in below]


def _mean(network: Network, metric: str) -> str:
    spread = network.spread(metric)
    return _number(network.mean(metric)) + ("" if math.isnan(spread) else f" ± {spread:.4f}")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _budget_cells(network: Network) -> dict[str, str]:
    count = len(network.seeds)
    listed = ", ".join(map(str, network.seeds))
    return {
        "seeds": f"one: {listed}" if count == 1 else f"{count}: {listed}",
        "budget": summary.budget(network.config),
    }


def _run_row(result: Result, protocol: Protocol) -> dict[str, str]:
    row = {"run": f"`{result.folder.name}`"}
    for name in protocol.evaluations:
        variance = result.values[f"{name}_variance"]
        spread = "" if math.isnan(variance) else f" ± {variance**0.5:.4f}"
        row[name] = _number(result.values[name]) + spread
    return {
        **row,
        "passes": f"{result.values['repeats']:.0f}",
        "images of the curve": str(result.config.evaluation.curve_images or "all"),
        "routing": ", ".join(result.rows.implementation.dropna().unique()) or "-",
    }


def _command_row(result: Result) -> dict[str, str]:
    environment = json.loads((result.folder / runs.ENVIRONMENT).read_text())
    history = result.folder / runs.HISTORY
    seconds = pd.read_csv(history).seconds if history.is_file() else pd.Series(dtype=float)
    processor = f"{environment['processor']}, {environment['cores']} cores"
    device = ", ".join(environment["accelerators"]) or processor
    return {
        "run": f"`{result.folder.name}`",
        "command": f"`{environment['command']}`",
        "epochs": str(len(seconds)),
        "training": f"{seconds.sum() / 60:.1f} min",
        "device": f"{device}; TensorFlow {environment['tensorflow']}",
    }


def _pictures(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.png"))
    pictures = [f"![{Path(name).stem} of {folder.name}](results/{folder.name}/{name})\n" for name in names]
    return "\n".join([f"### {folder.name}\n", *pictures]) if pictures else ""


def _markdown(rows: Iterable[dict[str, str]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _terminal_table(title: str, rows: Sequence[dict[str, str]]) -> Table:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace(" (article)", " art."))
    for row in rows:
        table.add_row(*row.values())
    return table
