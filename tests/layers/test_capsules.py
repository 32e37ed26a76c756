"""What the layers of vector capsules compute, and their readout; their conformance is in test_every_layer."""

import keras
import numpy as np
import pytest

from tests.backend import array, tensor
from tests.layers.test_every_layer import LABELS, MAPS, POSES, call, symbolic_model
from tfinv import layers
from tfinv.ops import dynamic_routing

# PrimaryCapsules


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel_size, strides", [(1, 1), (3, 2), (4, 3)])
def test_primary_capsules_count_follows_the_formula(padding, kernel_size, strides):
    layer = layers.PrimaryCapsules(3, 4, kernel_size, strides, padding)
    height, width = MAPS.shape[1:3]
    if padding == "valid":
        height, width = height - kernel_size + 1, width - kernel_size + 1
    positions = -(-height // strides) * -(-width // strides)
    assert tuple(call(layer, [MAPS]).shape) == (4, positions * 3, 4)
    assert layer.compute_output_shape((None, *MAPS.shape[1:])) == (None, positions * 3, 4)


def test_primary_capsules_are_squashed_convolutions_position_by_position():
    layer = layers.PrimaryCapsules(3, 4, kernel_size=3, strides=2)
    poses = array(call(layer, [MAPS]))
    kernel, bias = layer.get_weights()
    assert kernel.shape == (3, 3, 2, 12)
    index = 0
    for row in range(0, 9 - 2, 2):
        for column in range(0, 7 - 2, 2):
            patch = MAPS[:, row : row + 3, column : column + 3]
            sums = (np.einsum("bhwc,hwcf->bf", patch, kernel) + bias).reshape(4, 3, 4)
            norms = np.linalg.norm(sums, axis=-1, keepdims=True)
            expected = sums * norms / (1 + norms**2)
            np.testing.assert_allclose(poses[:, index : index + 3], expected, atol=1e-6)
            index += 3
    assert index == poses.shape[1]


def test_primary_capsules_take_images_of_unknown_size():
    layer = layers.PrimaryCapsules(3, 4, kernel_size=3)
    assert layer.compute_output_shape((None, None, 7, 2)) == (None, None, 4)
    model = symbolic_model(layer, [MAPS], [(None, None, 2)])
    assert tuple(model.output.shape) == (None, None, 4)
    expected = array(call(layer, [MAPS]))
    np.testing.assert_allclose(model.predict(MAPS, verbose=0), expected, atol=1e-6)
    assert model.predict(MAPS[:1, :5, :3], verbose=0).shape == (1, 2 * 1 * 3, 4)


# RoutingCapsules


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_routing_capsules_route_with_their_kernel_and_bias(iterations):
    layer = layers.RoutingCapsules(5, 4, iterations, use_bias=True)
    layer.build(POSES.shape)
    kernel = np.random.default_rng(1).normal(size=(6, 5, 3, 4))
    bias = np.random.default_rng(2).normal(size=(6, 5))
    layer.set_weights([kernel, bias])
    expected = dynamic_routing(tensor(POSES), tensor(kernel), iterations, tensor(bias))
    np.testing.assert_allclose(array(call(layer, [POSES])), array(expected), atol=1e-6)


def test_routing_capsules_weights_and_initializers():
    layer = layers.RoutingCapsules(20, 30, use_bias=True)
    layer.build((None, 40, 10))
    kernel, bias = layer.get_weights()
    assert kernel.shape == (40, 20, 10, 30) and bias.shape == (40, 20)
    # A normal of deviation 0.1, cut at two deviations, keeps .88 of its deviation.
    assert kernel.std() == pytest.approx(0.088, rel=0.02)
    # Keras on torch lets one in 200,000 escape the cut; an uncut normal has one in 22 outside.
    assert np.mean(np.abs(kernel) <= 0.2 + 1e-6) > 0.9999
    assert not bias.any()
    layer = layers.RoutingCapsules(2, 3, kernel_initializer="ones")
    layer.build((None, 4, 5))
    (kernel,) = layer.get_weights()
    assert (kernel == 1.0).all()


def test_routing_capsules_regularizer_counts_in_the_losses():
    layer = layers.RoutingCapsules(5, 4, kernel_regularizer=keras.regularizers.L2(0.02))
    model = symbolic_model(layer, [POSES])
    (kernel,) = layer.get_weights()
    assert [float(array(loss)) for loss in model.losses] == pytest.approx(
        [0.02 * np.sum(kernel**2)], rel=1e-5
    )


def test_routing_capsules_errors():
    with pytest.raises(ValueError, match=r"known number.*input_shape=\(None, None, 3\)"):
        layers.RoutingCapsules(5, 4).build((None, None, 3))
    with pytest.raises(ValueError, match=r"'fused'.*implementation=quick"):
        layers.RoutingCapsules(5, 4, implementation="quick")


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("RoutingCapsules", dict(num_capsules=0, pose_dim=4)),
        ("RoutingCapsules", dict(num_capsules=5, pose_dim=0)),
        ("RoutingCapsules", dict(num_capsules=5, pose_dim=4, num_iterations=0)),
        ("PrimaryCapsules", dict(channels=0)),
        ("PrimaryCapsules", dict(pose_dim=-1)),
    ],
)
def test_sizes_below_one_are_refused(name, arguments):
    wrong = next(f"{key}={value}" for key, value in arguments.items() if value < 1)
    with pytest.raises(ValueError, match=f"at least 1.*{wrong}"):
        getattr(layers, name)(**arguments)


# Readout


def test_length_and_squash_values():
    vectors = np.array([[[3.0, 4.0], [0.0, 0.0]]], np.float32)
    np.testing.assert_allclose(array(layers.Length()(vectors)), [[5.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(array(layers.Squash()(vectors)), [[[15 / 26, 20 / 26], [0.0, 0.0]]], rtol=1e-6)


def test_class_mask_keeps_the_longest_capsule():
    poses = np.array(
        [[[1.0, 0.0], [0.0, -2.0], [1.0, 1.0]], [[3.0, 0.0], [2.0, 2.0], [0.0, 0.0]]], np.float32
    )
    masked = array(layers.ClassMask()(poses))
    np.testing.assert_array_equal(masked, [[0, 0, 0, -2, 0, 0], [3, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_class_mask_keeps_one_capsule_of_a_tie(value):
    masked = array(layers.ClassMask()(np.full((3, 4, 2), value, np.float32))).reshape(3, 4, 2)
    np.testing.assert_array_equal(masked.sum(axis=(1, 2)), np.full(3, 2 * value))


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS[:, None], LABELS.astype(np.int64)], ids=["B", "B1", "int64"]
)
def test_class_mask_keeps_the_capsule_of_the_label(labels):
    masked = array(layers.ClassMask()([POSES, labels]))
    expected = np.zeros_like(POSES)
    for sample, label in enumerate(LABELS):
        expected[sample, label] = POSES[sample, label]
    np.testing.assert_array_equal(masked, expected.reshape(4, 18))
