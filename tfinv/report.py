"""Tables for people, made from result rows: for the terminal, and the rows of docs/results.md."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from tfinv import generation, intervals, models, results, runs, summary
from tfinv.config import DEFAULT_PROTOCOLS, RunConfig
from tfinv.data import Protocol, get_protocol
from tfinv.summary import Network, Result

_ARTICLE = " (article)"


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
    usual = get_protocol(DEFAULT_PROTOCOLS[protocol.task])
    if dataset != "mnist" or protocol != usual or config.imagining.imagination != "none":
        return {}
    preset = models.get_model(config.model_name).PRESETS.get(config.preset)
    return dict(preset.article) if preset is not None and preset.model == config.model else {}


def headline(result: Result) -> str:
    """Returns the figures of a run in a line."""
    columns = _columns(result)
    return ", ".join(
        f"{name} {results.number(result.values[list(keys)].mean())}" for name, keys in columns.items()
    )


def _columns(result: Result) -> dict[str, tuple[str, ...]]:
    """Returns the keys in `Result.values` that are shown, or whose mean is, by heading."""
    protocol = protocol_of(result.config)
    if protocol.task == "generation":
        return generation.columns(result.rows, protocol)
    return {name: (name,) for name in protocol.evaluations}


def network_tables(networks: Sequence[Network], title: str) -> list[Table]:
    """Returns the tables of networks, all of one protocol and dataset, for the terminal.

    Args:
        networks: At least one.
        title: Heading of the first table.
    """
    leading, _ = leaders(networks)
    rows = {title: list(map(network_row, networks)), leader_title(networks): leading}
    return [_terminal_table(heading, list(map(_narrow, cells))) for heading, cells in rows.items() if cells]


def protocol_of(config: RunConfig) -> Protocol:
    """Returns the protocol of a run, with the run's own choice of classes."""
    return get_protocol(config.protocol).replace(config.restricted_classes, config.excluded_classes)


def network_row(network: Network) -> dict[str, str]:
    """Returns the cells of a network: its tests beside the article's figures, seeds and budget."""
    article = article_figures(network.config, protocol_of(network.config), network.config.dataset)
    row = {"network": network.name}
    for name, keys in _columns(network.results[0]).items():
        row[name] = _mean(network, *keys)
        row[f"{name}{_ARTICLE}"] = f"{article[keys[0]]:.4f}" if keys[0] in article else "-"
    return row | _budget_cells(network)


def leader_title(networks: Sequence[Network]) -> str:
    """Returns the heading of the leaderboard."""
    if protocol_of(networks[0].config).task == "generation":
        return "Leaderboard: error of the restricted classes outside their range"
    return f"Leaderboard: Pinv, of networks with a Ptest of at least {summary.PTEST_TO_LEAD}"


def leaders(networks: Sequence[Network]) -> tuple[list[dict[str, str]], list[str]]:
    """Returns the rows of the leaderboard, and who is not on it; nothing if there are no such tests."""
    protocol = protocol_of(networks[0].config)
    below: list[Network] = []
    if protocol.task == "generation":
        labels = list(map(str, protocol.restricted_classes))
        columns = {
            name: tuple(results.key(f"{name}_mse", label) for label in labels)
            for name in ("outside", "inside")
        }
        # Some test images may have none of a class.
        measured = [
            network for network in networks if set(columns["outside"]) <= set(network.results[0].values.index)
        ]
        able = summary.by_error(measured, columns["outside"]) if labels else []
    else:
        columns = {name: (name,) for name in ("Pinv", "Ptest")}
        able = []
        if set(columns) <= set(protocol.evaluations):
            able, below = summary.leaderboard(networks)
    rows = [
        {"place": str(place), "network": network.name}
        | {name: _mean(network, *keys) for name, keys in columns.items()}
        | _budget_cells(network)
        for place, network in enumerate(able, 1)
    ]
    return rows, [network.name for network in below]


def _mean(network: Network, *keys: str) -> str:
    return _interval(network.mean(*keys), network.spread(*keys), len(network.seeds))


def _interval(mean: float, deviation: float, count: int) -> str:
    """Returns a mean ± the half width of its 95 % interval, and the standard deviation behind that."""
    if math.isnan(deviation):
        return results.number(mean)
    shown, half = results.number_format(mean), intervals.half_width(deviation, count)
    return f"{results.number(mean)} ± {half:{shown}} (sd {deviation:{shown}})"


def _budget_cells(network: Network) -> dict[str, str]:
    count = len(network.seeds)
    listed = ", ".join(map(str, network.seeds))
    return {
        "seeds": f"one: {listed}" if count == 1 else f"{count}: {listed}",
        "budget": summary.budget(network.config),
    }


def run_row(result: Result) -> dict[str, str]:
    """Returns the cells of one run: its tests, with interval and standard deviation over passes, if any."""
    passes = result.values.get("repeats", math.nan)
    row = {"run": f"`{result.folder.name}`"}
    for name, keys in _columns(result).items():
        variance = result.values.get(f"{keys[0]}_variance", math.nan)
        mean = result.values[list(keys)].mean()
        row[name] = _interval(mean, variance**0.5, 0 if math.isnan(passes) else int(passes))
    return {
        **row,
        "passes": "-" if math.isnan(passes) else f"{passes:.0f}",
        "images of the curve": str(result.config.evaluation.curve_images or "all"),
        "routing": ", ".join(result.rows.implementation.dropna().unique()) or "-",
    }


def command_row(result: Result) -> dict[str, str]:
    """Returns the cells that say how, how long and where a run was made."""
    environment = json.loads((result.folder / runs.ENVIRONMENT).read_text())
    parts = [*environment.get("earlier", ()), environment]
    history = result.folder / runs.HISTORY
    seconds = pd.read_csv(history).seconds if history.is_file() else pd.Series(dtype=float)
    return {
        "run": f"`{result.folder.name}`",
        "command": f"`{environment['command']}`",
        "epochs": str(len(seconds)),
        "training": f"{seconds.sum() / 60:.1f} min",
        "device": _successive(map(_device, parts)),
        "other versions": _successive(map(_versions, parts)),
        "commit": _successive(map(_commit, parts)),
    }


def _successive(cells: Iterable[str]) -> str:
    """Returns what held for a run from its first epoch on, and where it went on differently."""
    return ", then ".join(cell for cell, _ in itertools.groupby(cells))


def _device(environment: Mapping[str, Any]) -> str:
    processor = f"{environment['processor']}, {environment['cores']} cores"
    device = ", ".join(environment["accelerators"]) or processor
    onednn = " with oneDNN" if environment.get("onednn") is True else ""
    return f"{device}; TensorFlow {environment['tensorflow']}{onednn}"


def _versions(environment: Mapping[str, str]) -> str:
    listed = [
        f"{name} {environment[name]}"
        for name in ("python", "keras", "numpy", "tfinv")
        if environment.get(name)
    ]
    return ", ".join(listed) or "-"


def _commit(environment: Mapping[str, Any]) -> str:
    """Of the sources, where a run knows it."""
    commit = environment.get("commit")
    return "-" if commit is None else f"`{commit[:12]}`" + (", modified" if environment["modified"] else "")


def _narrow(row: Mapping[str, str]) -> dict[str, str]:
    """Returns a row for a terminal: the article's figure below ours, and of the budget the epochs."""
    narrow = {key: cell for key, cell in row.items() if not key.endswith(_ARTICLE)}
    for key in narrow:
        if row.get(f"{key}{_ARTICLE}", "-") != "-":
            narrow[key] += f"\narticle {row[f'{key}{_ARTICLE}']}"
        narrow[key] = narrow[key].replace(" (sd", "\n(sd")
    return narrow | {"budget": row["budget"].split(", ")[0]}


def _terminal_table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*row.values())
    return table
