"""The public routing functions and the only place that chooses an implementation."""

import logging
from functools import cache
from typing import Literal, get_args

from tfinv.errors import UsageError
from tfinv.ops import reference

Implementation = Literal["auto", "reference", "fused"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

_logger = logging.getLogger("tfinv")


@cache
def resolve_implementation(implementation: str = "auto") -> str:
    """Returns the implementation that runs for `implementation`; decided and logged once a process.

    Args:
        implementation: "auto", "reference" or "fused".

    Returns:
        "reference" or "fused".

    Raises:
        ValueError: If the value is none of the three.
        UsageError: If "fused" is asked for and no fused op is built.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"Invalid value for argument implementation. Expected one of {IMPLEMENTATIONS}. "
            f"Received: implementation={implementation}"
        )
    if implementation == "fused":
        raise UsageError(
            "No fused routing op is available: this version of tfinv contains none. "
            "Use implementation='reference' or 'auto'."
        )
    if implementation == "auto":
        _logger.info("Routing implementation: reference (no fused op in this version)")
    return "reference"


def dynamic_routing(
    poses, weights, num_iterations: int = 3, bias=None, implementation: Implementation = "auto"
):
    """Routes child capsules to parent capsules by agreement.

    Args:
        poses: Child poses [B, I, K].
        weights: Transformation matrices [I, J, K, D].
        num_iterations: Number of couplings, at least 1; the logits are updated one time fewer.
        bias: Initial routing logits [I, J] (log priors), or None for zeros.
        implementation: "auto", "reference" or "fused".

    Returns:
        Parent poses [B, J, D], each of a length in [0, 1).

    Raises:
        ValueError: If ranks or sizes do not fit, or `num_iterations` < 1.
        UsageError: If "fused" is asked for and absent.

    Reference:
        Sabour et al. 2017, "Dynamic Routing Between Capsules", procedure 1.
    """
    _check_rank("poses", poses, "[B, I, K]")
    _check_rank("weights", weights, "[I, J, K, D]")
    if poses.shape[1] not in (None, weights.shape[0]) or poses.shape[2] not in (None, weights.shape[2]):
        raise ValueError(
            "Arguments poses [B, I, K] and weights [I, J, K, D] must agree in I and K. "
            f"Received: poses.shape={tuple(poses.shape)}, weights.shape={tuple(weights.shape)}"
        )
    _check_iterations(num_iterations)
    _check_bias(bias, weights.shape[0], weights.shape[1])
    resolve_implementation(implementation)
    return reference.dynamic_routing(poses, weights, num_iterations, bias)


def dynamic_routing_from_votes(
    votes, num_iterations: int = 3, bias=None, implementation: Implementation = "auto"
):
    """Routes ready-made votes to parent capsules by agreement.

    Args:
        votes: Votes [B, I, J, D].
        num_iterations: Number of couplings, at least 1; the logits are updated one time fewer.
        bias: Initial routing logits [I, J] (log priors), or None for zeros.
        implementation: "auto", "reference" or "fused".

    Returns:
        Parent poses [B, J, D], each of a length in [0, 1).

    Raises:
        ValueError: If the rank of `votes` or `bias` does not fit, or `num_iterations` < 1.
        UsageError: If "fused" is asked for and absent.
    """
    _check_rank("votes", votes, "[B, I, J, D]")
    _check_iterations(num_iterations)
    _check_bias(bias, votes.shape[1], votes.shape[2])
    resolve_implementation(implementation)
    return reference.dynamic_routing_from_votes(votes, num_iterations, bias)


def _check_rank(name: str, value, axes: str) -> None:
    if len(value.shape) != axes.count(",") + 1:
        raise ValueError(
            f"Invalid shape of argument {name}. Expected {axes}. Received: {name}.shape={tuple(value.shape)}"
        )


def _check_iterations(num_iterations: int) -> None:
    if num_iterations < 1:
        raise ValueError(
            "Invalid value for argument num_iterations. Expected an integer of at least 1. "
            f"Received: num_iterations={num_iterations}"
        )


def _check_bias(bias, children, parents) -> None:
    if bias is not None and tuple(bias.shape) != (children, parents):
        raise ValueError(
            f"Invalid shape of argument bias. Expected [I, J] = ({children}, {parents}). "
            f"Received: bias.shape={tuple(bias.shape)}"
        )
