"""A stored state is whole or not there, the newest is taken, and object stores are like disks."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.conftest import ENVIRONMENT
from tfinv import runs
from tfinv.engines.storage import Progress, Storage
from tfinv.errors import UsageError

pytestmark = pytest.mark.ray
KEY = "0a1b2c3d/cnn-s0"


def write(directory, **files):
    (directory / "export" / "assets").mkdir(parents=True, exist_ok=True)
    for name, text in {"history": "h", "checkpoint": "c", **files}.items():
        (directory / name).write_text(text)
    (directory / ".partial-1").write_text("half")
    return directory


def tree(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


@pytest.fixture(params=["path", "file", "memory"])
def storage(request, tmp_path):
    url = {"path": str(tmp_path / "s"), "file": f"file://{tmp_path}/s", "memory": f"memory://{tmp_path}/s"}
    storage = Storage(url[request.param])
    storage.check()
    assert Storage(storage.url).url == storage.url
    return storage


def raw(storage, name):
    return f"{storage._root}/{KEY}/{name}"


def test_the_newest_state_comes_back_and_older_ones_go(storage, tmp_path):
    assert storage.restore(KEY, tmp_path / "back") is None and storage.progress() == {}
    storage._files.pipe_file(f"{storage._root}/readme.txt", b"somebody else's")
    storage.begin(KEY, 1, "node-7")
    run = write(tmp_path / "run", history="one")
    storage.save(KEY, run, 1)
    storage.save(KEY, write(run, history="ten"), 10)
    assert storage.progress() == {KEY: Progress(1, "node-7", 10, False)}
    assert [state.epochs for state in storage.states(KEY)] == [10]
    write(tmp_path / "back", litter="of an older state")
    assert storage.restore(KEY, tmp_path / "back").epochs == 10
    expected = tree(run)
    del expected[".partial-1"]
    assert tree(tmp_path / "back") == expected

    storage.save(KEY, run, 10, finished=True)
    storage.save(KEY, run, 9)  # an attempt that was taken for dead
    assert storage.restore(KEY, tmp_path / "back").finished
    assert storage.progress()[KEY] == Progress(0, "", 10, True)


def test_an_upload_that_was_cut_off_is_passed_over(storage, tmp_path):
    storage.save(KEY, write(tmp_path / "run", history="three"), 3)
    whole = storage.states(KEY)[0].name
    content = storage._files.cat_file(raw(storage, whole))
    storage._files.pipe_file(raw(storage, whole.replace("00003", "00004")), content[:-1])
    assert [state.epochs for state in storage.states(KEY)] == [4, 3]
    assert storage.restore(KEY, tmp_path / "back").epochs == 3
    assert (tmp_path / "back" / "history").read_text() == "three"


def test_equal_files_have_one_state(storage, tmp_path):
    for name in ("one", "two"):
        storage.save(KEY, write(tmp_path / name), 2)
    assert len(storage.states(KEY)) == 1


def test_the_checkpoint_is_never_ahead_of_the_rest(storage, tmp_path, monkeypatch):
    """An epoch ends while a directory is packed."""
    import shutil

    run = write(tmp_path / "run", **{runs.CHECKPOINT: "2", runs.BEST_MODEL: "2", runs.HISTORY: "2"})
    copy = shutil.copyfileobj

    def late(source, target, *rest):
        copy(source, target, *rest)
        write(run, **{runs.CHECKPOINT: "3", runs.BEST_MODEL: "3", runs.HISTORY: "3"})

    monkeypatch.setattr(shutil, "copyfileobj", late)
    storage.save(KEY, run, 2)
    monkeypatch.undo()
    storage.restore(KEY, tmp_path / "back")
    assert {name: (tmp_path / "back" / name).read_text() for name in (runs.CHECKPOINT, runs.BEST_MODEL)} == {
        runs.CHECKPOINT: "2",
        runs.BEST_MODEL: "3",
    }


@pytest.mark.ray
def test_a_host_stays_in_the_url(tmp_path, monkeypatch):
    """It is no part of the paths of its file system, from which the URL cannot be made again."""
    url = "webhdfs://namenode:9870/user/sweep"
    assert Storage(url).url == url
    monkeypatch.chdir(tmp_path)
    assert Storage("states").url == f"file://{tmp_path}/states"


@pytest.mark.parametrize(
    ("url", "message"), [("nosuch://bucket", "nosuch"), ("/proc/nothing", "Cannot write to --storage")]
)
def test_bad_urls_are_one_line(url, message):
    with pytest.raises(UsageError, match=message) as caught:
        Storage(url).check()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    importlib.util.find_spec("moto") is None and os.environ.get("TFINV_REQUIRE_RAY") != "1",
    reason="needs moto[server]",
)
def test_s3(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
    )
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.stdout.readline().strip())
        with pytest.raises(UsageError, match="Cannot write"):
            Storage("s3://absent/sweep").check()
        Storage("s3://bucket")._files.mkdir("bucket")
        storage = Storage("s3://bucket/sweep")
        assert storage.url == "s3://bucket/sweep"
        test_the_newest_state_comes_back_and_older_ones_go(storage, tmp_path)
        storage._files.rm(f"bucket/sweep/{KEY}", recursive=True)
        test_an_upload_that_was_cut_off_is_passed_over(storage, tmp_path)
    finally:
        server.kill()
        server.wait()


_SERVER = """
import time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
time.sleep(600)
"""
