"""EM routing: values by hand, an independent oracle, gradients, properties, errors."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from tests.backend import array, double_precision, gradients, numerical_gradients, tensor
from tests.fused import CHOICES
from tests.ops.em_oracle import WARM, expected_of, oracle, problem, route, route_votes
from tfinv.ops import EM_VARIANTS, em_routing, em_routing_from_votes
from tfinv.ops.em_reference import inverse_temperatures, summed_beta_u

# (B, I, J, P): ones, primes, more parents than children and the reverse, every size of a pose.
SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 7, 4),
    (5, 7, 1, 3),
    (2, 33, 7, 2),
    (1, 7, 33, 4),
    (33, 7, 3, 2),
    (2, 5, 4, 1),
]
# Of gradients against central differences, which are themselves exact to about 1e-10.
TOLERANCES = {"float64": {"rtol": 1e-6, "atol": 1e-8}, "float32": {"rtol": 1e-3, "atol": 1e-5}}
# Temperatures and beta_u


def test_inverse_temperatures_by_hand():
    assert inverse_temperatures("hinton2018", 3, 0.01) == pytest.approx([0.0005, 0.000975, 0.00142625])
    assert inverse_temperatures("article", 3, 0.01) == [0.01, 0.01, 0.01]
    assert inverse_temperatures("hinton2018", 500, 2.0)[-1] == pytest.approx(2.0)


def test_summed_beta_u_by_hand():
    values = np.arange(8.0).reshape(2, 2, 2)
    np.testing.assert_allclose(array(summed_beta_u(tensor(values), 2, 4)), [6.0, 22.0])
    np.testing.assert_allclose(array(summed_beta_u(tensor(values.reshape(2, 4)), 2, 4)), [6.0, 22.0])
    np.testing.assert_allclose(array(summed_beta_u(tensor([1.5, -2.0]), 2, 4)), [6.0, -8.0])


# Values


@pytest.mark.parametrize(
    "shares, mean, variance", [((0.5, 0.5), 2.0, 1.0), ((0.25, 0.75), 2.5, 0.75), ((1.0, 0.0), 1.0, 0.0)]
)
def test_one_parent_by_hand(shares, mean, variance):
    # Votes 1 and 3, one iteration: the activations are the shares, and their sum, the mass, is 1.
    poses, activations = em_routing_from_votes(
        tensor([[[[1.0]], [[3.0]]]]),
        tensor([shares]),
        tensor([0.5]),
        tensor([2.0]),
        1,
        final_inverse_temperature=20.0,  # 20 (1 - 0.95) = 1
        variance_floor=0.25,
    )
    cost = 0.5 + 0.5 * math.log(variance + 0.25)
    np.testing.assert_allclose(array(poses), [[[mean]]], rtol=1e-6)
    np.testing.assert_allclose(array(activations), [[1 / (1 + math.exp(-(2.0 - cost)))]], rtol=1e-6)


@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_two_parents_and_two_iterations_by_hand(variant):
    # Both children vote 1 for parent 0, and 0 and 2 for parent 1; with a floor of 1, variances 1 and 2.
    final = 20.0 if variant == "hinton2018" else 1.0
    poses, activations = em_routing_from_votes(
        tensor([[[[1.0], [0.0]], [[1.0], [2.0]]]]),
        tensor([[1.0, 1.0]]),
        tensor([0.0, 0.0]),
        tensor([0.0, 0.0]),
        2,
        variant,
        final_inverse_temperature=final,
        variance_floor=1.0,
    )
    # The first activations, up to a factor: 1/2 and 1/(1 + sqrt 2), or 1 and 1/sqrt 2. Density ratio
    # of parent 1 to 0: exp(-1/4) / sqrt 2.
    ratio = math.exp(-0.25) / math.sqrt(2.0)
    ratio *= 2.0 / (1.0 + math.sqrt(2.0)) if variant == "hinton2018" else math.sqrt(0.5)
    mass = 2.0 * ratio / (1.0 + ratio)  # of parent 1; both children are split alike
    logit = -mass * 0.5 * math.log(2.0)
    if variant == "hinton2018":
        expected = [0.5, 1.0 / (1.0 + math.exp(-20.0 * (1.0 - 0.95**2) * logit))]
    else:
        expected = [1.0 / (1.0 + math.exp(logit)), math.exp(logit) / (1.0 + math.exp(logit))]
    np.testing.assert_allclose(array(poses), [[[1.0], [1.0]]], rtol=1e-6)
    np.testing.assert_allclose(array(activations), [expected], rtol=1e-5)


@pytest.mark.parametrize("variant", EM_VARIANTS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_routing_equals_the_oracle(shape, biased, variant):
    values = problem(shape)
    results = expected_of(values, 5, variant, biased, floor=1e-3)
    for iterations, expected in enumerate(results, start=1):
        for function, implementation in ((route, "reference"), (route, "auto"), (route_votes, "reference")):
            found = function(
                values, iterations, variant, biased, variance_floor=1e-3, implementation=implementation
            )
            for part, want in zip(found, expected, strict=True):
                # float32 against float64, through five rounds of exponentials; measured below 1.2e-4.
                np.testing.assert_allclose(array(part), want, atol=3e-4)


@pytest.mark.parametrize("components", [1, 3, 18])
def test_votes_of_any_number_of_components(components):
    random = np.random.default_rng(1)
    votes, activations = random.normal(size=(3, 7, 4, components)), random.uniform(size=(3, 7))
    beta_u, beta_a = random.normal(size=(4, components)), random.normal(size=4)
    expected = oracle(votes, activations, beta_u, beta_a, 3, "hinton2018", floor=1e-3)[-1]
    given = [tensor(value) for value in (votes, activations, beta_u, beta_a)]
    found = em_routing_from_votes(*given, 3, final_inverse_temperature=WARM, variance_floor=1e-3)
    for part, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(array(part), want, atol=1e-4)


def test_defaults():
    values = problem((3, 7, 5, 4))
    expected = expected_of(values, 2, "hinton2018", biased=False, final=0.01)[-1]
    given = {name: tensor(value) for name, value in values.items() if name != "bias"}
    for part, want in zip(em_routing(**given), expected, strict=True):
        np.testing.assert_allclose(array(part), want, atol=1e-4)
    # The same cost for every component: its sum is P * P times as large.
    given["beta_u"] = given["beta_u"][:, 0, 0]
    values["beta_u"] = np.broadcast_to(values["beta_u"][:, :1, :1], (5, 4, 4))
    expected = expected_of(values, 2, "hinton2018", biased=False, final=0.01)[-1]
    for part, want in zip(em_routing(**given), expected, strict=True):
        np.testing.assert_allclose(array(part), want, atol=1e-4)


@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_an_empty_batch_gives_an_empty_batch(variant):
    values = problem((1, 7, 3, 2))
    values["poses"], values["activations"] = np.zeros((0, 7, 2, 2)), np.zeros((0, 7))
    for function in (route, route_votes):
        for biased in (False, True):
            poses, activations = function(values, 2, variant, biased)
            assert tuple(poses.shape) == (0, 3, 2, 2) and tuple(activations.shape) == (0, 3)


# Properties


@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_order_of_children_is_irrelevant_and_order_of_parents_is_kept(variant):
    values = problem((3, 17, 5, 2))
    random = np.random.default_rng(3)
    children, parents = random.permutation(17), random.permutation(5)
    routed = [array(part) for part in route(values, 3, variant, variance_floor=1e-3)]
    moved = dict(values)
    for name, axis in (("poses", 1), ("activations", 1), ("weights", 0), ("bias", 0)):
        moved[name] = np.take(values[name], children, axis=axis)
    for part, want in zip(route(moved, 3, variant, variance_floor=1e-3), routed, strict=True):
        np.testing.assert_allclose(array(part), want, atol=1e-5)
    for name, axis in (("weights", 1), ("beta_u", 0), ("beta_a", 0), ("bias", 1)):
        moved[name] = np.take(moved[name], parents, axis=axis)
    for part, want in zip(route(moved, 3, variant, variance_floor=1e-3), routed, strict=True):
        np.testing.assert_allclose(array(part), want[:, parents], atol=1e-5)


@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_samples_do_not_influence_each_other(variant):
    values = problem((5, 9, 4, 2))
    together = [array(part) for part in route(values, 3, variant)]
    for sample in range(5):
        alone = {**values, **{name: values[name][sample : sample + 1] for name in ("poses", "activations")}}
        for part, want in zip(route(alone, 3, variant), together, strict=True):
            np.testing.assert_allclose(array(part)[0], want[sample], atol=1e-5)


def test_votes_that_agree_make_the_parent_active_and_take_the_child():
    random = np.random.default_rng(5)
    votes = random.normal(size=(1, 9, 2, 4))
    votes[:, :8, 0] = [1.0, 2.0, 3.0, 4.0]  # all but the last child agree about parent 0
    given = [tensor(value) for value in (votes, np.ones((1, 9)), np.zeros(2), np.zeros(2))]
    poses, activations = (array(part) for part in em_routing_from_votes(*given, 3))
    np.testing.assert_allclose(poses[0, 0], [1.0, 2.0, 3.0, 4.0], atol=1e-3)
    np.testing.assert_allclose(poses[0, 1], votes[0, 8, 1], atol=1e-3)  # left to the one that disagrees
    assert activations[0, 0] > activations[0, 1]


def test_child_activations_cancel_in_the_article_variant_alone():
    values = problem((3, 7, 5, 2))
    other = {**values, "activations": values["activations"][:, ::-1]}
    for variant in EM_VARIANTS:
        difference = max(
            np.abs(array(part) - array(changed)).max()
            for part, changed in zip(route(values, 2, variant), route(other, 2, variant), strict=True)
        )
        assert (difference == 0.0) == (variant == "article")
    found = gradients(
        lambda activations: ops.sum(route({**values, "activations": activations}, 2, "article")[0]),
        values["activations"],
    )
    np.testing.assert_array_equal(found[0], np.zeros((3, 7)))  # zero, not missing
    active = array(route(values, 2, "article")[1])
    np.testing.assert_allclose(active.sum(axis=1), np.ones(3), rtol=1e-6)


@pytest.mark.parametrize("iterations", [1, 3])
def test_an_inactive_child_counts_for_nothing(iterations):
    values = problem((3, 7, 5, 2))
    values["activations"][:, 6] = 0.0
    few = dict(values)
    for name, axis in (("poses", 1), ("activations", 1), ("weights", 0), ("bias", 0)):
        few[name] = np.delete(values[name], 6, axis=axis)
    found, expected = (route(each, iterations, "hinton2018", variance_floor=1e-3) for each in (values, few))
    for part, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(array(part), array(want), atol=1e-5)


# Gradients


@pytest.mark.parametrize("variant", EM_VARIANTS)
@pytest.mark.parametrize(
    "function, iterations", [(route, 1), (route, 2), (route, 3), (route, 5), (route_votes, 2)]
)
def test_every_gradient_equals_finite_differences_of_the_oracle(function, iterations, variant):
    values = problem((2, 4, 3, 2))
    random = np.random.default_rng(4)
    cotangents = random.normal(size=(2, 3, 2, 2)), random.normal(size=(2, 3))
    names = list(values)

    def expected_score(*arguments):
        results = expected_of(dict(zip(names, arguments, strict=True)), iterations, variant, floor=0.05)
        return sum(np.sum(c * part) for c, part in zip(cotangents, results[-1], strict=True))

    with double_precision() as dtype:

        def score(*tensors):
            given = dict(zip(names, tensors, strict=True))
            results = function(given, iterations, variant, dtype=dtype, variance_floor=0.05)
            return sum(ops.sum(tensor(c, dtype) * part) for c, part in zip(cotangents, results, strict=True))

        found = gradients(score, *values.values(), dtype=dtype)
    expected = numerical_gradients(expected_score, *values.values())
    for name, gradient, numerical in zip(names, found, expected, strict=True):
        if (name, variant) != ("activations", "article"):
            assert np.abs(numerical).max() > 1e-3, name
        np.testing.assert_allclose(gradient, numerical, **TOLERANCES[dtype], err_msg=name)


def test_double_precision_equals_the_oracle():
    values = problem((3, 17, 5, 2))
    with double_precision() as dtype:
        for variant in EM_VARIANTS:
            for biased in (False, True):
                found = route(values, 3, variant, biased, dtype=dtype)
                for part, want in zip(found, expected_of(values, 3, variant, biased)[-1], strict=True):
                    assert keras.backend.standardize_dtype(part.dtype) == dtype
                    np.testing.assert_allclose(array(part), want, atol=1e-11 if dtype == "float64" else 1e-4)


# Other dtypes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_half_precision_keeps_its_dtype_and_stays_near(dtype, variant):
    values = problem((3, 33, 5, 4))
    expected = expected_of(values, 2, variant, floor=0.1, final=0.01)[-1]
    for function in (route, route_votes):
        found = function(values, 2, variant, dtype=dtype, variance_floor=0.1, final=0.01)
        for part, want in zip(found, expected, strict=True):
            assert keras.backend.standardize_dtype(part.dtype) == dtype
            np.testing.assert_allclose(array(part), want, atol=0.02 if dtype == "float16" else 0.1)


def test_parameters_and_activations_of_full_precision_beside_half_poses():
    values = {name: tensor(value) for name, value in problem((3, 7, 5, 4)).items()}
    full = em_routing(**values, variance_floor=0.1)
    for name in ("poses", "weights"):
        values[name] = ops.cast(values[name], "bfloat16")
    mixed = em_routing(**values, variance_floor=0.1)
    assert [keras.backend.standardize_dtype(part.dtype) for part in mixed] == ["bfloat16", "float32"]
    for part, want in zip(mixed, full, strict=True):
        np.testing.assert_allclose(array(part), array(want), atol=0.1)


# Errors and implementations

EM_SHAPES = {
    "poses": (3, 7, 2, 2),
    "activations": (3, 7),
    "weights": (7, 5, 2, 2),
    "beta_u": (5,),
    "beta_a": (5,),
    "bias": (7, 5),
}


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("poses", (3, 7, 4), r"poses.*\[B, I, P, P\].*poses.shape=\(3, 7, 4\)"),
        ("activations", (3, 7, 1), r"activations.*\[B, I\].*activations.shape=\(3, 7, 1\)"),
        ("weights", (7, 5, 4), r"weights.*\[I, J, P, P\].*weights.shape=\(7, 5, 4\)"),
        ("weights", (7, 5, 2, 3), r"agree in I and P.*poses.shape=\(3, 7, 2, 2\).*shape=\(7, 5, 2, 3\)"),
        ("weights", (6, 5, 2, 2), r"agree in I and P.*poses.shape=\(3, 7, 2, 2\).*shape=\(6, 5, 2, 2\)"),
        ("poses", (3, 7, 3, 3), r"agree in I and P.*poses.shape=\(3, 7, 3, 3\)"),
        ("activations", (3, 6), r"poses and activations.*agree in B and I.*activations.shape=\(3, 6\)"),
        ("activations", (2, 7), r"poses and activations.*agree in B and I.*activations.shape=\(2, 7\)"),
        ("beta_u", (4,), r"beta_u.*\(5,\), \(5, 4\), \(5, 2, 2\).*beta_u.shape=\(4,\)"),
        ("beta_u", (5, 1, 1), r"beta_u.*beta_u.shape=\(5, 1, 1\)"),
        ("beta_a", (5, 1), r"beta_a.*\[J\] = \(5,\).*beta_a.shape=\(5, 1\)"),
        ("bias", (5, 7), r"bias.*\[I, J\] = \(7, 5\).*bias.shape=\(5, 7\)"),
    ],
)
def test_wrong_shapes_are_named(name, shape, expected):
    shapes = {**EM_SHAPES, name: shape}
    with pytest.raises(ValueError, match=expected):
        em_routing(**{name: tensor(np.zeros(shape)) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("votes", (3, 7, 5), r"votes.*\[B, I, J, H\].*votes.shape=\(3, 7, 5\)"),
        ("activations", (3, 5), r"votes and activations.*activations.shape=\(3, 5\)"),
        ("beta_u", (5, 5), r"beta_u.*Expected one of \(5,\), \(5, 6\). .*beta_u.shape=\(5, 5\)"),
        ("beta_a", (6,), r"beta_a.shape=\(6,\)"),
        ("bias", (5, 7), r"bias.shape=\(5, 7\)"),
    ],
)
def test_wrong_shapes_of_votes_are_named(name, shape, expected):
    shapes = {"votes": (3, 7, 5, 6), **EM_SHAPES, name: shape}
    del shapes["poses"], shapes["weights"]
    with pytest.raises(ValueError, match=expected):
        em_routing_from_votes(**{name: tensor(np.zeros(shape)) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (dict(num_iterations=0), "num_iterations.*at least 1.*num_iterations=0"),
        (dict(variant="hinton"), r"variant.*'hinton2018', 'article'.*variant=hinton$"),
        (dict(final_inverse_temperature=0.0), "final_inverse_temperature.*above 0.*temperature=0.0"),
        (dict(final_inverse_temperature=math.inf), "final_inverse_temperature.*finite.*temperature=inf"),
        (dict(variance_floor=0.0), "variance_floor.*above 0.*variance_floor=0.0"),
        (dict(variance_floor=math.nan), "variance_floor.*above 0.*variance_floor=nan"),
        (dict(implementation="quick"), "implementation=quick"),
    ],
)
def test_wrong_values_are_named(arguments, expected):
    given = {name: tensor(np.zeros(shape)) for name, shape in EM_SHAPES.items()}
    with pytest.raises(ValueError, match=expected):
        em_routing(**given, **arguments)
    del given["poses"], given["weights"]
    with pytest.raises(ValueError, match=expected):
        em_routing_from_votes(tensor(np.zeros((3, 7, 5, 4))), **given, **arguments)


def test_routing_of_symbolic_tensors_leaves_the_batch_open():
    shapes = {**EM_SHAPES, "poses": (None, 7, 2, 2), "activations": (None, 7)}
    found = em_routing(**{name: keras.KerasTensor(shape) for name, shape in shapes.items()})
    assert [tuple(part.shape) for part in found] == [(None, 5, 2, 2), (None, 5)]


@pytest.mark.parametrize("implementation", CHOICES)
@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_whole_activations_make_activations_that_are_none(implementation, dtype):
    """Of a mask, or of zeros and ones."""
    values = problem((2, 5, 4, 2))
    given = [tensor(values[name], "float32") for name in ("poses", "weights", "beta_u", "beta_a")]
    whole = np.arange(10).reshape(2, 5) % 3 > 0

    def routed(activations):
        poses, *rest = given
        return [array(part) for part in em_routing(poses, activations, *rest, implementation=implementation)]

    found, expected = routed(tensor(whole, dtype)), routed(tensor(whole, "float32"))
    for part, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part, want)
    assert 0.0 < found[1].max() < 1.0
