"""Checks that the routing functions share; each names the shapes it received."""


def check_rank(name: str, value, axes: str) -> None:
    """Raises ValueError unless `value` has the axes that `axes`, such as "[B, I, K]", lists."""
    if len(value.shape) != axes.count(",") + 1:
        raise ValueError(
            f"Invalid shape of argument {name}. Expected {axes}. Received: {name}.shape={tuple(value.shape)}"
        )


def differ(sizes, others) -> bool:
    """Returns whether two shapes of equal length differ where both are known (None: not yet)."""
    return any(None not in pair and pair[0] != pair[1] for pair in zip(sizes, others, strict=True))


def check_poses_and_weights(poses, weights) -> None:
    """Raises ValueError unless poses are [B, I, K] and weights [I, J, K, D]; sizes may be None."""
    check_rank("poses", poses, "[B, I, K]")
    check_rank("weights", weights, "[I, J, K, D]")
    if differ(poses.shape[1:], (weights.shape[0], weights.shape[2])):
        raise ValueError(
            "Arguments poses [B, I, K] and weights [I, J, K, D] must agree in I and K. "
            f"Received: poses.shape={tuple(poses.shape)}, weights.shape={tuple(weights.shape)}"
        )


def check_bias(bias, children, parents) -> None:
    """Raises ValueError unless the bias is None or [I, J]; sizes may be None."""
    if bias is not None and (len(bias.shape) != 2 or differ(bias.shape, (children, parents))):
        raise ValueError(
            f"Invalid shape of argument bias. Expected [I, J] = ({children}, {parents}). "
            f"Received: bias.shape={tuple(bias.shape)}"
        )
