"""The fused ops on JAX against the reference: outputs, every gradient, jit, vmap, types, errors, training.

Runs where Keras runs on JAX (`KERAS_BACKEND=jax`). Without a compiler the tests are skipped;
`TFINV_REQUIRE_FUSED=1` turns that into a failure.
"""

import os

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("the fused ops of JAX need KERAS_BACKEND=jax", allow_module_level=True)

import jax
import jax.numpy as jnp

from tfinv.ops import _library, em_reference, fused_jax, reference

# Keras warns of any softmax over one element; one parent is such a case, and a legitimate one.
pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")

# (B, I, J, K, D) and (B, I, J, P): ones, primes, sizes beside vector widths and those with fast paths.
DYNAMIC_SHAPES = [
    (1, 1, 1, 1, 1),
    (5, 7, 10, 8, 16),
    (3, 9, 33, 8, 16),
    (7, 129, 7, 7, 1),
    (129, 7, 1, 3, 5),
    (2, 5, 8, 2, 129),
]
EM_SHAPES = [(1, 1, 1, 1), (5, 7, 16, 4), (3, 9, 33, 4), (129, 3, 2, 2), (2, 129, 5, 3), (7, 5, 1, 5)]
# float32 against float32, through exponentials and up to three iterations; of the largest entry.
TOLERANCE = 1e-4
FLOOR = 1e-2


@pytest.fixture(scope="module", autouse=True)
def library():
    try:
        return fused_jax.load()
    except _library.LibraryError as error:
        if os.environ.get("TFINV_REQUIRE_FUSED") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


def dynamic_problem(shape, biased):
    batch, children, parents, child_dim, parent_dim = shape
    random = np.random.default_rng(0)
    poses = random.normal(size=(batch, children, child_dim)) / np.sqrt(child_dim)
    weights = random.normal(size=(children, parents, child_dim, parent_dim)) / np.sqrt(parent_dim)
    bias = [random.normal(size=(children, parents))] if biased else []
    return [jnp.asarray(value, jnp.float32) for value in (poses, weights, *bias)]


def em_problem(shape, biased):
    batch, children, parents, size = shape
    random = np.random.default_rng(1)
    arrays = [
        random.normal(size=(batch, children, size, size)),
        random.uniform(0.05, 1.0, size=(batch, children)),
        random.normal(size=(children, parents, size, size)) / np.sqrt(size),
        random.normal(size=parents),
        random.normal(size=parents),
    ]
    if biased:
        arrays.append(random.normal(size=(children, parents)))
    return [jnp.asarray(value, jnp.float32) for value in arrays]


def dynamic(module, iterations):
    def route(poses, weights, bias=None):
        return module.dynamic_routing(poses, weights, iterations, bias)

    return route


def fused_em(variant, iterations, final=0.3):
    def route(poses, activations, weights, beta_u, beta_a, bias=None):
        summed = em_reference.summed_beta_u(beta_u, weights.shape[1], weights.shape[2] ** 2)
        factors = em_reference.inverse_temperatures(variant, iterations, final)
        return fused_jax.em_routing(
            poses, activations, weights, summed, beta_a, factors, variant, FLOOR, bias
        )

    return route


def reference_em(variant, iterations, final=0.3):
    def route(poses, activations, weights, beta_u, beta_a, bias=None):
        return em_reference.em_routing(
            poses, activations, weights, beta_u, beta_a, iterations, variant, bias, final, FLOOR
        )

    return route


def values_and_gradients(route, arrays):
    """Outputs, and the gradients of a fixed combination of them by every array."""

    def loss(*arrays):
        outputs = jax.tree.leaves(route(*arrays))
        random = np.random.default_rng(2)
        factors = [random.normal(size=value.shape).astype(np.float32) for value in outputs]
        total = sum(jnp.sum(value * factor) for value, factor in zip(outputs, factors, strict=True))
        return total, outputs

    positions = tuple(range(len(arrays)))
    gradients, outputs = jax.jit(jax.grad(loss, argnums=positions, has_aux=True))(*arrays)
    return [*outputs, *gradients]


def expect_close(found, expected):
    assert len(found) == len(expected)
    for position, (value, truth) in enumerate(zip(found, expected, strict=True)):
        assert value.shape == truth.shape and value.dtype == truth.dtype
        scale = max(float(jnp.max(jnp.abs(truth))), 1e-4)
        np.testing.assert_allclose(value, truth, rtol=0, atol=TOLERANCE * scale, err_msg=f"tensor {position}")


@pytest.mark.parametrize("iterations, biased", [(1, True), (2, False), (3, True)])
@pytest.mark.parametrize("shape", DYNAMIC_SHAPES, ids=str)
def test_dynamic_routing_equals_the_reference(shape, iterations, biased):
    arrays = dynamic_problem(shape, biased)
    expect_close(
        values_and_gradients(dynamic(fused_jax, iterations), arrays),
        values_and_gradients(dynamic(reference, iterations), arrays),
    )


@pytest.mark.parametrize(
    "variant, iterations, biased", [("hinton2018", 1, False), ("hinton2018", 3, True), ("article", 2, True)]
)
@pytest.mark.parametrize("shape", EM_SHAPES, ids=str)
def test_em_routing_equals_the_reference(shape, variant, iterations, biased):
    arrays = em_problem(shape, biased)
    expect_close(
        values_and_gradients(fused_em(variant, iterations), arrays),
        values_and_gradients(reference_em(variant, iterations), arrays),
    )


@pytest.mark.parametrize(
    "route, arrays",
    [
        (dynamic(fused_jax, 3), dynamic_problem((5, 7, 10, 8, 16), True)),
        (fused_em("article", 2), em_problem((5, 7, 16, 4), True)),
    ],
    ids=["dynamic", "em"],
)
def test_eager_equals_compiled(route, arrays):
    with jax.disable_jit():
        eager = values_and_gradients(route, arrays)
    for found, expected in zip(values_and_gradients(route, arrays), eager, strict=True):
        # The sums around the op may be done in another order; the op itself is the same.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_vmap_maps_over_any_argument():
    poses, weights = dynamic_problem((6, 7, 3, 8, 16), False)
    route = dynamic(fused_jax, 2)
    halves = poses.reshape(2, 3, 7, 8)
    np.testing.assert_array_equal(
        jax.vmap(route, (0, None))(halves, weights), route(poses, weights).reshape(2, 3, 3, 16)
    )
    stacked = jnp.stack([weights, 2 * weights])
    gradient = jax.vmap(jax.grad(lambda w: jnp.sum(route(poses, w) ** 2)))(stacked)
    expected = [jax.grad(lambda w: jnp.sum(route(poses, w) ** 2))(w) for w in stacked]
    np.testing.assert_array_equal(gradient, jnp.stack(expected))


def test_repeats_bit_for_bit():
    arrays = em_problem((33, 17, 10, 4), True)
    first, second = (values_and_gradients(fused_em("hinton2018", 3), arrays) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_cast_there_and_back(dtype):
    arrays = [value.astype(dtype) for value in dynamic_problem((5, 7, 3, 8, 16), False)]
    found = values_and_gradients(dynamic(fused_jax, 3), arrays)
    assert {str(value.dtype) for value in found} == {dtype}
    # The reference makes its votes in half precision; the op makes everything in float32.
    expected = reference.dynamic_routing(*(value.astype("float32") for value in arrays)).astype(dtype)
    np.testing.assert_allclose(found[0].astype("float32"), expected.astype("float32"), rtol=1e-2, atol=1e-3)


def test_an_empty_batch_gives_an_empty_batch():
    poses, weights = dynamic_problem((1, 7, 3, 8, 16), False)
    outputs, dposes, dweights = values_and_gradients(dynamic(fused_jax, 3), [poses[:0], weights])
    assert outputs.shape == (0, 3, 16) and dposes.shape == (0, 7, 8)
    np.testing.assert_array_equal(dweights, np.zeros(weights.shape))
    arrays = em_problem((1, 7, 3, 4), False)
    found = values_and_gradients(fused_em("article", 2), [arrays[0][:0], arrays[1][:0], *arrays[2:]])
    assert found[0].shape == (0, 3, 4, 4) and found[1].shape == (0, 3)
    np.testing.assert_array_equal(found[4], np.zeros(arrays[2].shape))


def test_shapes_that_do_not_fit_are_named():
    poses, weights = dynamic_problem((2, 7, 3, 8, 16), False)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"poses.shape=\(2, 5, 8\), weights.shape=\(7, 3, 8, 16\)"
    ):
        jax.block_until_ready(fused_jax.dynamic_routing(poses[:, :5], weights))
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"\[I, J\] = \(7, 3\). Received: bias.shape=\(3, 7\)"
    ):
        jax.block_until_ready(fused_jax.dynamic_routing(poses, weights, 2, jnp.zeros((3, 7))))
    with pytest.raises(ValueError, match=r"Expected \[I, J, K, D\]. Received: weights.shape=\(3, 8, 16\)"):
        fused_jax.dynamic_routing(poses, weights[0])
    arrays = em_problem((2, 7, 3, 4), False)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"activations.shape=\(2, 6\)"):
        jax.block_until_ready(fused_em("article", 2)(arrays[0], arrays[1][:, :6], *arrays[2:]))
    with pytest.raises(ValueError, match="variant=paper"):
        fused_jax.em_routing(*arrays, [1.0], "paper", FLOOR)


class _Routing(keras.layers.Layer):
    """Dynamic routing to three parents by one of the two modules."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def build(self, shape):
        draw = keras.initializers.RandomNormal(stddev=0.3, seed=1)
        self.matrices = self.add_weight(shape=(shape[1], 3, shape[2], 16), initializer=draw)

    def call(self, poses):
        return reference.length(self.module.dynamic_routing(poses, self.matrices, 3))


def test_training_with_keras_equals_the_reference():
    random = np.random.default_rng(4)
    poses = random.normal(size=(50, 7, 8)).astype("float32")
    targets = np.eye(3, dtype="float32")[random.integers(0, 3, 50)]
    trained, losses = [], []
    for module in (fused_jax, reference):
        model = keras.Sequential([keras.Input((7, 8)), _Routing(module)])
        model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=True)
        history = model.fit(poses, targets, batch_size=13, epochs=3, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
        trained.append(np.asarray(model.layers[0].matrices))
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    np.testing.assert_allclose(trained[0], trained[1], atol=1e-4)
