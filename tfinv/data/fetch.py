"""How a named dataset is found: sources in a fixed order, checksums, and one cache for all of them.

The order is $TFINV_DATA, tfinv's cache ($TFINV_CACHE or ~/.cache/tfinv), the sources of the `Spec` as listed;
nothing is used unless its checksums are right, wherever it came from.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from tfinv.data.dataset import Dataset
from tfinv.data.idx import IDX_FILES, DamagedError, idx_md5
from tfinv.data.npz import KEYS, write_npz
from tfinv.data.sources import (
    Found,
    Source,
    UnavailableError,
    npz_file,
    under_home,
    user_folder,
)
from tfinv.errors import UsageError, one_line

LOCK_SECONDS = 600.0


@dataclass(frozen=True)
class Spec:
    """A named dataset.

    Attributes:
        name: Name of its module in `tfinv.data.datasets`.
        checksums: For each of x_train, y_train, x_test, y_test the md5 of its uncompressed idx file.
        sources: Where else to look, in this order, after $TFINV_DATA and tfinv's cache.
        remedy: What to do when nothing works, beside setting $TFINV_DATA.
        licence: Whose it is, and under which terms.
    """

    name: str
    checksums: Mapping[str, str]
    sources: tuple[Source, ...]
    remedy: str
    licence: str


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
    cache = npz_file("tfinv's cache", path)
    failures: dict[str, str] = {}
    arrays = _attempt(spec, user_folder(), failures)
    if arrays is not None:
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
    return under_home(os.environ.get("TFINV_CACHE") or "~/.cache/tfinv") / "datasets" / f"{name}.npz"


def _attempt(spec: Spec, source: Source, failures: dict[str, str]) -> dict[str, np.ndarray] | None:
    """Returns the verified arrays, or None after noting why not."""
    try:
        return _verified(spec, source.read(spec.name))
    except (UnavailableError, OSError) as error:  # OSError: a folder that may not even be looked into
        failures[source.label] = one_line(error)
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
            f"Cannot keep a copy in {path} ({one_line(error)}); set TFINV_CACHE to a writable folder",
            stacklevel=4,
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when another process replaces the file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
