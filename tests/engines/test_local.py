"""Runs at once on this machine: as many as asked for, told of in one thread, ended with the sweep."""

import threading

import pytest

from tests.test_reproduce import pretend_run
from tfinv import models, runs
from tfinv.catalogue import Entry
from tfinv.engines import process
from tfinv.engines.local import LocalEngine

PATIENCE = 60  # seconds; only a test that fails waits that long


class Watcher:
    def __init__(self):
        self.begun, self.threads = [], set()

    def begin(self, entry, where=""):
        self.begun.append(entry.config.seed)
        self.threads.add(threading.get_ident())

    def show(self, entry, epochs):
        self.threads.add(threading.get_ident())

    def say(self, text, entry=None):
        raise AssertionError(text)


@pytest.fixture
def entries(tmp_path):
    configs = [runs.replace(models.default_run("cnn", "cnn_00"), epochs=1, seed=seed) for seed in range(4)]
    return [Entry(one, tmp_path / runs.digest(one) / one.run_id, 0, False) for one in configs]


def finish(engine, entries, watcher):
    return engine.finish(entries, lambda config: ["command", str(config.seed)], watcher)


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_as_many_runs_at_once_as_asked_for(monkeypatch, entries, jobs):
    together = threading.Barrier(jobs)  # passed by as many threads as wait, or by none
    environments, at_work, counts = [], set(), []

    def work(config, output, command, log, watch, environment):
        watch()
        at_work.add(command[1])
        together.wait(PATIENCE)
        counts.append(len(at_work))
        environments.append(environment)
        together.wait(PATIENCE)
        at_work.discard(command[1])
        if command[1] == "1":
            log.write("it diverged\n")
            return 2
        entry = entries[int(command[1])]
        pretend_run(entry.directory, entry.config, 1, done=True)
        return 0

    monkeypatch.setattr(process, "work", work)
    watcher = Watcher()
    ended = dict(
        (entry.config.seed, failure) for entry, failure in finish(LocalEngine(jobs), entries, watcher)
    )
    assert counts == [jobs] * 4
    assert sorted(watcher.begun) == [0, 1, 2, 3] and watcher.threads == {threading.get_ident()}
    assert [ended[seed] for seed in (0, 2, 3)] == [None] * 3
    assert ended[1].reason == "exit code 2" and ended[1].tail == ("it diverged",)
    limited = [environment is not None for environment in environments]
    assert limited == [jobs > 1] * 4


def test_a_run_that_is_alone_has_the_machine(monkeypatch, entries):
    environments = []
    monkeypatch.setattr(process, "work", lambda *arguments: environments.append(arguments[-1]) or 2)
    assert [failure.reason for _, failure in finish(LocalEngine(4), entries[:1], Watcher())] == [
        "exit code 2"
    ]
    assert environments == [None] and not list(finish(LocalEngine(4), [], Watcher()))


@pytest.mark.parametrize("jobs", [1, 2])
def test_whoever_stops_asking_ends_what_is_at_work(monkeypatch, entries, jobs):
    started, first, before = [], threading.Event(), threading.active_count()

    def work(config, output, command, log, watch, environment):
        started.append(command[1])
        if command[1] == "0":
            pretend_run(entries[0].directory, entries[0].config, 1, done=True)
            return 0
        first.set()
        while True:  # until watch() says otherwise
            watch()

    monkeypatch.setattr(process, "work", work)
    ended = finish(LocalEngine(jobs), entries, Watcher())
    assert next(ended)[0] is entries[0]
    assert first.wait(PATIENCE)
    ended.close()
    assert len(started) <= jobs + 1 and threading.active_count() == before


def test_an_error_of_this_process_is_not_lost(monkeypatch, entries):
    def work(*arguments):
        raise MemoryError("of this process")

    monkeypatch.setattr(process, "work", work)
    with pytest.raises(MemoryError, match="of this process"):
        list(finish(LocalEngine(2), entries, Watcher()))


def test_a_run_without_a_place_ends_no_other(monkeypatch, entries):
    def work(config, output, command, *arguments):
        entry = entries[int(command[1])]
        pretend_run(entry.directory, entry.config, 1, done=True)
        return 0

    monkeypatch.setattr(process, "work", work)
    entries[1].directory.parent.write_text("a file where its folder should be")
    outcomes = dict(finish(LocalEngine(2), entries, Watcher()))
    assert "FileExistsError" in outcomes.pop(entries[1]).reason
    assert set(outcomes.values()) == {None} and len(outcomes) == 3
