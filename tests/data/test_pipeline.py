"""What the training stream contains, and that it depends on (seed, epoch, index) alone."""

import numpy as np
import pytest
import tensorflow as tf

from tfinv.data import PROTOCOLS, Dataset, batches, make_dataset, render, sample_parameters, select
from tfinv.data.protocol import Protocol, Range
from tfinv.errors import UsageError

ROTATE_34 = PROTOCOLS["rotate-34"]
# A range of whole shifts with the one value 0: the images come through unchanged.
STILL = Protocol("still", "shift", Range(0, 1), (3,), Range(0, 1))


def spokes(count=240, size=21):
    """Images of a blob to the right of the centre, so that their rotation can be read off them."""
    images = np.zeros((count, size, size, 1), np.uint8)
    images[:, 9:12, 15:18] = 255
    labels = np.arange(count) % 10
    return Dataset("spokes", images, labels, images, labels)


def angle_of(images):
    """Angle of the centre of mass, counter-clockwise in degrees, -180..180."""
    y, x = np.mgrid[: images.shape[1], : images.shape[2]] - images.shape[1] // 2
    mass = images[..., 0]
    return np.degrees(np.arctan2(-(mass * y).sum(axis=(1, 2)), (mass * x).sum(axis=(1, 2))))


def numbered(count=100):
    """Images whose pixels are their index."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    labels = np.arange(count) % 10
    return Dataset("numbered", images, labels, images, labels)


def collect(stream):
    images, labels = zip(*stream.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def indices(stream):
    return np.rint(collect(stream)[0][:, 0, 0, 0] * 255).astype(int)


# Ranges


def test_parameters_stay_in_the_range_of_their_class():
    restricted = np.arange(4000) % 4 == 0
    for epoch in range(3):
        angles = sample_parameters(ROTATE_34, restricted, seed=1, epoch=epoch).numpy()
        assert angles.shape == (4000,) and angles.dtype == np.float32
        limited, free = angles[restricted], angles[~restricted]
        assert limited.min() >= -45 and limited.max() <= 45
        assert limited.min() < -44 and limited.max() > 44
        assert free.min() >= 0 and free.max() <= 360
        # Uniform over the full circle: every tenth of it gets about a tenth.
        assert np.abs(np.histogram(free, 10, (0, 360))[0] / len(free) - 0.1).max() < 0.02
        assert np.abs(np.histogram(limited, 10, (-45, 45))[0] / len(limited) - 0.1).max() < 0.04


def test_a_test_range_replaces_both():
    angles = sample_parameters(ROTATE_34, np.arange(500) % 2 == 0, 0, 0, override=Range(135, 225)).numpy()
    assert angles.min() >= 135 and angles.max() <= 225 and np.ptp(angles) > 85


def test_restricted_classes_are_never_shown_outside_their_range():
    images, labels = collect(make_dataset(ROTATE_34, "train", 64, seed=0, data=spokes(), epochs=4))
    angles = angle_of(images)
    restricted = np.isin(labels, (3, 4))  # numbers of the dataset's 3 and 4 too
    assert len(labels) == 4 * 192 and restricted.sum() == 4 * 48
    assert np.abs(angles[restricted]).max() < 46 and np.abs(angles[restricted]).max() > 40
    for label in set(labels.tolist()) - {3, 4}:
        counts = np.histogram(angles[labels == label], 4, (-180, 180))[0]
        assert counts.min() > 0, f"class {label} was not shown all around: {counts}"


def test_restricted_range_follows_the_classes_and_not_their_numbers():
    protocol = ROTATE_34.replace(restricted_classes=(8,), excluded_classes=(0, 1, 6))
    images, labels = collect(make_dataset(protocol, "train", 64, seed=0, data=spokes(), epochs=3))
    widest = [np.abs(angle_of(images[labels == label])).max() for label in range(7)]
    assert [angle < 46 for angle in widest] == [False] * 5 + [True, False]  # 2 3 4 5 7 8 9


# A function of (seed, epoch, index)


@pytest.mark.parametrize("split", ["train", "test"])
def test_same_seed_same_stream_to_the_bit(digits, split):
    def stream(seed):
        return collect(make_dataset(ROTATE_34, split, 7, seed, digits, epochs=2))

    for first, second in zip(stream(5), stream(5), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(stream(5)[0], stream(6)[0])


def test_epochs_differ_in_order_and_in_parameters(digits):
    orders = indices(make_dataset(STILL, "train", 16, 0, numbered(), epochs=3)).reshape(3, 100)
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    images, _ = collect(make_dataset(ROTATE_34, "test", 16, 0, digits, epochs=2))
    assert not np.array_equal(images[:48], images[48:])
    restricted = np.zeros(50, bool)
    first, second = (sample_parameters(ROTATE_34, restricted, 0, epoch).numpy() for epoch in (0, 1))
    assert np.abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_train_validation_and_test_share_no_random_numbers():
    drawn = [
        sample_parameters(PROTOCOLS["rotate-34"], np.zeros(50, bool), 0, epoch, stream=stream).numpy()
        for stream in ("train", "validation", "test")
        for epoch in range(4)
    ]
    assert len(np.unique(drawn)) == 12 * 50


@pytest.mark.parametrize("start", [1, 2])
def test_start_epoch_skips_whole_epochs_to_the_bit(digits, start):
    whole = list(make_dataset(ROTATE_34, "train", 25, 3, digits, epochs=3).as_numpy_iterator())
    rest = list(
        make_dataset(ROTATE_34, "train", 25, 3, digits, epochs=3, start_epoch=start).as_numpy_iterator()
    )
    assert len(whole) == 12 and len(rest) == 12 - 4 * start
    for expected, got in zip(whole[4 * start :], rest, strict=True):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_the_parameter_belongs_to_the_image_and_not_to_its_place():
    split = select(ROTATE_34, spokes(), "train")
    ordered, labels = collect(batches(ROTATE_34, split, 50, seed=2, shuffle=False))
    mixed, mixed_labels = collect(batches(ROTATE_34, split, 50, seed=2, shuffle=True))
    assert not np.array_equal(labels, mixed_labels)
    for label in range(8):
        expected, got = ordered[labels == label], mixed[mixed_labels == label]
        np.testing.assert_allclose(np.sort(angle_of(got)), np.sort(angle_of(expected)), atol=1e-3)


# Batches


def test_every_epoch_shows_every_image_once():
    orders = indices(make_dataset(STILL, "train", 16, 0, numbered(), epochs=3)).reshape(3, 100)
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))


def test_unshuffled_keeps_the_order():
    for stream in (
        make_dataset(STILL, "train", 16, 0, numbered(), shuffle=False),
        make_dataset(STILL, "test", 16, 0, numbered()),
    ):
        assert indices(stream).tolist() == list(range(100))
    shuffled = make_dataset(STILL, "test", 16, 0, numbered(), shuffle=True)
    assert indices(shuffled).tolist() != list(range(100))


@pytest.mark.parametrize("batch_size, sizes", [(40, [40, 40, 20]), (100, [100]), (7, [7] * 14 + [2])])
def test_last_batch_of_an_epoch_is_smaller(batch_size, sizes):
    stream = make_dataset(STILL, "train", batch_size, 0, numbered(), epochs=2)
    assert [len(labels) for _, labels in stream.as_numpy_iterator()] == sizes * 2
    assert stream.cardinality() == len(sizes) * 2


def test_empty_batches_are_refused():
    with pytest.raises(UsageError, match=r"at least 1. Received: batch_size=0"):
        make_dataset(STILL, "train", 0, 0, numbered())


def test_nothing_is_left_behind_the_last_epoch():
    stream = make_dataset(STILL, "train", 10, 0, numbered(), epochs=2, start_epoch=2)
    assert stream.cardinality() == 0 and list(stream) == []


def test_element_spec(digits):
    images, labels = make_dataset(ROTATE_34, "train", 8, 0, digits).element_spec
    assert images.shape.as_list() == [None, 12, 12, 1] and images.dtype == tf.float32
    assert labels.shape.as_list() == [None] and labels.dtype == tf.int32


# Pixels


def test_integers_and_floats_give_the_same_pixels(digits):
    raw = digits.x_train[:20]
    angles = sample_parameters(ROTATE_34, np.zeros(20, bool), 0, 0)
    from_bytes = render(ROTATE_34, tf.constant(raw), angles).numpy()
    for dtype in (np.float32, np.float64, np.float16):
        tolerance = 1e-3 if dtype == np.float16 else 1e-6
        from_floats = render(ROTATE_34, tf.constant((raw / 255.0).astype(dtype)), angles).numpy()
        np.testing.assert_allclose(from_floats, from_bytes, atol=tolerance)
    assert from_bytes.dtype == np.float32 and from_bytes.min() >= 0.0 and from_bytes.max() <= 1.0


def test_pixel_range_scales_and_fills():
    signed = Protocol("signed", "shift", Range(2, 3), (0,), Range(2, 3), pixel_range=(-1.0, 1.0))
    for white in (np.full((1, 4, 4, 1), 255, np.uint8), np.ones((1, 4, 4, 1), np.float32)):
        shown = render(signed, tf.constant(white), tf.constant([[2.0, 0.0]])).numpy()[0, ..., 0]
        np.testing.assert_allclose(shown, [[-1, -1, 1, 1]] * 4, atol=1e-6)
    grey = render(signed, tf.constant([[[[51]]]], tf.uint8), tf.zeros((1, 2))).numpy()
    np.testing.assert_allclose(grey, -0.6, atol=1e-6)
