"""The table of a generator's errors, for the terminal, and what a table of several has."""

import pandas as pd
from rich.table import Table

from tfinv.data import Protocol
from tfinv.results import key, number

_COLUMNS = {
    "inside_mse": "inside",
    "outside_mse": "outside",
    "outside_inside_ratio": "outside / inside",
    "held_out_mse": "never shown",
}


def error_table(rows: pd.DataFrame, protocol: Protocol, title: str) -> Table:
    """Returns the errors of each class within its training range, outside, and where none was shown.

    Args:
        rows: What `evaluate_generation` returned.
        protocol: Its protocol.
        title: Heading.
    """
    black, white = protocol.pixel_range
    caption = f"mean squared error, pixels {black:g}..{white:g}; restricted: {protocol.restricted_classes}"
    table = Table(title=title, caption=caption)
    values = rows[rows.metric.isin(_COLUMNS)].pivot_table(
        index="label", columns="metric", values="value", sort=False, dropna=False
    )
    shown = [name for name in _COLUMNS if name in values.columns]
    table.add_column("class")
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right")
    for label, cells in values.iterrows():
        numbers = ("" if pd.isna(cells[name]) else number(cells[name]) for name in shown)
        table.add_row(str(label), *numbers)
    return table


def columns(rows: pd.DataFrame, protocol: Protocol) -> dict[str, tuple[str, ...]]:
    """Returns what a table of networks has of each, as `results.key` names it, by the heading of the column.

    Args:
        rows: What `evaluate_generation` returned for one of them.
        protocol: Its protocol.

    Returns:
        Of each restricted class the errors inside and outside its range and their ratio; of the others the
        mean error; where the protocol holds a range out from all classes, the mean error there. What a
        heading has more than one key for is the mean of these.
    """
    classes = rows[rows.metric == "inside_mse"].label.tolist()
    restricted = [name for name in map(str, protocol.restricted_classes) if name in classes]
    table: dict[str, tuple[str, ...]] = {}
    for name in restricted:
        for metric in ("inside_mse", "outside_mse", "outside_inside_ratio"):
            table[f"{name} {_COLUMNS[metric]}"] = (key(metric, name),)
    table["others"] = tuple(key("inside_mse", name) for name in classes if name not in restricted)
    if protocol.held_out is not None:
        table[_COLUMNS["held_out_mse"]] = tuple(key("held_out_mse", name) for name in classes)
    return {heading: keys for heading, keys in table.items() if keys}
