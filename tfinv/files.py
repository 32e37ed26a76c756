"""Replacing files and folders, so that neither a kill, a full disk nor a loss of power costs the old one."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tfinv.errors import UsageError

# What is being written, or was there before (.old), and the name that it is for.
_PARTIAL = re.compile(r"\.partial-[0-9a-f]{32}(\.old)?-(.+)", re.DOTALL)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`, with its suffix, that takes its place when the block succeeds.

    An old folder is moved aside until the new one is there; what a kill leaves is for `remove_partial`.

    Args:
        path: File or folder to write; it need not exist.

    Yields:
        Path to write the new file or folder to; nothing stays there if the block fails.
    """
    # In the same folder, because a rename is atomic only within one file system.
    unique = f".partial-{uuid.uuid4().hex}"
    partial, old = (path.with_name(f"{unique}{part}-{path.name}") for part in ("", ".old"))
    try:
        yield partial
        _sync(partial)
        if partial.is_dir() and path.is_dir():
            os.replace(path, old)  # a folder cannot be renamed onto a full one
        os.replace(partial, path)
        _sync_one(path.parent)
    finally:
        _put_back(old, path)
        _remove(partial)
        _remove(old)


def remove_partial(directory: Path, name: str | None = None) -> None:
    """Removes what `replacing` left in `directory` when its process was killed.

    A folder that it had moved away for one that never came is put back.

    Args:
        directory: Folder of the files and folders that were replaced; it need not exist.
        name: The one among them that it is about; all if not given.
    """
    for left in sorted(directory.glob(".partial-*")):
        found = _PARTIAL.fullmatch(left.name)
        if found and name in (None, found[2]):
            if found[1]:
                _put_back(left, left.with_name(found[2]))
            _remove(left)


def _sync(path: Path) -> None:
    """Has the disk hold a file or folder: a rename that outlives a loss of power must not name less."""
    for part in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not part.is_symlink():
            _sync_one(part)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that knows no such thing
            raise
    finally:
        os.close(descriptor)


def _put_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        os.replace(old, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_writable(directory: Path) -> None:
    """Raises UsageError if `directory` cannot be made and written to; makes nothing."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UsageError(f"Cannot write to {directory}: {existing} is not a writable folder.")
