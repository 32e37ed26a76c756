"""docs/results.md: a page made from the tables of finished runs, and from nothing else."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tfinv import figures, generation, report, runs, suites, summary
from tfinv.config import RunConfig
from tfinv.errors import UsageError
from tfinv.files import replacing
from tfinv.summary import Result

_INTRODUCTION = """\
# Results

Made from the tables in `docs/results/`, one folder a run; do not edit by hand.
`python scripts/reproduce.py recognition --publish docs`, and the same with `imagination` or `generation`,
trains what is missing and adds its tables; `python scripts/render_results.py` makes this page from them.

Where a network was trained with several seeds, a figure is the mean over these ± their standard deviation. A
figure without ± is that of *one* training, whose spread is unknown. Where the budget is below the article's
(300 epochs for CNNs, 214 for autoencoders), compare the character of a row, not its last digit.
"""
_MEASURED = {
    "recognition": """\
A test's figure is the mean over passes of the whole test set with fresh random parameters.
""",
    "generation": """\
The error of a class is the mean squared error of its rendered test images, pixels {} to {}, over the
parameters of the sweep inside and outside the training range of that class; parameters at which resampling
blurs nothing are left out. In the ratio no error counts less than {:.1e}, that of rounding pixels to the 256
levels in which images are stored: below it a ratio compares roundings.
""",
}
_PER_RUN = {
    "recognition": """\
### Every run

The figure behind ± is here the standard deviation *over passes* of one trained network: how far its test
depends on the random parameters, not on the training.
""",
    "generation": "### Every run\n",
}
_PICTURES = (".gif", ".png")
_TABLES = (runs.CONFIG, runs.ENVIRONMENT, runs.HISTORY, runs.INVARIANCE)


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
        environment = json.loads((folder / runs.ENVIRONMENT).read_text())
        environment["command"] = runs.repeatable(environment["command"])  # of a run of any version
        (folder / runs.ENVIRONMENT).write_text(json.dumps(environment, indent=2) + "\n")


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
    text = [
        _INTRODUCTION,
        *(part for members in sections(found).values() for part in _section(members, docs)),
    ]
    docs.mkdir(parents=True, exist_ok=True)
    with replacing(docs / "results.md") as partial:
        partial.write_text("\n".join(filter(None, text)))


def sections(found: Iterable[Result]) -> dict[str, list[Result]]:
    """Returns the runs that stand beside each other in tables, by the heading of these."""
    groups: dict[tuple, list[Result]] = {}
    for result in found:
        groups.setdefault(_section_of(result.config), []).append(result)
    ordered = sorted(groups, key=lambda key: (key[-1], key[0] != "mnist", str(key)))
    return {_heading(key): groups[key] for key in ordered}


def _heading(section: tuple) -> str:
    dataset, protocol, restricted, _, title = section
    others = "" if restricted is None else f", restricted classes {', '.join(map(str, restricted))}"
    return f"{protocol} on {dataset}{others}" + (f": {title}" if title else "")


def _section(members: Sequence[Result], docs: Path) -> Iterator[str]:
    """Yields the parts of results.md on one dataset, protocol and choice of classes."""
    section = _section_of(members[0].config)
    dataset, name, restricted, _, title = section
    protocol, networks = report.protocol_of(members[0].config), summary.networks(members)
    stem = "-".join([name, Path(dataset).stem, *map(str, restricted or ()), *title.split()])
    figure = Path("figures") / f"{stem}.png"
    families = {network.name: suites.place_of(network.config)[2] for network in networks}
    curves = {network.name: [result.rows for result in network.results] for network in networks}
    figures.save(figures.comparison(curves, protocol, _in_order(families)), docs / figure)
    leading, below = report.leaders(networks)
    yield f"## {_heading(section)}\n"
    yield _MEASURED[protocol.task].format(*protocol.pixel_range, generation.resolution(protocol))
    yield _markdown(map(report.network_row, networks))
    if protocol.task == "recognition":
        yield f"Chance is {1 / _num_classes(members[0]):.4g}.\n"
    if leading or below:
        yield f"### {report.leader_title(networks)}\n"
        yield _markdown(leading)
        yield f"Below that: {', '.join(below)}.\n" if below else ""
    yield f"![The restricted classes against the parameter]({figure})\n"
    yield _PER_RUN[protocol.task]
    yield _markdown(report.run_row(result) for network in networks for result in network.results)
    yield "### Commands and devices\n"
    yield _markdown(report.command_row(result) for network in networks for result in network.results)
    yield from (_pictures(result.folder) for network in networks for result in network.results)


def _section_of(config: RunConfig) -> tuple:
    title = suites.title_of(suites.place_of(config)[0])
    return config.dataset, config.protocol, config.restricted_classes, config.excluded_classes, title


def _num_classes(result: Result) -> int:
    return result.rows[result.rows.metric == "accuracy"].label.nunique()


def _in_order(families: Mapping[str, str]) -> dict[str, str]:
    """Returns the families with those that no suite knows at the end."""
    return dict(sorted(families.items(), key=lambda item: item[1] == "Others"))


def _pictures(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _PICTURES)
    pictures = [f"![{Path(name).stem} of {folder.name}](results/{folder.name}/{name})\n" for name in names]
    return "\n".join([f"### {folder.name}\n", *pictures]) if pictures else ""


def _markdown(rows: Iterable[dict[str, str]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    keys = [key for key in rows[0] if any(row[key] != "-" for row in rows)]  # the article's, if it has any
    lines = [keys, ["---"] * len(keys), *([row[key] for key in keys] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
