"""The layers of Efficient-CapsNet: what they compute, their weights and errors; conformance is elsewhere."""

import keras
import numpy as np
import pytest

from tests.backend import array, tensor
from tfinv import layers
from tfinv.ops import self_attention_routing

RANDOM = np.random.default_rng(0)
MAPS = RANDOM.normal(size=(4, 5, 3, 6)).astype(np.float32)
POSES = RANDOM.normal(size=(4, 6, 3)).astype(np.float32)


def test_depthwise_primary_capsules_weigh_each_map_by_itself():
    layer = layers.DepthwisePrimaryCapsules(2)
    layer.build(MAPS.shape)
    kernel, bias = RANDOM.normal(size=(5, 3, 6, 1)), RANDOM.normal(size=6)
    layer.set_weights([kernel, bias])
    sums = np.stack([(MAPS[..., c] * kernel[..., c, 0]).sum(axis=(1, 2)) + bias[c] for c in range(6)], axis=1)
    poses = sums.reshape(4, 3, 2)
    norms = np.linalg.norm(poses, axis=-1, keepdims=True)
    expected = (1.0 - np.exp(-norms)) * poses / norms
    np.testing.assert_allclose(array(layer(tensor(MAPS))), expected, rtol=1e-4, atol=1e-6)


def test_depthwise_primary_capsules_start_as_a_depthwise_convolution():
    layer = layers.DepthwisePrimaryCapsules(8)
    layer.build((None, 9, 9, 128))
    kernel, bias = layer.get_weights()
    limit = np.sqrt(6.0 / (81 + 81 * 128))  # Glorot's rule for a kernel [9, 9, 128, 1]
    assert 0.99 * limit < np.abs(kernel).max() <= limit and not bias.any()


@pytest.mark.parametrize("shape", [(None, 9, 9, 12), (None, None, 9, 16), (None, 9, None, 16)])
def test_depthwise_primary_capsules_errors(shape):
    with pytest.raises(ValueError, match=r"known size.*multiple of pose_dim=8.*input_shape=\(None, "):
        layers.DepthwisePrimaryCapsules(8).build(shape)


@pytest.mark.parametrize("use_bias", [True, False])
def test_self_attention_capsules_route_with_their_kernel_and_bias(use_bias):
    layer = layers.SelfAttentionCapsules(5, 4, use_bias)
    layer.build(POSES.shape)
    kernel = tensor(RANDOM.normal(size=(6, 5, 3, 4)))
    bias = tensor(RANDOM.normal(size=(6, 5))) if use_bias else None
    layer.set_weights([array(kernel), array(bias)] if use_bias else [array(kernel)])
    expected = self_attention_routing(tensor(POSES), kernel, bias)
    np.testing.assert_allclose(array(layer(tensor(POSES))), array(expected), atol=1e-6)


def test_self_attention_capsules_weights_and_penalty():
    layer = layers.SelfAttentionCapsules(20, 30, kernel_regularizer=keras.regularizers.L2(0.02))
    layer.build((None, 40, 10))
    kernel, bias = layer.get_weights()
    # A normal of deviation 0.1, cut at two deviations, keeps .88 of its deviation.
    assert kernel.shape == (40, 20, 10, 30) and kernel.std() == pytest.approx(0.088, rel=0.02)
    assert bias.shape == (40, 20) and not bias.any()
    assert [float(array(loss)) for loss in layer.losses] == pytest.approx(
        [0.02 * np.sum(kernel**2)], rel=1e-4
    )


def test_self_attention_capsules_errors():
    with pytest.raises(ValueError, match=r"known number.*input_shape=\(None, None, 3\)"):
        layers.SelfAttentionCapsules(5, 4).build((None, None, 3))
    for name, arguments in (
        ("SelfAttentionCapsules", dict(num_capsules=0, pose_dim=4)),
        ("SelfAttentionCapsules", dict(num_capsules=5, pose_dim=0)),
        ("DepthwisePrimaryCapsules", dict(pose_dim=0)),
    ):
        with pytest.raises(ValueError, match=r"at least 1.*=0"):
            getattr(layers, name)(**arguments)
