"""Adversarial training: the penalty, a step as written out, a run, samples of the prior."""

import runpy
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.conftest import ROOT
from tfinv import adversarial as adversarial_module
from tfinv import cli, figures, generation, models, runs, training
from tfinv.adversarial import AdversarialTraining, gradient_penalty
from tfinv.config import TrainingConfig
from tfinv.data import PROTOCOLS
from tfinv.data.transforms import rotation

SIZES = dict(encoder_filters=(4, 8), decoder_filters=(8, 4), dense_units=16, latent_size=4)
ROTATE = PROTOCOLS["rotate-49"]


def adversarial(critic_steps=5, seed=0, optimizer=None):
    keras.utils.set_random_seed(seed)
    network = models.build_generator("adversarial_autoencoder", (12, 12, 1), (12, 12, 1), 2, **SIZES)
    model = models.objective("adversarial_autoencoder", network).model
    model.critic_steps = critic_steps
    model.compile(optimizer or keras.optimizers.RMSprop(1e-3))
    return model


def batch(count=8, seed=1):
    random = np.random.default_rng(seed)
    images = tf.constant(random.uniform(-1, 1, (2, count, 12, 12, 1)), tf.float32)
    codes = rotation.code(tf.constant(random.uniform(-180, 180, count).astype(np.float32)))
    return {"image": images[0], "code": codes}, {"image": images[1]}


# The penalty


def test_penalty_of_a_linear_critic_is_known():
    weights = tf.constant([[3.0], [4.0]])  # slope 5 everywhere
    values = gradient_penalty(
        lambda x: x @ weights + 7.0, tf.zeros((3, 2)), tf.ones((3, 2)), tf.constant([[0.0], [0.3], [1.0]])
    )
    np.testing.assert_allclose(values, [16.0] * 3, rtol=1e-6)


def test_gradient_of_a_linear_critics_penalty_is_known():
    # Of (|w| - 1)^2 it is 2 (|w| - 1) w / |w|, wherever the samples lie: 2 * 4 * (3, 4) / 5.
    weights, random = tf.Variable([[3.0], [4.0]]), np.random.default_rng(0)
    samples = [tf.constant(random.normal(size=(6, 2)), tf.float32) for _ in range(2)]
    alphas = tf.constant(random.uniform(size=(6, 1)), tf.float32)
    with tf.GradientTape() as tape:
        penalty = tf.reduce_mean(gradient_penalty(lambda x: x @ weights, *samples, alphas))
    np.testing.assert_allclose(tape.gradient(penalty, weights), [[4.8], [6.4]], rtol=1e-6)


def test_penalty_is_taken_between_each_pair_at_a_place_of_its_own():
    # Of x^2 / 2 the slope is x: at 0.25 * 4, 0.5 * 4 and 1 * 4 it is 1, 2, 4 in each of two components.
    latents, prior = tf.zeros((3, 2)), tf.constant(4.0, shape=(3, 2))
    alphas = tf.constant([[0.25], [0.5], [1.0]])
    values = gradient_penalty(
        lambda x: tf.reduce_sum(x**2, axis=1, keepdims=True) / 2, latents, prior, alphas
    )
    np.testing.assert_allclose(values, (np.sqrt(2) * np.array([1, 2, 4]) - 1) ** 2, rtol=1e-6)


def test_penalty_has_the_gradient_of_finite_differences():
    random = np.random.default_rng(0)
    first, second = (tf.Variable(random.normal(size=shape)) for shape in ((3, 5), (5, 1)))
    samples = [tf.constant(random.normal(size=(4, 3))) for _ in range(2)]
    alphas = tf.constant(random.uniform(size=(4, 1)))

    def penalty():
        return tf.reduce_sum(gradient_penalty(lambda x: tf.tanh(x @ first) @ second, *samples, alphas))

    with tf.GradientTape() as tape:
        value = penalty()
    for variable, found in zip((first, second), tape.gradient(value, (first, second)), strict=True):
        start, numeric = variable.numpy(), np.empty(variable.shape)
        for place in np.ndindex(*variable.shape):
            for sign in (1, -1):
                moved = start.copy()
                moved[place] += sign * 1e-6
                variable.assign(moved)
                numeric[place] = penalty() / 2e-6 if sign == 1 else numeric[place] - penalty() / 2e-6
        variable.assign(start)
        np.testing.assert_allclose(found, numeric, rtol=1e-5, atol=1e-7)


# A step


@pytest.fixture
def drawn(monkeypatch):
    """What the critic's steps of this test were made with: (latents, prior, alphas) each."""
    seen, penalty = [], adversarial_module.gradient_penalty

    def noted(critic, *samples):
        seen.append(samples)
        return penalty(critic, *samples)

    monkeypatch.setattr(adversarial_module, "gradient_penalty", noted)
    return seen


def test_a_step_is_the_one_written_out(drawn):
    """Plain gradient descent, so that a wrong sign, weight or order shows in the weights."""
    rate, (inputs, targets) = 0.01, batch()
    model, copy = (adversarial(3, optimizer=keras.optimizers.SGD(rate)) for _ in range(2))
    model.train_step((inputs, targets))
    encoder, decoder, critic = copy.encoder, copy.decoder, copy.critic

    def descend(variables, gradients):
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(rate * gradient)

    latents = encoder(inputs["image"])
    for _, prior, alphas in drawn:
        with tf.GradientTape() as tape:
            between = alphas * prior + (1 - alphas) * latents
            with tf.GradientTape() as inner:
                inner.watch(between)
                score = critic(between)
            norm = tf.norm(inner.gradient(score, between), axis=1)
            wasserstein = tf.reduce_mean(critic(latents)) - tf.reduce_mean(critic(prior))
            loss = wasserstein + 10.0 * tf.reduce_mean((norm - 1.0) ** 2)
        descend(critic.trainable_variables, tape.gradient(loss, critic.trainable_variables))
    with tf.GradientTape() as tape:
        rendered = decoder({"latent": encoder(inputs["image"]), "code": inputs["code"]})
        error = tf.reduce_mean((rendered - targets["image"]) ** 2)
        # For the encoder alone; the decoder does not see it.
        loss = error - tf.reduce_mean(critic(encoder(inputs["image"])))
    descend(copy.network.trainable_variables, tape.gradient(loss, copy.network.trainable_variables))
    for name in ("encoder", "decoder", "critic"):
        begun = getattr(adversarial(), name).get_weights()
        found, expected = (getattr(which, name).get_weights() for which in (model, copy))
        for old, new, wanted in zip(begun, found, expected, strict=True):
            assert np.abs(wanted - old).max() > 1e-6 or not wanted.any()
            np.testing.assert_allclose(new, wanted, atol=1e-6)


def test_critics_steps_share_the_latents_and_draw_anew(drawn, monkeypatch):
    model, calls = adversarial(), []
    encode = model.encoder.call
    monkeypatch.setattr(model.encoder, "call", lambda *a, **k: calls.append(1) or encode(*a, **k))
    for _ in range(2):
        model.train_step(batch(64))
    assert len(calls) == 2 and len(drawn) == 10, "encoded once a step"
    for latents, prior, alphas in drawn:
        assert latents.shape == prior.shape == (64, 4) and alphas.shape == (64, 1)
        for values, low in ((prior, -1), (alphas, 0)):
            ends = np.quantile(values, (0, 0.25, 0.75, 1))
            np.testing.assert_allclose(ends, low + (1 - low) * np.array([0, 0.25, 0.75, 1]), atol=0.15)
            assert low <= ends[0] and ends[-1] <= 1
    for kind in (1, 2):
        assert len({float(values[kind][0, 0]) for values in drawn}) == 10


def test_each_optimizer_moves_its_own_weights():
    model = adversarial(critic_steps=3)
    model.train_step(batch())
    critic, adversary = model.further_optimizers
    assert [int(o.iterations) for o in (model.optimizer, critic, adversary)] == [1, 3, 1]
    assert {type(o) for o in (model.optimizer, critic, adversary)} == {keras.optimizers.RMSprop}
    for learning, moving in ((0, [True, True, False]), (1, [False, False, True]), (2, [True, False, False])):
        model = adversarial(critic_steps=1)
        for index, optimizer in enumerate((model.optimizer, *model.further_optimizers)):
            optimizer.learning_rate = lambda rate=1e-3 * (index == learning): rate
        parts = model.encoder, model.decoder, model.critic
        before = [[w.copy() for w in part.get_weights()] for part in parts]
        model.train_step(batch())
        moved = [
            any((old != new).any() for old, new in zip(olds, part.get_weights(), strict=True))
            for olds, part in zip(before, parts, strict=True)
        ]
        assert moved == moving


def test_learning_rates_decay_alike():
    optimizer = training.make_optimizer(TrainingConfig(optimizer="rmsprop", decay_rate=0.5), 2)
    model = adversarial(optimizer=optimizer)
    step = tf.function(model.train_step)
    for _ in range(4):
        step(batch())
    rates = [float(o.learning_rate) for o in (model.optimizer, *model.further_optimizers)]
    assert rates == pytest.approx([2.5e-4] * 3)


def test_latents_come_to_be_like_the_prior():
    """Encoder against critic alone: a uniform distribution is left with the mean and deviation it has."""
    model = adversarial(optimizer=keras.optimizers.RMSprop(1e-3))
    for optimizer in model.further_optimizers:
        optimizer.learning_rate = lambda: 1e-3
    # An encoder as fast as the critic runs past the prior before the critic sees it there.
    model.further_optimizers[1].learning_rate = lambda: 3e-4
    model.optimizer.learning_rate = lambda: 0.0
    inputs, targets = batch(256)
    model.encoder.layers[-1].bias.assign([3.0] * 4)  # far off

    def moments():
        latents = np.asarray(model.encoder(inputs["image"]))
        return latents.mean(axis=0), latents.std(axis=0)

    step = tf.function(model.train_step)
    assert (moments()[0] > 2).all()
    for _ in range(400):
        step((inputs, targets))
    mean, deviation = moments()
    np.testing.assert_allclose(mean, 0.0, atol=0.8)
    np.testing.assert_allclose(deviation, 3**-0.5, atol=0.3)


def test_mixed_precision_keeps_the_critic_exact():
    with training.dtype_policy("mixed_bfloat16"):
        model = adversarial()
    assert {layer.compute_dtype for layer in model.critic.layers[1:]} == {"float32"}
    assert {layer.compute_dtype for layer in model.encoder.layers[1:]} == {"bfloat16"}
    assert np.isfinite(list(map(float, model.train_step(batch()).values()))).all()


def test_half_precision_expects_no_scaled_loss():
    with training.dtype_policy("mixed_float16"):
        model = adversarial()
    assert isinstance(model.optimizer, keras.optimizers.RMSprop)
    before = model.decoder.get_weights()
    assert np.isfinite(list(map(float, model.train_step(batch()).values()))).all()
    # What a scaled loss was expected for would be lowered by 2^15, under the optimizer's epsilon.
    moved = [np.abs(new - old).max() for new, old in zip(model.decoder.get_weights(), before, strict=True)]
    assert min(moved) > 1e-4


def test_article_preset_has_the_articles_critic():
    network = models.build_generator("adversarial_autoencoder", (28, 28, 1), (28, 28, 1), 2, "article")
    critic = models.objective("adversarial_autoencoder", network).model.critic
    assert [layer.units for layer in critic.layers if hasattr(layer, "units")] == [1024, 1024, 1]
    slopes = [layer.negative_slope for layer in critic.layers if hasattr(layer, "negative_slope")]
    assert [round(float(slope), 6) for slope in slopes] == [0.1, 0.1]


def test_held_out_images_are_rendered_as_the_network_does():
    model, (inputs, targets) = adversarial(), batch()
    expected = np.mean((np.asarray(model.network(inputs)["image"]) - targets["image"]) ** 2)
    loss = model.evaluate(tf.data.Dataset.from_tensors((inputs, targets)), verbose=0, return_dict=True)[
        "loss"
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


# A run


def arguments(digits_npz, output, *more):
    options = ["--dataset", digits_npz, "--output", output, "--batch-size", 16, "--grid-step", 60]
    options += ["--encoder-filters", 4, 8, "--decoder-filters", 8, 4, "--dense-units", 16, "--limit", 64]
    return list(map(str, [*options, *more]))


def test_run_from_the_command_line_keeps_the_network_alone(digits_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "make_deterministic", keras.utils.set_random_seed)
    options = arguments(digits_npz, tmp_path, "--epochs", 1, "--protocol", "shift-49")
    cli.train("adversarial_autoencoder", "quick", "", options)
    folder = tmp_path / "adversarial_autoencoder_quick-digits-shift-49-s0"
    model = keras.models.load_model(folder / runs.MODEL)
    assert not isinstance(model, AdversarialTraining)
    assert set(model.input) == {"image", "code"} and model.output["image"].shape == (None, 52, 52, 1)
    assert {layer.name for layer in model.layers if layer.weights} == {"encoder", "decoder"}
    history = pd.read_csv(folder / runs.HISTORY)
    assert {"loss", "critic_loss", "adversarial_loss"} <= set(history.columns)
    assert (folder / runs.FIGURES / "samples.png").is_file()


def test_losses_that_may_be_negative_are_drawn_beside_the_errors():
    history = pd.DataFrame({"run_id": "run", "epoch": [1, 2], "loss": [0.5, 0.4], "critic_loss": [-7.0, 1.0]})
    errors, others = figures.training_curves(history).axes
    assert [axes.get_yscale() for axes in (errors, others)] == ["log", "linear"]
    assert [line.get_label() for axes in (errors, others) for line in axes.lines] == ["loss", "critic loss"]
    assert len(figures.training_curves(history.drop(columns="critic_loss")).axes) == 1


def test_script_has_the_adversarial_option(monkeypatch):
    started = []
    monkeypatch.setattr(cli, "train", lambda name, preset, text, rest: started.append((name, preset, rest)))
    for options in (["--epochs", "1"], ["--adversarial", "--epochs", "1"]):
        monkeypatch.setattr(sys, "argv", ["train_autoencoder.py", *options])
        runpy.run_path(str(ROOT / "scripts" / "train_autoencoder.py"), run_name="__main__")
    names = ("autoencoder", "adversarial_autoencoder")
    assert started == [(name, "quick", ["--epochs", "1"]) for name in names]


def test_samples_are_of_one_latent_a_row():
    network = adversarial().network
    angles = np.array([0.0, 90.0, 0.0], np.float32)
    images = generation.prior_samples(network, ROTATE, angles, 5, seed=3)
    assert images.shape == (5, 3, 12, 12, 1)
    np.testing.assert_array_equal(images[:, 0], images[:, 2])
    assert np.abs(images[:, 0] - images[:, 1]).max() > 1e-6 and np.abs(images[0] - images[1]).max() > 1e-6
    np.testing.assert_array_equal(images, generation.prior_samples(network, ROTATE, angles, 5, seed=3))
    figure = generation.samples_figure(images, ROTATE, angles)
    assert len(figure.axes) == 15 and figure.axes[1].get_title() == "90"


@pytest.mark.parametrize(("given", "compiled"), [("auto", False), (True, True), (False, False)])
def test_xla_which_draws_other_noise_is_asked_for_by_name(given, compiled):
    model = adversarial()
    model.compile(keras.optimizers.SGD(0.01), jit_compile=given)
    assert model.jit_compile is compiled


def test_a_critic_without_steps_is_refused():
    model = adversarial()
    with pytest.raises(ValueError, match="critic_steps=0"):
        AdversarialTraining(model.network, model.critic, critic_steps=0)
