"""What the fused TensorFlow ops refuse, and how they say so."""

from pathlib import Path

import pytest

from tests.backend import BACKEND
from tests.fused import fused_fixture  # noqa: F401
from tfinv import ops
from tfinv.errors import UsageError

if BACKEND != "tensorflow":
    pytest.skip("the ops of TensorFlow", allow_module_level=True)

import tensorflow as tf

from tests.ops.test_fused import em_problem
from tfinv.ops import fused as fused_ops

pytestmark = [
    pytest.mark.usefixtures("fused"),
    # Keras warns of any softmax over one element; one parent is such a case, and a legitimate one.
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis"),
]

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
