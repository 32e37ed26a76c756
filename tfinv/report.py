"""Tables for people, made from result rows: on the terminal, and docs/results.md."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from tfinv import figures, models, results, runs
from tfinv.data import Protocol, get_protocol
from tfinv.errors import UsageError

_INTRODUCTION = """\
# Results

Made by `python scripts/render_results.py` from the tables in `docs/results/`, one folder a run; do not
edit by hand. A test's figure is the mean over passes of the whole test set with fresh random parameters;
the figure behind ± is the standard deviation *over passes* of one trained network, not over seeds. Chance
is 1/8 for `rotate-34`. Our budgets are far below the article's (300 epochs for CNNs), so compare the
character of a row, not its last digit.
"""


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
        cells = [name, test.description, f"{values[name]:.4f}", f"{values[f'{name}_variance']:.1e}"]
        table.add_row(*cells, *([f"{article[name]:.4f}"] if name in article else []))
    return table


def article_figures(config: Mapping[str, Any], protocol: Protocol, dataset: str) -> dict[str, float]:
    """Returns what the article's authors measured for the network of a run; empty if they did not.

    Args:
        config: Configuration of the run, as config.json holds it.
        protocol: What the network is tested under.
        dataset: Name of what it is tested on.
    """
    name, preset = config.get("model_name"), config.get("preset")
    if dataset != "mnist" or protocol != get_protocol("rotate-34"):
        return {}
    presets = models.get_model(name).PRESETS if name in models.available() else {}
    return dict(presets[preset].article) if preset in presets else {}


def render_results(docs: Path) -> None:
    """Writes docs/results.md and its figures from the runs in docs/results/.

    Args:
        docs: Folder with results/<run>/{config.json, environment.json, history.csv, invariance.csv}.

    Raises:
        UsageError: If there is no run, or one is incomplete.
    """
    folders = sorted(path.parent for path in (docs / "results").glob(f"*/{runs.INVARIANCE}"))
    if not folders:
        raise UsageError(f"No runs in {docs / 'results'}. Copy the tables of finished runs there.")
    sections = [_INTRODUCTION]
    tables = {folder.name: results.read_csv(folder / runs.INVARIANCE) for folder in folders}
    by_protocol: dict[str, list[Path]] = {}
    for folder in folders:
        by_protocol.setdefault(runs.read_config(folder)["protocol"], []).append(folder)
    for name, members in by_protocol.items():
        protocol = get_protocol(name)
        figure = Path("figures") / f"{name}.png"
        rows = pd.concat([tables[folder.name] for folder in members])
        figures.save(figures.comparison(rows, protocol), docs / figure)
        sections += [
            f"## {name}\n",
            _markdown(_result_row(folder, tables[folder.name], protocol) for folder in members),
            f"![Accuracy of the restricted classes against the parameter]({figure})\n",
            "### Budgets and commands\n",
            _markdown(_budget_row(folder) for folder in members),
        ]
    (docs / "results.md").write_text("\n".join(sections))


def _result_row(folder: Path, rows: pd.DataFrame, protocol: Protocol) -> dict[str, str]:
    values = rows.set_index("metric").value
    config = runs.read_config(folder)
    article = article_figures(config, protocol, config["dataset"])
    row = {"run": f"`{folder.name}`"}
    for name in protocol.evaluations:
        spread = values[f"{name}_variance"] ** 0.5
        row[name] = f"{values[name]:.4f} ± {spread:.4f}"
        row[f"{name} (article)"] = f"{article[name]:.4f}" if name in article else "-"
    return row


def _budget_row(folder: Path) -> dict[str, str]:
    config = runs.read_config(folder)
    environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    history = pd.read_csv(folder / runs.HISTORY)
    rows = results.read_csv(folder / runs.INVARIANCE)
    device = (
        ", ".join(environment["accelerators"]) or f"{environment['processor']}, {environment['cores']} cores"
    )
    return {
        "run": f"`{folder.name}`",
        "command": f"`{environment['command']}`",
        "epochs": str(len(history)),
        "training": f"{history.seconds.sum() / 60:.1f} min",
        "passes": f"{rows[rows.metric == 'repeats'].value.iloc[0]:.0f}",
        "seed": str(config["seed"]),
        "routing": ", ".join(rows.implementation.dropna().unique()) or "-",
        "device": f"{device}; TensorFlow {environment['tensorflow']}",
    }


def _markdown(rows: Iterable[dict[str, str]]) -> str:
    rows = list(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
