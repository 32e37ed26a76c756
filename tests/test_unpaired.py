"""A transformation from moments: exact where the moments are, and from images whose angles nobody knows."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.test_imagination import shown  # noqa: F401  a fixture
from tfinv import imagination
from tfinv.config import ImaginationConfig
from tfinv.data import Dataset, Range, get_protocol, render, select
from tfinv.errors import UsageError
from tfinv.imagination.moments import fit_generator, moments_of, operators_of

ROTATE_34 = get_protocol("rotate-34")


def ring(pixels, highest, templates=40, seed=0):
    """Signals on a ring in all positions, without frequencies above `highest`; and their labels."""
    random = np.random.default_rng(seed)
    spectra = np.zeros((templates, pixels // 2 + 1), complex)
    spectra[:, : highest + 1] = random.normal(size=(templates, highest + 1, 2)) @ [1, 1j] + 1
    spectra[:, : highest + 1] *= 0.9 ** np.arange(highest + 1)
    signals = np.fft.irfft(spectra, pixels)
    everywhere = np.concatenate([np.roll(signals, shift, axis=1) for shift in range(pixels)])
    return everywhere, np.tile(np.arange(templates) % 3, pixels)


@pytest.mark.parametrize(("pixels", "highest"), [(16, 5), (64, 19)])
def test_shifts_of_a_ring_are_found_exactly(pixels, highest):
    signals, labels = ring(pixels, highest)
    moments = moments_of(lambda number: [(signals, labels)], 1, 2 * highest + 1)
    operators = operators_of(fit_generator(moments), moments, pixels)
    others, _ = ring(pixels, highest, seed=1)
    errors = [
        np.abs(others @ operators[direction * 3] - np.roll(others, 3, axis=1)).max() for direction in (1, -1)
    ]
    assert min(errors) < 1e-4 < max(errors)
    np.testing.assert_allclose(others @ operators[0], others, atol=1e-4)


def test_signals_that_do_not_move_have_no_generator():
    random = np.random.default_rng(0)
    signals = random.gamma(1.0, size=(4000, 12)) * np.arange(1, 13)
    moments = moments_of(lambda number: [(signals, np.zeros(4000, int))], 1, 12)
    with pytest.raises(UsageError, match="do not turn, so"):
        fit_generator(moments)


def strokes(count, seed):
    """Images [N, 16, 16, 1] of two or three blobs along a bent line, and labels in 0..9."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :16] - 7.5
    labels = random.integers(0, 10, count)
    images = np.zeros((count, 16, 16))
    for place, (distance, bend) in enumerate([(0.0, 0.0), (2.0, 0.3), (4.0, 1.2)]):
        radius = distance + 0.1 * labels + random.normal(scale=0.3, size=count)
        angle = bend * (1 + 0.2 * labels) + random.normal(scale=0.2, size=count)
        height = 1.0 - 0.2 * place
        square = (rows - (radius * np.sin(angle))[:, None, None]) ** 2
        square += (columns - (radius * np.cos(angle))[:, None, None]) ** 2
        images = np.maximum(images, height * np.exp(-square / 3.0))
    return (255 * images[..., np.newaxis]).astype(np.uint8), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def drawn():
    return Dataset("strokes", *strokes(3000, 0), *strokes(200, 1))


CONFIG = ImaginationConfig(
    "address",
    operator_steps=24,
    learned_from="moments",
    moment_components=24,
    moment_passes=6,
    address_steps=100,
)


@pytest.mark.parametrize(("kind", "bound"), [("operators", 0.08), ("address", 0.02)])
def test_rotation_is_learned_from_images_at_unknown_angles(drawn, kind, bound):
    config = dataclasses.replace(CONFIG, imagination=kind)
    train, test = select(ROTATE_34, drawn, "train"), select(ROTATE_34, drawn, "test")
    learned = imagination.learn(ROTATE_34, train, config, 0)
    learned = imagination.nearer_direction(learned, ROTATE_34, train)
    errors = imagination.relative_errors(learned, ROTATE_34, test, 60.0)
    assert errors.value.max() < bound
    images = tf.constant(test.images)
    upright = render(ROTATE_34, images, tf.zeros(len(test)))
    turned = render(ROTATE_34, images, tf.fill((len(test),), 180.0))
    assert tf.reduce_sum((upright - turned) ** 2) > 10 * bound * tf.reduce_sum(turned**2)


def test_restricted_classes_are_not_looked_at(drawn, shown):  # noqa: F811
    images = drawn.x_train.copy()
    images[:, 0, 0, 0] = 10 * drawn.y_train
    marked = Dataset("marked", images, drawn.y_train, drawn.x_test, drawn.y_test)
    split = select(ROTATE_34, marked, "train")
    imagination.learn_operators_unpaired(ROTATE_34, split, CONFIG, 0)
    assert {round(float(pixel) * 25.5) for pixel, _ in shown} <= {0, 1, 2, 5, 7, 8}
    assert len(shown) > 6 * 1000


@pytest.mark.parametrize(
    ("protocol", "config", "message"),
    [
        (get_protocol("shift-34"), CONFIG, "Expected learned_from=pairs for protocol shift-34"),
        (dataclasses.replace(ROTATE_34, free=Range(0, 180)), CONFIG, "whole period"),
        (ROTATE_34, dataclasses.replace(CONFIG, moment_components=257), "Expected at most 256"),
    ],
)
def test_what_moments_cannot_tell_is_refused(drawn, protocol, config, message):
    with pytest.raises(UsageError, match=message):
        imagination.check(protocol, select(protocol, drawn, "train"), config, 0)
