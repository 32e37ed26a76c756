"""A run on a machine of a cluster, with a pretended process: what is stored when, and what is said."""

import signal
from pathlib import Path

import pytest

from tfinv import runs
from tfinv.engines import node, process
from tfinv.engines.cluster import _environment
from tfinv.engines.storage import Storage

KEY = "0a1b2c3d/cnn-s0"


@pytest.fixture
def pretend(monkeypatch):
    """Replaces the process of a run; it resumes from what it finds and makes so many epochs."""
    begun = []

    def set_up(epochs, code=0, said=""):
        def work(config, output, command, log, watch, environment=None):
            directory = Path(output) / Path(KEY).name
            history = directory / runs.HISTORY
            lines = history.read_text() if history.is_file() else "epoch,seconds\n"
            begun.append(lines.count("\n") - 1)
            directory.mkdir(parents=True, exist_ok=True)
            for _ in range(epochs):
                lines += "1,1\n"
                history.write_text(lines)
                (directory / runs.CHECKPOINT).write_text(lines)
                watch()
            log.write(said.encode())
            return code

        monkeypatch.setattr(process, "work", work)
        return begun

    return set_up


def job(tmp_path, **changes):
    values = {"key": KEY, "config": "{}", "command": ("x",), "attempt": 1, "environment": {}}
    return node.Job(**{**values, "storage": str(tmp_path / "storage"), **changes})


@pytest.mark.ray
def test_what_is_taken_away_goes_on_and_what_is_finished_is_not_repeated(pretend, tmp_path):
    storage = Storage(str(tmp_path / "storage"))
    begun = pretend(3, -signal.SIGKILL)
    assert node.work(job(tmp_path)).taken_away and storage.progress()[KEY].epochs == 3
    pretend(2, 2, "error: bad\n")
    outcome = node.work(job(tmp_path, attempt=2))
    assert (outcome.code, outcome.said, outcome.taken_away) == (2, "error: bad\n", False)
    pretend(1)
    assert node.work(job(tmp_path, attempt=3)).code == 0
    assert node.work(job(tmp_path, attempt=4)).code == 0
    assert begun == [0, 3, 5]
    state = storage.restore(KEY, tmp_path / "back")
    assert (state.finished, state.epochs) == (True, 6)


@pytest.mark.ray
def test_a_storage_that_is_away_for_a_while_costs_nothing(pretend, tmp_path, monkeypatch):
    save, calls = Storage.save, []

    def unreliable(storage, key, directory, epochs, finished=False):
        calls.append(epochs)
        if not finished:
            raise OSError("away")
        save(storage, key, directory, epochs, finished)

    monkeypatch.setattr(Storage, "save", unreliable)
    pretend(4)
    outcome = node.work(job(tmp_path))
    assert (
        calls == [1, 4] and outcome.code == 0 and "Not stored after epoch 1: OSError('away')" in outcome.said
    )


@pytest.mark.ray
@pytest.mark.parametrize("name", ["begin", "restore", "save"])
def test_a_storage_that_is_away_at_the_beginning_or_the_end_is_waited_for(
    pretend, tmp_path, monkeypatch, capfd, name
):
    waits, working = [], getattr(Storage, name)

    def away(*arguments, **options):
        raise ConnectionError("away")

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            monkeypatch.setattr(Storage, name, working)

    monkeypatch.setattr(Storage, name, away)
    monkeypatch.setattr(node.time, "sleep", wait)
    pretend(2)
    assert node.work(job(tmp_path)).code == 0
    assert waits == list(node._WAITS[:2])
    assert "The storage failed, next try in 5 s: ConnectionError('away')" in capfd.readouterr().err
    assert Storage(str(tmp_path / "storage")).progress()[KEY].finished

    monkeypatch.setattr(Storage, name, away)
    with pytest.raises(ConnectionError, match="away"):
        node.work(job(tmp_path, key=f"1{KEY[1:]}"))
    assert waits[2:] == list(node._WAITS)

    def mistaken(*arguments, **options):
        raise ImportError("no s3fs")

    monkeypatch.setattr(Storage, name, mistaken)
    with pytest.raises(ImportError, match="no s3fs"):
        node.work(job(tmp_path, key=f"2{KEY[1:]}"))
    assert waits[2:] == list(node._WAITS)


def test_another_version_is_refused(tmp_path):
    outcome = node.work(job(tmp_path, version="0.0.0"))
    assert outcome.code == 2 and "the sweep is by 0.0.0" in outcome.said


def test_variables_of_a_run(monkeypatch):
    monkeypatch.setenv(runs.ONEDNN, "0")
    monkeypatch.setenv("TFINV_DATA", "here")
    without, part = _environment(2.5, 0), _environment(0.5, 0.5)
    assert without["TF_NUM_INTRAOP_THREADS"] == "2" and part["TF_NUM_INTRAOP_THREADS"] == "1"
    assert without["CUDA_VISIBLE_DEVICES"] == "" and "CUDA_VISIBLE_DEVICES" not in part
    assert without[runs.ONEDNN] == "0" and "TFINV_DATA" not in without
    assert part["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
