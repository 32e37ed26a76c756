"""Capsule losses: values by hand, gradients, labels, configuration, and a margin that moves in training."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.backend import BACKEND, array, gradients, tensor
from tfinv.losses import MarginLoss, SpreadLoss

LOSSES = [MarginLoss, SpreadLoss]
SCORES = np.array([[0.95, 0.05, 0.3], [0.2, 0.6, 0.1], [0.0, 0.0, 0.999]], np.float32)
LABELS = np.array([0, 1, 0], np.int32)


def margin_by_hand(scores, label, present=0.9, absent=0.1, absent_weight=0.5):
    total = max(0.0, present - scores[label]) ** 2
    for other, score in enumerate(scores):
        if other != label:
            total += absent_weight * max(0.0, score - absent) ** 2
    return total


def spread_by_hand(scores, label, margin=0.2):
    return sum(
        max(0.0, margin - (scores[label] - score)) ** 2
        for other, score in enumerate(scores)
        if other != label
    )


def identity_model(loss):
    """Scores in, the same scores out, through a weight of 0 that gives the optimizer something to do."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(3, use_bias=False, kernel_initializer="identity")(inputs))
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model


# Values


def test_margin_loss_value_by_hand():
    # .3 is .2 above m-; .6 is .3 below m+ and .2 is .1 above m-; nothing is right in the last sample.
    expected = [0.5 * 0.04, 0.09 + 0.5 * 0.01, 0.81 + 0.5 * 0.899**2]
    found = array(MarginLoss(reduction=None)(LABELS, SCORES))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(array(MarginLoss()(LABELS, SCORES)), np.mean(expected), rtol=1e-5)


def test_spread_loss_value_by_hand():
    # Margins: .9 and .65; .4 and .5; 0 (.2 too close) and -.999 (1.199 too close).
    found = array(SpreadLoss(reduction=None)(LABELS, SCORES))
    np.testing.assert_allclose(found, [0.0, 0.0, 0.04 + 1.199**2], rtol=1e-5, atol=1e-12)
    found = array(SpreadLoss(0.9, reduction=None)(LABELS, SCORES))
    np.testing.assert_allclose(found, [0.25**2, 0.5**2 + 0.4**2, 0.81 + 1.899**2], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 10), (129, 3)])
@pytest.mark.parametrize(
    "loss, by_hand, arguments",
    [
        (MarginLoss, margin_by_hand, {}),
        (MarginLoss, margin_by_hand, dict(present=0.7, absent=0.25, absent_weight=2.0)),
        (SpreadLoss, spread_by_hand, {}),
        (SpreadLoss, spread_by_hand, dict(margin=0.9)),
    ],
)
def test_losses_equal_the_definition_on_any_batch(loss, by_hand, arguments, shape):
    random = np.random.default_rng(0)
    scores, labels = random.random(shape, dtype=np.float32), random.integers(0, shape[1], shape[0])
    expected = [by_hand(row, label, **arguments) for row, label in zip(scores, labels, strict=True)]
    found = array(loss(**arguments)(labels, scores))
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["int32", "int64", "uint8", "float32"])
def test_labels_of_either_rank_and_any_type(loss, kind):
    expected = array(loss(reduction=None)(LABELS, SCORES))
    for labels in (LABELS.astype(kind), LABELS.astype(kind)[:, None]):
        np.testing.assert_array_equal(array(loss(reduction=None)(labels, SCORES)), expected)
    assert expected.shape == (3,)


# Gradients


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_gradients_are_finite_on_and_off_the_margins(loss, value):
    (gradient,) = gradients(lambda scores: loss()(tensor(LABELS, "int32"), scores), np.full((3, 3), value))
    assert np.isfinite(gradient).all()
    (gradient,) = gradients(lambda scores: loss()(tensor(LABELS, "int32"), scores), SCORES)
    # Descent lengthens the capsule of the label and shortens the one that is wrongly long.
    assert np.isfinite(gradient).all() and gradient[2, 0] < 0.0 < gradient[2, 2]


def test_gradient_by_hand():
    (gradient,) = gradients(lambda scores: ops.sum(MarginLoss(reduction=None).call(LABELS, scores)), SCORES)
    np.testing.assert_allclose(gradient, [[0, 0, 0.2], [0.1, -0.6, 0], [-1.8, 0, 0.899]], atol=1e-6)


# Configuration


@pytest.mark.parametrize(
    "loss",
    [
        MarginLoss(0.8, 0.2, 0.25, name="margin", reduction="sum"),
        SpreadLoss(0.5, name="spread", reduction="sum"),
    ],
)
def test_config_makes_the_same_loss(loss):
    config = loss.get_config()
    again = type(loss).from_config(config)
    assert again.get_config() == config
    assert (again.name, again.reduction) == (loss.name, "sum")
    np.testing.assert_array_equal(array(again(LABELS, SCORES)), array(loss(LABELS, SCORES)))
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is type(loss) and restored.get_config() == config
    assert keras.saving.get_registered_name(type(loss)) == f"tfinv>{type(loss).__name__}"


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_model_is_saved_with_its_loss(loss, tmp_path):
    model = identity_model(loss())
    model.fit(SCORES, LABELS, batch_size=3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(SCORES, LABELS, verbose=0) == model.evaluate(SCORES, LABELS, verbose=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_fit_weighs_a_ragged_last_batch_by_its_samples(loss):
    model = identity_model(loss())
    expected = float(array(loss()(LABELS, SCORES)))
    for labels in (LABELS, LABELS[:, None]):
        assert model.evaluate(SCORES, labels, batch_size=2, verbose=0) == pytest.approx(expected, rel=1e-5)
        history = model.fit(SCORES, labels, batch_size=2, verbose=0).history
        assert history["loss"] == pytest.approx([expected], rel=1e-5)


# A margin that moves


def test_margin_is_assignable_and_serialized_as_it_stands():
    loss = SpreadLoss(0.2)
    loss.margin.assign(0.75)
    assert loss.get_config()["margin"] == 0.75
    expected = np.mean([spread_by_hand(row, label, 0.75) for row, label in zip(SCORES, LABELS, strict=True)])
    np.testing.assert_allclose(array(loss(LABELS, SCORES)), expected, rtol=1e-5)


@pytest.mark.parametrize("step", ["fit", "evaluate"])
def test_assigned_margin_is_effective_in_a_compiled_step(step):
    loss = SpreadLoss(0.2)
    model = identity_model(loss)
    for margin in (0.2, 0.9, 0.5):
        loss.margin.assign(margin)
        if BACKEND == "jax":  # Its steps hold the margin they were traced with, as documented.
            model.compile(keras.optimizers.SGD(0.0), loss)
        rows = zip(SCORES, LABELS, strict=True)
        expected = np.mean([spread_by_hand(row, label, margin) for row, label in rows])
        if step == "fit":
            (found,) = model.fit(SCORES, LABELS, verbose=0).history["loss"]
        else:
            found = model.evaluate(SCORES, LABELS, verbose=0)
        assert found == pytest.approx(expected, rel=1e-5)


def test_spread_loss_leaves_the_model_without_extra_weights():
    model = identity_model(SpreadLoss())
    model.fit(SCORES, LABELS, verbose=0)
    assert len(model.trainable_weights) == 1 and not model.non_trainable_weights
