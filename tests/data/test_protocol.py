"""Protocols as data: rotate-34, the choice of classes and images, and a protocol made by a user."""

import dataclasses

import numpy as np
import pytest

from tfinv.data import PROTOCOLS, Dataset, get_protocol, make_dataset, never_seen, seen_in_training, select
from tfinv.data.protocol import Evaluation, Protocol, Range
from tfinv.data.transforms import available, get_transform
from tfinv.errors import UsageError

ROTATE_34 = PROTOCOLS["rotate-34"]


def test_rotate_34_is_the_articles():
    protocol = get_protocol("rotate-34")
    assert protocol.transformation == "rotation"
    assert protocol.free == Range(0, 360) and protocol.restricted == Range(-45, 45)
    assert protocol.restricted_classes == (3, 4) and protocol.excluded_classes == (6, 9)
    assert protocol.pixel_range == (0.0, 1.0)
    tests = {name: (test.classes, test.range) for name, test in protocol.evaluations.items()}
    assert tests == {
        "Ptest": ("all", None),
        "Pin": ("restricted", Range(-45, 45)),
        "Pout": ("restricted", Range(45, 315)),
        "Pinv": ("restricted", Range(135, 225)),
    }


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_complete(name):
    protocol = get_protocol(name)
    assert protocol.name == name and get_protocol(protocol) is protocol
    assert protocol.transformation in available()
    assert not set(protocol.restricted_classes) & set(protocol.excluded_classes)
    assert bool(protocol.evaluations) == (protocol.task == "recognition")
    assert all(test.description for test in protocol.evaluations.values())
    grid = get_transform(protocol.transformation).grid(protocol.grid_step)
    contains = get_transform(protocol.transformation).contains
    for limits in filter(None, (protocol.restricted, protocol.held_out)):
        assert 3 <= contains(grid, *limits.bounds).sum() < len(grid), (
            "the sweep must tell inside from outside"
        )


def test_generation_protocols_are_the_articles():
    for name, free, restricted, shape, points in (
        ("rotate-49", (-180, 180), (-45, 45), (28, 28, 1), 200),
        ("shift-49", (-20, 20), (-5, 5), (68, 68, 1), 40),
        ("shift-unseen", (-20, 20), (-5, 5), (68, 68, 1), 40),
    ):
        protocol = get_protocol(name)
        assert (protocol.free.bounds, protocol.restricted.bounds) == (free, restricted)
        assert protocol.restricted_classes == (4, 9) and protocol.excluded_classes == ()
        assert protocol.pixel_range == (-1.0, 1.0) and protocol.task == "generation"
        assert protocol.output_shape((28, 28, 1)) == shape
        grid = get_transform(protocol.transformation).grid(protocol.grid_step)
        assert len(grid) == points
    assert get_protocol("shift-unseen").held_out == Range(10, 20)
    assert get_protocol("rotate-34").task == "recognition" and get_protocol("rotate-34").margin == 0


def test_generators_have_one_range_of_pixels():
    with pytest.raises(UsageError, match=r"pixels from -1 to 1.*Received: \(0.0, 1.0\)"):
        dataclasses.replace(get_protocol("rotate-49"), pixel_range=(0.0, 1.0))


@pytest.mark.parametrize("held_out", [(-20, 20), (-5, 5), (-50, 50)])
def test_not_everything_can_be_held_out(held_out):
    with pytest.raises(UsageError, match=f"Nothing is left.*low={held_out[0]}"):
        dataclasses.replace(get_protocol("shift-unseen"), held_out=Range(*held_out))


@pytest.mark.parametrize(
    ("held_out", "refused"),
    [((315, 405), True), ((-50, -40), False), ((-60, 310), True), ((90, 400), False), ((30, 410), True)],
)
def test_angles_are_held_out_modulo_a_turn(held_out, refused):
    protocol = get_protocol("rotate-34")
    if refused:
        with pytest.raises(UsageError, match="Nothing is left"):
            dataclasses.replace(protocol, held_out=Range(*held_out))
    else:
        dataclasses.replace(protocol, held_out=Range(*held_out))


def test_what_is_held_out_was_not_seen():
    protocol = dataclasses.replace(get_protocol("rotate-34"), held_out=Range(30, 120))
    angles = np.array([-90.0, 0.0, 30.0, 60.0, 150.0], np.float32)
    assert never_seen(protocol, angles).tolist() == [False, False, True, True, False]
    assert seen_in_training(protocol, angles, restricted=False).tolist() == [True, True, False, False, True]
    assert seen_in_training(protocol, angles, restricted=True).tolist() == [False, True, False, False, False]


def test_unknown_protocol_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"rotate-34.*Received: protocol=rotate-43"):
        get_protocol("rotate-43")


def test_protocols_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROTATE_34.free = Range(0, 1)
    changed = ROTATE_34.replace(restricted_classes=(1,), excluded_classes=())
    assert (changed.restricted_classes, changed.excluded_classes) == ((1,), ())
    assert ROTATE_34.replace() == ROTATE_34 and ROTATE_34.restricted_classes == (3, 4)


@pytest.mark.parametrize("low, high", [(1, 1), (2, 1), (float("nan"), 1)])
def test_empty_range_is_refused(low, high):
    with pytest.raises(UsageError, match=f"low={low}, high={high}"):
        Range(low, high)


# Which images


def test_labels_are_renumbered_without_gaps(digits):
    split = select(ROTATE_34, digits, "test")
    source = digits.y_test[~np.isin(digits.y_test, (6, 9))]
    renumbered = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 7: 6, 8: 7}
    assert split.labels.tolist() == [renumbered[label] for label in source.tolist()]
    assert split.labels.dtype == np.int32 and split.class_names == ("0", "1", "2", "3", "4", "5", "7", "8")
    np.testing.assert_array_equal(split.images, digits.x_test[~np.isin(digits.y_test, (6, 9))])
    np.testing.assert_array_equal(split.restricted, np.isin(source, (3, 4)))


def test_classes_with_gaps_and_other_restricted_ones(digits):
    protocol = ROTATE_34.replace(restricted_classes=(7, 9), excluded_classes=(0, 8))
    split = select(protocol, digits, "train")
    assert split.class_names == ("1", "2", "3", "4", "5", "6", "7", "9")
    names = np.array(split.class_names)[split.labels]
    np.testing.assert_array_equal(split.restricted, np.isin(names, ("7", "9")))


def test_validation_is_held_out_of_training(digits):
    numbered = numbered_images(digits)
    train = select(ROTATE_34, numbered, "train", validation_fraction=0.25)
    held_out = select(ROTATE_34, numbered, "validation", validation_fraction=0.25)
    together = [split.images[:, 0, 0, 0].tolist() for split in (train, held_out)]
    assert len(train) == 72 and len(held_out) == 24
    assert not set(together[0]) & set(together[1])
    everything = select(ROTATE_34, numbered, "train")
    assert together[0] + together[1] == everything.images[:, 0, 0, 0].tolist()
    assert len(select(ROTATE_34, numbered, "validation")) == 0


def test_limit_keeps_the_first_images(digits):
    for part in ("train", "test"):
        split, everything = (select(ROTATE_34, digits, part, limit=limit) for limit in (11, None))
        np.testing.assert_array_equal(split.images, everything.images[:11])
        assert len(split) == len(split.labels) == len(split.restricted) == 11
        assert split.class_names == everything.class_names
    assert len(select(ROTATE_34, digits, "test", limit=10**6)) == 48


def test_only_keeps_the_masked_images(digits):
    split = select(ROTATE_34, digits, "test")
    part = split.only(split.restricted)
    assert set(part.labels.tolist()) == {3, 4} and part.restricted.all()
    assert part.class_names == split.class_names and len(part.images) == len(part)


@pytest.mark.parametrize(
    ("restricted", "excluded", "message"),
    [
        ((3, 12), (6, 9), "Received: 12"),
        ((3, 4), (4, 9), "Received: 4"),
        ((), tuple(range(9)), "At least two classes"),
    ],
)
def test_classes_that_do_not_fit_are_named(digits, restricted, excluded, message):
    protocol = ROTATE_34.replace(restricted, excluded)
    with pytest.raises(UsageError, match=message) as caught:
        select(protocol, digits, "train")
    assert "digits" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("validation_fraction", 1.5), ("validation_fraction", -0.1), ("limit", -5), ("limit", 0)],
)
def test_numbers_out_of_range_are_named(digits, name, value):
    with pytest.raises(UsageError, match=f"Received: {name}={value}"):
        select(ROTATE_34, digits, "train", **{name: value})


def test_unknown_split_lists_the_known_ones(digits):
    with pytest.raises(UsageError, match=r"train, validation, test\. Received: split=dev"):
        select(ROTATE_34, digits, "dev")


# A protocol of one's own needs no code


def test_own_protocol_over_shifts_goes_through_the_same_pipeline():
    protocol = Protocol(
        "shift-1",
        "shift",
        free=Range(-3, 4),
        restricted_classes=(1,),
        restricted=Range(0, 1),
        evaluations={"Pfar": Evaluation("class 1 far away", "restricted", Range(3, 5))},
        pixel_range=(-1.0, 1.0),
    )
    images = np.zeros((200, 15, 15, 1), np.uint8)
    images[:, 7, 7] = 255
    labels = np.arange(200) % 2
    data = Dataset("dots", images, labels, images, labels)
    stream = make_dataset(protocol, "train", 32, seed=0, data=data)
    shown, classes = (np.concatenate(parts) for parts in zip(*stream.as_numpy_iterator(), strict=True))
    assert shown.min() == -1.0 and shown.max() == 1.0
    rows, columns = (shown[..., 0].max(axis=axis).argmax(axis=1) - 7 for axis in (2, 1))
    for shifts in (rows, columns):
        assert set(shifts[classes == 1]) == {0}
        assert set(shifts[classes == 0]) == set(range(-3, 4))


def numbered_images(dataset):
    """Writes the index of each image into its first pixel."""
    images = {}
    for part in ("train", "test"):
        images[part] = dataset.images(part).copy()
        images[part][:, 0, 0, 0] = np.arange(len(images[part]))
    return dataclasses.replace(dataset, x_train=images["train"], x_test=images["test"])
