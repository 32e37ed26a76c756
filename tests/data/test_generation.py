"""The stream of generation: upright images and codes in, transformed images out, legal for every class."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfinv.data import PROTOCOLS, Dataset, get_protocol, make_pairs, render, sample_parameters, scale_pixels
from tfinv.data.protocol import Range
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError

GENERATION = [
    name for name, protocol in PROTOCOLS.items() if protocol.task == "generation" and not protocol.upright
]


def collect(stream):
    """Images, codes and targets of a whole stream."""
    parts = [(inputs["image"], inputs["code"], targets["image"]) for inputs, targets in stream]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def numbered(count=100):
    """Images whose first pixels tell their index and class, with a bright one in the centre."""
    images = np.zeros((count, 12, 12, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    images[:, 6, 6] = 255
    labels = np.arange(count) % 10
    return Dataset("numbered", images, labels, images, labels)


def indices(images):
    return np.rint((images[:, 0, 0, 0] + 1) * 127.5).astype(int)


def parameters_of(codes, name):
    if PROTOCOLS[name].transformation == "rotation":
        return np.degrees(np.arctan2(codes[:, 1], codes[:, 0]))
    return np.rint(codes * 20) if PROTOCOLS[name].transformation == "shift" else codes


@pytest.mark.parametrize("name", GENERATION)
@pytest.mark.parametrize("images_per_code", [1, 4])
def test_targets_are_the_images_under_the_parameter_of_their_code(name, images_per_code):
    protocol = PROTOCOLS[name]
    stream = make_pairs(protocol, "train", 24, 3, numbered(), epochs=2, images_per_code=images_per_code)
    images, codes, targets = collect(stream)
    parameters = parameters_of(codes, name).repeat(images_per_code, axis=0).astype(np.float32)
    assert images.shape[1:] == (12, 12, 1) and targets.shape[1:] == protocol.output_shape((12, 12, 1))
    assert targets.dtype == np.float32 and targets.min() >= -1.0 and targets.max() <= 1.0
    expected = render(protocol, tf.constant(numbered().x_train[indices(images)]), tf.constant(parameters))
    np.testing.assert_allclose(targets, expected, atol=2e-3)
    upright = scale_pixels(protocol, tf.constant(numbered().x_train[indices(images)]))
    np.testing.assert_array_equal(images, upright)
    assert stream.cardinality() == len(list(stream)) == 10


@pytest.mark.parametrize("name", GENERATION)
@pytest.mark.parametrize("images_per_code", [1, 4])
def test_no_class_is_shown_what_it_must_not_be(name, images_per_code):
    protocol, data = PROTOCOLS[name], numbered()
    contains = get_transform(protocol.transformation).contains
    stream = make_pairs(protocol, "train", 8, 0, data, epochs=30, images_per_code=images_per_code)
    images, codes, _ = collect(stream)
    parameters = parameters_of(codes, name).repeat(images_per_code, axis=0)
    slack = 1e-3 if protocol.transformation == "rotation" else 0.0  # from angle to code and back
    restricted = np.isin(data.y_train[indices(images)], (4, 9))
    allowed = Range(protocol.restricted.low - slack, protocol.restricted.high + slack)
    assert contains(parameters[restricted], *allowed.bounds).all()
    # The free ones fill their range: in each quarter of it, about a quarter.
    first = parameters[~restricted].reshape(np.sum(~restricted), -1)[:, 0]
    shares = np.histogram(first, 4, protocol.free.bounds)[0] / len(first)
    assert shares.min() > 0.15 and shares.max() < 0.32
    if protocol.held_out is not None:
        assert not contains(parameters, *protocol.held_out.bounds).any()
        assert contains(parameters, 9, 20).any(), "only the region itself is left out"


def test_held_out_parameters_are_drawn_again_and_the_others_are_left_alone():
    unseen, everywhere = get_protocol("shift-unseen"), get_protocol("shift-49")
    free = np.zeros(5000, bool)
    drawn, before = (sample_parameters(protocol, free, 0, 2).numpy() for protocol in (unseen, everywhere))
    inside = np.all(before >= 10, axis=1)
    assert 200 < inside.sum() < 430 and not np.all(drawn >= 10, axis=1).any()
    np.testing.assert_array_equal(drawn[~inside], before[~inside])
    tested = sample_parameters(unseen, free, 0, 2, override=Range(10, 20)).numpy()
    assert np.all(tested >= 10)


@pytest.mark.parametrize("images_per_code", [1, 4])
def test_stream_is_a_function_of_seed_epoch_and_index(images_per_code):
    def stream(seed=5, start=0, split="train"):
        arguments = (get_protocol("shift-unseen"), split, 8, seed, numbered())
        return collect(make_pairs(*arguments, 3, start, images_per_code=images_per_code))

    whole, again, rest, other = stream(), stream(), stream(start=1), stream(seed=6)
    for first, second, tail in zip(whole, again, rest, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first[len(first) // 3 :], tail)
    assert not np.array_equal(whole[1], other[1])
    orders = indices(whole[0]).reshape(3, -1)
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(*np.split(whole[1], 3)[:2])
    assert not np.array_equal(stream(split="test")[1], whole[1])


def test_groups_are_filled_up_and_share_a_range():
    """One of 101 images is left over; 21 of them are restricted, five groups and one that has both."""
    data = numbered(101)
    labels = np.where(np.arange(101) < 21, 4, data.y_train % 4)
    labels[20] = 9
    data = dataclasses.replace(data, y_train=labels)
    images, codes, _ = collect(make_pairs("rotate-49", "train", 8, 0, data, images_per_code=4))
    assert len(images) == 104 and len(codes) == 26
    assert sorted(set(indices(images))) == list(range(101))
    restricted = (indices(images) < 21).reshape(26, 4)
    assert (restricted.any(axis=1) & ~restricted.all(axis=1)).sum() == 1
    angles = np.abs(parameters_of(codes, "rotate-49"))
    assert angles[restricted.any(axis=1)].max() <= 45.01 and angles.max() > 90


def test_bad_names_are_named():
    with pytest.raises(UsageError, match="Received: protocol=rotate-94"):
        make_pairs("rotate-94", "train", 8, 0, numbered())


@pytest.mark.parametrize(("batch_size", "images_per_code"), [(0, 1), (8, 0), (8, 3), (2, 4)])
def test_batches_that_groups_do_not_fill_are_refused(batch_size, images_per_code):
    with pytest.raises(UsageError, match=r"Received: (batch_size=0|images_per_code=[034])"):
        make_pairs("rotate-49", "train", batch_size, 0, numbered(), images_per_code=images_per_code)


def test_upright_is_rotation_reversed_and_tells_no_parameter():
    forth = make_pairs("rotate-49", "train", 24, 3, numbered(), epochs=2)
    back = make_pairs("upright-49", "train", 24, 3, numbered(), epochs=2)
    for (given, wanted), (inputs, targets) in zip(back, forth, strict=True):
        assert set(given) == {"image"}
        np.testing.assert_array_equal(given["image"], targets["image"])
        np.testing.assert_array_equal(wanted["image"], inputs["image"])
