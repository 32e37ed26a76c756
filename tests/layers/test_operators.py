"""Layers that render images under a parameter: linear operators and address fields."""

import keras
import numpy as np
import pytest

from tests.backend import BACKEND, array, gradients, tensor
from tfinv import layers

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(6, 4, 3, 2)).astype(np.float32)


def operators(**arguments):
    layer = layers.LinearOperators(5, **arguments)
    layer.build([IMAGES.shape, (6,)])
    layer.set_weights([RANDOM.normal(size=(5, 12, 12))])
    return layer


def by_hand(layer, images, numbers):
    """Each image under the operator of a number, pixel by pixel and channel by channel."""
    (kernel,) = layer.get_weights()
    flat = images.reshape(len(images), 12, -1)
    return np.einsum("npc,npq->nqc", flat, kernel[numbers]).reshape(images.shape)


# Linear operators


def test_untrained_layers_change_nothing():
    parameters = np.array([0.0, 77.0, -200.0, 359.0, 10.0, 1.0], np.float32)
    for layer in (layers.LinearOperators(5), layers.AddressField(period=360.0)):
        np.testing.assert_allclose(array(layer([IMAGES, parameters])), IMAGES, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "parameters", "numbers"),
    [
        ({}, [0, 35, 37, 324, 325, -73], [0, 0, 1, 4, 0, 4]),
        (dict(periodic=False, low=-2, high=2), [-2, -1.4, 0.4, 0.6, 2, 9], [0, 1, 2, 3, 4, 4]),
        (dict(periodic=False, low=-2, high=2), [-9, -2, 1, 1, 1.6, 2], [0, 0, 3, 3, 4, 4]),
    ],
)
def test_operator_of_the_nearest_step(arguments, parameters, numbers):
    layer = operators(**arguments)
    rendered = array(layer([tensor(IMAGES), tensor(parameters)]))
    np.testing.assert_allclose(rendered, by_hand(layer, IMAGES, numbers), atol=1e-5)


def test_linear_interpolation_is_the_weighted_mean_and_wraps():
    layer = operators(interpolation="linear")
    rendered = array(layer([tensor(IMAGES), tensor([0, 18, 72, 342, 350, -3.6])]))
    first, second = by_hand(layer, IMAGES, [0, 0, 1, 4, 4, 4]), by_hand(layer, IMAGES, [1, 1, 2, 0, 0, 0])
    weights = np.array([0, 0.25, 0, 0.75, 62 / 72, 0.95])[:, None, None, None]
    np.testing.assert_allclose(rendered, (1 - weights) * first + weights * second, atol=1e-5)


@pytest.mark.parametrize("make", [operators, lambda: field_of(RANDOM.normal(size=(2, 24)))])
def test_groups_share_a_parameter(make):
    layer = make()
    parameters = np.array([80.0, 200.0], np.float32)
    grouped = array(layer([tensor(IMAGES), tensor(parameters)]))
    each = array(layer([tensor(IMAGES), tensor(np.repeat(parameters, 3))]))
    np.testing.assert_allclose(grouped, each, atol=1e-5)
    assert np.abs(grouped[:3] - array(layer([tensor(IMAGES[:3]), tensor(parameters[1:])]))).max() > 0.1


def test_parameters_keep_full_precision_under_a_half_precision_policy():
    layer = operators(dtype="mixed_bfloat16")
    # In bfloat16 both angles are 180, on the border of the steps 2 and 3.
    rendered = array(layer([tensor(IMAGES[:2]), tensor([179.7, 180.3])]))
    np.testing.assert_allclose(rendered, by_hand(layer, IMAGES[:2], [2, 3]), atol=0.1)


# Address fields


def field_of(kernel, size=(4, 3), **arguments):
    """A field with the affine map of a kernel [E, H * W * 2]."""
    arguments = {"period": 360.0} | arguments
    layer = layers.AddressField(**arguments)
    layer.build([(None, *size, 2), (None,) if arguments["period"] else (None, len(kernel))])
    layer.set_weights([kernel, np.zeros(kernel.shape[1])])
    return layer


def read(maps, addresses):
    """Every input cell weighted by relu(1 - |dx|) relu(1 - |dy|), as the paper writes it."""
    rows, columns = np.mgrid[: maps.shape[1], : maps.shape[2]]
    weights = np.maximum(1 - np.abs(addresses[..., 0, None, None] - rows), 0)
    weights = weights * np.maximum(1 - np.abs(addresses[..., 1, None, None] - columns), 0)
    return np.einsum("nqij,nijc->nqc", weights, maps)


def test_field_reads_no_maps_and_names_numbers_that_do_not_fit():
    layer = field_of(np.zeros((2, 24)))
    if BACKEND == "tensorflow":  # Keras's take() does not gather from nothing under JAX
        assert tuple(layer([tensor(IMAGES[:0]), tensor(np.zeros(0))]).shape) == (0, 4, 3, 2)
    with pytest.raises(ValueError, match=r"divisor of the number of samples, 6\. Received: 4 codes"):
        layer([tensor(IMAGES), tensor(np.zeros(4))])


def test_addresses_are_an_affine_function_of_the_code_read_bilinearly():
    kernel = RANDOM.normal(size=(2, 24))
    layer = field_of(kernel)
    parameters = np.array([0.0, 30.0, 123.0, 180.0, 270.0, 301.0], np.float32)
    turns = np.radians(parameters)
    offsets = np.stack([np.cos(turns), np.sin(turns)], axis=1) @ kernel
    grid = np.stack(np.mgrid[:4, :3], axis=-1).reshape(12, 2)
    addresses = grid + offsets.reshape(6, 12, 2)
    np.testing.assert_allclose(array(layer.addresses(tensor(parameters), (4, 3))), addresses, atol=1e-5)
    rendered = array(layer([tensor(IMAGES), tensor(parameters)]))
    np.testing.assert_allclose(rendered.reshape(6, 12, 2), read(IMAGES, addresses), atol=1e-4)


def test_field_of_shifts_and_another_output_size():
    rows, columns = np.tile([1.0, 0.0], 12), np.tile([0.0, 1.0], 12)
    layer = field_of(np.stack([10 * rows, 10 * columns]), period=None, scale=10.0)
    moved = array(layer([tensor(IMAGES[:2]), tensor([[1.0, 0.0], [0.0, -1.0]])]))
    np.testing.assert_allclose(moved[0, :-1], IMAGES[0, 1:], atol=1e-5)
    np.testing.assert_allclose(moved[1, :, 1:], IMAGES[1, :, :-1], atol=1e-5)
    assert not moved[0, -1].any() and not moved[1, :, 0].any(), "outside the map is zero"
    halved = layers.AddressField(output_size=(2, 3))
    means = (IMAGES[:, ::2] + IMAGES[:, 1::2]) / 2  # its cells lie between two rows of the input
    np.testing.assert_allclose(array(halved([IMAGES, np.zeros((6, 1), np.float32)])), means, atol=1e-5)


def test_gradients_move_addresses_to_where_the_target_is():
    """A ramp has the same slope everywhere: the derivative by an address is that slope."""
    ramp = np.tile(np.arange(4.0, dtype=np.float32)[None, :, None, None], (1, 1, 3, 1))
    layer = field_of(np.full((1, 24), 0.25), period=None)

    def inner_cells(code):
        return keras.ops.sum(layer([tensor(ramp), code])[:, :3, :2])

    (derivative,) = gradients(inner_cells, np.ones((1, 1)))
    np.testing.assert_allclose(derivative, [[6 * 0.25]], atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras on torch trains too slowly for a test")
@pytest.mark.parametrize("hidden_units", [(), (16,)])
def test_gradient_descent_finds_a_small_shift(hidden_units):
    """A smooth image and half a cell: the local gradients of the bilinear reading suffice."""
    keras.utils.set_random_seed(0)
    rows, columns = np.mgrid[:8, :8]
    centres = RANDOM.uniform(2, 5, (64, 2, 1, 1))
    blobs, moved = (
        np.exp(-((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1] - offset) ** 2) / 8)[..., None]
        for offset in (0.0, 0.7)
    )
    layer = layers.AddressField(hidden_units)
    inputs = [keras.Input((8, 8, 1)), keras.Input((1,))]
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.Adam(0.02), "mse")
    code = np.ones((64, 1), np.float32)
    before = model.evaluate([blobs, code], moved, verbose=0)
    # A hundred steps of one batch in one epoch; an epoch each would take several times as long.
    steps = [np.concatenate([values] * 100) for values in (blobs, code, moved)]
    model.fit(steps[:2], steps[2], batch_size=64, shuffle=False, verbose=0)
    assert model.evaluate([blobs, code], moved, verbose=0) < 0.05 * before
    found = array(layer.addresses(tensor(code[:1]), (8, 8))).reshape(8, 8, 2)[3:5, 3:5]
    expected = np.stack([rows, columns - 0.7], axis=-1)[3:5, 3:5]
    np.testing.assert_allclose(found, expected, atol=0.15)


# Bad values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.LinearOperators(0), "at least 1.*num_steps=0"),
        (lambda: layers.LinearOperators(3, 5.0, 5.0), "more than low=5.0.*high=5.0"),
        (lambda: layers.LinearOperators(3, interpolation="cubic"), "nearest, linear.*cubic"),
        (lambda: layers.LinearOperators(3).build([(None, None, 4, 1), (None,)]), "known size"),
        (lambda: layers.AddressField((4, 0)), "at least 1.*hidden_units=0"),
        (lambda: layers.AddressField(period=0.0), "more than 0.*period=0.0"),
        (lambda: layers.AddressField(scale=-1.0), "more than 0.*scale=-1.0"),
        (lambda: layers.AddressField().build([(None, 4, None, 1), (None, 1)]), "known size"),
        (lambda: layers.AddressField(period=1.0).build([(None, 4, 4, 1), (None, 2)]), "one number each"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_addresses_between_places_of_a_grid_are_interpolated():
    field = layers.AddressField(grid=(2, 3))
    field.build([(None, 5, 5, 1), (None, 1)])
    rows = np.array([[0.0, 1.0, 2.0], [4.0, 5.0, 6.0]], np.float32)  # at rows 0, 4 and columns 0, 2, 4
    moves = np.stack([rows, -rows], axis=-1)
    field.layer_weights[-1][0].assign(moves.reshape(1, -1))
    found = array(field.addresses(np.array([[2.0]], np.float32), (5, 5))).reshape(5, 5, 2)
    row, column = np.mgrid[:5, :5]
    expected = 2.0 * (row + column / 2)
    np.testing.assert_allclose(found, np.stack([row + expected, column - expected], axis=-1), atol=1e-5)
    with pytest.raises(ValueError, match=r"at least 2.*grid=\(1, 4\)"):
        layers.AddressField(grid=(1, 4))


def test_operators_refuse_other_shapes():
    layer = layers.LinearOperators(5)
    for images, parameters in (((4, 3, 2), (6,)), ((6, 4, 3, 2), (6, 1))):
        with pytest.raises(ValueError, match=r"images \[N, H, W, C\] of known size and parameters \[G\]"):
            layer.build([images, parameters])
    with pytest.raises(ValueError, match=r"divisor of the number of samples, 3. Received: 2 codes"):
        operators()([tensor(IMAGES[:3]), tensor(np.float32([0, 1]))])


@pytest.mark.parametrize("size", [(0, 7), (3,), (2, -1)])
def test_address_field_refuses_outputs_of_no_size(size):
    with pytest.raises(ValueError, match=r"output_size. Expected two numbers of at least 1"):
        layers.AddressField(output_size=size)
