"""Attempts of a run, on a pretended cluster: counted, bounded, and begun from whatever there is of it."""

import functools
import types

import pandas as pd
import pytest

from tests.test_reproduce import pretend_run
from tfinv import models, runs
from tfinv.catalogue import Entry
from tfinv.engines import node
from tfinv.engines.cluster import ATTEMPTS, RayEngine
from tfinv.engines.node import Outcome
from tfinv.engines.storage import Storage

pytestmark = pytest.mark.ray


class RayError(Exception):
    """Of the pretended cluster, as its two heirs."""


class NodeDiedError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(cause)
        self.cause = cause


class PretendedRay:
    """Does a task when its result is asked for."""

    exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self):
        self.options = None

    def remote(self, **options):
        self.options = options
        return lambda function: types.SimpleNamespace(remote=lambda job: functools.partial(function, job))

    def wait(self, references, num_returns, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        return reference()

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 4.0}}]

    def shutdown(self):
        pass


class Watcher:
    def __init__(self):
        self.said = []

    def begin(self, entry, where=""):
        pass

    def show(self, entry, epochs):
        self.said.append(epochs)

    def say(self, text, entry=None):
        self.said.append(text)


@pytest.fixture
def entry(tmp_path):
    config = runs.replace(models.default_run("cnn", "cnn_00"), epochs=3)
    return Entry(config, tmp_path / "out" / runs.digest(config) / config.run_id, 0, False)


@pytest.fixture
def finish(monkeypatch, tmp_path, entry):
    """Finishes a run with a pretended `node.work`; returns what is yielded and said, and the attempts."""

    def call(work, found=entry, gpus=0.0):
        attempts = []

        def recorded(job):
            attempts.append(job)
            return work(job)

        monkeypatch.setattr(node, "work", recorded)
        monkeypatch.setattr(RayEngine, "_connect", lambda engine, address: None)
        engine = RayEngine("auto", str(tmp_path / "storage"), 1.0, gpus)
        engine._ray = PretendedRay()
        watcher = Watcher()
        ended = list(engine.finish([found], lambda config: ["a", "command"], watcher))
        return ended, watcher.said, attempts

    return call


def finished(tmp_path, entry):
    """What a machine does: it stores a finished run."""

    def work(job):
        directory = tmp_path / f"node-{job.attempt}" / "run"
        pretend_run(directory, entry.config, 3, done=True)
        Storage(job.storage).save(job.key, directory, 3, finished=True)
        return Outcome(0, "", "node-7")

    return work


def lost(job):
    raise NodeDiedError("gone")


def test_attempts_are_bounded(finish, entry):
    [(_, failure)], said, attempts = finish(lost)
    assert failure.reason == "lost with its machine, NodeDiedError"
    assert [job.attempt for job in attempts] == [1, 2, 3, 4] and len(attempts) == ATTEMPTS
    assert [text[-len("(attempt 2 of 4)") :] for text in said] == [f"(attempt {n} of 4)" for n in (2, 3, 4)]
    assert (entry.directory.parent / "log.txt").read_text().count("NodeDiedError") == 4


def test_a_killed_process_is_tried_again(finish, entry, tmp_path):
    done = finished(tmp_path, entry)
    outcome = Outcome(-9, "so far", "node-7")
    [(_, failure)], said, attempts = finish(lambda job: outcome if job.attempt == 1 else done(job))
    assert failure is None and len(attempts) == 2
    assert said[0].startswith("killed by SIGKILL; it goes on where there is room")
    assert len(pd.read_csv(entry.directory / runs.HISTORY)) == 3


@pytest.mark.parametrize("code", [2, -11])
def test_what_fails_by_itself_is_not(finish, code):
    [(_, failure)], _, attempts = finish(lambda job: Outcome(code, "one\n\nerror: two\n", "node-7"))
    assert len(attempts) == 1 and failure.tail == ("one", "error: two")
    assert failure.log.read_text().startswith("one\n")


def test_trouble_with_the_storage_fails_the_run_alone(finish):
    def work(job):
        raise RayTaskError(PermissionError("no\nway"))

    [(_, failure)], _, attempts = finish(work)
    assert failure.reason == "PermissionError: no way" and len(attempts) == 1


def test_a_storage_that_is_away_when_a_run_ends_fails_that_run_alone(finish, monkeypatch):
    def away(*_):
        raise ConnectionError("no way")

    def work(job):
        for name in ("restore", "progress"):
            monkeypatch.setattr(Storage, name, away)
        return Outcome(0, "", "node-7")

    [(_, failure)], _, _ = finish(work)
    assert "could not be fetched" in failure.reason and failure.tail == ("ConnectionError('no way')",)


def test_results_that_nobody_sees_are_a_failure(finish):
    [(_, failure)], _, _ = finish(lambda job: Outcome(0, "", "node-7"))
    assert "not in the storage" in failure.reason and "do all machines" in failure.tail[0]


def test_what_was_begun_here_goes_on_there(finish, entry, tmp_path):
    pretend_run(entry.directory, entry.config, 2, done=False)
    found = Entry(entry.config, entry.directory, 2, False)
    seen = []

    def work(job):
        seen.append(Storage(job.storage).restore(job.key, tmp_path / "seen").epochs)
        return finished(tmp_path, entry)(job)

    [(_, failure)], _, _ = finish(work, found)
    assert failure is None and seen == [2]
    [(_, failure)], _, attempts = finish(work, found)  # and what is finished there is not begun
    assert failure is None and not attempts


def test_needs_that_nothing_has_are_said(finish, entry, tmp_path):
    _, said, _ = finish(finished(tmp_path, entry), gpus=1.0)
    assert said[0] == "No machine of the cluster has 1 CPUs and 1 GPUs; waiting for one that has."
