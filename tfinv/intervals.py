"""95 % confidence intervals of a mean, by Student's t."""

import math

# Two-sided 95 %: the 0.975 quantile for 1, 2, ... 30 degrees of freedom, then for those named.
_QUANTILES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_BEYOND = {40: 2.0211, 60: 2.0003, 120: 1.9799}


def quantile(freedom: int) -> float:
    """Returns the 0.975 quantile of Student's t; between those listed, that of fewer degrees of freedom.

    Args:
        freedom: Degrees of freedom, at least 1.

    Raises:
        ValueError: If there are fewer.
    """
    if freedom < 1:
        raise ValueError(f"Invalid value for freedom. Expected at least 1. Received: freedom={freedom}")
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    # A little wide between two of them, never too narrow.
    listed = max((known for known in _BEYOND if known <= freedom), default=0)
    return _BEYOND.get(listed, _QUANTILES[-1])


def half_width(deviation: float, count: int) -> float:
    """Returns how far the interval reaches to both sides of the mean.

    Args:
        deviation: Standard deviation of the observations, with n - 1.
        count: How many there are.

    Returns:
        The half width; NaN for fewer than two observations, whose spread nobody knows.
    """
    if count < 2 or math.isnan(deviation):
        return math.nan
    return quantile(count - 1) * deviation / math.sqrt(count)
