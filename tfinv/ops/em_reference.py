"""EM routing written with `keras.ops`: the definition every other implementation is tested against.

Axes: B batch, I child capsules, J parent capsules, P edge of a square pose matrix, H components of a pose
(P * P for a matrix). Everything that is a product of probabilities is a sum of logarithms here.

Reference:
    Hinton et al. 2018, "Matrix capsules with EM routing", procedure 1.
"""

import math

import keras
from keras import ops

# A child below this activation counts as one at it, so that its logarithm is finite.
ACTIVATION_FLOOR = 1e-12
# Added to each variance, so votes within its root of each other, 0.01, agree. float32 rounds a mean of votes
# of 1e3 by up to 1e-4: of 17 identical ones, activations are off by 0.004, and by 0.2 with a floor of 1e-6.
VARIANCE_FLOOR = 1e-4


def inverse_temperatures(variant: str, num_iterations: int, final: float) -> list[float]:
    """Factor on the logit of the parent activations in each iteration.

    Args:
        variant: "hinton2018" rises towards `final` as final * (1 - 0.95^(t + 1)), t = 0, 1, ...; "article"
            is constant.
        num_iterations: Number of iterations.
        final: Limit of the factors.

    Returns:
        `num_iterations` numbers.
    """
    if variant == "article":
        return [final] * num_iterations
    return [final * (1.0 - 0.95 ** (iteration + 1)) for iteration in range(num_iterations)]


def summed_beta_u(beta_u, parents: int, components: int):
    """Sum of beta_u over the pose components, all that the routing needs of it.

    Args:
        beta_u: [J], the same for each component, or one for each: [J, H] or [J, P, P].
        parents: J.
        components: H.

    Returns:
        Sums [J].
    """
    if len(beta_u.shape) == 1:
        return beta_u * float(components)
    return ops.sum(ops.reshape(beta_u, (parents, components)), axis=-1)


def matrix_votes(poses, weights):
    """What each child predicts for each parent: votes[b, j, i] = poses[b, i] @ weights[i, j], flattened.

    Args:
        poses: Child poses [B, I, P, P].
        weights: Transformation matrices [I, J, P, P].

    Returns:
        Votes [B, J, I, H]; children innermost but one, so that every routing step is a plain matmul.
    """
    children, parents, size, _ = weights.shape
    # One matmul for each child: the rows of its poses times the matrices of all parents.
    rows = ops.reshape(ops.transpose(poses, (1, 0, 2, 3)), (children, -1, size))  # [I, B*P, P]
    matrices = ops.reshape(ops.transpose(weights, (0, 2, 1, 3)), (children, size, parents * size))
    products = ops.reshape(ops.matmul(rows, matrices), (children, -1, size, parents, size))
    return ops.reshape(
        ops.transpose(products, (1, 3, 0, 2, 4)),  # [B, J, I, P, P]
        (-1, parents, children, size * size),
    )


def em_routing(
    poses,
    activations,
    weights,
    beta_u,
    beta_a,
    num_iterations: int = 2,
    variant: str = "hinton2018",
    bias=None,
    final_inverse_temperature: float = 0.01,
    variance_floor: float = VARIANCE_FLOOR,
):
    """Twin of `tfinv.ops.em_routing`, without checks."""
    parents, size = weights.shape[1:3]
    flat, parent_activations = route_votes(
        matrix_votes(poses, weights),
        activations,
        beta_u,
        beta_a,
        inverse_temperatures(variant, num_iterations, final_inverse_temperature),
        variant,
        bias,
        variance_floor,
    )
    return ops.reshape(flat, (-1, parents, size, size)), parent_activations


def em_routing_from_votes(
    votes,
    activations,
    beta_u,
    beta_a,
    num_iterations: int = 2,
    variant: str = "hinton2018",
    bias=None,
    final_inverse_temperature: float = 0.01,
    variance_floor: float = VARIANCE_FLOOR,
):
    """Twin of `tfinv.ops.em_routing_from_votes`, without checks."""
    return route_votes(
        ops.transpose(votes, (0, 2, 1, 3)),
        activations,
        beta_u,
        beta_a,
        inverse_temperatures(variant, num_iterations, final_inverse_temperature),
        variant,
        bias,
        variance_floor,
    )


def route_votes(
    parent_votes, activations, beta_u, beta_a, temperatures, variant: str, bias, variance_floor: float
):
    """EM routing over votes [B, J, I, H]; returns poses [B, J, H] and activations [B, J].

    The gradient flows through all iterations. Half precision is routed in float32.

    Args:
        parent_votes: Votes [B, J, I, H].
        activations: Child activations [B, I].
        beta_u: Cost of describing a component, [J], [J, H] or [J, P, P].
        beta_a: Cost of not being active, [J].
        temperatures: Inverse temperature of each iteration.
        variant: "hinton2018" or "article".
        bias: Initial logits [I, J], or None for zeros.
        variance_floor: Added to each variance.

    Reference:
        Hinton et al. 2018, procedure 1, with rho = R / sum of R in place of R.
    """
    dtypes = [keras.backend.standardize_dtype(value.dtype) for value in (parent_votes, activations)]
    dtype = "float32" if dtypes[0] in ("float16", "bfloat16") else dtypes[0]
    votes, activations, beta_u, beta_a = (
        ops.cast(value, dtype) for value in (parent_votes, activations, beta_u, beta_a)
    )
    parents, components = votes.shape[1], votes.shape[3]
    beta_u = summed_beta_u(beta_u, parents, components)  # [J]
    if variant == "article":
        # The child activation cancels. Times zero, so that its gradient is zero rather than missing.
        log_activations = ops.expand_dims(0.0 * activations, 1)  # [B, 1, I]
    else:
        active = ops.where(activations < ACTIVATION_FLOOR, ACTIVATION_FLOOR, activations)
        log_activations = ops.expand_dims(ops.log(active), 1)
    if bias is None:
        log_coupling = -math.log(parents)
    else:
        logits = ops.expand_dims(ops.transpose(ops.cast(bias, dtype)), 0)  # [1, J, I]
        log_coupling, _ = _log_normalize(logits, axis=1)
    for iteration, temperature in enumerate(temperatures):
        # M-step
        log_rho, log_mass = _log_normalize(log_coupling + log_activations, axis=2)  # over children
        rho = ops.expand_dims(ops.exp(log_rho), 2)  # [B, J, 1, I]
        means = ops.matmul(rho, votes)  # [B, J, 1, H]
        squares = ops.square(votes - means)  # [B, J, I, H]
        variances = ops.matmul(rho, squares) + variance_floor  # [B, J, 1, H]
        log_variance = ops.sum(ops.log(variances), axis=(2, 3))  # [B, J], summed over components
        cost = ops.exp(ops.squeeze(log_mass, 2)) * (beta_u + 0.5 * log_variance)
        evidence = temperature * (beta_a - cost)  # [B, J]
        if variant == "article":
            log_parents, _ = _log_normalize(evidence, axis=1)
        else:
            log_parents = ops.log_sigmoid(evidence)
        # E-step
        if iteration + 1 < len(temperatures):
            distances = ops.squeeze(ops.matmul(squares, ops.swapaxes(1.0 / variances, 2, 3)), 3)  # [B, J, I]
            # The constant of the density is the same for all parents and cancels.
            logits = ops.expand_dims(log_parents - 0.5 * log_variance, 2) - 0.5 * distances
            log_coupling, _ = _log_normalize(logits, axis=1)
    poses = ops.squeeze(means, 2)
    return ops.cast(poses, dtypes[0]), ops.cast(ops.exp(log_parents), dtypes[1])


def _log_normalize(logits, axis: int):
    """Log softmax and log of the sum of exponentials.

    The softmax is taken of the logits less their maximum: logits of 1e9 hold no fraction, and less their
    own log-sum-exp two equal ones would have the probability 1 each.
    """
    # Keras refuses the maximum of an empty batch unless it is given one.
    top = ops.stop_gradient(ops.max(logits, axis=axis, keepdims=True, initial=-math.inf))
    shifted = logits - top
    log_total = ops.log(ops.sum(ops.exp(shifted), axis=axis, keepdims=True))
    return shifted - log_total, top + log_total
