"""The experiments that `scripts/reproduce.py` runs, as data: a file a suite, a row a network."""

from collections.abc import Mapping, Sequence

from tfinv.config import RunConfig
from tfinv.errors import UsageError
from tfinv.suites import generation, imagination, recognition
from tfinv.suites._experiment import BUDGETS, Experiment

__all__ = ["BUDGETS", "SUITES", "Experiment", "place_of", "select", "title_of"]

SUITES: Mapping[str, tuple[Experiment, ...]] = {
    "recognition": recognition.ROWS,
    "imagination": imagination.ROWS,
    "generation": generation.ROWS,
}
_TITLES = {"imagination": "what imagination depends on"}


def select(suite: str, names: Sequence[str] = ()) -> list[Experiment]:
    """Returns the rows of a suite, in its order.

    Args:
        suite: One of SUITES.
        names: Rows to keep; all if empty.

    Raises:
        UsageError: If a name is unknown; the message lists the known ones.
    """
    if suite not in SUITES:
        raise UsageError(f"Unknown suite. Expected one of {', '.join(SUITES)}. Received: suite={suite}")
    rows = {row.name: row for row in SUITES[suite]}
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise UsageError(
            f"Unknown row of {suite}. Expected some of {', '.join(rows)}. Received: {', '.join(unknown)}"
        )
    return [row for name, row in rows.items() if name in names or not names]


def title_of(suite: str) -> str:
    """Returns the heading of a suite's networks in a report; empty for the article's."""
    return _TITLES.get(suite, "")


def place_of(config: RunConfig) -> tuple[str, int, str]:
    """Returns the suite, the place in it and the family of the row that a run is of, whatever its budget.

    The suite is empty for a run that no row asks for.
    """
    for suite, rows in SUITES.items():
        for place, row in enumerate(rows):
            if _identity(row.config("article", 0)) == _identity(config):
                return suite, place, row.family
    return "", 0, "Others"


def _identity(config: RunConfig) -> tuple[str, str, str]:
    return config.label, config.dataset, config.protocol
