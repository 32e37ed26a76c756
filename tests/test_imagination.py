"""Imagination: what it learns from, what it shows in training, and that it finds the transformation."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.backend import array
from tests.conftest import digit_arrays
from tests.test_config import round_trip, run_config
from tests.test_training import PROTOCOL, assert_same_state, small_run, state
from tfinv import imagination, imagination_report, runs, training
from tfinv.config import ImaginationConfig, to_json
from tfinv.data import Dataset, Protocol, Range, get_protocol, render, sample_parameters, select
from tfinv.data.transforms import rotation, shift
from tfinv.errors import UsageError
from tfinv.imagination.address import start_address_field
from tfinv.imagination.pairs import starts, steps_of

# Four operators: quarter turns, which are permutations of pixels.
QUARTERS = ImaginationConfig(imagination="operators", operator_steps=4, operator_pairs=2000)
SHIFTS = Protocol("shift-34", "shift", Range(-3, 3), (3, 4), Range(-1, 1), (6, 9))


@pytest.fixture
def noise():
    """Images of noise: every pixel is lit in some."""
    arrays = digit_arrays(train=1200, test=100, size=6)
    random = np.random.default_rng(1)
    for part in ("train", "test"):
        shape = arrays[f"x_{part}"].shape
        arrays[f"x_{part}"] = random.integers(0, 256, shape).astype(np.uint8)
    return Dataset("noise", **arrays)


@pytest.fixture
def shown(monkeypatch):
    """Every (image, parameter) that reaches a true transformation, when its batch is computed."""
    found = []

    def record(images, parameters):
        found.extend(zip(images.numpy()[:, 0, 0, 0], parameters.numpy().tolist(), strict=True))
        return np.int32(0)

    for transform in (rotation, shift):

        def apply(images, parameters, fill_value=0.0, margin=0, true=transform.apply):
            done = tf.py_function(record, [images, parameters], tf.int32)
            with tf.control_dependencies([done]):
                return true(images, parameters, fill_value)

        monkeypatch.setattr(transform, "apply", apply)
    return found


def marked(labels_of):
    """A dataset whose first pixel is its label / 10."""
    arrays = digit_arrays(train=240, test=60, size=8)
    for part in ("train", "test"):
        arrays[f"x_{part}"] = (arrays[f"x_{part}"] / 255.0).astype(np.float32)
        arrays[f"x_{part}"][:, 0, 0, 0] = arrays[f"y_{part}"] / 10
    return labels_of(arrays)


def labelled(shown):
    """Labels [N] and parameters [N, ...] of what was shown."""
    marks, parameters = zip(*shown, strict=True)
    return np.rint(np.array(marks) * 10).astype(int), np.array(parameters)


# What restricted classes are shown as


@pytest.mark.parametrize(
    ("kind", "classes", "start"),
    [
        ("operators", "all", "identity"),
        ("operators", "restricted", "range"),
        ("address", "restricted", "identity"),
        ("address", "all", "range"),
    ],
)
def test_restricted_classes_are_never_truly_transformed_beyond_their_range(shown, kind, classes, start):
    data = marked(lambda arrays: Dataset("marked", **arrays))
    config = dataclasses.replace(
        QUARTERS,
        imagined_share=0.5,
        imagination=kind,
        imagined_from=start,
        imagined_classes=classes,
        address_steps=2,
    )
    split = select(PROTOCOL, data, "train")
    learned = imagination.learn(PROTOCOL, split, config, seed=0)
    labels, angles = labelled(shown)
    assert not np.isin(labels, (3, 4)).any(), "learned from a restricted class"
    assert set(labels) == {0, 1, 2, 5, 7, 8} and len(labels) > 500
    shown.clear()
    stream = imagination.ImaginedStream(PROTOCOL, config, learned)
    batches = list(stream.batches(split, 32, seed=0, epochs=3))
    labels, angles = labelled(shown)
    limited = np.abs(angles[np.isin(labels, (3, 4))])
    assert len(labels) == sum(len(images) for images, _ in batches) == 3 * len(split)
    assert len(limited) == 3 * 48 and limited.max() <= 45 and limited.max() > 20
    assert np.ptp(angles[~np.isin(labels, (3, 4))]) > 300
    # Half of the images are imagined: untransformed before, if that is where imagination starts.
    share = np.mean(angles[np.isin(labels, (3, 4)) if classes == "restricted" else slice(None)] == 0)
    assert share == (pytest.approx(0.5, abs=0.2) if start == "identity" else 0)


def test_true_transformations_of_all_classes_are_the_upper_bound(shown):
    data = marked(lambda arrays: Dataset("marked", **arrays))
    split = select(PROTOCOL, data, "train")
    config = ImaginationConfig(imagination="true")
    with pytest.raises(UsageError, match=r"operators, address.*imagination=true"):
        imagination.learn(PROTOCOL, split, config, seed=0)
    list(imagination.ImaginedStream(PROTOCOL, config, None).batches(split, 32, seed=0, epochs=3))
    labels, angles = labelled(shown)
    assert np.ptp(angles[np.isin(labels, (3, 4))]) > 300


def test_free_classes_to_learn_from_are_as_many_as_asked_for(digits):
    split = select(PROTOCOL, digits, "train")
    for count in (1, 4, 6):
        config = dataclasses.replace(QUARTERS, operator_classes=count)
        train, held_out = imagination.free_images(split, config, seed=2)
        assert len(set(train.labels)) == count and not (train.restricted.any() or held_out.restricted.any())
        assert len(train) + len(held_out) == count * 12
        learned = {image.tobytes() for image in train.images}
        assert not learned & {image.tobytes() for image in held_out.images}
    with pytest.raises(UsageError, match=r"at most 6.*operator_classes=7"):
        imagination.free_images(split, dataclasses.replace(QUARTERS, operator_classes=7), seed=0)


# What is learned


def test_quarter_turns_are_recovered_exactly_and_hold_for_unseen_classes(noise):
    split = select(PROTOCOL, noise, "train")
    (layer,) = imagination.learn_operators(PROTOCOL, split, QUARTERS)
    pixels = np.arange(36).reshape(6, 6)
    for number, operator in enumerate(layer.kernel.numpy()):
        expected = np.eye(36)[:, np.rot90(pixels, number).ravel()]
        np.testing.assert_allclose(operator, expected, atol=1e-3)
    learned = imagination.assemble(PROTOCOL, (6, 6, 1), [layer])
    rows = imagination.relative_errors(learned, PROTOCOL, select(PROTOCOL, noise, "test"), 90.0)
    assert set(rows.label) == set("01234578") and rows.value.max() < 1e-5
    outside = rows[rows.label.isin(["3", "4"]) & (rows.parameter.abs() > 45)]
    assert not outside.in_training_range.any() and len(outside) == 6


def test_operators_of_an_oblique_start_are_close(noise):
    config = dataclasses.replace(QUARTERS, imagined_from="range", operator_pairs=4000)
    (layer,) = imagination.learn_operators(PROTOCOL, select(PROTOCOL, noise, "train"), config)
    turned = np.eye(36)[:, np.rot90(np.arange(36).reshape(6, 6)).ravel()].reshape(6, 6, 6, 6)
    inner = (slice(1, 5),) * 4
    np.testing.assert_allclose(layer.kernel.numpy()[1].reshape(6, 6, 6, 6)[inner], turned[inner], atol=0.15)


def test_shifts_are_learned_a_component_at_a_time(noise):
    config = dataclasses.replace(QUARTERS, operator_steps=7, operator_pairs=4000)
    split = select(SHIFTS, noise, "train")
    learned = imagination.learn(SHIFTS, split, config, seed=0)
    images = split.images[split.restricted][:3] / np.float32(255)
    for dx, dy in ((2, -1), (-3, 3), (0, 1)):
        moved = imagination.render_learned(
            learned, SHIFTS, tf.constant(images), tf.constant([[dx, dy]], tf.float32)
        )
        true = shift.apply(images, np.tile(np.float32([dx, dy]), (3, 1)))
        np.testing.assert_allclose(moved, true, atol=0.01)


def test_pixel_range_and_colours(noise):
    """Black is -1 in the generation protocols: what comes in from outside the image is black, too."""
    protocol = dataclasses.replace(SHIFTS, pixel_range=(-1.0, 1.0))
    colour = {f"x_{part}": noise.images(part).repeat(3, axis=-1) for part in ("train", "test")}
    for part in colour.values():
        part[..., 1] = 255 - part[..., 1]
    data = Dataset("colour", y_train=noise.y_train, y_test=noise.y_test, **colour)
    split = select(protocol, data, "train", limit=400)
    config = dataclasses.replace(QUARTERS, operator_steps=7)
    learned = imagination.learn(protocol, split, config, seed=0)
    parameters = tf.constant([[2.0, 1.0]])
    still = render(protocol, tf.constant(split.images[:2]), tf.zeros((2, 2)))
    moved = imagination.render_learned(learned, protocol, still, parameters)
    true = render(protocol, tf.constant(split.images[:2]), tf.repeat(parameters, 2, axis=0))
    np.testing.assert_allclose(moved, true, atol=0.02)
    assert float(tf.reduce_min(moved)) == -1.0


def test_address_field_renders_angles_between_those_of_the_operators():
    arrays = digit_arrays(train=400, test=60, size=12)
    random = np.random.default_rng(0)
    for part in ("train", "test"):  # blobs: smooth, so that addresses matter and not noise
        rows, columns = np.mgrid[:12, :12]
        centres = random.uniform(3, 8, (2, len(arrays[f"y_{part}"]), 2, 1, 1))
        blobs = [np.exp(-((rows - c[:, 0]) ** 2 + (columns - c[:, 1]) ** 2) / 3) for c in centres]
        arrays[f"x_{part}"] = np.minimum(sum(blobs), 1.0)[..., None].astype(np.float32)
    data = Dataset("blobs", **arrays)
    config = ImaginationConfig(imagination="address", operator_steps=12, address_steps=100)
    learned = imagination.learn(PROTOCOL, select(PROTOCOL, data, "train"), config, seed=0)
    rows = imagination.relative_errors(learned, PROTOCOL, select(PROTOCOL, data, "test"), 17.0)
    restricted = rows[rows.label.isin(["3", "4"])]
    assert restricted.value.max() < 1e-3 and len(restricted) == 2 * 21


# Runs


@pytest.mark.parametrize("kind", ["operators", "address"])
def test_stopped_run_goes_on_bitwise_the_same(digits, tmp_path, deterministic, kind):
    imagining = dataclasses.replace(QUARTERS, imagination=kind, address_steps=3)

    def train(name, epochs, resume=False):
        config = dataclasses.replace(small_run(epochs=epochs), imagining=imagining)
        runs.prepare(tmp_path / name, config, resume=resume)
        return training.train(config, PROTOCOL, digits, tmp_path / name)

    train("whole", 3)
    train("parts", 1)
    learned = (tmp_path / "parts" / imagination.FILE).read_bytes()
    train("parts", 3, resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "parts" / imagination.FILE).read_bytes() == learned
    plain = small_run(epochs=1)
    runs.prepare(tmp_path / "plain", plain)
    training.train(plain, PROTOCOL, digits, tmp_path / "plain")
    assert not (tmp_path / "plain" / imagination.FILE).exists()
    assert state(tmp_path / "plain")[1][0] != state(tmp_path / "whole")[1][0], "imagination had no effect"


def test_imagined_images_differ_between_batches_epochs_and_seeds(digits):
    split = select(PROTOCOL, digits, "train")
    learned = imagination.learn(PROTOCOL, split, QUARTERS, seed=0)
    stream = imagination.ImaginedStream(PROTOCOL, QUARTERS, learned)

    def epoch(seed, number):
        return np.concatenate([images for images, _ in stream.batches(split, 20, seed, number + 1, number)])

    again, first, second, other = epoch(0, 0), epoch(0, 0), epoch(0, 1), epoch(1, 0)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (96, 12, 12, 1) and first.min() >= 0 and first.max() <= 1
    assert not np.allclose(first, second) and not np.allclose(first, other)
    np.testing.assert_array_equal(
        np.concatenate([images for images, _ in stream.batches(split, 20, 0, 2)])[96:], second
    )


def test_damaged_file_is_named(digits, tmp_path):
    (tmp_path / imagination.FILE).write_bytes(b"garbage")
    split = select(PROTOCOL, digits, "train")
    with pytest.raises(UsageError, match=r"Damaged file.*imagination.keras.*--overwrite"):
        imagination.load_or_learn(PROTOCOL, split, QUARTERS, 0, tmp_path)


def test_a_protocol_without_the_identity_needs_another_start(digits):
    sideways = dataclasses.replace(PROTOCOL, restricted=Range(60, 120))
    with pytest.raises(UsageError, match=r"never seen untransformed.*imagined_from=range"):
        imagination.learn(sideways, select(sideways, digits, "train"), QUARTERS, seed=0)


@pytest.mark.parametrize("name", ["shift-49", "shift-unseen"])
def test_images_that_grow_are_not_imagined(digits, name):
    protocol = get_protocol(name)
    with pytest.raises(UsageError, match=f"without a margin. Received: protocol={name}"):
        imagination.check(protocol, select(protocol, digits, "train"), QUARTERS, seed=0)


def test_what_no_class_may_be_shown_is_not_imagined(digits):
    protocol = dataclasses.replace(PROTOCOL, held_out=Range(135, 225))
    with pytest.raises(UsageError, match=r"holds out no parameters. Received: .*held_out=\(135, 225\)"):
        imagination.check(protocol, select(protocol, digits, "train"), QUARTERS, seed=0)


def test_addresses_of_less_than_a_turn(noise):
    protocol = Protocol("half", "rotation", Range(-90, 90.001), (3, 4), Range(-20, 20), (6, 9))
    config = dataclasses.replace(QUARTERS, operator_steps=3)
    split = select(protocol, noise, "train")
    steps, operators = steps_of(protocol, config), imagination.learn_operators(protocol, split, config, 0)
    field = start_address_field(protocol, steps, operators, (6, 6, 1))
    images = np.random.default_rng(2).random((1, 6, 6, 1), np.float32)
    for turns in (-1, 0, 1):
        found = array(field([images, np.float32([90 * turns])]))
        assert np.abs(found - np.rot90(images, turns, axes=(1, 2))).max() < 0.1


def test_only_what_was_learned_is_compared(noise):
    config = dataclasses.replace(QUARTERS, operator_steps=5, imagined_from="range")
    steps = steps_of(SHIFTS, config)
    learned = imagination.learn(SHIFTS, select(SHIFTS, noise, "train"), config, seed=0)
    test = select(SHIFTS, noise, "test")
    rows = imagination.relative_errors(learned, SHIFTS, test, 1.0, steps=steps)
    assert (steps.range.low, rows.parameter.min(), rows.parameter.max()) == (-2, -2, 2)
    assert SHIFTS.free.low < -2 and len(imagination.relative_errors(learned, SHIFTS, test, 1.0)) > len(rows)


def test_steps_lead_from_every_start_to_the_ends_of_the_free_range():
    protocol = get_protocol("shift-34")
    steps = steps_of(protocol, dataclasses.replace(QUARTERS, imagined_from="range"))
    many = np.zeros(4000, bool)
    reached = starts(protocol, steps, many, 0, 0) + sample_parameters(protocol, many, 0, 0, steps.range)
    shown = sample_parameters(protocol, many, 0, 0)
    for found in (reached, shown):
        assert (np.min(found), np.max(found)) == (-6, 6)
    assert steps_of(protocol, QUARTERS).range == protocol.free, "from the image as it is"
    oblique = dataclasses.replace(PROTOCOL, free=Range(-90, 90))  # a range with its end
    assert steps_of(oblique, dataclasses.replace(QUARTERS, imagined_from="range")).range == Range(-45, 45)


@pytest.mark.parametrize("restricted", [(), (3,)])
def test_report_has_a_figure_where_classes_are_restricted(digits_npz, tmp_path, restricted):
    config = dataclasses.replace(QUARTERS, operator_pairs=50)
    options = {"dataset": str(digits_npz), "restricted_classes": restricted, "step": 90.0}
    rows = imagination_report.learn_transformation(config, output=tmp_path, **options)
    assert set(rows.in_training_range) == ({True, False} if restricted else {True})
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"imagination.keras", "imagination.csv", *["imagination.png"] * len(restricted)}


# Configuration


@pytest.mark.parametrize("kind", ["none", "operators", "address", "true"])
def test_configuration_names_the_run_and_survives_json(kind):
    config = run_config(imagining=ImaginationConfig(imagination=kind, operator_classes=3))
    assert round_trip(config) == config
    assert config.label == ("cnn_quick" if kind == "none" else f"cnn_quick_{kind}_operator_classes_3")


def test_runs_from_before_imagination_load_and_go_on(tmp_path):
    config = run_config()
    assert "imagining" not in json.loads(to_json(config)) and round_trip(config) == config
    runs.prepare(tmp_path / "run", config)
    runs.prepare(tmp_path / "run", config, resume=True)
    other = dataclasses.replace(config, imagining=ImaginationConfig(imagination="true"))
    with pytest.raises(UsageError, match=r"imagining\.imagination"):
        runs.prepare(tmp_path / "run", other, resume=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("operator_steps", 1),
        ("operator_classes", 0),
        ("operator_pairs", 0),
        ("ridge", -1.0),
        ("address_steps", -1),
        ("imagined_share", 1.1),
        ("imagined_share", float("nan")),
    ],
)
def test_bad_values_are_named(key, value):
    with pytest.raises(UsageError, match=f"Invalid value for {key}. Expected .*{key}={value}"):
        ImaginationConfig(**{key: value})


def test_learned_transformation_survives_saving(digits, tmp_path):
    split = select(PROTOCOL, digits, "train")
    assert imagination.load_or_learn(PROTOCOL, split, ImaginationConfig(), 0, tmp_path) is None
    learned = imagination.load_or_learn(PROTOCOL, split, QUARTERS, 0, tmp_path)
    loaded = keras.models.load_model(tmp_path / imagination.FILE)
    images, steps = digits.x_test[:4].astype(np.float32), np.array([80.0, 200.0], np.float32)
    np.testing.assert_array_equal(loaded([images, steps]), learned([images, steps]))
