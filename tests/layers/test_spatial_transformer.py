"""What a spatial transformer shows: values against plain loops, gradients against differences."""

import numpy as np
import pytest
from keras import ops

from tests.backend import BACKEND, array, double_precision, gradients, numerical_gradients, tensor
from tfinv import layers

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(3, 5, 4, 2))
# From small moves to some that leave the image.
AFFINE = RANDOM.normal(size=(3, 6)) * np.array([[0.1], [0.5], [1.5]])
ANGLES = np.array([[0.3], [-2.0], [3.0]])


def reference(transformation, images, parameters):
    """The same by loops over pixels, in float64."""
    count, height, width, _ = images.shape
    shown = np.zeros_like(images)
    for n, row, column in np.ndindex(count, height, width):
        x, y = column + 0.5 - width / 2, row + 0.5 - height / 2
        p = parameters[n]
        if transformation == "rotation":
            x, y = np.cos(p[0]) * x - np.sin(p[0]) * y, np.sin(p[0]) * x + np.cos(p[0]) * y
        else:
            u, v = 2 * x / width, 2 * y / height
            x = width / 2 * ((1 + p[0]) * u + p[1] * v + p[2])
            y = height / 2 * (p[3] * u + (1 + p[4]) * v + p[5])
        x, y = x - 0.5 + width / 2, y - 0.5 + height / 2
        near_rows = np.maximum(0, 1 - np.abs(y - np.arange(height)))
        near_columns = np.maximum(0, 1 - np.abs(x - np.arange(width)))
        shown[n, row, column] = near_columns @ np.tensordot(near_rows, images[n], 1)
    return shown


@pytest.mark.parametrize("transformation, parameters", [("affine", AFFINE), ("rotation", ANGLES)])
def test_reads_between_pixels_and_zero_outside(transformation, parameters):
    layer = layers.SpatialTransformer(transformation)
    found = array(layer([tensor(IMAGES), tensor(parameters)]))
    np.testing.assert_allclose(found, reference(transformation, IMAGES, parameters), atol=1e-5)


@pytest.mark.parametrize("transformation, count", [("affine", 6), ("rotation", 1)])
@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 1, 7, 1), (3, 28, 28, 1)])
def test_zeros_are_the_identity_to_the_bit(transformation, count, shape):
    images = RANDOM.normal(size=shape).astype("float32")
    shown = layers.SpatialTransformer(transformation)([tensor(images), tensor(np.zeros((shape[0], count)))])
    np.testing.assert_array_equal(array(shown), images)


@pytest.mark.parametrize("transformation, parameters", [("affine", AFFINE), ("rotation", ANGLES)])
def test_gradients_are_those_of_finite_differences(transformation, parameters):
    weights = RANDOM.normal(size=IMAGES.shape)
    with double_precision() as dtype:
        layer = layers.SpatialTransformer(transformation, dtype=dtype)
        factors = tensor(weights, dtype)
        found = gradients(
            lambda images, moved: ops.sum(layer([images, moved]) * factors), IMAGES, parameters, dtype=dtype
        )
    expected = numerical_gradients(
        lambda images, moved: np.sum(reference(transformation, images, moved) * weights), IMAGES, parameters
    )
    tolerance = 1e-6 if dtype == "float64" else 1e-3
    for gradient, want in zip(found, expected, strict=True):
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(gradient, want, rtol=tolerance, atol=tolerance)


def test_starts_with_the_gradient_towards_the_next_pixel():
    # Under the identity every place is a whole pixel, where bilinear reading has a kink.
    images = RANDOM.normal(size=(1, 4, 6, 1))
    layer = layers.SpatialTransformer()
    (gradient,) = gradients(
        lambda parameters: ops.sum(ops.square(layer([tensor(images), parameters]))), np.zeros((1, 6))
    )
    beyond = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))
    to_the_right, below = beyond[:, :-1, 1:] - images, beyond[:, 1:, :-1] - images
    # Parameters 2 and 5 shift by half the image.
    expected = [2 * np.sum(images * to_the_right) * 3, 2 * np.sum(images * below) * 2]
    np.testing.assert_allclose(gradient[0, [2, 5]], expected, rtol=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the transformations of images are TensorFlow's")
@pytest.mark.parametrize("shape", [(5, 28, 28, 1), (5, 9, 12, 2)])
def test_known_angles_turn_as_the_rotation_of_the_data(shape):
    from tfinv.data.transforms import rotation

    images = RANDOM.uniform(size=shape).astype("float32")
    degrees = np.array([0.0, 30.0, 90.0, -135.0, 180.0], np.float32)
    shown = layers.SpatialTransformer("rotation")([tensor(images), tensor(np.radians(degrees)[:, None])])
    expected = array(rotation.apply(tensor(images), tensor(degrees)))
    np.testing.assert_allclose(array(shown), expected, atol=1e-4)


def test_half_precision_finds_the_same_pixels():
    # In bfloat16 the places of a wide image would be rounded to whole pixels.
    images = np.tile(np.linspace(0, 1, 400), (1, 3, 1))[..., np.newaxis]
    shift = np.zeros((1, 6))
    shift[0, 2] = 0.005  # by one pixel
    shown = array(layers.SpatialTransformer(dtype="mixed_bfloat16")([tensor(images), tensor(shift)]))
    expected = array(layers.SpatialTransformer()([tensor(images), tensor(shift)]))
    np.testing.assert_allclose(shown, expected, atol=0.01)


def test_errors():
    with pytest.raises(ValueError, match=r"affine, rotation.*transformation=shear"):
        layers.SpatialTransformer("shear")
    with pytest.raises(ValueError, match=r"parameters \[N, 6\].*affine.*input_shape="):
        layers.SpatialTransformer()([tensor(IMAGES), tensor(ANGLES)])
