"""Self-attention routing: one pass, no iterations, written with `keras.ops`.

Axes: B batch, I child capsules, J parent capsules, K child pose, D parent pose.

Reference:
    Mazzia et al. 2021, "Efficient-CapsNet: Capsule Network with Self-Attention Routing".
"""

import math

from keras import ops

from tfinv.ops import reference
from tfinv.ops._checks import check_bias, check_poses_and_weights, check_rank
from tfinv.ops.reference import is_half

# A length of 1e-6, where the factor of the squash is 1 - 5e-7, and 1 / |s|^2 still a number of float32.
_SMALLEST_SQUARE = 1e-12


def exponential_squash(vectors, axis: int = -1):
    """Shrinks vectors to a length in [0, 1) and keeps their direction; short ones hardly at all.

    Computes (1 - exp(-|s|)) * s / |s|, whose gradient at s = 0 is the identity. (That of `squash` is 0, so
    short vectors learn slowly under it.) Half precision is squashed in float32.

    Args:
        vectors: Tensor of any shape.
        axis: Axis of the vector components.

    Returns:
        Tensor of the shape and dtype of `vectors`.

    Reference:
        Mazzia et al. 2021, the squash of both capsule layers.
    """
    if is_half(vectors):
        return ops.cast(exponential_squash(ops.cast(vectors, "float32"), axis), vectors.dtype)
    squared = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    long = squared > _SMALLEST_SQUARE
    norms = ops.sqrt(ops.where(long, squared, 1.0))
    exponentials = ops.exp(-norms)
    # For a short vector 1 - exp(-n) has lost digits; the logarithm of the rounded exponential lost the same.
    # (ONNX has no expm1, and Keras no float64 tanh under JAX.)
    short = norms < 1.0
    divisors = ops.where(short, -ops.log(ops.where(short, exponentials, 0.5)), norms)
    return vectors * ops.where(long, (1.0 - exponentials) / divisors, 1.0)


def self_attention_routing(poses, weights, bias=None):
    """Routes child capsules to parent capsules by the attention among the votes for each parent.

    The coupling is the softmax over parents of sum_k(u_i . u_k) / sqrt(D), u_i being the votes for a parent,
    plus `bias`. The sum over k is u_i times the sum of votes, so no tensor [B, J, I, I] is formed.

    Args:
        poses: Child poses [B, I, K].
        weights: Transformation matrices [I, J, K, D].
        bias: Added to the coupling [I, J] (the paper's log priors), or None for zeros. That is behind the
            softmax, other than the initial logits of `dynamic_routing`.

    Returns:
        Parent poses [B, J, D], each of a length in [0, 1).

    Raises:
        ValueError: If ranks or sizes do not fit.

    Reference:
        Mazzia et al. 2021, self-attention routing.
    """
    check_poses_and_weights(poses, weights)
    check_bias(bias, weights.shape[0], weights.shape[1])
    return _route_votes(reference.votes(poses, weights), bias)


def self_attention_routing_from_votes(votes, bias=None):
    """Routes ready-made votes to parent capsules by the attention among the votes for each parent.

    Args:
        votes: Votes [B, I, J, D].
        bias: Added to the coupling [I, J], or None for zeros; see `self_attention_routing`.

    Returns:
        Parent poses [B, J, D], each of a length in [0, 1).

    Raises:
        ValueError: If the rank of `votes` or the shape of `bias` does not fit.
    """
    check_rank("votes", votes, "[B, I, J, D]")
    check_bias(bias, votes.shape[1], votes.shape[2])
    return _route_votes(ops.transpose(votes, (0, 2, 1, 3)), bias)


def _route_votes(parent_votes, bias):
    """Routes votes [B, J, I, D]; half precision in float32."""
    if is_half(parent_votes):
        return ops.cast(_route_votes(ops.cast(parent_votes, "float32"), bias), parent_votes.dtype)
    totals = ops.expand_dims(ops.sum(parent_votes, axis=2), -1)  # [B, J, D, 1]
    agreement = ops.squeeze(ops.matmul(parent_votes, totals), -1)  # [B, J, I]
    coupling = ops.softmax(agreement / math.sqrt(parent_votes.shape[-1]), axis=1)  # over parents
    if bias is not None:
        coupling = coupling + ops.transpose(ops.cast(bias, parent_votes.dtype))
    return exponential_squash(ops.squeeze(ops.matmul(ops.expand_dims(coupling, 2), parent_votes), 2))
