"""docs/results.md says what the tracked tables say, recomputed here from these by other means."""

import functools
import json
import re

import numpy as np
import pandas as pd
import pytest

from tests.claims import agrees
from tests.conftest import ROOT
from tfinv import article, models, results_page, summary

stats = pytest.importorskip("scipy.stats")

DOCS = ROOT / "docs"
TEXT = (DOCS / "results.md").read_text()
TESTS = ("Ptest", "Pin", "Pout", "Pinv")
# Columns that hold no results; numbers in prose that are none: chance, threshold, rounding, Student's t.
OTHERS = {"run", "network", "place", "seeds", "budget", "passes", "images of the curve", "routing", "epochs"}
OTHERS |= {"command", "device", "other versions", "commit", "the article shows", "ours, below"}
CONSTANTS = {"0.125", "0.1", "0.97", "5.1e-06", "-1.0", "1.0", "2.5"}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def tables(text):
    """Yields (heading, rows) of every table; heading is the last "##" above it."""
    heading = ""
    for block in text.split("\n\n"):
        found = re.search(r"^## (.*)", block, re.MULTILINE)
        heading = found[1] if found else heading
        if block.startswith("|"):
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            yield heading, [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@functools.cache
def tracked():
    """The tests of each run, by its name."""
    runs = {}
    for path in sorted((DOCS / "results").glob("*/invariance.csv")):
        rows = pd.read_csv(path, dtype={"label": str})
        runs[path.parent.name] = rows
    return runs


def value(rows, column):
    """What a column shows of a run."""
    whole = rows[rows.parameter.isna()]
    if column in TESTS:
        return whole[whole.metric == column].value.item()
    errors = whole[whole.metric == f"{column.removesuffix(' / inside').split()[-1]}_mse"]
    if column == "never shown":
        return whole[whole.metric == "held_out_mse"].value.mean()
    if column == "others":
        inside = whole[whole.metric == "inside_mse"]
        return inside[~inside.label.isin(["4", "9"])].value.mean()
    if column in ("inside", "outside"):
        return errors[errors.label.isin(["4", "9"])].value.mean()
    if column.endswith("/ inside"):
        ratio = whole[whole.metric == "outside_inside_ratio"]
        return ratio[ratio.label == column[0]].value.item()
    return errors[errors.label == column[0]].value.item()


def cell(observations, spread=None):
    """Mean, half width of the interval and standard deviation, where there are several observations."""
    mean = float(np.mean(observations))
    deviation, count = spread or (
        np.std(observations, ddof=1) if len(observations) > 1 else 0,
        len(observations),
    )
    if count < 2:
        return [mean]
    return [mean, stats.t.ppf(0.975, count - 1) * deviation / np.sqrt(count), float(deviation)]


def matches(shown, expected):
    numbers = NUMBER.findall(shown)
    return len(numbers) == len(expected) and all(map(agrees, numbers, expected))


def seeds_of(network, heading, runs, epochs=None):
    """The runs of a network that a section shows, by its name there."""
    named = {name: rows for name, rows in runs.items() if rows.model.iloc[0] == network.split(",")[0]}
    return [
        rows
        for name, rows in named.items()
        if heading.startswith(f"{rows.protocol.iloc[0]} on {rows.dataset.iloc[0]}")
        and epochs in (None, len(history(name)))
    ]


@functools.cache
def history(name):
    return pd.read_csv(DOCS / "results" / name / "history.csv")


def of_runs(row, column, runs, heading):
    """What a row of one run, or of one network, has to show in a column."""
    if "run" in row:
        rows = runs[row["run"].strip("`")]
        variance = rows[rows.metric == f"{column}_variance"].value
        passes = rows[rows.metric == "repeats"].value
        return cell(
            [value(rows, column)], (variance.item() ** 0.5, int(passes.item())) if len(variance) else None
        )
    seeds = [int(seed) for seed in NUMBER.findall(row["seeds"].split(":")[1])]
    heading = "rotate-34 on mnist" if column.endswith(" (ours)") else heading
    epochs = int(row["budget"].split()[0])
    own = [rows for rows in seeds_of(row["network"], heading, runs, epochs) if rows.seed.iloc[0] in seeds]
    assert len(own) == len(seeds), row["network"]
    return cell([value(rows, column.removesuffix(" (ours)")) for rows in own])


def article_figure(row, column):
    own = [name for name in models.available() if row["network"].startswith(name)]
    for name in own:
        for preset, values in models.get_model(name).PRESETS.items():
            label = name if preset == "article" else preset
            if label == row["network"] and values.article:
                return values.article[column.removesuffix(" (article)")]
    raise AssertionError(f"the article has no {row['network']}")


def wrong(text):
    """What is the matter with the figures of the page; and what of it nothing here can tell."""
    runs, found = tracked(), []
    for heading, rows in tables(text):
        for row in rows:
            for column, shown in row.items():
                if column in OTHERS or shown == "-":
                    continue
                if column == "training":
                    seconds = history(row["run"].strip("`")).seconds
                    good = agrees(shown.removesuffix(" min"), seconds.sum() / 60)
                elif column.endswith("°"):
                    good = matches(
                        shown.replace(" / ", " "), at_angle(row["network"], float(column[:-1]), runs)
                    )
                elif column.endswith("(article)"):
                    good = agrees(shown, article_figure(row, column))
                else:
                    good = matches(shown, of_runs(row, column, runs, heading))
                if not good:
                    found.append(f"{heading}: {column} of {row.get('run', row.get('network'))}: {shown}")
    prose = "\n\n".join(block for block in text.split("\n\n") if not block.startswith("|"))
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", prose)
    loose = {number for number in NUMBER.findall(prose) if "." in number} - CONSTANTS
    return found + [f"{number} in the prose" for number in sorted(loose)]


def at_angle(network, angle, runs):
    if network.startswith("the article"):
        return list(article._ERRORS[angle].values())
    rows = pd.concat(seeds_of(network, "rotate-49 on mnist", runs))
    curve = rows[rows.metric == "mse"]
    nearest = min(curve.parameter, key=lambda place: abs(place - angle))
    return [curve[(curve.parameter == nearest) & (curve.label == digit)].value.mean() for digit in "349"]


def test_figures_are_those_of_the_tracked_tables():
    assert wrong(TEXT) == []


def test_an_edited_figure_is_found():
    sections = [f"## {section}" for section in TEXT.split("\n## ")[1:]]
    for old, new in (
        ("| 0.0049 |", "| 0.0048 |"),
        ("± 0.0011 (sd", "± 0.0012 (sd"),
        (" 2.5984 |", " 2.5994 |"),
        (" min |", "7 min |"),
        ("0.0696 / 0.0552", "0.0696 / 0.0553"),
        ("Chance is 0.125.", "Chance is 0.125. It has 0.9999."),
    ):
        section = next(section for section in sections if old in section)
        assert wrong(section) == []
        assert len(wrong(section.replace(old, new, 1))) == 1, new


def test_the_page_is_what_the_tables_render_to():
    assert results_page.text(summary.read(DOCS / "results")) == TEXT


def test_environments_are_complete():
    for path in (DOCS / "results").glob("*/environment.json"):
        environment = json.loads(path.read_text())
        assert {"command", "processor", "cores", "python", "tensorflow", "keras", "numpy", "tfinv"} <= set(
            environment
        )
