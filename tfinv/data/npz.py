"""NumPy .npz files: read without trusting them, written atomically; a user's own dataset is one."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfinv.config import dataset_name
from tfinv.data.dataset import Dataset
from tfinv.errors import UsageError, one_line
from tfinv.files import replacing

# The four arrays of a dataset; Keras's dataset files use the same names.
KEYS = ("x_train", "y_train", "x_test", "y_test")

# What numpy and zipfile raise on a file that is cut short, has changed bytes or was never an .npz.
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the four arrays of a dataset from an .npz file; nothing in the file is executed.

    Args:
        path: The file. Arrays other than `KEYS` are not read.

    Returns:
        One array for each of `KEYS`, as stored.

    Raises:
        UsageError: If the file is missing or damaged, lacks a key, or holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"Cannot find the dataset file. Expected an existing .npz file. Received: {path}")
    try:
        # Opened here, because np.load leaves the file open when it finds it damaged.
        with path.open("rb") as file:
            return _read_arrays(np.load(file, allow_pickle=False), path)
    except UsageError:
        raise
    except _UNREADABLE as error:
        raise UsageError(
            f"Cannot read the dataset file. Expected an .npz file written by numpy.savez; write it again. "
            f"Received: {path} ({reason(error)})"
        ) from error


def reason(error: Exception) -> str:
    """Returns why numpy cannot read a file, in one line."""
    # Its word for anything that it does not know, with the advice to execute it.
    return "not a file of numpy's arrays" if "allow_pickle" in str(error) else one_line(error)


def load_npz(path: str | os.PathLike[str]) -> Dataset:
    """Loads a user's dataset from an .npz file.

    Args:
        path: A file with the arrays `x_train`, `y_train`, `x_test`, `y_test`: images [N, H, W] or
            [N, H, W, 1 or 3], uint8 or floating point in 0..1; labels [N] or [N, 1], integers.

    Returns:
        The dataset, named after the file; grey images get their channel axis.

    Raises:
        UsageError: If the file cannot be read or its arrays are not a dataset.
    """
    path = Path(path).expanduser()
    arrays = read_npz(path)
    for key, array in arrays.items():
        if key.startswith("x_") and array.ndim == 3:
            arrays[key] = array[..., np.newaxis]
        elif key.startswith("y_"):
            arrays[key] = _flat_labels(array)
    return Dataset(name=dataset_name(path), **arrays)


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file that is seen by others either complete or not at all.

    Args:
        path: File to create or replace; missing folders are created.
        arrays: The arrays by name.

    Raises:
        OSError: If the folder or the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("xb") as file:
        # numpy before 2.2 knows no allow_pickle here and would store it as an array.
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]


def _read_arrays(archive: Any, path: Path) -> dict[str, np.ndarray]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UsageError(
            f"Invalid dataset file. Expected an .npz file (numpy.savez) with the keys {', '.join(KEYS)}. "
            f"Received a single array: {path}"
        )
    missing = [key for key in KEYS if key not in archive.files]
    if missing:
        raise UsageError(
            f"Missing arrays in {path}: {', '.join(missing)}. Expected the keys {', '.join(KEYS)}. "
            f"Received: {', '.join(sorted(archive.files)) or 'no keys'}"
        )
    try:
        return {key: archive[key] for key in KEYS}
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise UsageError(
            f"Invalid arrays in {path}. Expected numbers. Received: an array of Python objects, which is "
            f"never loaded; convert it, for instance with numpy.stack"
        ) from error


def _flat_labels(labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if np.issubdtype(labels.dtype, np.integer):
        labels = labels.astype(np.int64)
    return labels
