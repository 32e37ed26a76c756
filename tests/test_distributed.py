"""Data-parallel training: replicas and workers do what one process does; who is lost is named; TF_CONFIG."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests import replicas
from tests.conftest import ENVIRONMENT, ROOT
from tests.test_config import run_config
from tests.test_training import assert_same_state, small_run, state, wait_for_checkpoint
from tfinv import cli, distributed, runs, training
from tfinv.data import PROTOCOLS, batches, pairs, part_of, select
from tfinv.distributed import ALONE, Team, read_cluster
from tfinv.errors import UsageError
from tfinv.replicas import GlobalMean

# Of weights after two epochs; sums in another order differ in the last bits of a float32.
TOLERANCE = 1e-5


def team_of(replicas_, workers=1, index=0, name="mirrored"):
    """A team that nobody asks to compute."""
    return Team(name, SimpleNamespace(num_replicas_in_sync=replicas_), index, workers)


def clusters(count=2):
    """TF_CONFIG of each worker of a cluster on this machine, at ports that are free."""
    sockets = [socket.socket() for _ in range(count)]
    for own in sockets:
        own.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{own.getsockname()[1]}" for own in sockets]
    for own in sockets:
        own.close()
    tasks = [{"type": "worker", "index": index} for index in range(count)]
    return [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]


# Sharing a batch


def test_parts_of_batches_are_the_batches(digits):
    protocol = PROTOCOLS["rotate-34"]
    split = select(protocol, digits, "train")
    whole = list(batches(protocol, split, 20, seed=3, epochs=2, start_epoch=1))
    parts = [list(batches(protocol, split, 20, 3, 2, 1, part=(index, 3))) for index in range(3)]
    assert {len(part) for part in parts} == {len(whole)}
    for step, batch in enumerate(whole):
        images, labels = (np.concatenate([part[step][kind] for part in parts]) for kind in range(2))
        np.testing.assert_allclose(images, batch[0], atol=1e-5)  # pixels are interpolated in other groups
        np.testing.assert_array_equal(labels, batch[1])
        sizes = [len(part[step][1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and sum(sizes) == len(batch[1])


def test_images_that_share_a_code_stay_together(digits):
    protocol = PROTOCOLS["rotate-49"]
    arguments = (protocol, select(protocol, digits, "train"), 20, 3)
    whole = list(pairs(*arguments, images_per_code=4))
    parts = [list(pairs(*arguments, images_per_code=4, part=(index, 2))) for index in range(2)]
    for step, (inputs, targets) in enumerate(whole):
        shares = [part[step] for part in parts]
        for own, _ in shares:
            assert len(own["image"]) == 4 * len(own["code"]) > 0
        for key in ("image", "code"):
            np.testing.assert_array_equal(np.concatenate([own[key] for own, _ in shares]), inputs[key])
        joined = np.concatenate([own["image"] for _, own in shares])
        np.testing.assert_allclose(joined, targets["image"], atol=1e-5)
        again = part_of((inputs, targets), (1, 2))
        tf.nest.map_structure(lambda *pair: np.testing.assert_allclose(*pair, atol=1e-5), again, shares[1])


@pytest.mark.parametrize(
    ("count", "size", "per_code", "message"),
    [
        (100, 21, 1, "multiple of 2 replicas. Received: a batch of 21 images"),
        (9, 20, 1, "Received: a batch of 9 images"),
        (100, 20, 4, "2 replicas and 4 images per code. Received: a batch of 20"),
        (41, 20, 1, "reach all of 2 replicas.*Received: batch_size=20 for 41 images"),
        (44, 40, 4, "Received: batch_size=40 for 44 images"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(count, size, per_code, message):
    with pytest.raises(UsageError, match=message):
        team_of(2).check_batches(count, size, per_code)
    ALONE.check_batches(count, size, per_code)


def test_batches_that_can_be_shared():
    for count, size, per_code in ((100, 20, 1), (43, 20, 1), (42, 20, 1), (100, 40, 4), (0, 21, 1)):
        team_of(2).check_batches(count, size, per_code)


@pytest.mark.parametrize("option", [{"imagination": "true"}, {"tensorboard": True}])
def test_what_one_process_alone_can_do_is_refused(digits, option):
    config = small_run(**option)
    with pytest.raises(UsageError, match=r"multiworker|several workers"):
        training.check_team(config, PROTOCOLS["rotate-34"], digits, team_of(2, 2, name="multiworker"))
    training.check_team(config, PROTOCOLS["rotate-34"], digits, team_of(2))


def test_alone_nothing_changes():
    labels, scores = np.array([0, 1, 1]), np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], np.float32)
    plain = keras.losses.SparseCategoricalCrossentropy()
    variable = tf.Variable(scores)
    gradients = []
    for loss in (plain, GlobalMean(plain)):
        with tf.GradientTape() as tape:
            value = loss(labels, variable)
        gradients.append((float(value), tape.gradient(value, variable).numpy()))
    assert gradients[0][0] == gradients[1][0]
    np.testing.assert_array_equal(gradients[0][1], gradients[1][1])


# TF_CONFIG


def test_cluster_is_read():
    config = {"cluster": {"worker": ["a:1", "b:2"], "chief": ["c:3"]}, "task": {"type": "worker", "index": 1}}
    assert read_cluster(json.dumps(config)) == (2, ["c:3", "a:1", "b:2"])
    assert read_cluster(clusters()[1])[0] == 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"cluster": {}}', '{"task": {"type": "worker", "index": 0}}'),
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:x"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:70000"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_malformed_cluster_is_one_line(text):
    with pytest.raises(
        UsageError, match=r"TF_CONFIG does not tell the workers. Expected .* Received"
    ) as caught:
        read_cluster(text)
    assert "\n" not in str(caught.value)


def test_missing_cluster_ends_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.train("cnn", "quick", "", ["--strategy", "multiworker", "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: TF_CONFIG") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_lost_worker_is_named_and_other_errors_are_not_hidden():
    lost = pytest.raises(ConnectionError, match=r"Worker 1 lost another worker.*--resume")
    with lost, distributed.losses_named(team_of(2, 2, 1)):
        raise tf.errors.UnavailableError(None, None, "Connection reset by peer")
    for error, team in ((tf.errors.ResourceExhaustedError, team_of(2, 2)), (tf.errors.AbortedError, ALONE)):
        with pytest.raises(error), distributed.losses_named(team):
            raise error(None, None, "full")


def test_strategy_is_recorded_and_no_part_of_the_configuration(tmp_path):
    (tmp_path / runs.CONFIG).write_text("{}")
    runs.write_environment(tmp_path, [], ["x.py"], team_of(4, 2).describe())
    written = json.loads((tmp_path / runs.ENVIRONMENT).read_text())
    assert (written["strategy"], written["workers"], written["replicas"]) == ("mirrored", 2, 4)
    assert "strategy" not in run_config().__dataclass_fields__


# The same as alone


# Time to be killed in: every step of the second epoch takes at least 0.1 s.
SLOW = (
    "import time, keras; step = keras.callbacks.CallbackList.on_train_batch_end; "
    "keras.callbacks.CallbackList.on_train_batch_end = lambda s, b, logs=None: "
    "(time.sleep(0.1 * (s._model.optimizer.iterations.numpy() > 10)), step(s, b, logs))"
)
RUN_ID = "cnn_quick-digits-rotate-34-s0"


@pytest.fixture
def processes():
    """Starts Python processes; what still runs at the end is killed."""
    started = []

    def start(arguments, cluster=None):
        environment = os.environ | ENVIRONMENT | ({"TF_CONFIG": cluster} if cluster else {})
        options = {"cwd": ROOT, "env": environment, "text": True}
        command = [sys.executable, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def outcome(process, seconds=200):
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out, error


def start_script(processes, digits_npz, folder, *more):
    """A run with everything that has a state of its own, by two workers of the command line."""
    options = ["--dataset", digits_npz, "--output", folder, "--filters", 4, 8, "--dense-units", 16]
    options += ["--batch-size", 8, "--epochs", 3]
    options += ["--validation-fraction", 0.2, "--repeats", 1, "--grid-step", 180, "--strategy", "multiworker"]
    script = str(ROOT / "scripts" / "train_cnn.py")
    code = (
        f"import runpy, sys; {SLOW}; sys.argv[0] = {script!r}; runpy.run_path({script!r}, None, '__main__')"
    )
    return [processes(["-c", code, *options, *more], cluster) for cluster in clusters()]


def kill_a_worker(processes, digits_npz, folder):
    """Leaves a run with a worker killed in its second epoch; returns what the other said, and how soon."""
    chief, other = start_script(processes, digits_npz, folder)
    wait_for_checkpoint(folder / RUN_ID, chief)
    time.sleep(0.4)
    other.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    code, _, error = outcome(chief)
    seconds = time.monotonic() - begun
    rows = pd.read_csv(folder / RUN_ID / runs.HISTORY)
    assert len(rows) == 1 and not (folder / RUN_ID / runs.MODEL).exists(), "not killed in the second epoch"
    return code, error, seconds


def train_together(processes, folder, run):
    """Trains small runs alone, by two replicas and by two workers; by these the run of a directory, too."""
    program = ["-m", "tests.replicas"]
    workers = [processes([*program, "multiworker", folder, run], config) for config in clusters()]
    outcomes = [outcome(worker) for worker in workers]
    assert [(code, out.split("\n")[-2]) for code, out, _ in outcomes] == [(0, "trained by 2")] * 2, outcomes
    code, _, error = outcome(processes([*program, "none,mirrored", folder]))
    assert code == 0, error


def assert_same_result(alone, shared, epochs):
    weights = [keras.models.load_model(folder / runs.MODEL).get_weights() for folder in (alone, shared)]
    for expected, got in zip(*weights, strict=True):
        np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    histories = [pd.read_csv(folder / runs.HISTORY).drop(columns="seconds") for folder in (alone, shared)]
    assert len(histories[0]) == epochs
    # Of the losses of several outputs Keras shows means over batches, or parts of them, as if all were alike.
    of_outputs = [name for name in histories[0] if name.endswith(("scores_loss", "reconstruction_loss"))]
    pd.testing.assert_frame_equal(
        histories[1].drop(columns=of_outputs), histories[0].drop(columns=of_outputs), rtol=1e-5, atol=1e-6
    )
    pd.testing.assert_frame_equal(histories[1][of_outputs], histories[0][of_outputs], rtol=0.02)
    # What one writes another can resume.
    checkpoints = [state(folder)[0] for folder in (alone, shared)]
    shapes = [{key: value.shape for key, value in values.items()} for values in checkpoints]
    assert shapes[0] == shapes[1]


# One test, because pytest-xdist would start the processes for each part of it that another worker runs.
@pytest.mark.slow
def test_two_do_what_one_does_and_a_lost_one_is_named_and_made_up_for(processes, digits_npz, tmp_path):
    run, together = tmp_path / RUN_ID, tmp_path / "together"
    code, error, seconds = kill_a_worker(processes, digits_npz, tmp_path)
    assert code == 2 and seconds < 60
    assert re.match("error: Worker 0 lost another worker.*--resume", error.splitlines()[-1]), error
    assert error.count("error: ") == 1 and "Traceback" not in error

    train_together(processes, together, run)
    pairs_ = [("multiworker", name) for name in replicas.RUNS]
    for strategy, name in [*pairs_, *(("mirrored", name) for name in replicas.MIRRORED)]:
        epochs = replicas.RUNS[name].training.epochs
        assert_same_result(together / "none" / name, together / strategy / name, epochs)

    outcomes = [outcome(worker) for worker in start_script(processes, digits_npz, tmp_path, "--resume")]
    assert [code for code, *_ in outcomes] == [0, 0], outcomes
    assert_same_state(run, together / "multiworker" / "uninterrupted")
    written = json.loads((run / runs.ENVIRONMENT).read_text())
    assert (written["strategy"], written["workers"], written["replicas"]) == ("multiworker", 2, 2)
    assert (run / runs.EXPORT).is_dir() and (run / runs.INVARIANCE).is_file()
