"""Samples in groups that share a code."""

from keras import ops


def group_size(values, codes):
    """Returns how many successive samples of values [N, ...] each of codes [G, ...] is for: N / G.

    Raises:
        ValueError: If G does not divide N, where both are known.
    """
    samples, groups = values.shape[0], codes.shape[0]
    if None not in (samples, groups) and (samples % groups if groups else samples):
        raise ValueError(
            f"Invalid number of codes. Expected a divisor of the number of samples, {samples}. "
            f"Received: {groups} codes"
        )
    groups = ops.shape(codes)[0]
    # Both may be none.
    return ops.shape(values)[0] // (max(groups, 1) if isinstance(groups, int) else ops.maximum(groups, 1))
