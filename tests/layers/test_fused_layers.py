"""Layers on the fused TensorFlow op: XLA, fit, replicas, mixed precision, saving and Keras's own export."""

import keras
import numpy as np
import pytest

from tests.backend import BACKEND
from tests.fused import fused_fixture  # noqa: F401
from tests.ops.test_fused import output_of
from tfinv.layers import Length, RoutingCapsules
from tfinv.losses import MarginLoss

if BACKEND != "tensorflow":
    pytest.skip("the op of TensorFlow", allow_module_level=True)

import tensorflow as tf

pytestmark = pytest.mark.usefixtures("fused")

OP = "Tfinv>DynamicRouting"


def data(count=37):
    random = np.random.default_rng(0)
    return random.normal(size=(count, 12, 4)).astype(np.float32), random.integers(0, 5, count)


def capsules(implementation, dtype=None, **options):
    """A classifier of poses [B, 12, 4] with the same weights whatever the implementation."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 4))
    hidden = RoutingCapsules(7, 6, implementation=implementation, use_bias=True, dtype=dtype)(inputs)
    poses = RoutingCapsules(5, 3, implementation=implementation, dtype=dtype, name="routed")(hidden)
    model = keras.Model(inputs, Length(dtype="float32")(poses))
    model.compile(keras.optimizers.Adam(0.01), MarginLoss(), **options)
    return model


def ops_of(function, *arguments):
    """Types of all operations in the graph of a function and of what it calls."""
    graph = tf.function(function).get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(node for called in graph.library.function for node in called.node_def)]
    return {node.op for node in nodes}


def test_layer_is_kept_from_xla_only_where_it_runs_the_op():
    fused, auto, reference = (capsules(name) for name in ("fused", "auto", "reference"))
    for model in (fused, auto):
        assert not model.get_layer("routed").supports_jit
        assert OP in ops_of(model, tf.TensorSpec((None, 12, 4)))
    assert reference.get_layer("routed").supports_jit
    assert OP not in ops_of(reference, tf.TensorSpec((None, 12, 4)))


def test_keras_compiles_no_model_with_the_op_by_itself(monkeypatch):
    class Accelerator:
        device_type = "GPU"

    # Where there is one, Keras chooses XLA for the models whose layers all support it.
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [Accelerator()])
    for implementation in ("reference", "fused", "auto"):
        unbuilt = keras.Sequential([RoutingCapsules(3, 4, implementation=implementation), Length()])
        unbuilt.compile("sgd", MarginLoss())
        for model in (capsules(implementation), unbuilt):
            assert model.jit_compile == (implementation == "reference")


def test_double_precision_stays_with_the_reference():
    model = capsules("auto", dtype="float64")
    assert OP not in ops_of(model, tf.TensorSpec((None, 12, 4)))
    assert model.get_layer("routed").supports_jit


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_fit_learns_as_with_the_reference(eager):
    histories, weights = [], []
    for implementation in ("fused", "reference"):
        model = capsules(implementation, run_eagerly=eager)
        history = model.fit(*data(), batch_size=10, epochs=3, shuffle=False, verbose=0)
        histories.append(history.history["loss"])
        weights.append(model.get_weights())
    np.testing.assert_allclose(*histories, rtol=1e-4)
    assert histories[0][-1] < histories[0][0]
    for fused, reference in zip(*weights, strict=True):
        np.testing.assert_allclose(fused, reference, atol=1e-3)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_fit_under_mixed_precision(policy):
    losses = []
    for implementation in ("fused", "reference"):
        model = capsules(implementation, dtype=policy)
        routed = model.get_layer("routed")
        assert routed.compute_dtype == policy.removeprefix("mixed_")
        assert routed(np.ones((2, 7, 6), np.float32)).dtype == routed.compute_dtype
        history = model.fit(*data(), batch_size=10, epochs=3, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
        assert all(np.isfinite(value).all() for value in model.get_weights())
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert losses[0][-1] < losses[0][0]


REPLICAS = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.layers.test_fused_layers import OP, capsules, data, ops_of
strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
losses = []
for scope in (strategy.scope(), None):
    if scope is None:
        model = capsules("fused")
    else:
        with scope:
            model = capsules("fused")
    losses.append(model.fit(*data(40), batch_size=10, epochs=3, shuffle=False, verbose=0).history["loss"])
assert OP in ops_of(model, tf.TensorSpec((None, 12, 4)))
assert strategy.num_replicas_in_sync == 2
np.testing.assert_allclose(*losses, rtol=1e-4)
print("equal")
"""


@pytest.mark.slow
def test_two_replicas_learn_as_one():
    assert output_of(REPLICAS)[-1] == "equal"


def test_saved_and_loaded_model_runs_the_op(tmp_path):
    model = capsules("fused")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert OP in ops_of(loaded, tf.TensorSpec((None, 12, 4)))
    np.testing.assert_array_equal(loaded.predict(data()[0], verbose=0), model.predict(data()[0], verbose=0))


def test_export_of_keras_keeps_the_op_and_its_gradient(tmp_path):
    model = capsules("fused")
    model.export(tmp_path / "export", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "export"))
    assert OP in ops_of(loaded.serve, tf.TensorSpec((None, 12, 4)))
    gradients = []
    for function in (loaded.serve, model):
        poses = tf.constant(data()[0])
        with tf.GradientTape() as tape:
            tape.watch(poses)
            scores = function(poses)
            score = tf.reduce_sum(scores**2)
        gradients.append((scores, tape.gradient(score, poses)))
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
