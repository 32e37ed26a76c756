"""Tidy result rows: one observation a row, the same columns everywhere."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tfinv.errors import UsageError
from tfinv.files import replacing

COLUMNS = (
    "run_id",
    "model",
    "dataset",
    "protocol",
    "seed",
    "implementation",
    "metric",
    "label",
    "parameter",
    "in_training_range",
    "value",
)

# Labels that stand for more than one class.
_GROUPS = ("all", "restricted")


@dataclass(frozen=True)
class Provenance:
    """Where a row comes from: its first columns."""

    run_id: str
    model: str
    dataset: str
    protocol: str
    seed: int
    implementation: str

    def row(
        self,
        metric: str,
        value: float,
        label: str = "all",
        parameter: float | None = None,
        in_training_range: bool | None = None,
    ) -> dict[str, Any]:
        """Returns one row; `parameter` and `in_training_range` are None where they mean nothing."""
        return {
            **vars(self),
            "metric": metric,
            "label": label,
            "parameter": parameter,
            "in_training_range": in_training_range,
            "value": value,
        }


def to_frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Returns rows as a table, with the types that `read_csv` gives."""
    types = {"parameter": "float64", "in_training_range": "boolean", "value": "float64"}
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(types)


def key(metric: str, label: str = "all") -> str:
    """Returns the name of a metric in `whole`: with its class, if it is of a single one."""
    return metric if label in _GROUPS else f"{metric}:{label}"


def whole(rows: pd.DataFrame) -> pd.Series:
    """Returns the values that are of no single parameter, by `key`."""
    found = rows[rows.parameter.isna()]
    names = [key(metric, label) for metric, label in zip(found.metric, found.label, strict=True)]
    return pd.Series(found.value.to_numpy(), index=names)


def number(value: float) -> str:
    """Returns a figure as tables show it."""
    return "-" if math.isnan(value) else f"{value:{number_format(value)}}"


def number_format(value: float) -> str:
    """Returns the format of a figure and its spread: four digits, unless they make nothing of an error."""
    return ".1e" if 0 < value < 5e-5 else ".4f"


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV, atomically: neither a reader nor a full disk ever sees half a file."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False)


def read_csv(path: Path) -> pd.DataFrame:
    """Reads rows that `write_csv` wrote.

    Raises:
        UsageError: If the file is missing or lacks a column.
    """
    if not path.is_file():
        raise UsageError(f"No results at {path}. Train or evaluate first.")
    rows = pd.read_csv(path, dtype={"label": "str", "in_training_range": "boolean"})
    missing = [column for column in COLUMNS if column not in rows.columns]
    if missing:
        raise UsageError(f"Not a result table: {path} lacks {', '.join(missing)}. Evaluate again.")
    return rows
