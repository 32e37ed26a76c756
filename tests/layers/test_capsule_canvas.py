"""Capsules drawn on a map: values against plain loops, gradients, and what falls outside."""

import numpy as np
import pytest
from keras import ops

from tests.backend import BACKEND, array, double_precision, gradients, numerical_gradients, tensor
from tfinv import layers

RANDOM = np.random.default_rng(0)


def reference(size, positions, activations):
    """The same cell by cell, in float64."""
    height, width = size
    maps = np.zeros((len(positions), height, width, activations.shape[-1]))
    for n, k, i, j in np.ndindex(*positions.shape[:2], height, width):
        row, column = positions[n, k, 0] + (height - 1) / 2, positions[n, k, 1] + (width - 1) / 2
        weight = max(0.0, 1 - abs(i - row)) * max(0.0, 1 - abs(j - column))
        maps[n, i, j] += weight * activations[n, k]
    return maps


def case(batch, capsules, channels, spread):
    positions = RANDOM.normal(size=(batch, capsules, 2)) * spread
    return positions, RANDOM.normal(size=(batch, capsules, channels))


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (4, 9), (17, 2)])
@pytest.mark.parametrize("batch, capsules, channels", [(1, 1, 1), (3, 7, 5), (2, 129, 3)])
def test_draws_bilinearly_within_the_map_and_nothing_beyond(size, batch, capsules, channels):
    positions, activations = case(batch, capsules, channels, max(size))
    layer = layers.CapsuleCanvas(size)
    found = array(layer([tensor(positions), tensor(activations)]))
    np.testing.assert_allclose(found, reference(size, positions, activations), atol=1e-4)


@pytest.mark.parametrize("size", [(5, 4), (3, 6)])
def test_gradients_are_those_of_finite_differences(size):
    positions, activations = case(2, 9, 3, 2.0)
    factors = RANDOM.normal(size=(2, *size, 3))
    with double_precision() as dtype:
        layer = layers.CapsuleCanvas(size, dtype=dtype)
        found = gradients(
            lambda *inputs: ops.sum(layer(list(inputs)) * tensor(factors, dtype)),
            positions,
            activations,
            dtype=dtype,
        )
    wanted = numerical_gradients(
        lambda *inputs: (reference(size, *inputs) * factors).sum(), positions, activations
    )
    tolerance = 1e-6 if dtype == "float64" else 1e-4
    for gradient, want in zip(found, wanted, strict=True):
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(gradient, want, rtol=tolerance, atol=tolerance)


def test_at_whole_numbers_the_gradient_is_that_towards_the_next_cell():
    layer, ramp = layers.CapsuleCanvas((5, 3)), np.arange(5.0).reshape(5, 1, 1) ** 2

    def drawn_on_ramp(positions):
        return ops.sum(layer([positions, ops.ones((1, 1, 1))]) * tensor(ramp))

    for row, slope in ((-2, 1.0), (0, 5.0), (1, 7.0)):
        (found,) = gradients(drawn_on_ramp, np.array([[[row, 0.0]]]))
        np.testing.assert_allclose(found, [[[slope, 0.0]]], atol=1e-6)


@pytest.mark.parametrize("position", [(-3.0, 0.0), (0.0, 2.5), (1e9, 0.0), (-1e30, 1e30)])
def test_a_capsule_a_cell_beyond_the_edge_draws_nothing(position):
    layer = layers.CapsuleCanvas((5, 4))
    positions, activations = np.array([[position]]), np.ones((1, 1, 2))
    assert not array(layer([tensor(positions), tensor(activations)])).any()
    found = gradients(lambda *inputs: ops.sum(ops.square(layer(list(inputs)))), positions, activations)
    for gradient in found:
        assert np.isfinite(gradient).all() and not gradient.any()


def test_half_a_cell_beyond_the_edge_draws_half():
    drawn = array(layers.CapsuleCanvas((5, 5))([tensor([[[2.5, -2.0]]]), tensor([[[8.0]]])]))
    assert drawn[0, 4, 0, 0] == 4.0 and drawn.sum() == 4.0


def test_capsules_add_up_in_any_order():
    positions, activations = case(2, 6, 3, 1.0)
    layer = layers.CapsuleCanvas((4, 4))
    drawn = array(layer([tensor(positions), tensor(activations)]))
    order = RANDOM.permutation(6)
    again = array(layer([tensor(positions[:, order]), tensor(activations[:, order])]))
    np.testing.assert_allclose(drawn, again, atol=1e-6)
    parts = [array(layer([tensor(positions[:, k::2]), tensor(activations[:, k::2])])) for k in (0, 1)]
    np.testing.assert_allclose(drawn, sum(parts), atol=1e-6)


def test_nothing_is_transposed():
    if BACKEND != "tensorflow":
        pytest.skip("looks at TensorFlow's graph")
    import tensorflow as tf

    layer, inputs = layers.CapsuleCanvas((4, 5)), map(tensor, case(2, 6, 3, 1.0))
    graph = tf.function(lambda *inputs: layer(list(inputs))).get_concrete_function(*inputs).graph
    assert "Transpose" not in {operation.type for operation in graph.get_operations()}


def test_positions_keep_full_precision_under_a_half_precision_policy():
    """In bfloat16 the position 6.02 is 6.03125."""
    layer = layers.CapsuleCanvas((17, 17), dtype="mixed_bfloat16")
    drawn = array(layer([tensor([[[6.02, 0.0]]]), tensor([[[1.0]]])]))
    np.testing.assert_allclose(drawn[0, 14:16, 8, 0], [0.98, 0.02], rtol=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.CapsuleCanvas((0, 4)), "at least 1.*height=0"),
        (lambda: layers.CapsuleCanvas((4, 0)), "at least 1.*width=0"),
        (lambda: layers.CapsuleCanvas((4, 4)).build([(None, 3, 3), (None, 3, 2)]), "positions"),
        (lambda: layers.CapsuleCanvas((4, 4)).build([(None, 3, 2), (None, 3)]), "activations"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
