"""A suite of experiments from start to report: what is missing is trained, what is done is not repeated."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from tfinv import report, results_page, suites, summary
from tfinv.catalogue import Catalogue, Entry
from tfinv.engines.base import Failure
from tfinv.engines.choice import Machines, choose
from tfinv.errors import UsageError
from tfinv.files import check_writable
from tfinv.runs import digest
from tfinv.suites import BUDGETS, Experiment
from tfinv.sweep import name_of, sweep, time_left

_LOG_WIDTH = 160
_THIS_MACHINE = Machines()


def reproduce(
    suite: tyro.conf.Positional[str],
    budget: str = "cpu",
    only: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    output: Path = Path("saved_models/reproduce"),
    runs: tuple[Path, ...] = (Path("saved_models"), Path("docs/results")),
    publish: Path | None = None,
    list_only: Annotated[bool, tyro.conf.arg(name="list")] = False,
    report_only: bool = False,
    machines: Machines = _THIS_MACHINE,
) -> int:
    """Reproduces.

    Args:
        suite: Experiments to run: recognition, imagination, generation, or all of these.
        budget: smoke (minutes, figures mean nothing), cpu (a night or two on 2 cores) or article (a GPU).
        only: Rows of the suite; all if not given, at the budget smoke those that take steps of their own.
        seeds: Seeds of each row; the row's own if not given, at the budget smoke the first of these.
        output: Folder of the runs, and of the report without --publish.
        runs: Other folders whose finished runs of the same configuration are taken instead of a new one, and
            whose times serve the estimates.
        publish: Folder whose results/ gets the tables, and that is rendered, such as docs.
        list_only: Show what there is and what is missing; run nothing.
        report_only: Report what is finished; run nothing.
        machines: Where runs are made, if not one after the other by this machine.

    Returns:
        Number of runs that failed.

    Raises:
        UsageError: On any bad input; found before anything is run.
    """
    rows = suites.select(suite, only)
    skipped: list[str] = []
    if budget == "smoke" and not only:
        kept = suites.distinct(rows)
        skipped = [row.name for row in rows if row not in kept]
        rows = kept
    if budget not in BUDGETS:
        raise UsageError(f"Unknown budget. Expected one of {', '.join(BUDGETS)}. Received: budget={budget}")
    if publish is not None and budget == "smoke":
        raise UsageError("Invalid value for publish. Expected a budget whose figures mean something.")
    check_writable(output)
    if publish is not None:
        check_writable(publish)
    count = 1 if budget == "smoke" else None
    configs = [
        (row, row.config(budget, seed)) for row in rows for seed in dict.fromkeys(seeds or row.seeds[:count])
    ]
    console = Console()
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    failures: list[Failure] = []
    known = Catalogue(output, runs)
    entries = [known.find(config) for _, config in configs]
    if list_only:
        console.print(_listing(entries, known, f"{suite}, budget {budget}: {BUDGETS[budget]}"))
        return 0
    if not report_only:
        if skipped:
            console.print(f"Left out, as others make the same choices: {', '.join(skipped)}")
        console.print(_overview(entries, known), highlight=False)
        names = {config: row.name for row, config in configs}
        failures = sweep(
            entries,
            known,
            lambda config: _command(budget, names[config], config.seed),
            console,
            choose(machines),
        )
        entries = [known.find(entry.config) for entry in entries]
    _complain(failures, console)
    _report([row for row, _ in configs], entries, publish or output / f"{suite}-{budget}", console)
    return len(failures)


def _overview(entries: Sequence[Entry], known: Catalogue) -> str:
    done = sum(entry.done for entry in entries)
    left = "" if done == len(entries) else f"; {time_left(entries, known)}"
    return f"{len(entries)} runs, {done} of them done{left}"


def _listing(entries: Sequence[Entry], known: Catalogue, title: str) -> Table:
    table = Table(title=title, caption=_overview(entries, known))
    for name in ("run", "configuration", "state", "training", "where"):
        table.add_column(name, justify="right" if name == "training" else "left")
    for entry in entries:
        seconds = known.seconds_an_epoch(entry.config)
        minutes = "-" if seconds is None else f"{seconds * entry.config.training.epochs / 60:.1f} min"
        table.add_row(
            name_of(entry.config),
            digest(entry.config),
            entry.state,
            minutes if entry.done or seconds is None else f"about {minutes}",
            str(entry.directory) if entry.epochs or entry.done else "-",
        )
    return table


def _command(budget: str, name: str, seed: int) -> list[str]:
    """Returns the command line that makes one run, whichever suite it was asked for with."""
    options = f"--budget {budget} --only {name} --seeds {seed}"
    return ["scripts/reproduce.py", suites.suite_of(name), *shlex.split(options)]


def _report(rows: Sequence[Experiment], entries: Sequence[Entry], docs: Path, console: Console) -> None:
    """Adds the finished runs to the tables in `docs`, renders these, and shows those of this sweep."""
    first: set[str] = set()
    finished = []
    for row, entry in zip(rows, entries, strict=True):
        if not entry.done:
            continue
        results_page.add_run(docs, entry.directory, () if row.name in first else row.pictures)
        first.add(row.name)
        finished.append(docs / "results" / entry.directory.name)
    if not finished:
        console.print("No run is finished, so there is nothing to report.")
        return
    results_page.render_results(docs)
    found = [result for result in summary.read(docs / "results") if result.folder in finished]
    for heading, members in results_page.sections(found).items():
        for table in report.network_tables(summary.networks(members), heading):
            console.print(table)
    console.print(
        f"Written: {docs / 'results.md'} and results.html beside it", highlight=False, soft_wrap=True
    )


def _complain(failures: Sequence[Failure], console: Console) -> None:
    for failure in failures:
        console.print(
            f"\nFAILED: {name_of(failure.entry.config)} ({failure.reason}).\n"
            f"  Everything it said: {failure.log}\n  The last of it:",
            *(f"    {line}" for line in failure.tail),
            sep="\n",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if failures:
        console.print(f"\n{len(failures)} failed; the same command tries them again.", highlight=False)
