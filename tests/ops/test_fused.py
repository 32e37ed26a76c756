"""The fused TensorFlow ops: parity with the reference, types, graphs, errors, determinism, SavedModels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.backend import BACKEND
from tests.conftest import ENVIRONMENT
from tests.fused import fused_fixture  # noqa: F401
from tests.ops.test_routing import SHAPES, problem
from tfinv import ops
from tfinv.errors import UsageError

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


# Errors

DYNAMIC_ERRORS = [
    (dict(poses=(3, 7)), r"poses.*\[B, I, K\].*poses.shape=\[3,7\]"),
    (dict(weights=(7, 5, 4)), r"weights.*\[I, J, K, D\].*weights.shape=\[7,5,4\]"),
    (dict(poses=(3, 8, 4)), r"agree in I and K.*poses.shape=\[3,8,4\].*weights.shape=\[7,5,4,6\]"),
    (dict(poses=(3, 7, 2)), r"agree in I and K.*poses.shape=\[3,7,2\].*weights.shape=\[7,5,4,6\]"),
    (dict(bias=(5, 7)), r"bias.*\[I, J\] = \[7,5\].*bias.shape=\[5,7\]"),
    (dict(bias=(0, 5)), r"bias.*\[I, J\] = \[7,5\].*bias.shape=\[0,5\]"),
    (dict(weights=(7, 0, 4, 6)), r"weights.*each at least 1.*weights.shape=\[7,0,4,6\]"),
]
EM_ERRORS = [
    (dict(poses=(3, 7, 16)), r"poses.*\[B, I, P, P\].*poses.shape=\[3,7,16\]"),
    (dict(poses=(3, 7, 4, 3)), r"agree in I and P.*poses.shape=\[3,7,4,3\].*weights.shape=\[7,5,4,4\]"),
    (dict(weights=(7, 5, 4, 3)), r"agree in I and P.*weights.shape=\[7,5,4,3\]"),
    (dict(activations=(3, 8)), r"activations.*\[B, I\] = \[3,7\].*activations.shape=\[3,8\]"),
    (dict(activations=(2, 7)), r"activations.*\[B, I\] = \[3,7\].*activations.shape=\[2,7\]"),
    (dict(beta_u=(4,)), r"beta_u.*\[J\] = \[5\].*beta_u.shape=\[4\]"),
    (dict(beta_a=(5, 1)), r"beta_a.*\[J\] = \[5\].*beta_a.shape=\[5,1\]"),
    (dict(bias=(7, 6)), r"bias.*\[I, J\] = \[7,5\].*bias.shape=\[7,6\]"),
    (dict(weights=(0, 5, 4, 4)), r"weights.*each at least 1.*weights.shape=\[0,5,4,4\]"),
]


def dynamic_call(poses, weights, bias):
    return fused_ops.dynamic_routing(poses, weights, 2, bias)


def em_call(poses, activations, weights, beta_u, beta_a, bias):
    return fused_ops.em_routing(poses, activations, weights, beta_u, beta_a, [0.1], "article", 1e-3, bias)


@pytest.mark.parametrize(
    "function, shapes, expected",
    [
        *(
            (dynamic_call, dict(poses=(3, 7, 4), weights=(7, 5, 4, 6), bias=(7, 5)) | wrong, text)
            for wrong, text in DYNAMIC_ERRORS
        ),
        *(
            (
                em_call,
                dict(
                    poses=(3, 7, 4, 4),
                    activations=(3, 7),
                    weights=(7, 5, 4, 4),
                    beta_u=(5,),
                    beta_a=(5,),
                    bias=(7, 5),
                )
                | wrong,
                text,
            )
            for wrong, text in EM_ERRORS
        ),
    ],
)
def test_wrong_shapes_are_named(function, shapes, expected):
    arrays = [tf.zeros(shape) for shape in shapes.values()]
    with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
        function(*arrays)
    # A graph that knows no shape finds them when it runs.
    unknown = tf.function(function, input_signature=[tf.TensorSpec(None, tf.float32)] * len(arrays))
    with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
        unknown(*arrays)
    # One that knows them is not even made, unless only the sizes are wrong.
    if "at least 1" not in expected and (0, 5) not in shapes.values():
        with pytest.raises(ValueError, match=r"[Dd]imension|[Ss]hape"):
            tf.function(function).get_concrete_function(*arrays)


def test_wrong_numbers_are_refused():
    poses, weights = tf.zeros((3, 7, 4)), tf.zeros((7, 5, 4, 6))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="iterations"):
        fused_ops.dynamic_routing(poses, weights, 0)
    inputs = [tf.constant(value, tf.float32) for value in em_problem((3, 7, 5, 4))[:5]]
    for temperatures, variant, floor, text in (
        ([0.1], "matrix", 1e-3, "matrix"),
        ([], "article", 1e-3, "inverse_temperatures"),
        ([0.1], "article", 0.0, r"above 0.*variance_floor=0"),
    ):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=text):
            fused_ops.em_routing(*inputs, temperatures, variant, floor)


def test_gradient_ops_check_what_they_are_given():
    module = fused_ops._ops()
    poses, weights, bias = tf.zeros((3, 7, 4)), tf.zeros((7, 5, 4, 6)), tf.zeros((0, 0))
    for sums, doutputs, text in (
        ((1, 3, 5, 6), (3, 5, 6), r"sums.*\[R, B, J, D\] = \[2,3,5,6\].*sums.shape=\[1,3,5,6\]"),
        ((2, 3, 5, 6), (3, 6, 5), r"doutputs.*\[B, J, D\] = \[3,5,6\].*doutputs.shape=\[3,6,5\]"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=text):
            module.tfinv_dynamic_routing_grad(
                poses, weights, bias, tf.zeros(sums), tf.zeros(doutputs), iterations=2
            )
    inputs = [tf.zeros(shape) for shape in ((3, 7, 4, 4), (3, 7), (7, 5, 4, 4), (5,), (5,), (0, 0))]
    right = {"statistics": (2, 3, 5, 33), "doutputs": (3, 5, 4, 4), "doutput_activations": (3, 5)}
    for name in right:
        shapes = right | {name: (1, *right[name])}
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"{name}.*{name}.shape=\[1,"):
            module.tfinv_em_routing_grad(
                *inputs,
                *(tf.zeros(shape) for shape in shapes.values()),
                em_variant="article",
                inverse_temperatures=[0.1, 0.1],
                variance_floor=1e-3,
            )


OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@pytest.mark.skipif(
    not OVERCOMMIT.exists() or OVERCOMMIT.read_text().strip() == "1", reason="the system promises any memory"
)
def test_lack_of_memory_fails_the_op_and_not_the_process():
    children = parents = 4000
    iterations = 300  # whose couplings take 300 GB
    zeros = tf.zeros
    with pytest.raises(tf.errors.ResourceExhaustedError, match="Out of memory in a routing op"):
        fused_ops._ops().tfinv_em_routing_grad(
            *(zeros((1, children, 1, 1)), zeros((1, children)), zeros((children, parents, 1, 1))),
            *(zeros(parents), zeros(parents), zeros((0, 0)), zeros((iterations, 1, parents, 3))),
            *(zeros((1, parents, 1, 1)), zeros((1, parents))),
            em_variant="hinton2018",
            inverse_temperatures=[1.0] * iterations,
            variance_floor=1e-4,
        )


def test_votes_are_never_for_the_fused_op():
    for call in (
        lambda: ops.dynamic_routing_from_votes(tf.zeros((3, 7, 5, 6)), implementation="fused"),
        lambda: ops.em_routing_from_votes(
            tf.zeros((3, 7, 5, 16)), tf.zeros((3, 7)), tf.zeros(5), tf.zeros(5), implementation="fused"
        ),
    ):
        with pytest.raises(UsageError, match=r"never forms votes.*implementation=fused"):
            call()


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
