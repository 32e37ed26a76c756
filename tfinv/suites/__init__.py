"""The experiments that `scripts/reproduce.py` runs, as data: a file a suite, a row a network."""

from collections.abc import Iterable, Mapping, Sequence

from tfinv.config import RunConfig
from tfinv.errors import UsageError
from tfinv.suites import generation, imagination, recognition
from tfinv.suites._experiment import BUDGETS, Experiment, identity

__all__ = ["ALL", "BUDGETS", "SUITES", "Experiment", "distinct", "place_of", "select", "suite_of", "title_of"]

SUITES: Mapping[str, tuple[Experiment, ...]] = {
    "recognition": recognition.ROWS,
    "imagination": imagination.ROWS,
    "generation": generation.ROWS,
}
ALL = "all"
_TITLES = {"imagination": "what imagination depends on"}


def select(suite: str, names: Sequence[str] = ()) -> list[Experiment]:
    """Returns the rows of a suite, in its order.

    Args:
        suite: One of SUITES, or "all" of them.
        names: Rows to keep; all if empty.

    Raises:
        UsageError: If a name is unknown; the message lists the known ones.
    """
    known = {**SUITES, ALL: tuple(row for rows in SUITES.values() for row in rows)}
    if suite not in known:
        raise UsageError(f"Unknown suite. Expected one of {', '.join(known)}. Received: suite={suite}")
    rows = {row.name: row for row in known[suite]}
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise UsageError(
            f"Unknown row of {suite}. Expected some of {', '.join(rows)}. Received: {', '.join(unknown)}"
        )
    return [row for name, row in rows.items() if name in names or not names]


def distinct(rows: Iterable[Experiment]) -> list[Experiment]:
    """Returns the rows that make a choice which no row before them makes, but for sizes."""
    made: set[tuple] = set()
    kept = []
    for row in rows:
        choices = _choices(row)
        if not choices <= made:
            kept.append(row)
        made |= choices
    return kept


def _choices(row: Experiment) -> set[tuple]:
    """Dataset and protocol of a row, what it changes, and what its network and imagination say in words."""
    config = row.config("article", 0)
    options = {**vars(config.model), **vars(config.imagining)}
    words = {(row.model, name, value) for name, value in options.items() if isinstance(value, (str, bool))}
    changed = {("changed", name) for name in row.changes} or {("family", row.family)}
    return words | changed | {("dataset", config.dataset), ("protocol", config.protocol)}


def suite_of(name: str) -> str:
    """Returns the suite that a row is of."""
    return next(suite for suite, rows in SUITES.items() if name in (row.name for row in rows))


def title_of(suite: str) -> str:
    """Returns the heading of a suite's networks in a report; empty for the article's."""
    return _TITLES.get(suite, "")


def place_of(config: RunConfig) -> tuple[str, int, str]:
    """Returns the suite, the place in it and the family of the row that a run is of, whatever its budget.

    The suite is empty for a run that no row asks for.
    """
    for suite, rows in SUITES.items():
        for place, row in enumerate(rows):
            if identity(config) in row.identities:
                return suite, place, row.family
    return "", 0, "Others"
