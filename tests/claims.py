"""Figures in prose, and the tables they are from: a comment directly behind each figure names its source.

<!-- run: RUN METRIC -->                 a metric of a tracked run; with * in RUN the mean over several
<!-- run: RUN METRIC label=4 -->         of one class; METRIC may be a quotient: outside_mse/inside_mse
<!-- table: PATH COLUMN other=value -->  mean of a column of a tracked table over the rows with that value
<!-- no result: WHY -->                  a figure that nobody measured, such as a threshold
"""

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

# Where tracked runs are, the first that has one of a name.
FOLDERS = ("docs/results", "docs/generation", "saved_models/reference")
TABLES = ("invariance.csv", "summary.csv")
# Decimals, a power of ten, or per cent: accuracies, errors, ratios and times. Not "Python 3.11" and
# "Apache-2.0", nor the ends of a range, "±0.3".
_FIGURE = re.compile(
    r"(?<![\w.±])(?<![A-Za-z]-)(?<!Python )"
    r"(?P<number>\d*\.\d+(?:[eE][+-]?\d+)?|\d+(?:\.\d+)?[eE][+-]?\d+|\d+(?:\.\d+)?(?=[ \u00a0]?%| per ?cent))"
    r"(?P<percent>[ \u00a0]?%| per ?cent)?(?!\w)(?!\.\d)"
)
_SOURCE = re.compile(r"\s*<!-- (?P<kind>run|table|no result): (?P<rest>.*?) -->", re.DOTALL)
# Not prose: blocks of code, code in a line, targets of links.
_CODE = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """A figure in a text.

    Attributes:
        shown: As it stands there, with % if there is one.
        kind: Of its source; empty if it has none.
        source: What the comment says.
        line: Where it is.
    """

    shown: str
    kind: str
    source: str
    line: int


def claims(text: str) -> Iterator[Claim]:
    """Yields the figures of a Markdown text."""
    blank = _CODE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    comments = [match.span() for match in re.finditer(r"<!--.*?-->", blank, re.DOTALL)]
    for match in _FIGURE.finditer(blank):
        if any(start <= match.start() < end for start, end in comments):
            continue
        source = _SOURCE.match(text, match.end())
        line = text.count("\n", 0, match.start()) + 1
        yield Claim(match.group(), source["kind"] if source else "", source["rest"] if source else "", line)


def agrees(shown: str, value: float) -> bool:
    """Returns whether a figure is that value, rounded to the digits it shows."""
    number = shown.rstrip("% \u00a0percnt")
    if number != shown:
        shown, value = number, value * 100
    mantissa, _, exponent = shown.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(shown) - value) <= 0.5 * unit * (1 + 1e-6)


def value_of(claim: Claim, root: Path) -> float:
    """Returns what the source of a claim says; read once, a table does not change.

    Raises:
        LookupError: If there is no such run, table, column or row.
    """
    return _said(claim.kind, claim.source, root)


@functools.cache
def _said(kind: str, source: str, root: Path) -> float:
    first, second, *conditions = shlex.split(source)
    wanted = dict(condition.split("=", 1) for condition in conditions)
    if kind == "table":
        return _mean(pd.read_csv(root / first, dtype=str), second, wanted)
    values = [_of_run(table, second, wanted) for table in _runs(first, root)]
    return sum(values) / len(values)


def _runs(pattern: str, root: Path) -> list[pd.DataFrame]:
    for folder in FOLDERS:
        paths = [path for name in TABLES for path in sorted((root / folder).glob(f"{pattern}/{name}"))]
        if paths:
            return [pd.read_csv(path, dtype=str) for path in paths]
    raise LookupError(f"no tracked run {pattern}")


def _of_run(table: pd.DataFrame, metric: str, wanted: dict[str, str]) -> float:
    table = table[table.parameter.isna()]
    values = [_mean(table, "value", {"metric": name, **wanted}) for name in metric.split("/")]
    return values[0] if len(values) == 1 else values[0] / values[1]


def _mean(table: pd.DataFrame, column: str, wanted: dict[str, str]) -> float:
    for name, value in wanted.items():
        table = table[table[name] == value]
    if not len(table):
        raise LookupError(f"nothing has {wanted}")
    return float(table[column].astype(float).mean())
