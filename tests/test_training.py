"""Training: a killed run goes on bitwise the same, seeds reproduce, the schedule is the article's."""

import dataclasses
import json
import os
import signal
import time

import keras
import numpy as np
import pandas as pd
import pytest

from tests.test_config import run_config
from tfinv import experiment, models, runs, training
from tfinv.config import TrainingConfig
from tfinv.data import PROTOCOLS, Dataset, get_protocol
from tfinv.errors import UsageError

PROTOCOL = PROTOCOLS["rotate-34"]
# A small network with everything that has a state of its own: batch normalisation and dropout.
SMALL = models.get_model("cnn").Config((4, 8), dense_units=16, dropout_rate=0.5, batch_normalization=True)
TINY_CAPSNET = models.get_model("capsnet").Config(
    conv_filters=4,
    kernel_size=3,
    primary_channels=2,
    primary_pose_dim=4,
    class_pose_dim=3,
    decoder_units=(8,),
)


TINY_AUTOENCODER = models.get_model("autoencoder").Config((4, 8), (8, 4), dense_units=16, latent_size=4)


def small_run(name="cnn", model=SMALL, limit=None, seed=0, **values):
    config = dataclasses.replace(run_config(name), model=model, limit=limit, seed=seed)
    return runs.replace(config, **{"epochs": 2, "batch_size": 16, "decay_rate": 0.9} | values)


@pytest.fixture
def train(digits, tmp_path, deterministic):
    """Trains into a folder of the given name, in this process."""

    def run(name, config=None, resume=False):
        config = config or small_run()
        runs.prepare(tmp_path / name, config, resume=resume)
        return training.train(config, get_protocol(config.protocol), digits, tmp_path / name)

    return run


def test_a_class_that_only_held_out_images_have_is_named_before_anything_is_written(digits_npz, tmp_path):
    arrays = dict(np.load(digits_npz))
    order = np.argsort(arrays["y_train"], kind="stable")
    arrays |= {name: arrays[name][order] for name in ("x_train", "y_train")}
    np.savez(tmp_path / "sorted.npz", **arrays)
    config = dataclasses.replace(small_run(validation_fraction=0.2), dataset=str(tmp_path / "sorted.npz"))
    with pytest.raises(UsageError, match=r"No training image of class 8\..*here 0.2 of them"):
        experiment.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def state(directory):
    """Everything a checkpoint holds but the wall-clock times."""
    with np.load(directory / runs.CHECKPOINT) as stored:
        values = {key: stored[key] for key in stored.files if key != "history"}
        history = json.loads(str(stored["history"]))
    return values, [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def assert_same_state(first, second):
    (values, history), (others, other_history) = state(first), state(second)
    assert history == other_history
    assert values.keys() == others.keys() and len(values) > 20
    for key in values:
        np.testing.assert_array_equal(values[key], others[key], err_msg=key)


# Killing and going on


def wait_for_checkpoint(directory, process, seconds=120):
    path, end = directory / runs.CHECKPOINT, time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no epoch was finished"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_run_goes_on_as_if_never_killed(tmp_path, start_script, digits_npz):
    options = ["--dataset", digits_npz, "--filters", 4, 8, "--dense-units", 16, "--dropout-rate", 0.5]
    options += ["--batch-size", 1, "--epochs", 3, "--decay-rate", 0.9, "--repeats", 1, "--grid-step", 180]
    name = "cnn_quick-digits-rotate-34-s0"
    untouched, killed = tmp_path / "untouched" / name, tmp_path / "killed" / name
    first = start_script("train_cnn.py", *options, "--output", tmp_path / "untouched")
    # Time to be killed in: every step of the second epoch takes at least 50 ms.
    slow = (
        "import time, keras; step = keras.callbacks.CallbackList.on_train_batch_end; "
        "keras.callbacks.CallbackList.on_train_batch_end = lambda s, b, logs=None: "
        "(time.sleep(0.05 * (s._model.optimizer.iterations.numpy() > 96)), step(s, b, logs))"
    )
    second = start_script("train_cnn.py", *options, "--output", tmp_path / "killed", prelude=slow)
    wait_for_checkpoint(killed, second)
    time.sleep(1.0)
    os.kill(second.pid, signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    rows = pd.read_csv(killed / runs.HISTORY)
    assert len(rows) == 1 and not (killed / runs.MODEL).exists(), "not killed in the second epoch"

    resumed = start_script("train_cnn.py", *options, "--output", tmp_path / "killed", "--resume")
    outcomes = [(process.communicate()[1], process.returncode) for process in (first, resumed)]
    assert [code for _, code in outcomes] == [0, 0], outcomes

    assert_same_state(untouched, killed)
    losses = [pd.read_csv(folder / runs.HISTORY).loss for folder in (untouched, killed)]
    assert losses[0].tolist() == losses[1].tolist() and len(losses[0]) == 3
    weights = [keras.models.load_model(folder / runs.MODEL).get_weights() for folder in (untouched, killed)]
    for expected, got in zip(*weights, strict=True):
        np.testing.assert_array_equal(got, expected)
    tables = [(folder / runs.INVARIANCE).read_text() for folder in (untouched, killed)]
    assert tables[0] == tables[1]


def seconds_of_the_first_epoch(directory):
    """What no second training of it would repeat."""
    return pd.read_csv(directory / runs.HISTORY).seconds[0]


@pytest.mark.parametrize("name, model", [("cnn", SMALL), ("capsnet", TINY_CAPSNET)])
def test_stopping_after_an_epoch_changes_nothing(train, tmp_path, name, model):
    """The same within one process, fast; also for a network with two losses."""
    train("whole", small_run(name, model, epochs=3))
    train("parts", small_run(name, model, epochs=1))
    seconds = seconds_of_the_first_epoch(tmp_path / "parts")
    (tmp_path / "parts" / runs.INVARIANCE).write_text("of one epoch")
    train("parts", small_run(name, model, epochs=3), resume=True)
    assert not (tmp_path / "parts" / runs.INVARIANCE).exists(), "results of fewer epochs stayed"
    assert seconds_of_the_first_epoch(tmp_path / "parts") == seconds
    if name == "cnn":
        assert_same_state(tmp_path / "whole", tmp_path / "parts")
    else:
        assert state(tmp_path / "whole")[1] == state(tmp_path / "parts")[1]
    history = pd.read_csv(tmp_path / "parts" / runs.HISTORY)
    assert history.epoch.tolist() == [1, 2, 3]


def test_finished_run_is_not_trained_again(train, tmp_path):
    train("run")
    before = (tmp_path / "run" / runs.HISTORY).read_text()  # with the seconds of each epoch
    model = train("run", resume=True)
    assert (tmp_path / "run" / runs.HISTORY).read_text() == before
    stored = keras.models.load_model(tmp_path / "run" / runs.MODEL)
    for expected, got in zip(stored.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_history_is_complete_again_after_a_kill_between_checkpoint_and_history(train, tmp_path):
    train("run")
    path = tmp_path / "run" / runs.HISTORY
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    train("run", resume=True)
    assert path.read_text() == whole


def test_no_epochs_save_the_untrained_model(train, tmp_path):
    train("run", small_run(epochs=0))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.keras"]


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "another model"])
def test_damaged_checkpoint_is_named(train, tmp_path, damage):
    train("run", small_run(epochs=1))
    path = tmp_path / "run" / runs.CHECKPOINT
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-100], "garbage": b"garbage", "empty": b""}.get(damage, content))
    config = small_run()
    if damage == "another model":
        bigger = dataclasses.replace(SMALL, filters=(4, 9))
        config = dataclasses.replace(config, model=bigger)
        (tmp_path / "run" / runs.CONFIG).unlink()
        (tmp_path / "run").rename(tmp_path / "old")
        runs.prepare(tmp_path / "run", config)
        (tmp_path / "old" / runs.CHECKPOINT).rename(path)
    with pytest.raises(UsageError, match=r"Damaged checkpoint.*--overwrite") as caught:
        train("run", config, resume=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_checkpoint_of_a_deeper_network_is_refused(train, tmp_path, digits):
    train("run", small_run(epochs=1))
    plain = dataclasses.replace(SMALL, dropout_rate=0.0)  # one variable less: the seed of dropout
    with pytest.raises(UsageError, match=r"Damaged checkpoint"):
        training.train(small_run(model=plain), PROTOCOL, digits, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "changes"),
    [("em_capsnet", {"capsule_channels": (2,), "capsule_strides": (2,)}), ("address_generator", {})],
)
def test_more_epochs_are_refused_where_a_schedule_spans_them_all(name, changes, digits_npz, tmp_path):
    config = dataclasses.replace(models.default_run(name, "quick"), dataset=str(digits_npz))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    runs.prepare(tmp_path / config.run_id, config)
    with pytest.raises(UsageError, match=r"training.epochs 5 -> 6 \(.*--epochs 5.*--overwrite\)"):
        experiment.run(runs.replace(config, epochs=6), tmp_path, resume=True)
    assert runs.read_config(tmp_path / config.run_id)["training"]["epochs"] == 5


# Generators


def small_generator(name="autoencoder", **values):
    model = models.get_model(name).Config(**vars(TINY_AUTOENCODER))
    config = small_run(name, model, optimizer="rmsprop", **values)
    return dataclasses.replace(config, protocol="shift-unseen")


@pytest.mark.parametrize(
    "name, images_per_code", [("autoencoder", 1), ("autoencoder", 4), ("adversarial_autoencoder", 1)]
)
def test_generator_goes_on_bitwise_the_same(train, tmp_path, name, images_per_code):
    options = {"name": name, "images_per_code": images_per_code, "validation_fraction": 0.2}
    train("whole", small_generator(epochs=3, **options))
    train("parts", small_generator(epochs=1, **options))
    seconds = seconds_of_the_first_epoch(tmp_path / "parts")
    train("parts", small_generator(epochs=3, **options), resume=True)
    assert seconds_of_the_first_epoch(tmp_path / "parts") == seconds
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    history = pd.read_csv(tmp_path / "parts" / runs.HISTORY)
    assert {"loss", "val_loss"} <= set(history.columns) and "accuracy" not in history.columns
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    loaded = keras.models.load_model(tmp_path / "parts" / runs.BEST_MODEL)
    images, codes = np.zeros((2, 12, 12, 1), np.float32), np.zeros((1, 2), np.float32)
    assert loaded({"image": images, "code": codes})["image"].shape == (2, 52, 52, 1)


@pytest.mark.parametrize(
    ("config", "protocol", "message"),
    [
        (small_run(), "rotate-49", "cnn is for recognition.*rotate-34.*protocol=rotate-49, for generation"),
        (small_generator(), "rotate-34", "autoencoder is for generation.*rotate-49.*protocol=rotate-34"),
        (small_generator(imagination="operators"), "rotate-49", "Received: imagination=operators"),
        (small_run(images_per_code=2), "rotate-34", "Received: images_per_code=2"),
        (models.default_run("address_generator", "quick"), "shift-49", r"shift-49: 0 0. .*unchanged=\(1"),
        (models.default_run("address_generator", "shift"), "rotate-49", r"rotate-49: 1 0. .*unchanged=\(0"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(config, protocol, message):
    with pytest.raises(UsageError, match=message):
        training.check(config, get_protocol(protocol), (12, 12, 1), 8)


def test_optimizers():
    for name, kind in (("adam", keras.optimizers.Adam), ("rmsprop", keras.optimizers.RMSprop)):
        optimizer = training.make_optimizer(TrainingConfig(optimizer=name, learning_rate=0.25), 10)
        optimizer.build([keras.Variable(0.0)])
        assert type(optimizer) is kind and float(np.asarray(optimizer.learning_rate)) == 0.25


# Seeds and precision


def test_seed_makes_the_run(train, tmp_path):
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        train(name, small_run(seed=seed, limit=48))
    values = {name: state(tmp_path / name) for name in ("first", "second", "other")}
    assert [row["loss"] for row in values["first"][1]] != [row["loss"] for row in values["other"][1]]
    for key, array in values["first"][0].items():
        np.testing.assert_array_equal(array, values["second"][0][key], err_msg=key)


def test_mixed_precision_trains_and_saves_float32(train, tmp_path, digits):
    model = train("mixed", small_run(precision="mixed_bfloat16", limit=48))
    assert keras.config.dtype_policy().name == "float32"
    losses = [row["loss"] for row in state(tmp_path / "mixed")[1]]
    train("exact", small_run(limit=48))
    assert np.isfinite(losses).all()
    assert losses != [row["loss"] for row in state(tmp_path / "exact")[1]], "the policy had no effect"
    images = digits.x_test[:5].astype(np.float32) / 255
    files = (tmp_path / "mixed" / name for name in (runs.MODEL, runs.BEST_MODEL))
    for loaded in (model, *map(keras.models.load_model, files)):
        assert {layer.compute_dtype for layer in loaded.layers} == {"float32"}
        scores = np.asarray(loaded(images)["scores"])
        assert np.isfinite(scores).all() and scores.dtype == np.float32


# What a run leaves behind


@pytest.mark.parametrize(
    ("key", "best_by"),
    [
        ("loss", "loss"),
        ("val_loss", "loss"),
        ("scores_accuracy", "accuracy"),
        ("accuracy", "accuracy"),
        ("val_scores_accuracy", "accuracy"),
    ],
)
def test_best_model_is_that_of_the_best_epoch(tmp_path, key, best_by):
    sign = 1 if best_by == "loss" else -1
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(training.make_optimizer(TrainingConfig(), 1))
    model.optimizer.build(model.trainable_variables)

    def after_epochs(checkpoint, values):
        checkpoint.set_model(model)
        for epoch, value in values:
            model.set_weights([np.full((1, 1), float(epoch))])
            checkpoint.on_epoch_begin(epoch)
            # What must not choose says the opposite: the loss falls, the training accuracy rises.
            logs = {"loss": -epoch, key.removeprefix("val_"): -sign * epoch, key: sign * value}
            checkpoint.on_epoch_end(epoch, logs)
        return float(keras.models.load_model(tmp_path / runs.BEST_MODEL).get_weights()[0][0, 0])

    first = training.Checkpoint(tmp_path, model, "run", best_by)
    assert after_epochs(first, [(0, 3.0), (1, 1.0), (2, 2.0)]) == 1
    resumed = training.Checkpoint(tmp_path, model, "run", best_by)
    (tmp_path / runs.HISTORY).unlink()
    (tmp_path / runs.INVARIANCE).write_text("of fewer epochs")
    assert resumed.restore(model) == 3 and model.get_weights()[0] == 2
    assert not (tmp_path / runs.INVARIANCE).exists()
    assert after_epochs(resumed, [(3, 1.5)]) == 1, "a resumed run forgot its best epoch"
    assert after_epochs(resumed, [(4, 0.5)]) == 4


def test_history_has_one_row_an_epoch_and_no_temporary_file_stays(train, tmp_path):
    train("run", small_run(epochs=2, validation_fraction=0.25))
    history = pd.read_csv(tmp_path / "run" / runs.HISTORY)
    assert set(history.columns) == {
        *("run_id", "epoch", "seconds", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
    }
    assert history.epoch.tolist() == [1, 2] and set(history.run_id) == {small_run().run_id}
    assert history.seconds.min() > 0 and history.learning_rate.tolist() == pytest.approx([9e-4, 8.1e-4])
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best.keras", "checkpoint.npz", "config.json", "history.csv", "model.keras"]
    for name in (runs.MODEL, runs.BEST_MODEL):
        loaded = keras.models.load_model(tmp_path / "run" / name)
        assert not loaded.compiled, "an optimizer's state takes twice the room of the weights"


def test_it_learns(train, tmp_path):
    model = dataclasses.replace(SMALL, dropout_rate=0.0, dense_units=32)
    train("run", small_run(model=model, epochs=8, learning_rate=0.01))
    loss = pd.read_csv(tmp_path / "run" / runs.HISTORY).loss
    assert loss.iloc[-1] < 0.7 * loss.iloc[0]


def test_colour_images_train_too(tmp_path, digits, deterministic):
    colour = {f"x_{part}": digits.images(part).repeat(3, axis=-1) for part in ("train", "test")}
    data = Dataset("colour", y_train=digits.y_train, y_test=digits.y_test, **colour)
    runs.prepare(tmp_path / "run", small_run(limit=32))
    model = training.train(small_run(limit=32), PROTOCOL, data, tmp_path / "run")
    assert model.input_shape == (None, 12, 12, 3)


# The learning rate


@pytest.mark.parametrize("steps_per_epoch", [377])
def test_learning_rate_of_the_articles_networks(steps_per_epoch):
    def rate(config: TrainingConfig, step):
        optimizer = training.make_optimizer(config, steps_per_epoch)
        optimizer.build([keras.Variable(0.0)])
        optimizer.iterations.assign(step)
        return float(np.asarray(optimizer.learning_rate)), optimizer

    for name, preset in models.get_model("cnn").PRESETS.items():
        if preset.article:
            for step, factor in ((0, 1.0), (9_999, 1.0), (10_000, 0.9), (29_999, 0.81), (30_000, 0.729)):
                value, optimizer = rate(preset.training, step)
                assert value == pytest.approx(1e-4 * factor, rel=1e-5), (name, step)
            assert optimizer.beta_1 == 0.95 and preset.training.batch_size == 128
    capsnet = models.get_preset("capsnet", "article").training
    for epoch in range(4):
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            assert rate(capsnet, step)[0] == pytest.approx(1e-3 * 0.9**epoch, rel=1e-5)
    assert capsnet.batch_size == 100
