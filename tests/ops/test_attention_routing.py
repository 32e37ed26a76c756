"""Self-attention routing and its squash: values by hand, an oracle, gradients, properties, errors."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.backend import array, double_precision, gradients, numerical_gradients, tensor
from tfinv.ops import exponential_squash, self_attention_routing, self_attention_routing_from_votes

# Keras warns of any softmax over one element; one parent is such a case, and a legitimate one.
pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")

# (B, I, J, K, D): the paper's, ones, primes, more parents than children and the reverse.
SHAPES = [(5, 16, 10, 8, 16), (1, 1, 1, 1, 1), (3, 1, 7, 8, 7), (5, 7, 1, 1, 16), (2, 129, 3, 7, 5)]
# Of gradients against central differences, which are themselves exact to about 1e-10.
TOLERANCES = {"float64": {"rtol": 1e-7, "atol": 1e-8}, "float32": {"rtol": 1e-4, "atol": 1e-5}}


def oracle(votes, bias):
    """The paper's routing in float64, with its matrix of scores between children; votes [B, I, J, D]."""
    batch, children, parents, size = votes.shape
    routed = np.zeros((batch, parents, size))
    for b in range(batch):
        summed = np.zeros((children, parents))
        for j in range(parents):
            attention = votes[b, :, j] @ votes[b, :, j].T / np.sqrt(size)  # [I, I]
            summed[:, j] = attention.sum(axis=0)
        for j in range(parents):
            total = np.zeros(size)
            for i in range(children):
                exponentials = np.exp(summed[i] - summed[i].max())
                total += votes[b, i, j] * (exponentials[j] / exponentials.sum() + bias[i, j])
            norm = np.sqrt(np.sum(total**2))
            routed[b, j] = (1.0 - 1.0 / np.exp(norm)) * total / norm
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


# Squash


def test_squash_values_by_hand():
    squashed = array(exponential_squash(tensor([[3.0, 4.0], [0.0, np.log(2.0)], [1e-9, 0.0], [0.0, 0.0]])))
    # |s| = 5: 1 - e^-5 of the unit vector (.6, .8); |s| = log 2: one half; a short vector stays itself.
    expected = [[0.595957, 0.794610], [0.0, 0.5], [1e-9, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(squashed, expected, rtol=1e-5)


@pytest.mark.parametrize("norm", [1e-7, 2e-6, 1e-3, 1.0, 30.0])
def test_squash_keeps_the_digits_of_a_length(norm):
    vectors = np.random.default_rng(0).normal(size=(5, 3, 4))
    vectors *= norm / np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths = np.linalg.norm(array(exponential_squash(tensor(vectors), axis=1)), axis=1)
    np.testing.assert_allclose(lengths, -np.expm1(-norm), rtol=2e-6)


@pytest.mark.parametrize("norm", [0.0, 1e-30, 1e-7])
def test_squash_of_a_short_vector_has_the_gradient_of_the_identity(norm):
    (gradient,) = gradients(lambda s: ops.sum(exponential_squash(s)), np.full((2, 3), norm))
    np.testing.assert_allclose(gradient, np.ones((2, 3)), rtol=1e-6)


def test_squash_gradient_equals_finite_differences_of_the_equation():
    vectors, weight = np.random.default_rng(1).normal(size=(2, 3, 4))

    def equation(s):
        norms = np.sqrt(np.sum(s**2, axis=-1, keepdims=True))
        return np.sum(weight * (1.0 - 1.0 / np.exp(norms)) * s / norms)

    with double_precision() as dtype:
        (found,) = gradients(
            lambda s: ops.sum(exponential_squash(s) * tensor(weight, dtype)), vectors, dtype=dtype
        )
    (expected,) = numerical_gradients(equation, vectors)
    np.testing.assert_allclose(found, expected, **TOLERANCES[dtype])


# Routing


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_routing_equals_the_oracle(shape, biased):
    poses, weights, bias = problem(shape)
    votes = all_votes(poses, weights)
    expected = oracle(votes, bias if biased else np.zeros_like(bias))
    with double_precision() as dtype:
        given = tensor(bias, dtype) if biased else None
        found = self_attention_routing(tensor(poses, dtype), tensor(weights, dtype), given)
        twin = self_attention_routing_from_votes(tensor(votes, dtype), given)
        tolerance = 1e-12 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(array(found), expected, atol=tolerance)
        np.testing.assert_allclose(array(twin), expected, atol=tolerance)


def test_agreeing_votes_win_their_children():
    # Two children; votes (2, 0) twice for parent 0, (2, 0) and (-2, 0) for parent 1.
    votes = tensor([[[[2.0, 0.0], [2.0, 0.0]], [[2.0, 0.0], [-2.0, 0.0]]]])
    # Summed scores 8 / sqrt(2) and 0, so parent 0 gets 4 / (1 + exp(-8 / sqrt(2))) and parent 1 nothing.
    routed = array(self_attention_routing_from_votes(votes))
    total = 4.0 / (1.0 + np.exp(-8.0 / np.sqrt(2.0)))
    np.testing.assert_allclose(routed, [[[1.0 - np.exp(-total), 0.0], [0.0, 0.0]]], atol=1e-6)


def test_every_gradient_equals_finite_differences_of_the_oracle():
    poses, weights, bias = problem((2, 5, 3, 2, 4))
    cotangent = np.random.default_rng(4).normal(size=(2, 3, 4))

    def expected_score(poses, weights, bias):
        return np.sum(cotangent * oracle(all_votes(poses, weights), bias))

    with double_precision() as dtype:
        found = gradients(
            lambda *tensors: ops.sum(tensor(cotangent, dtype) * self_attention_routing(*tensors)),
            *(poses, weights, bias),
            dtype=dtype,
        )
    expected = numerical_gradients(expected_score, poses, weights, bias)
    for gradient, numerical in zip(found, expected, strict=True):
        assert np.abs(numerical).max() > 1e-3
        np.testing.assert_allclose(gradient, numerical, **TOLERANCES[dtype])


def test_order_of_children_is_irrelevant_and_order_of_parents_is_kept():
    poses, weights, bias = problem((3, 17, 5, 4, 6))
    random = np.random.default_rng(3)
    children, parents = random.permutation(17), random.permutation(5)

    def route(poses, weights, bias):
        return array(self_attention_routing(tensor(poses), tensor(weights), tensor(bias)))

    routed = route(poses, weights, bias)
    np.testing.assert_allclose(
        route(poses[:, children], weights[children], bias[children]), routed, atol=1e-5
    )
    np.testing.assert_allclose(
        route(poses, weights[:, parents], bias[:, parents]), routed[:, parents], atol=1e-5
    )


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e3])
def test_extreme_poses_give_finite_values_and_gradients(scale):
    poses, weights, bias = problem((3, 33, 5, 8, 16))
    routed = array(self_attention_routing(tensor(poses * scale), tensor(weights), tensor(bias)))
    assert np.linalg.norm(routed, axis=-1).max() <= 1.0 + 1e-6
    found = gradients(
        lambda *tensors: ops.sum(self_attention_routing(*tensors)), poses * scale, weights, bias
    )
    assert all(np.isfinite(gradient).all() for gradient in found)
    # At zero the network still learns: the coupling is 1 / J, and the squash the identity.
    if scale == 0.0:
        expected = np.einsum("ijkd,ij->ik", weights, 1.0 / 5.0 + bias)
        np.testing.assert_allclose(found[0], np.broadcast_to(expected, found[0].shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_its_dtype_and_stays_near(dtype):
    poses, weights, bias = problem((3, 33, 5, 8, 16))
    votes = all_votes(poses, weights)
    given = tensor(bias, dtype)
    routed = self_attention_routing(tensor(poses, dtype), tensor(weights, dtype), given)
    twin = self_attention_routing_from_votes(tensor(votes, dtype), given)
    for found in (routed, twin):
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        tolerance = 0.003 if dtype == "float16" else 0.03
        np.testing.assert_allclose(array(found), oracle(votes, bias), atol=tolerance)
    large = exponential_squash(tensor([[300.0, 600.0]], dtype))  # 600^2 is above float16's largest number.
    np.testing.assert_allclose(array(large), [[0.447213, 0.894426]], rtol=1e-2)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (dict(poses=(3, 7)), r"poses.*\[B, I, K\].*poses.shape=\(3, 7\)"),
        (dict(weights=(7, 5, 4)), r"weights.*\[I, J, K, D\].*weights.shape=\(7, 5, 4\)"),
        (dict(poses=(3, 8, 4)), r"agree in I and K.*poses.shape=\(3, 8, 4\).*weights.shape=\(7, 5, 4, 6\)"),
        (dict(poses=(3, 7, 2)), r"agree in I and K.*poses.shape=\(3, 7, 2\).*weights.shape=\(7, 5, 4, 6\)"),
        (dict(bias=(5, 7)), r"bias.*\[I, J\] = \(7, 5\).*bias.shape=\(5, 7\)"),
    ],
)
def test_wrong_shapes_are_named(arguments, expected):
    shapes = {"poses": (3, 7, 4), "weights": (7, 5, 4, 6), "bias": (7, 5), **arguments}
    with pytest.raises(ValueError, match=expected):
        self_attention_routing(**{name: tensor(np.zeros(shape)) for name, shape in shapes.items()})


@pytest.mark.parametrize("votes, bias", [((3, 7, 5), None), ((3, 7, 5, 6), (5, 7))])
def test_wrong_shapes_of_votes_are_named(votes, bias):
    with pytest.raises(ValueError, match=r"votes.shape=\(3, 7, 5\)|bias.shape=\(5, 7\)"):
        self_attention_routing_from_votes(
            tensor(np.zeros(votes)), None if bias is None else tensor(np.zeros(bias))
        )
