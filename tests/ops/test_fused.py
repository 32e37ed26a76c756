"""The fused TensorFlow ops: parity with the reference, types, graphs, determinism, SavedModels."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.backend import BACKEND
from tests.conftest import ENVIRONMENT
from tests.fused import fused_fixture  # noqa: F401
from tests.ops.test_routing import SHAPES, problem
from tfinv import ops

if BACKEND != "tensorflow":
    pytest.skip("the ops of TensorFlow", allow_module_level=True)

import tensorflow as tf

from tfinv.ops import em_reference, reference
from tfinv.ops import fused as fused_ops

pytestmark = [
    pytest.mark.usefixtures("fused"),
    # Keras warns of any softmax over one element; one parent is such a case, and a legitimate one.
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis"),
]

# (B, I, J, P), as SHAPES for matrix capsules.
EM_SHAPES = [
    (1, 1, 1, 1),
    (7, 129, 7, 4),
    (3, 1, 5, 2),
    (5, 7, 1, 3),
    (1, 5, 33, 4),
    (129, 3, 2, 5),
    (9, 72, 16, 4),
]
VARIANTS = ops.EM_VARIANTS
# Numbers at which float32 has digits to compare: activations neither 0 nor 1, and no gradient in the hundreds
# because the few children of a parent agree.
FLOOR = 0.1
FINAL = {"hinton2018": 0.4, "article": 0.02}


def em_problem(shape, seed=0):
    """Random poses, activations (some 0 and 1), weights, beta_u, beta_a and bias."""
    batch, children, parents, size = shape
    random = np.random.default_rng(seed)
    poses = random.normal(size=(batch, children, size, size)) / np.sqrt(size)
    activations = random.random((batch, children))
    activations[:, ::5] = np.round(activations[:, ::5])
    # A sample whose children all have the activation 0 has no mass to divide among them.
    activations[:, -1] = 0.7
    weights = random.normal(size=(children, parents, size, size)) / np.sqrt(size)
    return (
        poses,
        activations,
        weights,
        *random.normal(size=(2, parents)),
        random.normal(size=(children, parents)),
    )


def outputs_and_gradients(function, inputs, dtype, seed=1):
    """Outputs of a function and the gradients of a random combination of them by every input, float64."""
    tensors = [tf.constant(value, dtype) for value in inputs]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = tf.nest.flatten(function(*tensors))
        random = np.random.default_rng(seed)
        factors = [random.normal(size=output.shape) for output in outputs]
        score = sum(
            tf.reduce_sum(out * tf.constant(factor, out.dtype))
            for out, factor in zip(outputs, factors, strict=True)
        )
    found = [*outputs, *tape.gradient(score, tensors)]
    return [None if value is None else tf.cast(value, tf.float64).numpy() for value in found]


def assert_parity(actual, expected, tolerance):
    """Compares by the largest element of each array: cancelling sums leave no digits to the small ones."""
    for index, (value, truth) in enumerate(zip(actual, expected, strict=True)):
        assert value.shape == truth.shape, index
        assert np.isfinite(value).all(), index
        scale = np.abs(truth).max(initial=1e-3)
        assert np.abs(value - truth).max(initial=0.0) <= tolerance * scale, index


def em_arguments(iterations, variant, bias):
    final = FINAL[variant]
    temperatures = em_reference.inverse_temperatures(variant, iterations, final)

    def fused(poses, activations, weights, beta_u, beta_a, *rest):
        given = rest[0] if bias else None
        return fused_ops.em_routing(
            poses, activations, weights, beta_u, beta_a, temperatures, variant, FLOOR, given
        )

    def twin(poses, activations, weights, beta_u, beta_a, *rest):
        size = weights.shape[2] ** 2
        given = rest[0] if bias else None
        return em_reference.em_routing(
            poses, activations, weights, beta_u / size, beta_a, iterations, variant, given, final, FLOOR
        )

    return fused, twin


# Parity: outputs and every gradient, against the reference in float64


@pytest.mark.parametrize("shape", [*SHAPES, (100, 65, 2, 8, 16)], ids=str)
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_dynamic_parity(shape, iterations, bias):
    inputs = problem(shape)[: 3 if bias else 2]
    actual = outputs_and_gradients(
        lambda p, w, *b: fused_ops.dynamic_routing(p, w, iterations, *b), inputs, "float32"
    )
    expected = outputs_and_gradients(
        lambda p, w, *b: reference.dynamic_routing(p, w, iterations, *b), inputs, "float64"
    )
    assert_parity(actual, expected, 1e-4)


@pytest.mark.parametrize("shape", EM_SHAPES, ids=str)
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_em_parity(shape, iterations, variant, bias):
    inputs = em_problem(shape)[: 6 if bias else 5]
    fused, twin = em_arguments(iterations, variant, bias)
    expected = outputs_and_gradients(twin, inputs, "float64")
    actual = outputs_and_gradients(fused, inputs, "float32")
    assert_parity(actual, expected, 2e-3)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(bias):
    inputs = problem((0, 7, 5, 3, 4))[: 3 if bias else 2]
    values = outputs_and_gradients(lambda p, w, *b: fused_ops.dynamic_routing(p, w, 3, *b), inputs, "float32")
    assert [value.shape for value in values] == [(0, 5, 4), *(np.shape(value) for value in inputs)]
    assert not any(value.any() for value in values)
    for variant in VARIANTS:
        inputs = em_problem((0, 7, 5, 3))[: 6 if bias else 5]
        values = outputs_and_gradients(em_arguments(2, variant, bias)[0], inputs, "float32")
        assert [value.shape for value in values] == [
            (0, 5, 3, 3),
            (0, 5),
            *(np.shape(value) for value in inputs),
        ]
        assert not any(value.any() for value in values)


def test_beta_u_of_every_shape_reaches_the_op_summed():
    poses, activations, weights, _, beta_a, _ = em_problem((3, 7, 5, 2))
    random = np.random.default_rng(5)
    for shape in ((5,), (5, 4), (5, 2, 2)):
        inputs = poses, activations, weights, random.normal(size=shape), beta_a
        results = [
            outputs_and_gradients(
                lambda *tensors, chosen=chosen: ops.em_routing(
                    *tensors, num_iterations=3, final_inverse_temperature=0.4, implementation=chosen
                ),
                inputs,
                "float32",
            )
            for chosen in ("fused", "reference")
        ]
        assert_parity(*results, 1e-4)


# Types


@pytest.mark.parametrize("dtype, tolerance", [("float16", 5e-3), ("bfloat16", 4e-2), ("float64", 1e-4)])
def test_other_types_are_cast_and_cast_back(dtype, tolerance):
    inputs = [tf.constant(value, dtype) for value in problem((3, 7, 5, 4, 6))]
    routed = ops.dynamic_routing(*inputs[:2], 3, inputs[2], implementation="fused")
    assert routed.dtype == dtype
    actual = outputs_and_gradients(lambda p, w, b: fused_ops.dynamic_routing(p, w, 3, b), inputs, dtype)
    # In float64 from the same rounded inputs.
    inputs = [tf.cast(value, "float64").numpy() for value in inputs]
    expected = outputs_and_gradients(lambda p, w, b: reference.dynamic_routing(p, w, 3, b), inputs, "float64")
    assert_parity(actual, expected, tolerance)

    inputs = [tf.constant(value, dtype) for value in em_problem((3, 7, 5, 4))]
    poses, activations = ops.em_routing(*inputs[:5], implementation="fused")
    assert poses.dtype == activations.dtype == dtype
    fused, twin = em_arguments(2, "hinton2018", True)
    actual = outputs_and_gradients(fused, inputs, dtype)
    inputs = [tf.cast(value, "float64").numpy() for value in inputs]
    assert_parity(actual, outputs_and_gradients(twin, inputs, "float64"), tolerance)


def test_auto_leaves_double_precision_to_the_reference():
    poses, weights, _ = (tf.constant(value) for value in problem((3, 7, 5, 4, 6)))
    exact = reference.dynamic_routing(poses, weights)
    np.testing.assert_array_equal(ops.dynamic_routing(poses, weights), exact)
    single = ops.dynamic_routing(poses, weights, implementation="fused")
    assert 0.0 < np.abs(single - exact).max() < 1e-5
    inputs = [tf.constant(value) for value in em_problem((3, 7, 5, 4))[:5]]
    np.testing.assert_array_equal(ops.em_routing(*inputs)[0], em_reference.em_routing(*inputs)[0])


def test_auto_takes_the_fused_op():
    poses, weights, _ = (tf.constant(value, tf.float32) for value in problem((3, 7, 5, 4, 6)))
    traced = tf.function(lambda p: ops.dynamic_routing(p, weights)).get_concrete_function(poses)
    assert "Tfinv>DynamicRouting" in {node.type for node in traced.graph.get_operations()}
    poses, activations, weights, beta_u, beta_a, _ = (
        tf.constant(v, tf.float32) for v in em_problem((3, 7, 5, 4))
    )
    traced = tf.function(
        lambda p: ops.em_routing(p, activations, weights, beta_u, beta_a)
    ).get_concrete_function(poses)
    assert "Tfinv>EmRouting" in {node.type for node in traced.graph.get_operations()}


def test_symbolic_inputs_of_keras_are_left_to_the_reference():
    weights = tf.constant(problem((3, 7, 5, 4, 6))[1], tf.float32)
    inputs = keras.Input((7, 4))
    model = keras.Model(inputs, ops.dynamic_routing(inputs, weights))
    poses = problem((3, 7, 5, 4, 6))[0].astype(np.float32)
    np.testing.assert_allclose(model(poses), ops.dynamic_routing(tf.constant(poses), weights), atol=1e-6)


# Graphs


def spec(*shape):
    return tf.TensorSpec(shape, tf.float32)


def test_public_function_takes_sizes_that_are_not_known_yet():
    random = np.random.default_rng(0)
    poses, weights = random.normal(size=(2, 7, 4)), random.normal(size=(7, 5, 4, 6))
    given = [tf.constant(values, tf.float32) for values in (poses, weights, np.zeros((7, 5)))]
    signature = [spec(None, 7, 4), spec(None, None, None, None), spec(None, None)]

    @tf.function(input_signature=signature)
    def routed(poses, weights, bias):
        return ops.dynamic_routing(poses, weights, 3, bias, implementation="fused")

    expected = ops.dynamic_routing(*given[:2], 3, implementation="reference")
    np.testing.assert_allclose(routed(*given), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"weights of known sizes.*\(None, None, None, None\)"):
        tf.function(
            lambda poses, weights: ops.dynamic_routing(poses, weights, implementation="reference"),
            input_signature=signature[:2],
        ).get_concrete_function()
    with pytest.raises(ValueError, match="must agree in I and K"):
        tf.function(
            lambda poses, weights: ops.dynamic_routing(poses, weights, implementation="fused"),
            input_signature=[spec(None, 7, 4), spec(8, None, None, None)],
        ).get_concrete_function()


def test_shapes_are_inferred_from_whatever_is_known():
    @tf.function(input_signature=[spec(None, None, 4), spec(7, None, None, 6), spec(None, 5)])
    def with_bias(poses, weights, bias):
        return fused_ops.dynamic_routing(poses, weights, 3, bias)

    graph = with_bias.get_concrete_function()
    assert graph.output_shapes.as_list() == [None, None, 6]

    @tf.function(input_signature=[spec(None, None, 4), spec(7, None, None, 6), spec(7, 5)])
    def gradients(poses, weights, bias):
        with tf.GradientTape() as tape:
            tape.watch([poses, weights, bias])
            routed = fused_ops.dynamic_routing(poses, weights, 2, bias)
            assert routed.shape.as_list() == [None, 5, 6]
        return tape.gradient(routed, [poses, weights, bias])

    shapes = [shape.as_list() for shape in gradients.get_concrete_function().output_shapes]
    assert shapes == [[None, 7, 4], [7, 5, 4, 6], [7, 5]]

    @tf.function(
        input_signature=[spec(None, None, 4, None), spec(3, None), spec(7, None, None, None), spec(5)]
    )
    def em(poses, activations, weights, beta):
        return fused_ops.em_routing(poses, activations, weights, beta, beta, [0.1], "article", 1e-3)

    assert [shape.as_list() for shape in em.get_concrete_function().output_shapes] == [[3, 5, 4, 4], [3, 5]]


def test_one_graph_takes_any_batch_size():
    weights = tf.constant(problem((1, 7, 5, 4, 6))[1], tf.float32)

    @tf.function(input_signature=[spec(None, None, None)])
    def value_and_gradient(poses):
        with tf.GradientTape() as tape:
            tape.watch(poses)
            routed = ops.dynamic_routing(poses, weights)
            score = tf.reduce_sum(routed**2)
        return routed, tape.gradient(score, poses)

    for batch in (1, 0, 33, 7):
        poses = tf.constant(problem((batch, 7, 5, 4, 6))[0], tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(poses)
            expected = reference.dynamic_routing(poses, weights)
            score = tf.reduce_sum(expected**2)
        routed, gradient = value_and_gradient(poses)
        np.testing.assert_allclose(routed, expected, atol=1e-5)
        np.testing.assert_allclose(gradient, tape.gradient(score, poses), atol=1e-4)
    assert value_and_gradient.experimental_get_tracing_count() == 1


def test_a_second_derivative_is_refused_by_name():
    poses, weights, _ = (tf.constant(value, tf.float32) for value in problem((3, 7, 5, 4, 6)))
    with tf.GradientTape() as outer:
        outer.watch(poses)
        with tf.GradientTape() as inner:
            inner.watch(poses)
            score = tf.reduce_sum(fused_ops.dynamic_routing(poses, weights))
        gradient = inner.gradient(score, poses)
    with pytest.raises(LookupError, match="Tfinv>DynamicRoutingGrad"):
        outer.gradient(gradient, poses)


# Determinism

DIGEST = """
import hashlib, sys
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from tests.ops.test_fused import em_arguments, em_problem, fused_ops, outputs_and_gradients, problem
found = outputs_and_gradients(
    lambda p, w, b: fused_ops.dynamic_routing(p, w, 3, b), problem((37, 129, 10, 8, 16)), "float32")
found += outputs_and_gradients(em_arguments(3, "hinton2018", True)[0], em_problem((37, 72, 16, 4)), "float32")
print(hashlib.sha256(b"".join(value.tobytes() for value in found)).hexdigest())
"""


def test_the_same_bits_twice():
    inputs = problem((37, 129, 10, 8, 16))
    em_inputs = em_problem((37, 72, 16, 4))
    runs = [
        outputs_and_gradients(lambda p, w, b: fused_ops.dynamic_routing(p, w, 3, b), inputs, "float32")
        + outputs_and_gradients(em_arguments(3, "hinton2018", True)[0], em_inputs, "float32")
        for _ in range(3)
    ]
    for other in runs[1:]:
        for first, second in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_the_same_bits_with_any_number_of_threads():
    digests = {output_of(DIGEST, threads)[-1] for threads in (1, 2, 5)}
    assert len(digests) == 1 and re.fullmatch("[0-9a-f]{64}", digests.pop())


def output_of(script, *arguments):
    """Lines that a Python process prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    finished = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


# The library and SavedModels


def test_build_info_tells_what_runs(fused):
    assert fused.available and fused.binding == "tensorflow" and fused.reason == ""
    assert fused.framework == tf.__version__
    assert fused.isa in fused.isas and "baseline" in fused.isas
    assert bool(fused.cuda) == bool(fused.cuda_architectures)
    assert os.path.isfile(fused.library)
    assert ops.resolve_implementation("auto") == ops.resolve_implementation("fused") == "fused"


LOAD = """
import sys
import numpy as np, tensorflow as tf
if sys.argv[2] == "with":
    from tfinv.ops import fused
    fused.load()
try:
    module = tf.saved_model.load(sys.argv[1])
except RuntimeError as error:
    print("Tfinv>DynamicRouting" in str(error))
    sys.exit()
poses = tf.constant(np.load(sys.argv[1] + "/poses.npy"))
with tf.GradientTape() as tape:
    tape.watch(poses)
    routed = module.route(poses)
    score = tf.reduce_sum(routed ** 2)
np.savez(sys.argv[1] + "/found.npz", routed=routed, gradient=tape.gradient(score, poses))
print("routed")
"""


@pytest.mark.slow
def test_a_saved_model_with_the_op_runs_and_trains_where_the_library_is_loaded(tmp_path):
    poses, weights, _ = (tf.constant(value, tf.float32) for value in problem((3, 7, 5, 4, 6)))
    module = tf.Module()
    module.weights = tf.Variable(weights)
    module.route = tf.function(
        lambda p: ops.dynamic_routing(p, tf.convert_to_tensor(module.weights), implementation="fused"),
        input_signature=[spec(None, 7, 4)],
    )
    with tf.GradientTape() as tape:
        tape.watch(poses)
        routed = module.route(poses)
        score = tf.reduce_sum(routed**2)
    folder = tmp_path / "saved"
    tf.saved_model.save(module, str(folder))
    np.save(folder / "poses.npy", poses)
    assert output_of(LOAD, folder, "without") == ["True"]
    assert output_of(LOAD, folder, "with")[-1] == "routed"
    found = np.load(folder / "found.npz")
    np.testing.assert_allclose(found["routed"], routed, atol=1e-6)
    np.testing.assert_allclose(found["gradient"], tape.gradient(score, poses), atol=1e-6)
