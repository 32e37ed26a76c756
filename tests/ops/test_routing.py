"""Squash and dynamic routing: values by hand, an independent oracle, gradients, properties, errors."""

import logging

import keras
import numpy as np
import pytest
from keras import ops

from tests.backend import array, double_precision, gradients, numerical_gradients, tensor
from tfinv.errors import UsageError
from tfinv.ops import (
    IMPLEMENTATIONS,
    dynamic_routing,
    dynamic_routing_from_votes,
    length,
    resolve_implementation,
    squash,
)

# Keras warns of any softmax over one element; one parent is such a case, and a legitimate one.
pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")

# (B, I, J, K, D): ones, primes, more parents than children and the reverse, sizes beside vector widths.
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 1, 7, 8, 7),
    (5, 7, 1, 1, 16),
    (7, 129, 7, 7, 1),
    (1, 7, 129, 3, 7),
    (129, 7, 3, 7, 5),
    (3, 33, 10, 129, 2),
    (2, 5, 8, 2, 129),
]


# Of gradients against central differences, which are themselves exact to about 1e-10.
TOLERANCES = {"float64": {"rtol": 1e-7, "atol": 1e-8}, "float32": {"rtol": 1e-4, "atol": 1e-5}}


def oracle(votes, iterations, bias=None):
    """Procedure 1 of the paper in float64, one sample and one parent at a time; votes [B, I, J, D]."""
    batch, children, parents, size = votes.shape
    routed = np.zeros((batch, parents, size))
    for b in range(batch):
        logits = np.zeros((children, parents)) if bias is None else np.array(bias, np.float64)
        for _ in range(iterations):
            coupling = np.zeros((children, parents))
            for i in range(children):
                exponentials = np.exp(logits[i] - logits[i].max())
                coupling[i] = exponentials / exponentials.sum()
            for j in range(parents):
                total = sum(coupling[i, j] * votes[b, i, j].astype(np.float64) for i in range(children))
                norm = np.sqrt(np.sum(total**2))
                routed[b, j] = norm**2 / (1.0 + norm**2) * total / norm
            for i in range(children):
                for j in range(parents):
                    logits[i, j] += np.dot(votes[b, i, j], routed[b, j])
    return routed


def all_votes(poses, weights):
    return np.einsum("bik,ijkd->bijd", poses.astype(np.float64), weights.astype(np.float64))


def problem(shape, seed=0):
    """Random poses [B, I, K], weights [I, J, K, D] and bias [I, J]; votes of a norm near 1."""
    batch, children, parents, child_dim, parent_dim = shape
    random = np.random.default_rng(seed)
    poses = random.normal(size=(batch, children, child_dim)) / np.sqrt(child_dim)
    weights = random.normal(size=(children, parents, child_dim, parent_dim)) / np.sqrt(parent_dim)
    return poses, weights, random.normal(size=(children, parents))


def agreeing_and_orthogonal_votes():
    """Votes [1, 4, 2, 4] of norm 2: the same four times for parent 0, four orthogonal ones for parent 1."""
    votes = np.zeros((1, 4, 2, 4), np.float32)
    votes[0, :, 0, 0] = 2.0
    votes[0, :, 1, :] = 2.0 * np.eye(4)
    return votes


# Squash and length


def test_squash_values_by_hand():
    squashed = array(squash(tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])))
    # |s| = 5: 25/26 of the unit vector (.6, .8); |s| = 1: one half.
    np.testing.assert_allclose(squashed, [[15 / 26, 20 / 26], [0.0, 0.5], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(array(length(tensor([[3.0, 4.0], [0.0, 0.0]]))), [5.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_squash_along_any_axis_keeps_direction_and_shortens_below_one(axis):
    vectors = np.random.default_rng(0).normal(size=(3, 5, 7)) * 10.0
    squashed = array(squash(tensor(vectors), axis=axis))
    norms = np.sqrt(np.sum(vectors**2, axis=axis, keepdims=True))
    np.testing.assert_allclose(squashed, norms**2 / (1 + norms**2) * vectors / norms, rtol=1e-5)
    lengths = array(length(tensor(squashed), axis=axis))
    assert lengths.shape == np.sum(vectors, axis=axis).shape
    assert lengths.max() < 1.0


@pytest.mark.parametrize("function", [squash, length])
def test_gradient_at_zero_is_zero(function):
    (gradient,) = gradients(lambda s: ops.sum(function(s)), np.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_squash_gradient_equals_finite_differences_of_the_equation():
    vectors, weight = np.random.default_rng(1).normal(size=(2, 3, 4))

    def equation(s):
        norms = np.sqrt(np.sum(s**2, axis=-1, keepdims=True))
        return np.sum(weight * norms**2 / (1 + norms**2) * s / norms)

    with double_precision() as dtype:
        (found,) = gradients(lambda s: ops.sum(squash(s) * tensor(weight, dtype)), vectors, dtype=dtype)
    (expected,) = numerical_gradients(equation, vectors)
    np.testing.assert_allclose(found, expected, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_neither_overflows_nor_underflows(dtype):
    # 300^2 and 600^2 are above float16's largest number, 65504; 1e-4^2 is below its smallest.
    vectors = tensor([[300.0, 600.0], [1e-4, 0.0]], dtype)
    squashed, lengths = squash(vectors), length(vectors)
    assert {keras.backend.standardize_dtype(value.dtype) for value in (squashed, lengths)} == {dtype}
    np.testing.assert_allclose(array(squashed)[0], [0.447213, 0.894426], rtol=1e-2)
    np.testing.assert_allclose(array(lengths), [670.82, 1e-4], rtol=1e-2)


# Routing: values


@pytest.mark.parametrize(
    "iterations, expected", [(1, (0.941176, 0.8)), (2, (0.972757, 0.506085)), (3, (0.982091, 0.08125))]
)
def test_routing_values_by_hand(iterations, expected):
    poses = dynamic_routing_from_votes(tensor(agreeing_and_orthogonal_votes()), iterations)
    np.testing.assert_allclose(array(length(poses))[0], expected, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_routing_equals_the_oracle(shape, iterations, biased):
    poses, weights, bias = problem(shape)
    expected = oracle(all_votes(poses, weights), iterations, bias if biased else None)
    given = tensor(bias) if biased else None
    found = dynamic_routing(tensor(poses), tensor(weights), iterations, given)
    # float32 against float64, through exponentials; measured below 4e-6.
    np.testing.assert_allclose(array(found), expected, atol=2e-5)
    twin = dynamic_routing_from_votes(tensor(all_votes(poses, weights)), iterations, given)
    np.testing.assert_allclose(array(twin), expected, atol=2e-5)


def test_three_iterations_and_no_bias_are_the_default():
    poses, weights, _ = problem((3, 7, 5, 4, 6))
    expected = oracle(all_votes(poses, weights), 3)
    np.testing.assert_allclose(array(dynamic_routing(tensor(poses), tensor(weights))), expected, atol=2e-5)
    twin = dynamic_routing_from_votes(tensor(all_votes(poses, weights)))
    np.testing.assert_allclose(array(twin), expected, atol=2e-5)


def test_bias_holds_the_initial_logits():
    votes = agreeing_and_orthogonal_votes()
    # The first child alone speaks for parent 1, and for nothing else.
    bias = np.array([[-50.0, 50.0], [50.0, -50.0], [50.0, -50.0], [50.0, -50.0]])
    poses = array(dynamic_routing_from_votes(tensor(votes), 1, tensor(bias)))
    np.testing.assert_allclose(poses[0, 0], [36 / 37, 0, 0, 0], atol=1e-6)  # three votes of norm 2
    np.testing.assert_allclose(poses[0, 1], [4 / 5, 0, 0, 0], atol=1e-6)  # one
    same = array(dynamic_routing_from_votes(tensor(votes), 3, tensor(np.zeros((4, 2)))))
    np.testing.assert_allclose(same, array(dynamic_routing_from_votes(tensor(votes), 3)), atol=1e-6)


def test_an_empty_batch_gives_an_empty_batch():
    _, weights, _ = problem((1, 7, 3, 4, 5))
    assert tuple(dynamic_routing(tensor(np.zeros((0, 7, 4))), tensor(weights)).shape) == (0, 3, 5)
    assert tuple(dynamic_routing_from_votes(tensor(np.zeros((0, 7, 3, 5)))).shape) == (0, 3, 5)


# Routing: properties


@pytest.mark.parametrize("iterations", [1, 3])
def test_order_of_children_is_irrelevant_and_order_of_parents_is_kept(iterations):
    poses, weights, bias = problem((3, 17, 5, 4, 6))
    random = np.random.default_rng(3)
    children, parents = random.permutation(17), random.permutation(5)

    def route(poses, weights, bias):
        return array(dynamic_routing(tensor(poses), tensor(weights), iterations, tensor(bias)))

    routed = route(poses, weights, bias)
    np.testing.assert_allclose(
        route(poses[:, children], weights[children], bias[children]), routed, atol=1e-5
    )
    np.testing.assert_allclose(
        route(poses, weights[:, parents], bias[:, parents]), routed[:, parents], atol=1e-5
    )


def test_samples_do_not_influence_each_other():
    poses, weights, _ = problem((5, 9, 4, 3, 6))
    together = array(dynamic_routing(tensor(poses), tensor(weights)))
    alone = [array(dynamic_routing(tensor(poses[b : b + 1]), tensor(weights))) for b in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 3])
def test_one_parent_gets_the_squashed_sum_and_one_child_is_shared_out(iterations):
    poses, weights, _ = problem((3, 7, 1, 4, 6))
    votes = all_votes(poses, weights)
    routed = array(dynamic_routing(tensor(poses), tensor(weights), iterations))
    np.testing.assert_allclose(routed, array(squash(tensor(votes.sum(axis=1)))), atol=1e-6)
    votes = all_votes(*problem((3, 1, 5, 4, 6))[:2])
    routed = array(dynamic_routing_from_votes(tensor(votes), iterations))
    cosine = np.sum(routed * votes[:, 0], axis=-1) / np.linalg.norm(votes[:, 0], axis=-1)
    np.testing.assert_allclose(cosine, np.linalg.norm(routed, axis=-1), atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 3, 5])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
def test_extreme_poses_give_finite_values_and_gradients(scale, iterations):
    poses, weights, bias = problem((3, 33, 5, 8, 16))

    def score(poses, weights, bias):
        return ops.sum(dynamic_routing(poses, weights, iterations, bias))

    routed = array(dynamic_routing(tensor(poses * scale), tensor(weights), iterations, tensor(bias)))
    assert np.isfinite(routed).all()
    assert np.linalg.norm(routed, axis=-1).max() <= 1.0 + 1e-6
    for gradient in gradients(score, poses * scale, weights, bias):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("biased", [False, True])
def test_half_precision_keeps_its_dtype_and_stays_near(dtype, biased):
    poses, weights, bias = problem((3, 33, 5, 8, 16))
    expected = oracle(all_votes(poses, weights), 3, bias if biased else None)
    given = tensor(bias, dtype) if biased else None
    routed = dynamic_routing(tensor(poses, dtype), tensor(weights, dtype), 3, given)
    twin = dynamic_routing_from_votes(tensor(all_votes(poses, weights), dtype), 3, given)
    for found in (routed, twin):
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        np.testing.assert_allclose(array(found), expected, atol=0.003 if dtype == "float16" else 0.03)


# Routing: gradients


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("from_votes", [False, True])
def test_every_gradient_equals_finite_differences_of_the_oracle(iterations, from_votes):
    poses, weights, bias = problem((2, 5, 3, 2, 4))
    cotangent = np.random.default_rng(4).normal(size=(2, 3, 4))
    arguments = (all_votes(poses, weights), bias) if from_votes else (poses, weights, bias)

    def expected_score(*arguments):
        votes = arguments[0] if from_votes else all_votes(*arguments[:2])
        return np.sum(cotangent * oracle(votes, iterations, arguments[-1]))

    with double_precision() as dtype:

        def score(*tensors):
            route = dynamic_routing_from_votes if from_votes else dynamic_routing
            return ops.sum(tensor(cotangent, dtype) * route(*tensors[:-1], iterations, tensors[-1]))

        found = gradients(score, *arguments, dtype=dtype)
    for gradient, numerical in zip(found, numerical_gradients(expected_score, *arguments), strict=True):
        assert np.abs(numerical).max() > 1e-3
        np.testing.assert_allclose(gradient, numerical, **TOLERANCES[dtype])


def test_double_precision_equals_the_oracle():
    poses, weights, bias = problem((3, 17, 5, 4, 6))
    with double_precision() as dtype:
        for logits in (None, bias):
            given = None if logits is None else tensor(logits, dtype)
            routed = dynamic_routing(tensor(poses, dtype), tensor(weights, dtype), 3, given)
            assert keras.backend.standardize_dtype(routed.dtype) == dtype
            expected = oracle(all_votes(poses, weights), 3, logits)
            np.testing.assert_allclose(array(routed), expected, atol=1e-13 if dtype == "float64" else 1e-5)


# Errors and implementations


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (dict(poses=(3, 7)), r"poses.*\[B, I, K\].*poses.shape=\(3, 7\)"),
        (dict(weights=(7, 5, 4)), r"weights.*\[I, J, K, D\].*weights.shape=\(7, 5, 4\)"),
        (dict(poses=(3, 8, 4)), r"agree in I and K.*poses.shape=\(3, 8, 4\).*weights.shape=\(7, 5, 4, 6\)"),
        (dict(poses=(3, 7, 2)), r"agree in I and K.*poses.shape=\(3, 7, 2\).*weights.shape=\(7, 5, 4, 6\)"),
        (dict(bias=(5, 7)), r"bias.*\[I, J\] = \(7, 5\).*bias.shape=\(5, 7\)"),
        (dict(bias=(5,)), r"bias.*bias.shape=\(5,\)"),
    ],
)
def test_wrong_shapes_are_named(arguments, expected):
    shapes = {"poses": (3, 7, 4), "weights": (7, 5, 4, 6), "bias": (7, 5), **arguments}
    with pytest.raises(ValueError, match=expected):
        dynamic_routing(**{name: tensor(np.zeros(shape)) for name, shape in shapes.items()})


@pytest.mark.parametrize("votes, bias", [((3, 7, 5), None), ((3, 7, 5, 6), (5, 7))])
def test_wrong_shapes_of_votes_are_named(votes, bias):
    with pytest.raises(ValueError, match=r"votes.shape=\(3, 7, 5\)|bias.shape=\(5, 7\)"):
        dynamic_routing_from_votes(
            tensor(np.zeros(votes)), bias=None if bias is None else tensor(np.zeros(bias))
        )


@pytest.mark.parametrize("iterations", [0, -1])
def test_too_few_iterations_are_refused(iterations):
    poses, weights, _ = (tensor(value) for value in problem((3, 7, 5, 4, 6)))
    with pytest.raises(ValueError, match=f"at least 1.*num_iterations={iterations}"):
        dynamic_routing(poses, weights, iterations)
    with pytest.raises(ValueError, match=f"at least 1.*num_iterations={iterations}"):
        dynamic_routing_from_votes(tensor(np.zeros((3, 7, 5, 6))), iterations)


def test_implementations():
    poses, weights, _ = (tensor(value) for value in problem((3, 7, 5, 4, 6)))
    votes = tensor(np.zeros((3, 7, 5, 6)))
    assert set(IMPLEMENTATIONS) == {"auto", "reference", "fused"}
    with pytest.raises(ValueError, match="implementation=quick") as caught:
        dynamic_routing(poses, weights, implementation="quick")
    assert all(name in str(caught.value) for name in IMPLEMENTATIONS)
    with pytest.raises(UsageError, match=r"never forms votes.*implementation=fused"):
        dynamic_routing_from_votes(votes, implementation="fused")
    assert resolve_implementation("reference") == "reference"
    assert resolve_implementation("auto") in ("fused", "reference")


def test_the_choice_is_logged_once(caplog):
    resolve_implementation.cache_clear()
    with caplog.at_level(logging.INFO, logger="tfinv"):
        for _ in range(3):
            resolve_implementation("auto")
    (message,) = (record.message for record in caplog.records)
    assert message.startswith(f"Routing implementation: {resolve_implementation('auto')}")
