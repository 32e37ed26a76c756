"""Tables for people, made from result rows."""

from collections.abc import Mapping

import pandas as pd
from rich.table import Table

from tfinv.data import Protocol


def invariance_table(
    rows: pd.DataFrame, protocol: Protocol, article: Mapping[str, float], title: str
) -> Table:
    """Returns the protocol's tests beside the article's figures.

    Args:
        rows: What `evaluate_invariance` returned.
        protocol: Its protocol.
        article: The article's figure of each test; empty for none.
        title: Heading.
    """
    values = rows.set_index("metric").value
    repeats = f"{values['repeats']:.0f}"
    table = Table(
        title=title, caption=f"mean and variance over {repeats} passes with fresh random parameters"
    )
    table.add_column("test")
    table.add_column("what")
    table.add_column("mean", justify="right")
    table.add_column("variance", justify="right")
    if article:
        table.add_column("article", justify="right")
    for name, test in protocol.evaluations.items():
        cells = [name, test.description, f"{values[name]:.4f}", f"{values[f'{name}_variance']:.1e}"]
        table.add_row(*cells, *([f"{article[name]:.4f}"] if name in article else []))
    return table
