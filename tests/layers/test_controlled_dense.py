"""Dense layers whose weights are computed from a code: values against plain loops, gradients, cost."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.backend import BACKEND, array, double_precision, gradients, numerical_gradients, tensor
from tfinv import layers

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(size=(6, 5, 7))  # [N, R, I]
CODES = RANDOM.normal(size=(3, 2))  # [G, E]
VARIANTS = {
    "affine": dict(units=4),
    "bias": dict(units=1, use_bias=True),
    "hidden": dict(units=3, hidden_units=(6, 5), use_bias=True),
    "softmax": dict(units=9, softmax=True, hidden_units=(4,)),
}


@pytest.fixture(params=VARIANTS, name="arguments")
def arguments_fixture(request):
    return VARIANTS[request.param]


def randomized(dtype="float32", shapes=(VALUES.shape, CODES.shape), **arguments):
    """A layer as training could have made it."""
    layer = layers.ControlledDense(dtype=dtype, **arguments)
    layer.build(list(shapes))
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(size=weight.shape) for weight in layer.weights])
    return layer


def reference(layer, values, codes):
    """The same sample by sample, in float64."""
    names = [weight.name for weight in layer.weights]
    weights = {name: np.float64(value) for name, value in zip(names, layer.get_weights(), strict=True)}
    rendered = []
    for number, sample in enumerate(values):
        hidden = codes[number * len(codes) // len(values)]
        for index in range(len(layer.hidden_units)):
            hidden = hidden @ weights[f"hidden_kernel_{index}"] + weights[f"hidden_bias_{index}"]
            hidden = np.maximum(hidden, 0.0)
        kernel = weights["kernel"].copy()
        for i, u in np.ndindex(*kernel.shape):
            kernel[i, u] += hidden @ weights["control_kernel"][:, i * layer.units + u]
        if layer.softmax:
            kernel = np.exp(np.sqrt(7) * kernel)
            kernel /= kernel.sum(axis=0)
        bias = weights["bias"] + hidden @ weights["control_bias"] if layer.use_bias else 0.0
        rendered.append(sample @ kernel + bias)
    return np.stack(rendered)


@pytest.mark.parametrize("rows", [(), (5,), (2, 3)])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_each_sample_goes_through_the_weights_of_its_code(arguments, rows, groups):
    values, codes = RANDOM.normal(size=(6, *rows, 7)), RANDOM.normal(size=(groups, 2))
    layer = randomized(shapes=(values.shape, codes.shape), **arguments)
    found = array(layer([tensor(values), tensor(codes)]))
    np.testing.assert_allclose(found, reference(layer, values, codes), atol=2e-5)


def test_no_samples_and_no_codes(arguments):
    layer = randomized(**arguments)
    found = array(layer([tensor(VALUES[:0]), tensor(CODES[:0])]))
    assert found.shape == (0, 5, arguments["units"])
    with pytest.raises(ValueError, match="Received: 0 codes"):
        layer([tensor(VALUES), tensor(CODES[:0])])


def test_shared_codes_give_what_repeated_ones_give(arguments):
    layer = randomized(**arguments)
    shared = array(layer([tensor(VALUES), tensor(CODES)]))
    repeated = array(layer([tensor(VALUES), tensor(np.repeat(CODES, 2, axis=0))]))
    np.testing.assert_allclose(shared, repeated, atol=1e-5)
    other = array(layer([tensor(VALUES), tensor(CODES[::-1])]))
    assert np.abs(shared - other).max() > 0.1


def test_gradients_are_those_of_finite_differences(arguments):
    factors = RANDOM.normal(size=(6, 5, arguments["units"]))
    with double_precision() as dtype:
        layer = randomized(dtype, **arguments)
        found = gradients(
            lambda values, codes: ops.sum(layer([values, codes]) * tensor(factors, dtype)),
            VALUES,
            CODES,
            dtype=dtype,
        )
        wanted = numerical_gradients(
            lambda values, codes: (reference(layer, values, codes) * factors).sum(), VALUES, CODES
        )
    tolerance = 1e-6 if dtype == "float64" else 1e-3
    for gradient, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(gradient, want, rtol=tolerance, atol=tolerance)


def test_all_codes_start_with_the_same_kernel():
    means = layers.ControlledDense(4, (5,), softmax=True, kernel_initializer="zeros")
    expected = np.repeat(VALUES.mean(axis=-1, keepdims=True), 4, axis=-1)
    np.testing.assert_allclose(array(means([tensor(VALUES), tensor(CODES)])), expected, atol=1e-6)
    same = layers.ControlledDense(7, (5,), use_bias=True, kernel_initializer="identity")
    np.testing.assert_allclose(array(same([tensor(VALUES), tensor(CODES)])), VALUES, atol=1e-6)
    plain = layers.ControlledDense(4, (5,))
    plain.build([VALUES.shape, CODES.shape])
    kernels = array(plain.kernels(tensor(CODES)))
    assert kernels.shape == (3, 7, 4) and np.ptp(kernels, axis=0).max() == 0.0 and kernels.std() > 0.1


@pytest.mark.parametrize("softmax, initializer", [(True, "zeros"), (False, "identity"), (False, "zeros")])
def test_every_weight_of_the_control_learns_from_the_start_or_the_step_after(softmax, initializer):
    layer = layers.ControlledDense(7, (8,), softmax, use_bias=True, kernel_initializer=initializer)
    inputs = [keras.Input((5, 7)), keras.Input((2,))]
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    model.fit([VALUES[:3], CODES], RANDOM.normal(size=(3, 5, 7)), epochs=2, batch_size=3, verbose=0)
    names = [weight.name for weight in model.weights]
    for name, old, new in zip(names, before, model.get_weights(), strict=True):
        assert np.abs(new - old).max() > 0.0, name


def test_kernels_are_made_once_a_code():
    """Operations that compiled JAX code counts: 2 I U (H G / N + R) a sample, as documented."""
    if BACKEND != "jax":
        pytest.skip("only JAX counts operations")
    import jax

    inputs, units, hidden, count = 64, 48, 16, 32
    layer = layers.ControlledDense(units, (hidden,))
    costs = {}
    for groups in (count, count // 16):
        shapes = (count, inputs), (groups, 2)
        layer.build(list(shapes)) if not layer.built else None
        compiled = jax.jit(lambda *arrays: layer(list(arrays))).lower(*map(np.ones, shapes)).compile()
        analysis = compiled.cost_analysis()
        costs[groups] = (analysis[0] if isinstance(analysis, list) else analysis)["flops"] / count
        expected = 2 * inputs * units * (hidden * groups / count + 1)
        assert costs[groups] == pytest.approx(expected, rel=0.1)
    assert costs[count] > 8 * costs[count // 16]


def test_no_kernel_a_sample_where_the_code_is_shared():
    layer = randomized(units=3)
    made = array(layer.kernels(tensor(CODES)))
    assert made.shape == (3, 7, 3)
    seen = []
    layer._kernels = lambda control: seen.append(control.shape) or tensor(made)  # type: ignore[method-assign]
    layer([tensor(VALUES), tensor(CODES)])
    assert seen == [(3, 2)]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_codes_and_logits_keep_full_precision_under_mixed_policies(policy):
    """The logits 300 * 0.999 - 299.7 and 0 are equal; half precision rounds 0.999, or the product."""
    layer = layers.ControlledDense(1, softmax=True, dtype=policy)
    layer.build([(1, 2), (1, 1)])
    layer.set_weights([np.array([[-299.7], [0.0]]), np.array([[300.0, 0.0]])])
    np.testing.assert_allclose(array(layer.kernels(tensor([[0.999]]))), [[[0.5], [0.5]]], atol=1e-3)
    values = layer([tensor([[1.0, -1.0]]), tensor([[0.999]])])
    assert keras.backend.standardize_dtype(values.dtype) == policy.removeprefix("mixed_")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.ControlledDense(0), "at least 1.*units=0"),
        (lambda: layers.ControlledDense(3, (4, 0)), "at least 1.*hidden_units=0"),
        (lambda: layers.ControlledDense(3).build([(None, None, 4), (None, 2)]), "known size"),
        (lambda: layers.ControlledDense(3).build([(None, 4), (None,)]), "known size"),
        (lambda: layers.ControlledDense(3)([VALUES[:5], CODES]), "divisor.*5.*3 codes"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
