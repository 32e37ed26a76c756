"""Adversarial training: the penalty, who is trained by what, resumption, two replicas, samples."""

import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.conftest import ENVIRONMENT, ROOT
from tfinv import cli, generation, models, runs, training
from tfinv.adversarial import AdversarialTraining, gradient_penalty
from tfinv.data import PROTOCOLS
from tfinv.data.transforms import rotation

SIZES = dict(encoder_filters=(4, 8), decoder_filters=(8, 4), dense_units=16, latent_size=4)
ROTATE = PROTOCOLS["rotate-49"]


def adversarial(critic_steps=5, seed=0):
    keras.utils.set_random_seed(seed)
    network = models.build_generator("adversarial_autoencoder", (12, 12, 1), (12, 12, 1), 2, **SIZES)
    model = models.objective("adversarial_autoencoder", network).model
    model.critic_steps = critic_steps
    model.compile(keras.optimizers.RMSprop(1e-3))
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


def test_each_optimizer_moves_its_own_weights():
    model = adversarial(critic_steps=3)
    model.train_step(batch())
    critic, adversary = model.further_optimizers
    assert [int(o.iterations) for o in (model.optimizer, critic, adversary)] == [1, 3, 1]
    for frozen in (("critic",), ("reconstruction", "adversary")):
        model = adversarial()
        critic, adversary = model.further_optimizers
        chosen = {"critic": critic, "adversary": adversary, "reconstruction": model.optimizer}
        for name in frozen:
            chosen[name].learning_rate = 0.0
        parts = model.encoder, model.decoder, model.critic
        before = [[w.copy() for w in part.get_weights()] for part in parts]
        model.train_step(batch())
        moved = [
            any((old != new).any() for old, new in zip(olds, part.get_weights(), strict=True))
            for olds, part in zip(before, parts, strict=True)
        ]
        assert moved == ([True, True, False] if frozen == ("critic",) else [False, False, True])


def test_critic_learns_and_noise_differs_from_step_to_step():
    model = adversarial()
    data = batch(64)
    losses = [model.train_step(data)["critic_loss"].numpy() for _ in range(3)]
    first = float(losses[0])
    for _ in range(30):
        model.train_step(data)
    model.reset_metrics()
    assert float(model.train_step(data)["critic_loss"]) < first < 20
    assert len(set(map(float, losses))) == 3


def test_held_out_images_are_rendered_as_the_network_does():
    model, (inputs, targets) = adversarial(), batch()
    expected = np.mean((np.asarray(model.network(inputs)["image"]) - targets["image"]) ** 2)
    loss = model.evaluate(tf.data.Dataset.from_tensors((inputs, targets)), verbose=0, return_dict=True)[
        "loss"
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


REPLICAS = """
import numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.test_adversarial import adversarial, batch
data = tf.data.Dataset.from_tensor_slices(batch(24)).batch(8)
alone = adversarial(critic_steps=2)
one = alone.fit(data, verbose=0).history
strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
with strategy.scope():
    shared = adversarial(critic_steps=2)
two = shared.fit(data, verbose=0).history
assert strategy.num_replicas_in_sync == 2
for name in one:
    np.testing.assert_allclose(one[name], two[name], rtol=1e-4, err_msg=name)
for old, new in zip(alone.get_weights(), shared.get_weights()):
    np.testing.assert_allclose(old, new, atol=2e-5)
print("same")
"""


@pytest.mark.slow
def test_two_replicas_do_what_one_does():
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REPLICAS]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.stdout.strip() == "same", ended.stderr[-2000:]


# A run


def arguments(digits_npz, output, *more):
    options = ["--dataset", digits_npz, "--output", output, "--batch-size", 16, "--grid-step", 60]
    options += ["--encoder-filters", 4, 8, "--decoder-filters", 8, 4, "--dense-units", 16, "--limit", 64]
    return list(map(str, [*options, *more]))


def test_interrupted_run_goes_on_bitwise_and_draws_its_prior(digits_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "make_deterministic", keras.utils.set_random_seed)
    name = "adversarial_autoencoder_quick-digits-rotate-49-s0"
    cli.train("adversarial_autoencoder", "quick", "", arguments(digits_npz, tmp_path / "a", "--epochs", 3))

    class StoppedError(Exception):
        pass

    save = training.Checkpoint._save

    def stop_after_two(checkpoint):
        save(checkpoint)
        if len(checkpoint._history) == 2:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(training.Checkpoint, "_save", stop_after_two)
        with pytest.raises(StoppedError):
            cli.train(
                "adversarial_autoencoder", "quick", "", arguments(digits_npz, tmp_path / "b", "--epochs", 3)
            )
    cli.train(
        "adversarial_autoencoder",
        "quick",
        "",
        arguments(digits_npz, tmp_path / "b", "--epochs", 3, "--resume"),
    )
    stored = [np.load(tmp_path / folder / name / runs.CHECKPOINT) for folder in "ab"]
    variables = [key for key in stored[0].files if key != "history"]
    for key in variables:
        np.testing.assert_array_equal(stored[0][key], stored[1][key])
    model = keras.models.load_model(tmp_path / "a" / name / runs.MODEL)
    assert len(variables) > 2 * len(model.weights), "the critic and the state of all optimizers are kept"
    history = pd.read_csv(tmp_path / "a" / name / runs.HISTORY)
    assert {"loss", "critic_loss", "adversarial_loss"} <= set(history.columns) and len(history) == 3
    assert set(model.input) == {"image", "code"} and not isinstance(model, AdversarialTraining)
    assert (tmp_path / "a" / name / "figures" / "samples.png").is_file()


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
