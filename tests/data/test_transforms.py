"""Transformations: golden arrays of tensorflow-addons, properties, and conformance of every module found."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfinv.data import transforms
from tfinv.data.projective import resample
from tfinv.data.transforms import affine, rotation, shift
from tfinv.errors import UsageError

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "transforms.npz"))
CASES = sorted({key.rsplit("/", 1)[0] for key in GOLDEN})
PARAMETERS = {"rotate": ("degrees", rotation), "translate": ("shifts", shift)}
BELOW_ONE = np.nextafter(np.float32(1.0), np.float32(0.0))

# Angles near 1000 degrees are rounded by 1e-6 radians, and offsets scale with the image. Measured: 1.9e-6.
MATRIX_TOLERANCE = 5e-6
# The same times the step between neighbouring pixels, up to 2 beside the fill value -1. Measured: 3.8e-6.
IMAGE_TOLERANCE = 1e-5


def golden(case):
    """Returns the golden arrays of one case, its parameters and the module that must reproduce it."""
    arrays = {key.rsplit("/", 1)[1]: array for key, array in GOLDEN.items() if key.rsplit("/", 1)[0] == case}
    name, module = PARAMETERS[case.split("/")[0]]
    return arrays, arrays[name], module


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def random_parameters(module, count, seed=0):
    """Rotations in [-180, 180), or whole shifts in [-6, 6)."""
    limit = 180.0 if module is rotation else 6.0
    uniforms = np.random.default_rng(seed).random((count, *module.PARAMETER_SHAPE), dtype=np.float32)
    return module.sample(uniforms, tf.fill([count], -limit), tf.fill([count], limit))


def dot(row, column, size=3):
    """One black image [1, size, size, 1] with one white pixel."""
    image = np.zeros((1, size, size, 1), np.float32)
    image[0, row, column, 0] = 1.0
    return image


@pytest.fixture(params=transforms.available())
def module(request):
    return transforms.get_transform(request.param)


# Golden arrays


def test_golden_covers_both_operations():
    assert {case.split("/")[0] for case in CASES} == {"rotate", "translate"}
    assert {case.split("/")[1] for case in CASES} >= {"28x28x1", "27x31x3", "5x4x1"}


@pytest.mark.parametrize("fill_value", [0, -1])
@pytest.mark.parametrize("case", CASES)
def test_resample_equals_tensorflow_addons_exactly(case, fill_value):
    arrays, _, _ = golden(case)
    ours = resample(arrays["images"], arrays["matrices"], float(fill_value)).numpy()
    assert np.max(np.abs(ours - arrays[f"fill_{fill_value}"])) == 0.0


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("rotate/")])
def test_rotation_matrices_equal_tensorflow_addons(case):
    arrays, degrees, _ = golden(case)
    height, width = arrays["images"].shape[1:3]
    ours = rotation.matrices(degrees, height, width).numpy()
    np.testing.assert_allclose(ours, arrays["matrices"], rtol=0.0, atol=MATRIX_TOLERANCE)


@pytest.mark.parametrize("fill_value", [0, -1])
@pytest.mark.parametrize("case", CASES)
def test_apply_equals_tensorflow_addons(case, fill_value):
    arrays, parameters, module = golden(case)
    ours = module.apply(arrays["images"], parameters, float(fill_value)).numpy()
    np.testing.assert_allclose(ours, arrays[f"fill_{fill_value}"], rtol=0.0, atol=IMAGE_TOLERANCE)
    if module is rotation:
        height, width = arrays["images"].shape[1:3]
        matrices = rotation.matrices(parameters, height, width).numpy()
        exact = np.all(matrices == arrays["matrices"], axis=-1)
        assert exact.any()
    else:
        exact = np.full(len(parameters), True)
    np.testing.assert_array_equal(ours[exact], arrays[f"fill_{fill_value}"][exact])


# Direction, by hand


def test_positive_angle_turns_counter_clockwise():
    right, top = dot(row=1, column=2), dot(row=0, column=1)
    np.testing.assert_allclose(rotation.apply(right, [90.0]), top, atol=1e-6)
    np.testing.assert_allclose(rotation.apply(top, [-90.0]), right, atol=1e-6)


def test_positive_shift_moves_right_and_down():
    np.testing.assert_array_equal(shift.apply(dot(row=0, column=0), [[2.0, 1.0]]), dot(row=1, column=2))


def test_half_pixel_shift_spreads_over_two_pixels():
    shifted = shift.apply(dot(row=1, column=1), [[0.5, 0.0]]).numpy()
    np.testing.assert_array_equal(shifted, 0.5 * dot(row=1, column=1) + 0.5 * dot(row=1, column=2))


# Properties


@pytest.mark.parametrize("shape", [(28, 28, 1), (27, 31, 3), (5, 4, 1), (1, 1, 1)])
def test_identity_changes_nothing(module, shape):
    images = random_images(4, *shape)
    identity = np.zeros((4, *module.PARAMETER_SHAPE), np.float32)
    np.testing.assert_array_equal(module.apply(images, identity, fill_value=-1.0), images)
    dataset = tf.data.Dataset.from_tensors((images, identity)).map(module.apply)
    np.testing.assert_array_equal(dataset.get_single_element(), images)


def test_margin_is_as_if_the_images_had_been_widened_before(module):
    images, parameters = random_images(5, 8, 7, 3), random_parameters(module, 5)
    wide = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), constant_values=-1.0)
    found = module.apply(images, parameters, -1.0, margin=3)
    np.testing.assert_array_equal(found, module.apply(wide, parameters, -1.0))


@pytest.mark.parametrize("turns", [-3, -2, -1, 1, 2, 3, 5])
def test_quarter_turns_equal_rot90(turns):
    images = random_images(3, 28, 28, 3)
    turned = rotation.apply(images, tf.fill([3], 90.0 * turns))
    np.testing.assert_allclose(turned, np.rot90(images, turns, axes=(1, 2)), atol=2e-5)


def test_angles_are_periodic():
    images = random_images(3, 9, 12, 1)
    angles = np.array([10.0, -45.0, 170.5], np.float32)
    np.testing.assert_allclose(
        rotation.apply(images, angles), rotation.apply(images, angles + 360), atol=2e-5
    )


def test_shift_beyond_the_image_leaves_only_the_fill_value():
    images = random_images(4, 5, 4, 1)
    far = np.array([[5, 0], [0, 6], [-5, 0], [100, -100]], np.float32)
    np.testing.assert_array_equal(shift.apply(images, far, fill_value=-1.0), np.full_like(images, -1.0))


def test_eager_equals_tf_data(module):
    images, parameters = random_images(16, 27, 31, 3), random_parameters(module, 16)
    dataset = tf.data.Dataset.from_tensor_slices((images, parameters)).batch(16).map(module.apply)
    # The graph optimiser regroups the float operations of the rotation matrices. Shifts are exact.
    np.testing.assert_allclose(
        dataset.get_single_element(), module.apply(images, parameters), rtol=0.0, atol=IMAGE_TOLERANCE
    )


def test_each_image_gets_its_own_parameter(module):
    images, parameters = random_images(13, 28, 28, 1), random_parameters(module, 13)
    batch = module.apply(images, parameters).numpy()
    for index in range(13):
        alone = module.apply(images[index : index + 1], parameters[index : index + 1]).numpy()
        # cos and sin round differently in a vector register and alone.
        np.testing.assert_allclose(alone[0], batch[index], rtol=0.0, atol=IMAGE_TOLERANCE)
    assert not np.allclose(batch[0], module.apply(images[:1], parameters[1:2])[0], atol=0.1)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 4, 3)])
def test_small_batches(module, count, shape):
    images = random_images(count, *shape)
    assert module.apply(images, random_parameters(module, count)).shape == images.shape


def test_channels_are_transformed_alike(module):
    images, parameters = random_images(3, 10, 9, 3), random_parameters(module, 3)
    together = module.apply(images, parameters).numpy()
    for channel in range(3):
        alone = module.apply(images[..., channel : channel + 1], parameters).numpy()
        np.testing.assert_array_equal(together[..., channel : channel + 1], alone)


def test_one_traced_function_takes_mixed_shapes(module):
    traced = tf.function(
        lambda images, parameters: module.apply(images, parameters),
        input_signature=[
            tf.TensorSpec([None, None, None, None]),
            tf.TensorSpec([None, *module.PARAMETER_SHAPE]),
        ],
    )
    for shape in [(2, 28, 28, 1), (3, 27, 31, 3), (0, 8, 8, 1), (1, 5, 4, 1)]:
        images, parameters = random_images(*shape), random_parameters(module, shape[0])
        expected = module.apply(images, parameters)
        np.testing.assert_allclose(traced(images, parameters), expected, rtol=0.0, atol=IMAGE_TOLERANCE)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_apply_keeps_the_dtype(module, dtype):
    images = random_images(2, 6, 6, 1).astype(dtype)
    assert module.apply(images, random_parameters(module, 2)).dtype == dtype


@pytest.mark.parametrize("size", [(9, 9), (8, 13)])
def test_affine_reads_where_it_says(size):
    """Ramps are reproduced exactly by bilinear reading, so that the picture shows its own source address."""
    height, width = size
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    ramps = np.stack([x, y], axis=-1)[np.newaxis].astype(np.float32)
    a, b, c, d, e, f = numbers = np.array([-0.3, 0.1, 0.05, -0.2, -0.25, -0.1], np.float32)
    expected = np.stack([(1 + a) * x + b * y + c, d * x + (1 + e) * y + f], axis=-1)
    found = affine.apply(ramps, numbers[np.newaxis], fill_value=9.0).numpy()[0]
    inside = np.all(np.abs(expected) <= 1 - 1e-6, axis=-1)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-6)


# Sampling


def test_rotation_sample_reaches_both_ends():
    low, high = tf.constant([-45.0, 135.0, 10.0]), tf.constant([45.0, 225.0, 10.0])
    np.testing.assert_array_equal(rotation.sample(tf.zeros([3]), low, high), low)
    np.testing.assert_allclose(rotation.sample(tf.fill([3], BELOW_ONE), low, high), high, atol=1e-4)


@pytest.mark.parametrize("low, high", [(-20, 20), (0, 1), (2, 5), (10, 12), (100, 101), (-8, -5)])
def test_shift_sample_is_whole_and_reaches_all_but_high(low, high):
    uniforms = np.random.default_rng(0).random((500, 2), dtype=np.float32)
    uniforms[0], uniforms[1] = 0.0, BELOW_ONE
    lows, highs = tf.fill([500], float(low)), tf.fill([500], float(high))
    shifts = shift.sample(uniforms, lows, highs).numpy()
    assert set(shifts[:, 0]) == set(shifts[:, 1]) == set(range(low, high))


def test_shift_samples_both_directions_independently():
    shifts = shift.sample(np.array([[0.0, 0.99]], np.float32), tf.constant([-3.0]), tf.constant([3.0]))
    np.testing.assert_array_equal(shifts, [[-3.0, 2.0]])


def test_sample_takes_a_range_for_each_example(module):
    uniforms = np.random.default_rng(0).random((600, *module.PARAMETER_SHAPE), dtype=np.float32)
    labels = np.arange(600) % 3
    low = np.array([-4.0, 30.0, 0.0], np.float32)[labels]
    high = np.array([4.0, 50.0, 0.0], np.float32)[labels]
    parameters = module.sample(tf.constant(uniforms), tf.constant(low), tf.constant(high)).numpy()
    for label, (lowest, highest) in enumerate([(-4.0, 4.0), (30.0, 50.0), (0.0, 0.0)]):
        drawn = parameters[labels == label]
        assert drawn.min() >= lowest and drawn.max() <= highest
        assert module.contains(drawn, lowest, highest).all()
        assert len(np.unique(drawn)) > 5 or lowest == highest


def test_transform_alone_with_class_selective_parameters(module):
    """Shifts (rotates) class 3 only, with nothing but the transformation module."""
    images, labels = random_images(40, 12, 12, 1), np.arange(40) % 5
    high = tf.where(labels == 3, 9.0, 0.0)
    uniforms = tf.constant(np.random.default_rng(0).random((40, *module.PARAMETER_SHAPE), dtype=np.float32))
    transformed = module.apply(images, module.sample(uniforms, -high, high)).numpy()
    changed = np.any(transformed != images, axis=(1, 2, 3))
    assert not changed[labels != 3].any()
    assert changed[labels == 3].mean() > 0.9


# Ranges and sweeps


@pytest.mark.parametrize(
    "angle, low, high, inside",
    [
        (0.0, -45.0, 45.0, True),
        (-45.0, -45.0, 45.0, True),
        (45.0, -45.0, 45.0, True),
        (46.0, -45.0, 45.0, False),
        (300.0, -45.0, 45.0, False),
        (320.0, -45.0, 45.0, True),
        (-170.0, 135.0, 225.0, True),
        (180.0, 135.0, 225.0, True),
        (-180.0, 135.0, 225.0, True),
        (-130.0, 135.0, 225.0, False),
        (0.0, 135.0, 225.0, False),
        (725.0, 0.0, 10.0, True),
        (-180.0, -180.0, 180.0, True),
        (123.4, 0.0, 360.0, True),
        (0.0, 0.0, 0.0, True),
        (1.0, 0.0, 0.0, False),
    ],
)
def test_rotation_contains(angle, low, high, inside):
    assert rotation.contains(np.array([angle], np.float32), low, high).tolist() == [inside]


def test_shift_contains():
    shifts = np.array([[-5, 0], [0, 5], [0, 4], [-6, 0], [4, 4], [9, 9]], np.float32)
    assert shift.contains(shifts, -5, 5).tolist() == [True, False, True, False, True, False]
    assert shift.contains(np.array([[0, 0], [0, 1]]), 0, 0).tolist() == [True, False]


def test_codes():
    np.testing.assert_allclose(
        rotation.code(tf.constant([0.0, 90.0, 210.0])), [[1, 0], [0, 1], [-np.sqrt(0.75), -0.5]], atol=1e-6
    )
    assert shift.code(tf.constant([[20.0, -5.0]])).numpy().tolist() == [[1.0, -0.25]]
    numbers = np.arange(6, dtype=np.float32)[np.newaxis] / 10
    np.testing.assert_array_equal(affine.code(tf.constant(numbers)), numbers)


@pytest.mark.parametrize(
    "angle, blurs", [(0, False), (1.8, False), (-178.2, False), (88.2, False), (3.6, True)]
)
def test_angles_about_right_ones_blur_less(angle, blurs):
    assert rotation.comparable(np.array([angle, -angle, angle + 90, angle - 180])).tolist() == [blurs] * 4


def test_rotation_grid():
    np.testing.assert_array_equal(rotation.grid(45.0), [-180, -135, -90, -45, 0, 45, 90, 135])
    np.testing.assert_array_equal(rotation.grid(100.0), [-100, 0, 100])


def test_shift_grid():
    np.testing.assert_array_equal(shift.grid(8.0), np.array([[-16, -8, 0, 8, 16]]).T * [1, 1])
    assert shift.grid(1.0)[[0, -1]].tolist() == [[-20, -20], [19, 19]]
    # Between pixels nothing was shown, and all is blurred.
    assert shift.grid(2.5)[6:11, 0].tolist() == [-5, -3, 0, 2, 5] and len(shift.grid(0.1)) == 40


# Conformance: walks the package, so that a new file is tested unedited


def test_available_lists_the_known_transformations():
    assert {"rotation", "shift"} <= set(transforms.available())


def test_unknown_transformation_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"rotation.*shift.*Received: transformation=rotate"):
        transforms.get_transform("rotate")


def test_conformance(module):
    shape = module.PARAMETER_SHAPE
    assert isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)
    assert isinstance(module.UNIT, str) and module.UNIT
    assert module.__doc__

    for step in (0.1, 0.5, 1.0, 3.0, 7.0):
        grid = module.grid(step)
        assert grid.dtype == np.float32 and grid.shape == (len(grid), *shape)
        distances = np.abs(grid.reshape(len(grid), -1)).max(axis=-1)
        assert np.sum(distances == 0.0) == 1, f"grid({step}) must hold the identity once"
        assert len(np.unique(grid, axis=0)) == len(grid)

    uniforms = tf.constant(np.random.default_rng(0).random((6, *shape), dtype=np.float32))
    parameters = module.sample(uniforms, tf.fill([6], -3.0), tf.fill([6], 3.0))
    assert parameters.dtype == tf.float32 and parameters.shape == (6, *shape)

    inside = module.contains(parameters.numpy(), -3.0, 3.0)
    assert inside.dtype == bool and inside.shape == (6,) and inside.all()
    assert module.contains(np.zeros((0, *shape), np.float32), -3.0, 3.0).shape == (0,)

    for low, high in ((-3.0, 3.0), (0.0, 1.0), (-1.0, 0.0)):
        on_tensors = module.contains(parameters, low, high)
        assert tf.is_tensor(on_tensors)
        np.testing.assert_array_equal(on_tensors, module.contains(parameters.numpy(), low, high))

    assert isinstance(module.SWEEP, str) and module.SWEEP
    codes = module.code(tf.constant(grid))
    assert codes.dtype == tf.float32 and codes.shape == (len(grid), module.CODE_SIZE)
    finest = module.grid(0.1)
    codes = module.code(tf.constant(finest)).numpy()
    assert len(np.unique(codes, axis=0)) == len(finest) and np.abs(codes).max() <= 1.0
    assert module.comparable(finest).dtype == bool and module.comparable(finest).shape == (len(finest),)
    assert module.comparable(finest).mean() > 0.8

    images = random_images(6, 8, 7, 3)
    transformed = module.apply(images, parameters, fill_value=0.5)
    assert transformed.dtype == tf.float32 and transformed.shape == images.shape
    swept = module.apply(images[:1].repeat(len(grid), axis=0), grid)
    identity = np.flatnonzero(distances == 0.0)[0]
    np.testing.assert_array_equal(swept[identity], images[0])


def test_shifts_of_integers_are_refused_and_far_ones_leave_the_fill_value():
    images = random_images(2, 4, 4, 1)
    with pytest.raises(UsageError, match=r"floating point images. Received: images of uint8"):
        shift.apply((images * 255).astype(np.uint8), [[0.5, 0.0]] * 2)
    far = np.float32([[3e7, 0.0], [0.0, -np.inf]])
    np.testing.assert_array_equal(shift.apply(images, far, fill_value=-1.0), np.full_like(images, -1.0))
