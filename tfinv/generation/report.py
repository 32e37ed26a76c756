"""The table of a generator's errors, for the terminal."""

import pandas as pd
from rich.table import Table

from tfinv.data import Protocol

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
        numbers = (
            "" if pd.isna(cells[name]) else f"{cells[name]:.{2 if name.endswith('ratio') else 4}f}"
            for name in shown
        )
        table.add_row(str(label), *numbers)
    return table
