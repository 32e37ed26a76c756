"""What group convolutions compute, and that turned images give turned maps, rolled along the orientations."""

import keras
import numpy as np
import pytest

from tests.backend import array, tensor
from tfinv import layers
from tfinv.layers.group_conv import filter_bank

RANDOM = np.random.default_rng(0)
# Kernel size, strides, padding and image size of which the places of the filters are symmetric.
SYMMETRIC = [
    (3, 1, "valid", 8),
    (4, 1, "valid", 9),
    (3, 1, "same", 8),
    (5, 1, "same", 9),
    (4, 2, "same", 8),
    (3, 2, "same", 9),
    (3, 2, "valid", 9),
    (4, 3, "valid", 10),
    (5, 1, "valid", 5),
]


def randomized(layer, shape):
    """Builds the layer and gives its bias other values than the zeros it starts at."""
    layer.build(shape)
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(size=weight.shape) for weight in layer.weights])
    return layer


def correlate(maps, kernel):
    """Plain valid correlation [N, H', W', F] of maps [N, H, W, C] and a kernel [k, k, C, F]."""
    size = len(kernel)
    patches = np.lib.stride_tricks.sliding_window_view(maps, (size, size), axis=(1, 2))
    return np.einsum("nhwcij,ijcf->nhwf", patches, kernel)


def turn(images, quarters):
    """Turns images or maps counter-clockwise by quarters of a turn."""
    return np.rot90(images, quarters, axes=(1, 2)).copy()


# What is computed


@pytest.mark.parametrize("num_rotations", [1, 2, 4])
def test_orientations_are_answers_to_turned_filters(num_rotations):
    images = RANDOM.normal(size=(2, 6, 5, 3))
    lifting = randomized(layers.GroupConv2D(2, 3, num_rotations=num_rotations), images.shape)
    kernel, bias = lifting.get_weights()
    assert kernel.shape == (3, 3, 1, 3, 2) and bias.shape == (2,)
    maps = array(lifting(tensor(images)))
    for r in range(num_rotations):
        quarters = r * 4 // num_rotations
        expected = correlate(images, np.rot90(kernel[:, :, 0], quarters)) + bias
        np.testing.assert_allclose(maps[:, :, :, r], expected, atol=1e-4)

    layer = randomized(layers.GroupConv2D(4, 2, num_rotations=num_rotations), maps.shape)
    kernel, bias = layer.get_weights()
    assert kernel.shape == (2, 2, num_rotations, 2, 4)
    found = array(layer(tensor(maps)))
    for r in range(num_rotations):
        quarters = r * 4 // num_rotations
        expected = bias + sum(
            correlate(maps[:, :, :, s], np.rot90(kernel[:, :, (s - r) % num_rotations], quarters))
            for s in range(num_rotations)
        )
        np.testing.assert_allclose(found[:, :, :, r], expected, rtol=1e-4, atol=1e-4)


def test_eight_orientations_interpolate_in_a_disc():
    # One weight right of the centre, turned by 45 degrees, lies between four places.
    kernel = np.zeros((3, 3, 1, 1, 1))
    kernel[1, 2] = 1.0
    bank = array(filter_bank(tensor(kernel), 8))[:, :, 0]
    half = np.sqrt(0.5)
    side, corner = half * (1 - half), 2 - np.sqrt(2)
    diagonal = np.array([[0, side, corner], [0, 0, side], [0, 0, 0]])
    for r in range(8):
        turned = np.rot90(diagonal if r % 2 else kernel[..., 0, 0, 0], r // 2)
        np.testing.assert_allclose(bank[..., r], turned, atol=1e-6)
    # The corners of a square of 5 lie outside the disc, and two more a corner of a square of 7.
    for size, outside in ((3, 0), (4, 4), (5, 4), (7, 12)):
        bank = array(filter_bank(tensor(np.ones((size, size, 1, 1, 1))), 8))
        assert [np.sum(bank[:, :, 0, r] == 0.0) for r in range(8)] == [outside] * 8


def test_weights_are_those_of_one_orientation():
    layer = layers.GroupConv2D(6, 5, num_rotations=8, use_bias=False)
    layer.build((None, 9, 9, 8, 3))
    assert [weight.shape for weight in layer.weights] == [(5, 5, 8, 3, 6)]
    # Glorot's rule counts the orientations as part of the receptive field.
    limit = np.sqrt(6 / (5 * 5 * 8 * (3 + 6)))
    (kernel,) = layer.get_weights()
    assert 0.98 * limit < np.abs(kernel).max() <= limit


# Equivariance


@pytest.mark.parametrize("num_rotations", [2, 4, 8])
@pytest.mark.parametrize("kernel_size, strides, padding, size", SYMMETRIC)
def test_turned_images_give_turned_and_rolled_maps(kernel_size, strides, padding, size, num_rotations):
    images = RANDOM.normal(size=(3, size, size, 2)).astype("float32")
    lifting = randomized(
        layers.GroupConv2D(3, kernel_size, strides, padding, num_rotations), (None, size, size, 2)
    )
    maps = array(lifting(tensor(images)))
    # The second layer adds its own symmetry, at whatever size remains.
    layer = randomized(layers.GroupConv2D(4, 3, padding="same", num_rotations=num_rotations), maps.shape)
    deeper = array(layer(tensor(maps)))
    for quarters in (1, 2, 3) if num_rotations > 2 else (2,):
        steps = quarters * num_rotations // 4
        turned = array(lifting(tensor(turn(images, quarters))))
        np.testing.assert_allclose(turned, np.roll(turn(maps, quarters), steps, axis=3), atol=1e-4)
        # Other answers than those expected differ, so that the check above means something.
        assert np.abs(turned - np.roll(turn(maps, quarters), steps + 1, axis=3)).max() > 0.1
        found = array(layer(tensor(turned)))
        expected = np.roll(turn(deeper, quarters), steps, axis=3)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def smooth_images(degrees, count=40, size=17, deviation=2.0):
    """Sums of blobs about the centre, turned counter-clockwise without resampling [N, H, W, 1]."""
    random = np.random.default_rng(2)
    angle = np.radians(degrees)
    x, y = random.uniform(-4, 4, (2, count, 6, 1, 1))
    heights = random.normal(size=(count, 6, 1, 1))
    across = np.arange(size) - (size - 1) / 2
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    distances = (across - x) ** 2 + (-across[:, np.newaxis] - y) ** 2  # y points up
    return np.sum(heights * np.exp(-distances / (2 * deviation**2)), axis=1)[..., np.newaxis]


def test_half_quarters_are_approximately_equivariant():
    # At the centre, the only place that turning by 45 degrees leaves on the grid; relative to the answers.
    random = np.random.default_rng(3)
    lifting = layers.GroupConv2D(8, 5, padding="same")
    layer = layers.GroupConv2D(8, 5, padding="same")
    for each, channels in ((lifting, (1, 1)), (layer, (8, 8))):
        each.build((None, 17, 17, *channels[1:]) if each is lifting else (None, 17, 17, *channels))
        each.set_weights([random.normal(size=weight.shape) / 25 for weight in each.weights])

    def answers(degrees):
        maps = lifting(tensor(smooth_images(degrees)))
        return [array(found)[:, 8, 8] for found in (maps, layer(keras.ops.relu(maps)))]

    def error(found, expected):
        return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))

    # Measured: .15 behind one layer, .24 behind two; .95 where the maps are rolled the wrong way.
    for turned, upright, tolerance in zip(answers(45), answers(0), (0.2, 0.3), strict=True):
        assert error(turned, np.roll(upright, 1, axis=1)) < tolerance
        assert error(turned, np.roll(upright, -1, axis=1)) > 0.7


def test_normalisation_and_pooling_keep_the_orientations_alike():
    maps = RANDOM.normal(size=(3, 6, 6, 8, 2)).astype("float32")
    turned = np.roll(turn(maps, 1), 2, axis=3)
    normalization = keras.layers.BatchNormalization()
    normalized = [array(normalization(tensor(value), training=True)) for value in (maps, turned)]
    assert all(weight.shape == (2,) for weight in normalization.weights)
    np.testing.assert_allclose(normalized[1], np.roll(turn(normalized[0], 1), 2, axis=3), atol=1e-5)
    np.testing.assert_allclose(normalized[0].mean(axis=(0, 1, 2, 3)), np.zeros(2), atol=1e-5)

    pooling = layers.GroupPooling()
    np.testing.assert_array_equal(array(pooling(tensor(maps))), maps.max(axis=3))
    np.testing.assert_array_equal(array(pooling(tensor(turned))), turn(maps.max(axis=3), 1))


# Shapes and errors


def test_takes_images_of_unknown_size():
    layer = layers.GroupConv2D(4, 3, 2, num_rotations=4)
    images = keras.Input((None, None, 2))
    model = keras.Model(images, layers.GroupConv2D(5, 2, padding="same", num_rotations=4)(layer(images)))
    assert model.output.shape == (None, None, None, 4, 5)
    assert model.predict(np.zeros((2, 9, 6, 2), np.float32), verbose=0).shape == (2, 4, 2, 4, 5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(filters=0), "at least 1.*filters=0"),
        (dict(kernel_size=0), "at least 1.*kernel_size=0"),
        (dict(strides=0), "at least 1.*strides=0"),
        (dict(padding="full"), "valid.*same.*padding=full"),
        (dict(num_rotations=3), r"num_rotations.*\(1, 2, 4, 8\).*num_rotations=3"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.GroupConv2D(**{"filters": 2, **arguments})


@pytest.mark.parametrize("shape", [(None, 9, 9, 4, 3), (None, 9, 9), (None, 2, 9, 3)])
def test_inputs_are_checked(shape):
    with pytest.raises(ValueError, match=r"GroupConv2D.*input_shape=\(None"):
        layers.GroupConv2D(2, 3).build(shape)
    with pytest.raises(ValueError, match=r"GroupPooling needs.*input_shape=\(None"):
        layers.GroupPooling().compute_output_shape((None, 9, 9, 3))
