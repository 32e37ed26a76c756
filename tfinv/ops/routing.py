"""The public routing functions and the only place that chooses an implementation."""

import logging
import math
from functools import cache

import keras

from tfinv.errors import UsageError
from tfinv.ops import _library, em_reference, reference
from tfinv.ops._checks import check_bias, check_poses_and_weights, check_rank, differ
from tfinv.ops._options import (
    EmVariant,
    Implementation,
    check_em_options,
    check_implementation,
    check_iterations,
)

_logger = logging.getLogger("tfinv")


@cache
def resolve_implementation(implementation: str = "auto") -> str:
    """Returns the implementation that runs for `implementation`; decided and logged once a process.

    The first call for "auto" or "fused" loads the fused op, and compiles it if it never was.

    Args:
        implementation: "reference"; "fused"; or "auto" for the fused op where it can be had. "auto" leaves
            float64 to the reference, because the fused op computes in float32.

    Returns:
        "reference" or "fused".

    Raises:
        ValueError: If the value is none of the three.
        UsageError: If the fused op cannot be had although "fused" or TFINV_REQUIRE_FUSED=1 asks for it.
    """
    check_implementation(implementation)
    if implementation == "reference":
        return "reference"
    info = _library.build_info()
    if info.available:
        _logger.info("Routing implementation: fused (%s, %s)", info.library, info.isa)
        return "fused"
    if implementation == "fused" or (info.failed and _library.is_required()):
        asked = "implementation='fused'" if implementation == "fused" else "TFINV_REQUIRE_FUSED"
        build = f"Build it with: {_library.build_command()}. " if info.failed else ""
        raise UsageError(
            f"No fused routing op is available for {asked}: {info.reason} {build}"
            "Or use implementation='reference'."
        )
    if info.failed:
        _logger.warning(
            "Routing implementation: reference, several times slower than the fused op, which is not "
            "available: %s (TFINV_DISABLE_FUSED=1 silences this.)",
            info.reason,
        )
    else:
        _logger.info("Routing implementation: reference (%s)", info.reason)
    return "reference"


def runs_fused(implementation: str, *dtypes: str) -> bool:
    """Returns whether the fused op runs for inputs of these types; raises as `resolve_implementation`."""
    fused = resolve_implementation(implementation) == "fused"
    return fused and (implementation == "fused" or "float64" not in dtypes)


def dynamic_routing(
    poses, weights, num_iterations: int = 3, bias=None, implementation: Implementation = "auto"
):
    """Routes child capsules to parent capsules by agreement.

    Args:
        poses: Child poses [B, I, K].
        weights: Transformation matrices [I, J, K, D], of known sizes but for the fused op.
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
    check_poses_and_weights(poses, weights)
    check_iterations(num_iterations)
    check_bias(bias, weights.shape[0], weights.shape[1])
    if _takes_fused(implementation, poses, weights):
        return _library.fused_module().dynamic_routing(poses, weights, num_iterations, bias)
    if None in weights.shape:
        raise ValueError(
            "The reference needs weights of known sizes; the fused op does not. "
            f"Received: weights.shape={tuple(weights.shape)}"
        )
    return reference.dynamic_routing(poses, weights, num_iterations, bias)


def dynamic_routing_from_votes(
    votes, num_iterations: int = 3, bias=None, implementation: Implementation = "auto"
):
    """Routes ready-made votes to parent capsules by agreement.

    Args:
        votes: Votes [B, I, J, D].
        num_iterations: Number of couplings, at least 1; the logits are updated one time fewer.
        bias: Initial routing logits [I, J] (log priors), or None for zeros.
        implementation: "auto" or "reference": the fused op takes poses, and never forms votes.

    Returns:
        Parent poses [B, J, D], each of a length in [0, 1).

    Raises:
        ValueError: If the rank of `votes` or `bias` does not fit, or `num_iterations` < 1.
        UsageError: If "fused" is asked for.
    """
    check_rank("votes", votes, "[B, I, J, D]")
    check_iterations(num_iterations)
    check_bias(bias, votes.shape[1], votes.shape[2])
    _check_votes_implementation(implementation)
    return reference.dynamic_routing_from_votes(votes, num_iterations, bias)


def em_routing(
    poses,
    activations,
    weights,
    beta_u,
    beta_a,
    num_iterations: int = 2,
    variant: EmVariant = "hinton2018",
    bias=None,
    final_inverse_temperature: float = 0.01,
    variance_floor: float = em_reference.VARIANCE_FLOOR,
    implementation: Implementation = "auto",
):
    """Routes child matrix capsules to parent capsules by expectation maximisation.

    Args:
        poses: Child poses [B, I, P, P].
        activations: Child activations [B, I] in [0, 1]; one below 1e-12 counts as 1e-12. Integers and
            booleans are taken for floating point.
        weights: Transformation matrices [I, J, P, P].
        beta_u: Cost of describing a component: [J] for the same one for all components, or [J, P, P]
            or [J, P * P].
        beta_a: Cost of not being active [J].
        num_iterations: Number of M-steps, at least 1; there is one E-step fewer.
        variant: "hinton2018" is the paper. "article" is what the article's authors measured: the child
            activations cancel, parent activations are a softmax over parents in place of a logistic
            function, and the inverse temperature is constant.
        bias: Initial routing logits [I, J], or None for zeros.
        final_inverse_temperature: Factor on the logit of a parent's activation, above 0; "hinton2018"
            starts at 0.05 of it and rises.
        variance_floor: Added to each variance of votes, above 0.
        implementation: "auto", "reference" or "fused".

    Returns:
        Parent poses [B, J, P, P] and activations [B, J] in [0, 1].

    Raises:
        ValueError: If ranks, sizes, `variant` or a number do not fit.
        UsageError: If "fused" is asked for and absent.

    Reference:
        Hinton et al. 2018, "Matrix capsules with EM routing", procedure 1.
    """
    check_rank("poses", poses, "[B, I, P, P]")
    check_rank("activations", activations, "[B, I]")
    activations = _floating(activations)
    check_rank("weights", weights, "[I, J, P, P]")
    children, parents, size, _ = weights.shape
    if weights.shape[3] != size or any(
        known not in (None, expected)
        for known, expected in zip(poses.shape[1:], (children, size, size), strict=True)
    ):
        raise ValueError(
            "Arguments poses [B, I, P, P] and weights [I, J, P, P] must agree in I and P. "
            f"Received: poses.shape={tuple(poses.shape)}, weights.shape={tuple(weights.shape)}"
        )
    _check_em(poses, "poses", activations, beta_u, beta_a, parents, (size, size))
    check_em_options(num_iterations, variant, final_inverse_temperature, variance_floor)
    check_bias(bias, children, parents)
    if _takes_fused(implementation, poses, activations, weights):
        return _library.fused_module().em_routing(
            poses,
            activations,
            weights,
            em_reference.summed_beta_u(keras.ops.cast(beta_u, "float32"), parents, size * size),
            beta_a,
            em_reference.inverse_temperatures(variant, num_iterations, final_inverse_temperature),
            variant,
            variance_floor,
            bias,
        )
    return em_reference.em_routing(
        poses,
        activations,
        weights,
        beta_u,
        beta_a,
        num_iterations,
        variant,
        bias,
        final_inverse_temperature,
        variance_floor,
    )


def em_routing_from_votes(
    votes,
    activations,
    beta_u,
    beta_a,
    num_iterations: int = 2,
    variant: EmVariant = "hinton2018",
    bias=None,
    final_inverse_temperature: float = 0.01,
    variance_floor: float = em_reference.VARIANCE_FLOOR,
    implementation: Implementation = "auto",
):
    """Routes ready-made votes of any number of components by expectation maximisation.

    Args:
        votes: Votes [B, I, J, H].
        activations: Child activations [B, I] in [0, 1]; one below 1e-12 counts as 1e-12. Integers and
            booleans are taken for floating point.
        beta_u: Cost of describing a component: [J] for the same one for all components, or [J, H].
        beta_a: Cost of not being active [J].
        num_iterations: Number of M-steps, at least 1; there is one E-step fewer.
        variant: "hinton2018" or "article"; see `em_routing`.
        bias: Initial routing logits [I, J], or None for zeros.
        final_inverse_temperature: Factor on the logit of a parent's activation, above 0.
        variance_floor: Added to each variance of votes, above 0.
        implementation: "auto" or "reference": the fused op takes poses, and never forms votes.

    Returns:
        Parent poses [B, J, H] and activations [B, J] in [0, 1].

    Raises:
        ValueError: If ranks, sizes, `variant` or a number do not fit.
        UsageError: If "fused" is asked for.
    """
    check_rank("votes", votes, "[B, I, J, H]")
    check_rank("activations", activations, "[B, I]")
    activations = _floating(activations)
    _, children, parents, components = votes.shape
    _check_em(votes, "votes", activations, beta_u, beta_a, parents, (components,))
    check_em_options(num_iterations, variant, final_inverse_temperature, variance_floor)
    check_bias(bias, children, parents)
    _check_votes_implementation(implementation)
    return em_reference.em_routing_from_votes(
        votes,
        activations,
        beta_u,
        beta_a,
        num_iterations,
        variant,
        bias,
        final_inverse_temperature,
        variance_floor,
    )


def _floating(values):
    """Returns values as floating point: as an integer, an activation between 0 and 1 would be 0."""
    floating = keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype))
    return values if floating else keras.ops.cast(values, keras.backend.floatx())


def _takes_fused(implementation: str, *tensors) -> bool:
    """Returns whether the fused op runs; "auto" leaves symbols of Keras, which it cannot take, alone."""
    if implementation != "fused" and any(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        return False
    return runs_fused(implementation, *(keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors))


def _check_votes_implementation(implementation: str) -> None:
    check_implementation(implementation)
    if implementation == "fused":
        raise UsageError(
            "Invalid value for argument implementation. Expected 'auto' or 'reference': the fused op takes "
            f"poses and weights, and never forms votes. Received: implementation={implementation}"
        )


def _check_em(children, name, activations, beta_u, beta_a, parents, pose_shape) -> None:
    """Checks the children, named `name` and of shape [B, I, ...], and the betas, for parents of that pose."""
    if differ(activations.shape, children.shape[:2]):
        raise ValueError(
            f"Arguments {name} and activations [B, I] must agree in B and I. "
            f"Received: {name}.shape={tuple(children.shape)}, activations.shape={tuple(activations.shape)}"
        )
    # Each once, in this order: votes are of one axis of components, poses of two.
    shapes = dict.fromkeys([(parents,), (parents, math.prod(pose_shape)), (parents, *pose_shape)])
    if tuple(beta_u.shape) not in shapes:
        raise ValueError(
            f"Invalid shape of argument beta_u. Expected one of {', '.join(map(str, shapes))}. "
            f"Received: beta_u.shape={tuple(beta_u.shape)}"
        )
    if tuple(beta_a.shape) != (parents,):
        raise ValueError(
            f"Invalid shape of argument beta_a. Expected [J] = ({parents},). "
            f"Received: beta_a.shape={tuple(beta_a.shape)}"
        )
