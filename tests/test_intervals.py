"""Intervals are Student's, and never narrower."""

import math

import numpy as np
import pytest

from tfinv import intervals

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("freedom", [*range(1, 31), 40, 60, 120])
def test_quantiles_are_students(freedom):
    assert intervals.quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-5)


@pytest.mark.parametrize("freedom", [31, 39, 59, 61, 99, 119, 999])
def test_between_the_quantiles_an_interval_is_wide_rather_than_narrow(freedom):
    exact = stats.t.ppf(0.975, freedom)
    assert exact <= intervals.quantile(freedom) < 1.011 * exact


def test_interval_is_that_of_scipy_and_none_for_one_value():
    values = np.array([0.1, 0.2, 0.6])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    half = intervals.half_width(values.std(ddof=1), 3)
    assert (values.mean() - half, values.mean() + half) == pytest.approx((low, high), abs=1e-4)
    assert math.isnan(intervals.half_width(0.1, 1)) and math.isnan(intervals.half_width(math.nan, 5))
    with pytest.raises(ValueError, match="freedom=0"):
        intervals.quantile(0)
