"""EM routing of numbers that break plain formulas: finite values and gradients, and NaN that is not lost."""

import numpy as np
import pytest
from keras import ops

from tests.backend import BACKEND, array, gradients, tensor
from tests.fused import CHOICES
from tests.ops.em_oracle import all_votes, expected_of, problem, route
from tfinv.ops import EM_VARIANTS


def extremes():
    """Names and changes to a `problem` that break routing in plain formulas."""
    yield "scale 1e-3", lambda values: values["poses"].__imul__(1e-3)
    yield "scale 1e3", lambda values: values["poses"].__imul__(1e3)
    yield "all poses zero", lambda values: values["poses"].fill(0.0)
    yield "no child active", lambda values: values["activations"].fill(0.0)
    yield "every child active", lambda values: values["activations"].fill(1.0)
    yield "beside the floor", lambda values: values["activations"].fill(2e-12)
    yield "one hot bias", lambda values: values["bias"].__imul__(1e3)
    yield "large beta_a", lambda values: values["beta_a"].__imul__(1e4)
    yield "large beta_u", lambda values: values["beta_u"].__imul__(1e4)

    def identical(values, scale=1.0):
        values["poses"][:] = values["poses"][:, :1] * scale
        values["weights"][:] = values["weights"][:1]

    yield "identical votes", identical
    yield "identical votes, scale 1e3", lambda values: identical(values, 1e3)
    yield "identical votes, scale 1e-3", lambda values: identical(values, 1e-3)


EXTREMES = dict(extremes())
EXTREME_CASES = [(name, (2, 9, 5, 4)) for name in EXTREMES] + [
    (name, shape)
    for shape in ((2, 1, 5, 4), (2, 9, 1, 4), (2, 1, 1, 1))  # one child, one parent, one of all
    for name in ("scale 1e-3", "scale 1e3", "all poses zero", "no child active", "every child active")
]


# The other backends run the same formulas, several times more slowly: the ends of the range must do.
ITERATIONS = range(1, 6) if BACKEND == "tensorflow" else (1, 5)


@pytest.mark.parametrize("implementation", CHOICES)
@pytest.mark.parametrize("variant", EM_VARIANTS)
@pytest.mark.parametrize("name, shape", EXTREME_CASES, ids=str)
def test_extremes_give_finite_values_and_gradients(name, shape, variant, implementation):
    values = problem(shape)
    EXTREMES[name](values)
    votes = all_votes(values["poses"], values["weights"]).reshape(*shape[:3], shape[3], shape[3])
    slack = 1e-5 * np.abs(votes).max()

    def routed(given, iterations):
        return route(given, iterations, variant, final=0.01, implementation=implementation)

    for iterations in ITERATIONS:

        def score(*tensors, iterations=iterations):
            given = dict(zip(values, tensors, strict=True))
            poses, activations = routed(given, iterations)
            return ops.sum(poses) + ops.sum(activations)

        poses, activations = (array(part) for part in routed(values, iterations))
        assert np.isfinite(poses).all() and np.isfinite(activations).all()
        assert activations.min() >= 0.0 and activations.max() <= 1.0 + 1e-6
        # A mean lies among the votes.
        assert (poses <= votes.max(axis=1) + slack).all() and (poses >= votes.min(axis=1) - slack).all()
        for which, gradient in zip(values, gradients(score, *values.values()), strict=True):
            assert np.isfinite(gradient).all(), which


@pytest.mark.parametrize("implementation", CHOICES)
@pytest.mark.parametrize("name", ["poses", "activations", "weights", "beta_u", "beta_a", "bias"])
def test_not_a_number_is_not_lost(name, implementation):
    values = problem((2, 5, 4, 2))
    values[name].flat[0] = np.nan
    found = route(values, 2, "hinton2018", implementation=implementation)
    assert any(np.isnan(array(part)[0]).any() for part in found)


@pytest.mark.parametrize("implementation", CHOICES)
@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_logits_too_large_for_fractions_still_make_probabilities(variant, implementation):
    values = problem((3, 7, 5, 2))
    found, expected = (
        route({**values, "bias": np.full((7, 5), level)}, 2, variant, implementation=implementation)
        for level in (1e8, 0.0)
    )
    for part, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(array(part), array(want), atol=1e-5)
    # A parent that no child wants still has a mean among the votes for it, here all the same.
    values["poses"][:] = values["poses"][:, :1]
    values["weights"][:] = values["weights"][:1]
    values["bias"] = np.zeros((7, 5)) - 1e8 * (np.arange(5) == 2)
    poses = array(route(values, 1, variant, implementation=implementation)[0])
    votes = all_votes(values["poses"], values["weights"])
    np.testing.assert_allclose(poses.reshape(3, 5, 4), votes[:, 0], atol=1e-5)


@pytest.mark.parametrize("implementation", CHOICES)
@pytest.mark.parametrize("variant", EM_VARIANTS)
@pytest.mark.parametrize("level", [-1e6, -1e8])
def test_a_parent_that_no_child_wants_has_the_gradient_of_a_mean(variant, implementation, level):
    """With one iteration its pose is the mean of the votes for it, whatever the level."""
    values = problem((3, 7, 5, 2))
    values["bias"] = np.zeros((7, 5)) + level * (np.arange(5) == 2)
    values["activations"][:] = 0.5
    factors = np.random.default_rng(1).normal(size=(3, 2, 2)).astype(np.float32)

    def score(poses):
        routed, _ = route({**values, "poses": poses}, 1, variant, implementation=implementation)
        return ops.sum(routed[:, 2] * tensor(factors))

    (found,) = gradients(score, values["poses"])
    poses = values["poses"].reshape(3, 7, 2, 2)
    expected = np.einsum("bpq,imq->bipm", factors, values["weights"].reshape(7, 5, 2, 2)[:, 2]) / 7
    np.testing.assert_allclose(found.reshape(poses.shape), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_float32_stays_near_double_precision_at_every_scale(scale):
    values = problem((3, 17, 5, 4))
    values["poses"] *= scale
    for variant in EM_VARIANTS:
        expected = expected_of(values, 3, variant, final=0.01)[-1]
        for implementation in CHOICES:
            found = route(values, 3, variant, final=0.01, implementation=implementation)
            poses, activations = (array(part) for part in found)
            np.testing.assert_allclose(poses, expected[0], atol=1e-4 * scale)
            np.testing.assert_allclose(activations, expected[1], atol=1e-4)
