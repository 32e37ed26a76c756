"""Tables for people, made from result rows: on the terminal, and docs/results.md."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from rich.table import Table

from tfinv import figures, models, results, runs
from tfinv.config import RunConfig
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


def render_results(docs: Path) -> None:
    """Writes docs/results.md and its figures from the runs in docs/results/.

    Args:
        docs: Folder with results/<run>/{config.json, environment.json, history.csv, invariance.csv}, and
            any of the run's figures that are to be shown.

    Raises:
        UsageError: If there is no run, or one is incomplete.
    """
    folders = sorted(path.parent for path in (docs / "results").glob(f"*/{runs.INVARIANCE}"))
    if not folders:
        raise UsageError(f"No runs in {docs / 'results'}. Copy the tables of finished runs there.")
    tables = {folder: results.read_csv(folder / runs.INVARIANCE) for folder in folders}
    configs = {folder: models.read_run_config(folder) for folder in folders}
    groups: dict[tuple, list[Path]] = {}
    for folder, config in configs.items():
        key = (config.dataset, config.protocol, config.restricted_classes, config.excluded_classes)
        groups.setdefault(key, []).append(folder)
    sections = [_INTRODUCTION]
    for (dataset, name, restricted, excluded), members in groups.items():
        protocol = get_protocol(name).replace(restricted, excluded)
        others = "" if restricted is None else f", restricted classes {', '.join(map(str, restricted))}"
        figure = Path("figures") / f"{'-'.join([name, Path(dataset).stem, *map(str, restricted or ())])}.png"
        rows = pd.concat([tables[folder] for folder in members])
        figures.save(figures.comparison(rows, protocol), docs / figure)
        sections += [
            f"## {name} on {dataset}{others}\n",
            _markdown(_result_row(folder, configs[folder], tables[folder], protocol) for folder in members),
            f"![Accuracy of the restricted classes against the parameter]({figure})\n",
            "### Budgets and commands\n",
            _markdown(_budget_row(folder, configs[folder], tables[folder]) for folder in members),
            *(_pictures(folder) for folder in members),
        ]
    (docs / "results.md").write_text("\n".join(filter(None, sections)))


def _result_row(folder: Path, config: RunConfig, rows: pd.DataFrame, protocol: Protocol) -> dict[str, str]:
    values = rows.set_index("metric").value
    article = article_figures(config, protocol, config.dataset)
    row = {"run": f"`{folder.name}`"}
    for name in protocol.evaluations:
        row[name] = f"{values[name]:.4f} ± {values[f'{name}_variance'] ** 0.5:.4f}"
        row[f"{name} (article)"] = f"{article[name]:.4f}" if name in article else "-"
    return row


def _budget_row(folder: Path, config: RunConfig, rows: pd.DataFrame) -> dict[str, str]:
    environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    history = pd.read_csv(folder / runs.HISTORY)
    processor = f"{environment['processor']}, {environment['cores']} cores"
    device = ", ".join(environment["accelerators"]) or processor
    return {
        "run": f"`{folder.name}`",
        "command": f"`{environment['command']}`",
        "epochs": str(len(history)),
        "training": f"{history.seconds.sum() / 60:.1f} min",
        "passes": f"{rows[rows.metric == 'repeats'].value.iloc[0]:.0f}",
        "images of the curve": str(config.evaluation.curve_images or "all"),
        "seed": str(config.seed),
        "routing": ", ".join(rows.implementation.dropna().unique()) or "-",
        "device": f"{device}; TensorFlow {environment['tensorflow']}",
    }


def _pictures(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.png"))
    pictures = [f"![{Path(name).stem} of {folder.name}](results/{folder.name}/{name})\n" for name in names]
    return "\n".join([f"### {folder.name}\n", *pictures]) if pictures else ""


def _markdown(rows: Iterable[dict[str, str]]) -> str:
    rows = list(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
