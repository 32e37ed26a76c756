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
    table = Table(title=title)
    for heading in ("test", "mean", "variance over passes", "article"):
        table.add_column(heading, justify="left" if heading == "test" else "right")
    table.add_column("what")
    for name, test in protocol.evaluations.items():
        table.add_row(
            name,
            f"{values[name]:.5f}",
            f"{values[f'{name}_variance']:.1e}",
            f"{article[name]:.5f}" if name in article else "-",
            test.description,
        )
    table.caption = f"{values['repeats']:.0f} passes with fresh random parameters"
    return table
