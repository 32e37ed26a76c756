"""Datasets, one module each, and a user's own .npz files and sharded folders.

A dataset module defines `load()`, which returns a `tfinv.data.dataset.Dataset`; adding a file adds a
dataset. Most modules are a `tfinv.data.fetch.Spec`: checksums and a list of sources.
"""

import os
from pathlib import Path

from tfinv import registry
from tfinv.data.dataset import Dataset
from tfinv.data.npz import load_npz
from tfinv.data.shards import load_shards
from tfinv.errors import UsageError


def available() -> list[str]:
    """Returns the names of all datasets."""
    return registry.names(__name__)


def load_dataset(name_or_path: str | os.PathLike[str]) -> Dataset:
    """Loads a dataset by name, or a user's own from an .npz file or a sharded folder.

    Args:
        name_or_path: One of `available()`, or the path of an .npz file with the arrays x_train, y_train,
            x_test and y_test, or of a folder that scripts/make_dataset.py wrote, or its dataset.json. A
            known name wins over a file of the same name; write `./mnist` for the file.

    Returns:
        The dataset; a user's own is named after the file or folder.

    Raises:
        UsageError: If the name is unknown, no source has the dataset, or the file is not a dataset.
    """
    name = os.fspath(name_or_path)
    known = available()
    if name in known:
        return registry.find(__name__, name, "dataset").load()
    path = Path(name).expanduser()
    if path.is_dir() or path.suffix == ".json":
        return load_shards(path)
    if _is_path(name):
        return load_npz(name)
    raise UsageError(
        f"Unknown dataset. Expected one of {', '.join(known)}, or a path to an .npz file or sharded folder. "
        f"Received: dataset={name}"
    )


def _is_path(name: str) -> bool:
    separators = {os.sep, os.altsep or os.sep, "/"}
    return name.endswith(".npz") or any(mark in name for mark in separators) or Path(name).is_file()
