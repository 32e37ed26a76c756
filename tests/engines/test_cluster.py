"""A sweep on a real cluster of two machines, on loopback: one is killed; the report is the sequential one."""

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ENVIRONMENT
from tests.test_reproduce import TINY
from tfinv import cli, runs, suites
from tfinv.engines.storage import Storage
from tfinv.suites import Experiment

EPOCHS = 20
LOST = r"lost with its machine, \w+; it goes on where there is room \(attempt 2 of 4\)"
OBJECT_STORE = 100 * 2**20
# Ray takes 127.0.0.1 for an address of this machine that others reach, unless it believes that there is none.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def lasting_suite(dataset, epochs=EPOCHS):
    """Two rows that take a while, one that diverges."""
    shared = {**TINY, "dataset": str(dataset), "epochs": epochs}
    return {
        "lasting": (
            Experiment("cnn", "cnn_01", "CNN", changes=shared),
            Experiment("cnn", "cnn_bn_00", "BN", changes=shared),
            Experiment("cnn", "cnn_00", "CNN", changes={**shared, "learning_rate": 1e30}),
        )
    }


@pytest.fixture
def sweep(start_script, digits_npz, tmp_path):
    """Starts the command line on that suite; `output` is a folder of `tmp_path`."""

    def start(output, *arguments, epochs=EPOCHS):
        prelude = (
            "from tests.engines.test_cluster import lasting_suite; from tfinv import suites; "
            f"suites.SUITES = lasting_suite({str(digits_npz)!r}, {epochs})"
        )
        options = ["lasting", "--output", tmp_path / output, "--runs", *arguments]
        return start_script("reproduce.py", *options, prelude=prelude, cwd=tmp_path)

    return start


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one CPU each, on loopback; the second may be killed."""
    folder = tempfile.mkdtemp(prefix="ray-")  # a socket's path must be short
    Path(folder, "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, **LOOPBACK, "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        try:
            yield from two_machines()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def two_machines():
    from ray.cluster_utils import Cluster

    options = {
        "num_cpus": 1,
        "node_ip_address": "127.0.0.1",
        "object_store_memory": OBJECT_STORE,
        "include_dashboard": False,
    }
    started = Cluster()
    try:
        started.add_node(**options)
        started.second = started.add_node(**options)
        started.wait_for_nodes()
        yield started
    finally:
        started.shutdown()


def processes():
    """Parent and command line of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue  # it ended meanwhile
    return found


def at_work(ancestor):
    """Process and output directory of the runs whose process descends from a process."""
    known = processes()
    found = []
    for pid, (_, words) in known.items():
        if "tfinv.worker" in words:
            place = pid
            while place not in (0, ancestor):
                place = known.get(place, (0, []))[0]
            if place == ancestor:
                found.append((pid, Path(words[words.index("tfinv.worker") + 1])))
    return found


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)
    return found


def tables(output):
    """The results by run, and the report, without what differs between two sweeps on one machine: times."""
    report = output / "lasting-cpu"
    found = {path.parent.name: path.read_bytes() for path in report.glob("results/*/invariance.csv")}
    history = {
        path.parent.name: pd.read_csv(path).drop(columns="seconds").to_csv()
        for path in report.glob("results/*/history.csv")
    }
    page = re.sub(r"\d+(\.\d+)? (s|min|h)\b", "TIME", (report / "results.md").read_text())
    return found, history, page


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ended_sweep_leaves_nothing_at_work_and_its_epochs_in_the_storage(sweep, cluster, tmp_path, how):
    storage = Storage(str(tmp_path / "storage"))
    arguments = ["--ray", cluster.address, "--storage", tmp_path / "storage", "--only", "cnn_01"]
    process = sweep("out", *arguments, epochs=100_000)
    wait_for(lambda: any(progress.epochs for progress in storage.progress().values()), process)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130, errors
        assert "the same command goes on from there" in errors.splitlines()[-1] and "Traceback" not in errors
    deadline = time.monotonic() + 30
    while any("tfinv.worker" in words and "lasting" in words for _, words in processes().values()):
        assert time.monotonic() < deadline, "a run is still at work"
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.slow
def test_a_machine_is_killed_and_the_report_is_that_of_one_machine(sweep, cluster, tmp_path):
    storage = Storage(str(tmp_path / "storage"))
    raylet = cluster.second.all_processes["raylet"][0].process.pid
    process = sweep("cluster", "--ray", cluster.address, "--storage", f"file://{tmp_path}/storage")

    def halted_on_the_second():
        """Stops a run in mid-training, lest it ends before its machine does."""
        for pid, output in at_work(raylet):
            for history in output.glob(f"*/{runs.HISTORY}"):
                if runs.epochs_of(history.parent) >= 3:  # so that two are in the checkpoint
                    os.kill(pid, signal.SIGSTOP)
                    return pid, f"{output.name}/{history.parent.name}"
        return None

    halted, key = wait_for(halted_on_the_second, process)
    wait_for(lambda: storage.progress()[key].epochs >= 2, process)
    minder, _ = processes()[halted]
    cluster.remove_node(cluster.second, allow_graceful=False)
    wait_for(lambda: minder not in processes(), process)  # or it tells of a killed run
    with contextlib.suppress(ProcessLookupError):  # Ray may have done it
        os.kill(halted, signal.SIGKILL)
    assert storage.restore(key, tmp_path / "at the kill").epochs < EPOCHS
    before = pd.read_csv(tmp_path / "at the kill" / runs.HISTORY)
    text, errors = process.communicate(timeout=400)
    assert process.returncode == 1, text + errors
    assert len(re.findall(LOST, text)) == 1, text
    assert text.count(": at work on ") >= 3 and text.count(" done: Ptest ") == 2
    assert "FAILED: cnn_00 digits s0 (exit code 2)" in text and "diverged in epoch" in text
    assert "1 failed; the same command tries them again" in text and "Traceback" not in errors
    after = pd.read_csv(tmp_path / "cluster" / key / runs.HISTORY)
    kept = len(before) - 1  # stored between history and checkpoint, it loses that one epoch
    assert len(after) == EPOCHS and after.seconds[:kept].tolist() == before.seconds[:kept].tolist()
    log = (tmp_path / "cluster" / key).parent / "log.txt"
    assert "lost with its machine" in log.read_text() and EPOCHS > kept > 0
    assert [name for name in os.listdir(tmp_path / "storage" / key)] == [storage.states(key)[0].name]

    one = sweep("one", "--only", "cnn_01", "cnn_bn_00")
    text, errors = one.communicate(timeout=400)
    assert one.returncode == 0, text + errors
    assert tables(tmp_path / "cluster") == tables(tmp_path / "one")
    assert len(tables(tmp_path / "one")[0]) == 2

    # What the storage has is taken from there, by whoever asks.
    again = sweep("again", "--only", "cnn_01", "--ray", cluster.address, "--storage", tmp_path / "storage")
    text, errors = again.communicate(timeout=120)
    assert again.returncode == 0 and "at work" not in text, text + errors


def call(monkeypatch, capsys, tmp_path, digits_npz, *arguments):
    monkeypatch.setattr(suites, "SUITES", lasting_suite(digits_npz))
    with pytest.raises(SystemExit) as caught:
        cli.reproduce("R.", ["lasting", "--output", str(tmp_path / "out"), "--runs", *map(str, arguments)])
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and not (tmp_path / "out").exists()
    return errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "auto"], "--ray needs --storage"),
        (["--storage", "somewhere"], "need --ray"),
        (["--gpus-per-run", "1"], "need --ray"),
        (["--ray", "auto", "--storage", "s", "--cpus-per-run", "0"], "cpus_per_run=0"),
        (["--ray", "auto", "--storage", "s", "--gpus-per-run", "-1"], "gpus_per_run=-1"),
        (["--ray", "auto", "--storage", "s", "--gpus-per-run", "1.5"], "a whole number. Received: 1.5"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, digits_npz, arguments, message):
    assert message in call(monkeypatch, capsys, tmp_path, digits_npz, *arguments)


@pytest.mark.parametrize("module", ["ray", "fsspec"])
def test_without_the_extra_it_says_how_to_install_it(monkeypatch, capsys, tmp_path, digits_npz, module):
    if module == "fsspec":
        monkeypatch.setitem(sys.modules, "ray", object())
    monkeypatch.setitem(sys.modules, module, None)
    errors = call(monkeypatch, capsys, tmp_path, digits_npz, "--ray", "auto", "--storage", tmp_path / "s")
    assert "pip install 'tfinv[ray]'" in errors


@pytest.mark.ray
def test_no_cluster_is_one_line(monkeypatch, capsys, tmp_path, digits_npz):
    import ray

    def absent(**options):  # "auto" would find any cluster that is at work on this machine
        raise ConnectionError("Could not find\nany running Ray instance.")

    monkeypatch.setattr(ray, "init", absent)
    arguments = ["--ray", "auto", "--storage", tmp_path / "s"]
    expected = "No Ray cluster at --ray auto: Could not find any running Ray instance."
    assert expected in call(monkeypatch, capsys, tmp_path, digits_npz, *arguments)
