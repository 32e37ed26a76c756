"""A sweep repeats nothing that is done, goes on where it stopped, and loses nothing to a row that fails."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from tests.conftest import ENVIRONMENT
from tfinv import catalogue, cli, models, runs, suites, sweep
from tfinv.catalogue import Catalogue
from tfinv.config import to_json
from tfinv.engines import base, process
from tfinv.models.cnn import Config
from tfinv.suites import Experiment

TINY = {
    "model": Config(filters=(4,), dense_units=8),
    "batch_size": 16,
    "learning_rate": 1e-3,
    "epochs": 1,
    "repeats": 2,
    "grid_step": 90.0,
}
LONG = 40


def tiny_suite(dataset, **changes):
    """A row that diverges, one that takes long, one that does not."""
    shared = {**TINY, "dataset": str(dataset), **changes}
    return {
        "tiny": (
            Experiment("cnn", "cnn_00", "CNN", changes={**shared, "learning_rate": 1e30, "epochs": 3}),
            Experiment("cnn", "cnn_01", "CNN", changes={**shared, "epochs": LONG}),
            Experiment("cnn", "cnn_bn_00", "BN", changes=shared, pictures=("taken_for.png",)),
        )
    }


@pytest.fixture
def suite(digits_npz, monkeypatch):
    monkeypatch.setattr(suites, "SUITES", tiny_suite(digits_npz))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def reproduce(tmp_path, capsys, suite):
    """Calls the command line; returns its exit code and output."""

    def call(*arguments):
        try:
            cli.reproduce("Reproduces.", ["tiny", "--output", str(tmp_path / "out"), "--runs", *arguments])
            code = 0
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        return code, output.out + output.err

    return call


@pytest.fixture
def workers(monkeypatch):
    """The processes that a sweep started."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, command, *arguments, **options):
            super().__init__(command, *arguments, **options)
            if "tfinv.worker" in command:
                started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    monkeypatch.setattr(process, "POLL_SECONDS", 0.02)
    return started


def row(name, seed=0, budget="cpu"):
    return suites.select("tiny", [name])[0].config(budget, seed)


def address(output, config):
    return output / runs.digest(config) / config.run_id


# The rows


def test_suites_have_every_network_of_the_article():
    measured = {
        (name, preset)
        for name in models.available()
        for preset, values in models.get_model(name).PRESETS.items()
        if values.article
    }
    assert measured <= {(row.model, row.preset) for rows in suites.SUITES.values() for row in rows}


def test_names_are_unique_and_each_budget_is_a_run():
    rows = [row for rows in suites.SUITES.values() for row in rows]
    assert len({row.name for row in rows}) == len(rows)
    for budget in suites.BUDGETS:
        digests = [runs.digest(row.config(budget, seed)) for row in rows for seed in (0, 1)]
        assert len(set(digests)) == 2 * len(rows)
    for suite, members in suites.SUITES.items():
        for place, row in enumerate(members):
            for budget in suites.BUDGETS:
                assert suites.place_of(row.config(budget, 5)) == (suite, place, row.family)
    for entry in rows:
        preset = models.get_preset(entry.model, entry.preset)
        assert entry.config("article", 0).training == preset.training or entry.changes
        assert entry.config("smoke", 0).limit <= 600 and entry.config("cpu", 0).limit is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--only", "cnn_00", "cnn_0"], "cnn_00, cnn_01, cnn_bn_00. Received: cnn_0"),
        (["tyni"], "Expected one of tiny, all. Received: suite=tyni"),
        (["tiny", "--budget", "cup"], "smoke, cpu, article. Received: budget=cup"),
        (["tiny", "--budget", "smoke", "--publish", "docs"], "publish"),
        (["tiny", "--publish", f"{__file__}/docs"], "not a writable folder"),
        (["tiny", "--seeds", "-1"], "seed=-1"),
        (["tiny", "--jobs", "0"], "jobs=0"),
        (["tiny", "--jobs", "2", "--ray", "local", "--storage", "sweep"], "--jobs is for this machine"),
    ],
)
def test_bad_input_is_named_and_nothing_runs(suite, workers, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        cli.reproduce("Reproduces.", [*arguments, "--output", str(tmp_path / "out")])
    errors = capsys.readouterr().err
    assert caught.value.code == 2 and message in errors and errors.count("\n") == 1
    assert not workers and not (tmp_path / "out").exists()


# Found by configuration


def test_digest_changes_with_any_value(suite):
    config = row("cnn_bn_00")
    changed = [
        runs.replace(config, epochs=2),
        runs.replace(config, repeats=3),
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, model=Config(filters=(5,), dense_units=8)),
        dataclasses.replace(config, restricted_classes=(1,)),
    ]
    assert len({runs.digest(other) for other in [config, *changed]}) == 6
    assert runs.digest(dataclasses.replace(config)) == runs.digest(config)


def pretend_run(directory, config, epochs, done):
    directory.mkdir(parents=True)
    (directory / runs.CONFIG).write_text(to_json(config))
    history = pd.DataFrame({"epoch": range(1, epochs + 1), "seconds": [3.0] * epochs})
    history.to_csv(directory / runs.HISTORY, index=False)
    if done:
        (directory / runs.EXPORT).mkdir()
        for name in (runs.MODEL, runs.INVARIANCE):
            (directory / name).touch()


def test_a_run_is_found_wherever_it_is_but_resumed_at_home_only(suite, tmp_path):
    config = runs.replace(row("cnn_bn_00"), epochs=3)
    pretend_run(tmp_path / "else" / config.run_id, config, 3, done=True)
    pretend_run(tmp_path / "busy" / config.run_id, runs.replace(config, epochs=4), 2, done=False)
    (tmp_path / "else" / "broken").mkdir()
    (tmp_path / "else" / "broken" / runs.CONFIG).write_text("{")
    for name, model in {"foreign": "3", "listed": "[]"}.items():
        (tmp_path / "else" / name).mkdir()
        (tmp_path / "else" / name / runs.CONFIG).write_text(f'{{"model_name": "cnn", "model": {model}}}')
    known = Catalogue(tmp_path / "out", [tmp_path / "else", tmp_path / "busy", tmp_path / "nowhere"])
    found = known.find(config)
    assert (found.done, found.directory.parent, found.state) == (True, tmp_path / "else", "done")
    longer = known.find(runs.replace(config, epochs=4))
    assert (longer.done, longer.epochs, longer.state) == (False, 0, "missing")
    assert longer.directory == address(tmp_path / "out", longer.config)
    assert known.seconds_an_epoch(longer.config) == 3.0
    assert known.seconds_an_epoch(runs.replace(config, batch_size=8)) is None
    # An option added later changes the digest; the configuration it stands for is the same.
    directory = tmp_path / "out" / "01234567" / config.run_id
    pretend_run(directory, longer.config, 1, done=False)
    values = json.loads((directory / runs.CONFIG).read_text())
    del values["model"]["batch_normalization"], values["training"]["precision"]
    (directory / runs.CONFIG).write_text(json.dumps(values))
    (directory / runs.CHECKPOINT).touch()
    again = Catalogue(tmp_path / "out").find(longer.config)
    assert (again.epochs, again.directory.parent.name) == (1, "01234567")
    assert again.state == "interrupted after epoch 1"
    runs.prepare(directory, longer.config, resume=True)
    for cut_off in ("", "epoch\n1\n", "epoch,seconds\n1,2\n1,2,3,4\n"):
        (directory / runs.HISTORY).write_text(cut_off)
        assert Catalogue(tmp_path / "out").seconds_an_epoch(longer.config) is None


@pytest.mark.parametrize("lost", [runs.MODEL, runs.INVARIANCE, runs.EXPORT, runs.HISTORY])
def test_done_means_trained_evaluated_and_exported(suite, tmp_path, lost):
    config = row("cnn_bn_00")
    pretend_run(tmp_path / "run", config, 1, done=True)
    assert catalogue.is_finished(tmp_path / "run", config)
    path = tmp_path / "run" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not catalogue.is_finished(tmp_path / "run", config)


def test_time_left(suite, tmp_path):
    config = runs.replace(row("cnn_bn_00"), epochs=10)
    pretend_run(address(tmp_path, config), config, 4, done=False)
    known = Catalogue(tmp_path)
    entry = known.find(config)
    assert sweep.time_left([entry], known) == "about 0:00:18 of training left"
    begun = dataclasses.replace(entry, epochs=9)
    assert sweep.time_left([entry, begun], known) == "about 0:00:21 of training left"
    other = known.find(runs.replace(config, batch_size=8))
    assert sweep.time_left([other], known) == "time left unknown"
    assert sweep.time_left([entry, other], known) == "more than 0:00:18 of training left"


# Sweeps


@pytest.mark.slow
def test_what_is_done_stays_what_stopped_goes_on_what_fails_is_reported(
    reproduce, workers, tmp_path, monkeypatch
):
    show = sweep._Display.show

    def kill_the_long_one(display, entry, epochs):
        show(display, entry, epochs)
        if epochs >= 3 and len(workers) == 2:
            os.kill(workers[1].pid, signal.SIGKILL)

    monkeypatch.setattr(sweep._Display, "show", kill_the_long_one)
    code, text = reproduce()
    diverging, long, short = map(row, ("cnn_00", "cnn_01", "cnn_bn_00"))
    assert code == 1 and len(workers) == 3, text
    assert "FAILED: cnn_00 digits s0 (exit code 2)" in text and "diverged in epoch" in text
    assert "FAILED: cnn_01 digits s0 (killed by SIGKILL)" in text and "2 failed" in text
    assert "[3/3] cnn_bn_00 digits s0 done: Ptest" in text
    log = address(tmp_path / "out", diverging).parent / base.LOG
    assert str(log) in text and "diverged" in log.read_text()
    page = tmp_path / "out" / "tiny-cpu" / "results.md"
    assert "cnn_bn_00" in page.read_text() and "cnn_01" not in page.read_text()
    assert "--only cnn_bn_00 --seeds 0" in page.read_text()

    history = address(tmp_path / "out", long) / runs.HISTORY
    before = pd.read_csv(history)
    assert 3 <= len(before) < LONG
    model = address(tmp_path / "out", short) / runs.MODEL
    stamp = model.stat().st_mtime_ns
    _, text = reproduce("--list")
    assert f"interrupted after epoch {len(before)}" in text and "done" in text and len(workers) == 3

    monkeypatch.setattr(sweep._Display, "show", show)
    code, text = reproduce("--only", "cnn_bn_00", "cnn_01")
    assert code == 0 and len(workers) == 4, text
    assert "2 runs, 1 of them done" in text and "[2/2] cnn_01 digits s0 done" in text
    after = pd.read_csv(history)
    kept = len(before) - 1  # killed between history and checkpoint, it loses that one epoch
    assert len(after) == LONG and after.seconds[:kept].tolist() == before.seconds[:kept].tolist()
    assert model.stat().st_mtime_ns == stamp
    assert "cnn_01" in page.read_text()

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/*")}
    code, text = reproduce("--only", "cnn_bn_00", "cnn_01", "--publish", str(tmp_path / "docs"))
    assert code == 0 and len(workers) == 4 and "2 runs, 2 of them done" in text
    assert {path: path.stat().st_mtime_ns for path in stamps if "results" not in path.parts} == {
        path: stamp for path, stamp in stamps.items() if "results" not in path.parts
    }
    published = {path.name for path in (tmp_path / "docs" / "results" / short.run_id).iterdir()}
    assert published == {
        *("config.json", "environment.json", "history.csv", "invariance.csv", "taken_for.png")
    }


def started(output, config):
    """Waits until the first epoch of a run is finished."""
    history = address(output, config) / runs.HISTORY
    deadline = time.monotonic() + 240
    while not history.is_file():
        assert time.monotonic() < deadline, "no epoch was finished"
        time.sleep(0.05)


@pytest.mark.slow
def test_interrupted_sweep_ends_its_worker(start_script, suite, digits_npz, tmp_path):
    config = runs.replace(row("cnn_01"), epochs=100_000)
    prelude = (
        "from tests.test_reproduce import tiny_suite; from tfinv import suites; "
        f"suites.SUITES = tiny_suite({str(digits_npz)!r}); "
        "import tfinv.runs; long = suites.SUITES['tiny'][1]; long.changes['epochs'] = 100_000"
    )
    options = ["tiny", "--only", "cnn_01", "--output", tmp_path, "--runs"]
    process = start_script("reproduce.py", *options, prelude=prelude, cwd=tmp_path)
    started(tmp_path, config)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors.splitlines()[-1] and "Traceback" not in errors
    with runs.locked(address(tmp_path, config)):  # its worker holds it no longer
        assert not (address(tmp_path, config) / runs.MODEL).exists()


@pytest.mark.slow
def test_worker_ends_with_its_parent(suite, tmp_path):
    config = runs.replace(row("cnn_01"), epochs=100_000)
    directory = address(tmp_path, config)
    worker = subprocess.Popen(
        [sys.executable, "-m", "tfinv.worker", str(directory.parent), "command"],
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        worker.stdin.write(to_json(config).replace("\n", " ") + "\n")
        worker.stdin.flush()
        started(tmp_path, config)
        worker.stdin.close()  # as the end of the parent does, by whatever means
        assert worker.wait(30) == 1
    finally:
        worker.kill()
        worker.wait()
