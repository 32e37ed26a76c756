"""results.md and results.html: a report made from the tables of finished runs, and from nothing else."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tfinv import article, figures, generation, page, report, runs, suites, summary
from tfinv.config import RunConfig, dataset_name
from tfinv.data import PROTOCOLS, Protocol, get_protocol
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError
from tfinv.files import remove_partial, replacing
from tfinv.summary import Result

_INTRODUCTION = """\
# Results

Made from the tables in `docs/results/`, one folder a run; do not edit by hand.
`python scripts/reproduce.py all --publish docs` trains every run whose model is not on the machine, those
quoted here included, and adds or replaces its tables;
`python scripts/render_results.py` makes this page from them, and results.html, the same in one file.

Two spreads are kept apart. In tables of networks, ± is the half width of the 95 % confidence interval of the
mean *over seeds*, that is over trainings (Student's t, which takes seeds to scatter normally; with three it
is 2.5 standard deviations), and sd the standard deviation over seeds. A figure without ± is that of *one*
training, whose spread is unknown. In tables of runs, ± and sd are the same *over passes*: of one trained
network, tested again with other random parameters. They say nothing about another training.

Where the budget is below the article's (300 epochs for CNNs, 214 for autoencoders), compare the character of
a row, not its last digit.
"""
_MEASURED = {
    "recognition": """\
A test's figure is the mean over passes of the whole test set with fresh random parameters.
""",
    "generation": """\
The error of a class is the mean squared error of its rendered test images, pixels {} to {}, over the
parameters of the sweep inside and outside the training range of that class{}. In the ratio no error counts
less than {:.1e}, that of rounding pixels to the 256 levels in which images are stored: below it a ratio
compares roundings.
""",
}
_PER_RUN = {
    "recognition": """\
### Every run

± is here the half width of the 95 % interval, and sd the standard deviation, *over passes* of one trained
network: how far its test depends on the random parameters, not on the training.
""",
    "generation": "### Every run\n",
}
_PICTURES = (".gif", ".png")


def add_run(docs: Path, directory: Path, pictures: Sequence[str] = ()) -> None:
    """Copies the small files of a finished run to docs/results/<run>/; an older run of that name gives way.

    Args:
        docs: Folder that `render_results` is to render.
        directory: The run directory.
        pictures: Names of its figures that are to be shown.
    """
    if directory.resolve() == (docs / "results" / directory.name).resolve():
        return  # it is there, whole
    remove_partial(docs / "results", directory.name)
    with replacing(docs / "results" / directory.name) as folder:
        folder.mkdir(parents=True)
        copied = [
            *(directory / name for name in runs.TABLES),
            *(directory / runs.FIGURES / name for name in pictures),
        ]
        for path in copied:
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        environment = json.loads((folder / runs.ENVIRONMENT).read_text())
        environment["command"] = runs.repeatable(environment["command"])  # of a run of any version
        (folder / runs.ENVIRONMENT).write_text(json.dumps(environment, indent=2) + "\n")


def render_results(docs: Path) -> None:
    """Writes docs/results.md, docs/results.html and their figures from the runs in docs/results/.

    Args:
        docs: Folder with results/<run>/{config.json, environment.json, history.csv, invariance.csv}, and
            any of the run's figures that are to be shown.

    Raises:
        UsageError: If there is no run, or one is incomplete.
    """
    found = summary.read(docs / "results")
    if not found:
        raise UsageError(f"No runs in {docs / 'results'}. Copy the tables of finished runs there.")
    docs.mkdir(parents=True, exist_ok=True)
    _draw(found, docs)
    written = text(found)
    with replacing(docs / "results.md") as partial:
        partial.write_text(written)
    with replacing(docs / "results.html") as partial:
        partial.write_text(page.to_html(written, docs))


def text(found: Sequence[Result]) -> str:
    """Returns results.md, as it follows from the tables of runs alone."""
    parts = [
        _INTRODUCTION,
        *article.sections(found),
        *(part for members in sections(found).values() for part in _section(members)),
    ]
    return "\n".join(filter(None, parts))


def sections(found: Iterable[Result]) -> dict[str, list[Result]]:
    """Returns the runs that stand beside each other in tables, by the heading of these."""
    groups: dict[tuple, list[Result]] = {}
    for result in found:
        groups.setdefault(_section_of(result.config), []).append(result)
    places = {name: place for place, name in enumerate(PROTOCOLS)}

    def order(section: tuple) -> tuple:
        dataset, protocol, *_, title = section
        return title, dataset != "mnist", places.get(protocol, len(places)), str(section)

    ordered = sorted(groups, key=order)
    return {_heading(key): groups[key] for key in ordered}


def _heading(section: tuple) -> str:
    dataset, protocol, *choices, title = section
    others = [
        f", {name} classes {', '.join(map(str, classes)) or 'none'}"
        for name, classes in zip(("restricted", "excluded"), choices, strict=True)
        if classes is not None
    ]
    return f"{protocol} on {dataset}{''.join(others)}" + (f": {title}" if title else "")


def _draw(found: Sequence[Result], docs: Path) -> None:
    """Draws the figures that `text` names."""
    for members in sections(found).values():
        protocol, networks = report.protocol_of(members[0].config), summary.networks(members)
        families = {network.name: suites.place_of(network.config)[2] for network in networks}
        curves = {network.name: [result.rows for result in network.results] for network in networks}
        drawn = figures.comparison(curves, protocol, _in_order(families))
        figures.save(drawn, docs / _figure(members[0].config))
    errors = article.curves(found)
    if errors:
        figures.save(article.figure(errors), docs / article.FIGURE)


def _figure(config: RunConfig) -> Path:
    """Returns where the comparison is that a run is in."""
    dataset, name, restricted, excluded, title = _section_of(config)
    choices = [] if restricted is None else [*restricted] or ["none"]
    choices += [] if excluded is None else ["without", *(excluded or ["none"])]
    if dataset != dataset_name(dataset):  # a path, of whose name there may be others
        choices.append(hashlib.sha256(dataset.encode()).hexdigest()[:8])
    stem = "-".join([name, dataset_name(dataset), *map(str, choices), *title.split()])
    return Path("figures") / f"{stem}.png"


def _section(members: Sequence[Result]) -> Iterator[str]:
    """Yields the parts of results.md on one dataset, protocol and choice of classes."""
    section = _section_of(members[0].config)
    protocol, networks = report.protocol_of(members[0].config), summary.networks(members)
    # A section with a title compares choices, whose networks are one.
    leading, below = ([], []) if section[-1] else report.leaders(networks)
    yield f"## {_heading(section)}\n"
    yield _measured(protocol)
    yield page.table(map(report.network_row, networks))
    if protocol.task == "recognition":
        yield f"Chance is {1 / _num_classes(members[0]):.4g}.\n"
    if leading or below:
        yield f"### {report.leader_title(networks)}\n"
        yield page.table(leading)
        yield f"Below that: {', '.join(f'`{network}`' for network in below)}.\n" if below else ""
    yield page.picture("The restricted classes against the parameter", _figure(members[0].config))
    yield _PER_RUN[protocol.task]
    yield page.table(report.run_row(result) for network in networks for result in network.results)
    yield "### Commands and devices\n"
    yield page.table(report.command_row(result) for network in networks for result in network.results)
    yield from (_pictures(result.folder) for network in networks for result in network.results)


def _measured(protocol: Protocol) -> str:
    """Returns what the figures of a protocol are, in words."""
    if protocol.task == "recognition":
        return _MEASURED["recognition"]
    transform = get_transform(protocol.transformation)
    all_alike = transform.comparable(transform.grid(protocol.grid_step)).all()
    left_out = "" if all_alike else ",\nwithout those at which resampling blurs nothing"
    return _MEASURED["generation"].format(*protocol.pixel_range, left_out, generation.resolution(protocol))


def _section_of(config: RunConfig) -> tuple:
    """Returns dataset, protocol, restricted and excluded classes, and title; None for the protocol's own."""
    title = suites.title_of(suites.place_of(config)[0])
    own = get_protocol(config.protocol)
    restricted = None if config.restricted_classes == own.restricted_classes else config.restricted_classes
    excluded = None if config.excluded_classes == own.excluded_classes else config.excluded_classes
    return config.dataset, config.protocol, restricted, excluded, title


def _num_classes(result: Result) -> int:
    return result.rows[result.rows.metric == "accuracy"].label.nunique()


def _in_order(families: Mapping[str, str]) -> dict[str, str]:
    """Returns the families with those that no suite knows at the end."""
    return dict(sorted(families.items(), key=lambda item: item[1] == "Others"))


def _pictures(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _PICTURES)
    pictures = [
        page.picture(f"{Path(name).stem} of {folder.name}", f"results/{folder.name}/{name}") for name in names
    ]
    return "\n".join([f"### {folder.name}\n", *pictures]) if pictures else ""
