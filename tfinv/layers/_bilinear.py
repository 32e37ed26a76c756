"""Bilinear reading at fractional places: the four cells about each place and their weights."""

import numpy as np
from keras import ops


def corners(rows, columns, height: int, width: int):
    """Yields the numbers and weights of the cells about each place.

    Args:
        rows: Rows of the places, of any shape; 0 is the centre of the first row.
        columns: Their columns, likewise.
        height: Number of rows.
        width: Number of columns.

    Yields:
        Four times: `row * width + column` of a cell, int32, and its weight, of the dtype of `rows`. Beyond
        the edges, the number is that of some cell and the weight 0.
    """
    top, left = ops.floor(rows), ops.floor(columns)
    # The share of the next cell as it is, not relu(1 - |d|): at a whole number, as under the identity, this
    # has the gradient towards the next cell, and the other has none.
    below, beyond = rows - top, columns - left
    for down, right in np.ndindex(2, 2):
        weights = (below if down else 1.0 - below) * (beyond if right else 1.0 - beyond)
        row, column = top + down, left + right
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = (ops.cast(ops.where(inside, place, 0), "int32") for place in (row, column))
        yield row * width + column, weights * ops.cast(inside, weights.dtype)
