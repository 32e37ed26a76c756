"""Replacing files and folders atomically, so that neither a kill nor a full disk costs the old one."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tfinv.errors import UsageError

_PREFIX = ".partial-"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`, with its suffix, that takes its place when the block succeeds.

    Args:
        path: File or folder to write; it need not exist.

    Yields:
        Path to write the new file or folder to; nothing stays there if the block fails.
    """
    # In the same folder, because a rename is atomic only within one file system.
    partial = path.with_name(f"{_PREFIX}{uuid.uuid4().hex}-{path.name}")
    try:
        yield partial
        if partial.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # a folder cannot be renamed onto a full one
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def remove_partial(directory: Path) -> None:
    """Removes what `replacing` left in `directory` when its process was killed."""
    for partial in directory.glob(f"{_PREFIX}*"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def check_writable(directory: Path) -> None:
    """Raises UsageError if `directory` cannot be made and written to; makes nothing."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UsageError(f"Cannot write to {directory}: {existing} is not a writable folder.")
