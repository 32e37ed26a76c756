"""The options of routing, and their checks, which the layers make before anything is computed."""

from typing import Literal, get_args

from tfinv.ops.em_reference import VARIANCE_FLOOR

Implementation = Literal["auto", "reference", "fused"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
EmVariant = Literal["hinton2018", "article"]
EM_VARIANTS: tuple[str, ...] = get_args(EmVariant)


def check_implementation(implementation: str) -> None:
    """Raises ValueError unless `implementation` is one of IMPLEMENTATIONS."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"Invalid value for argument implementation. Expected one of {IMPLEMENTATIONS}. "
            f"Received: implementation={implementation}"
        )


def check_iterations(num_iterations: int) -> None:
    """Raises ValueError unless `num_iterations` is at least 1."""
    if num_iterations < 1:
        raise ValueError(
            "Invalid value for argument num_iterations. Expected an integer of at least 1. "
            f"Received: num_iterations={num_iterations}"
        )


def check_em_options(
    num_iterations: int,
    variant: str,
    final_inverse_temperature: float,
    variance_floor: float = VARIANCE_FLOOR,
) -> None:
    """Raises ValueError that names the first option of EM routing out of its range."""
    check_iterations(num_iterations)
    if variant not in EM_VARIANTS:
        raise ValueError(
            f"Invalid value for argument variant. Expected one of {EM_VARIANTS}. Received: variant={variant}"
        )
    for name, value in (
        ("final_inverse_temperature", final_inverse_temperature),
        ("variance_floor", variance_floor),
    ):
        if not 0.0 < value < float("inf"):
            raise ValueError(
                f"Invalid value for argument {name}. Expected a finite number above 0. "
                f"Received: {name}={value}"
            )
