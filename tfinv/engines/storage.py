"""States of runs in a folder that every machine of a cluster reaches: a disk they share, or S3 and its like.

A state is one archive of a run directory, named by its epochs and its checksum:

    STORAGE/<digest>/<run id>/epoch-00003-<checksum>.zip
    STORAGE/<digest>/<run id>/finished-00015-<checksum>.zip

So nothing has to be renamed or replaced, which object stores cannot do atomically: an upload that was cut off
does not match its name, and the state before it is still there. Imports no TensorFlow.
"""

import contextlib
import hashlib
import re
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tfinv import runs
from tfinv.errors import UsageError, one_line
from tfinv.files import replacing

EXTRA = "pip install 'tfinv[ray]'"
_STATE = re.compile(r"(epoch|finished)-(\d+)-([0-9a-f]{16})\.zip")
_BEGUN = re.compile(r"begun-(\d+)-(.+)")
_CHUNK = 1 << 20
# They have no folders, and s3fs would make a bucket of the first part of a path.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs"}


@dataclass(frozen=True, order=True)
class State:
    """A stored state of a run; the greater is the newer.

    Attributes:
        finished: Whether the run is.
        epochs: Finished epochs.
        name: What it is stored as.
    """

    finished: bool
    epochs: int
    name: str


@dataclass(frozen=True)
class Progress:
    """What is stored of a run.

    Attributes:
        attempt: Last attempt that began, from 1; 0 for none.
        where: Machine that began it.
        epochs: Finished epochs of the newest state.
        finished: Whether the run is.
    """

    attempt: int = 0
    where: str = ""
    epochs: int = 0
    finished: bool = False


class Storage:
    """A folder of states.

    Attributes:
        url: Where it is, for any process on any machine.

    Args:
        url: Path or fsspec URL, such as s3://bucket/folder.

    Raises:
        UsageError: If fsspec or what it needs for that URL is not installed, or the URL makes no sense.
    """

    def __init__(self, url: str):
        try:
            import fsspec
        except ImportError:
            raise UsageError(f"--storage needs fsspec: {EXTRA}") from None
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UsageError(f"Invalid value for storage. {error} Received: storage={url}") from None
        self._root = self._root.rstrip("/")
        # A local path is made the same for any working directory. Of other URLs the root may lack the host.
        self.url = self._files.unstrip_protocol(self._root) if "file" in self._protocols() else url

    def check(self) -> None:
        """Raises UsageError if it cannot be written to."""
        probe = f"{self._root}/.writable"
        try:
            self._make(self._root)
            self._files.pipe_file(probe, b"tfinv")
            self._files.rm_file(probe)
        except Exception as error:  # each file system has its own
            raise UsageError(f"Cannot write to --storage {self.url}: {one_line(error)}") from None

    def begin(self, key: str, attempt: int, where: str) -> None:
        """Notes that a machine begins a run."""
        self._make(f"{self._root}/{key}")
        self._files.pipe_file(f"{self._root}/{key}/begun-{attempt}-{where}", b"tfinv")

    def progress(self) -> dict[str, Progress]:
        """Returns what is stored of each run, by its key."""
        self._files.invalidate_cache()
        found: dict[str, Progress] = {}
        try:
            paths = self._files.find(self._root)
        except FileNotFoundError:
            return found
        for path in paths:
            key, _, name = path.removeprefix(self._root).strip("/").rpartition("/")
            before = found.get(key, Progress())
            after = before
            if begun := _BEGUN.fullmatch(name):
                attempt, where = max((before.attempt, before.where), (int(begun[1]), begun[2]))
                after = Progress(attempt, where, before.epochs, before.finished)
            elif state := _state_of(name):
                finished, epochs = max((before.finished, before.epochs), (state.finished, state.epochs))
                after = Progress(before.attempt, before.where, epochs, finished)
            if after != before:
                found[key] = after
        return found

    def save(self, key: str, directory: Path, epochs: int, finished: bool = False) -> None:
        """Stores a run directory and removes the states before it; notes, too, if it is finished.

        Args:
            key: The run's: `<digest>/<run id>`.
            directory: Its directory; files in it may be replaced meanwhile.
            epochs: How many of them are finished.
            finished: Whether the run is.
        """
        before = self._names(key)
        with tempfile.TemporaryDirectory(prefix="tfinv-") as temporary:
            archive = Path(temporary) / "state.zip"
            _pack(directory, archive)
            name = f"{'finished' if finished else 'epoch'}-{epochs:05d}-{_checksum(archive)}.zip"
            self._make(f"{self._root}/{key}")
            self._files.put_file(str(archive), f"{self._root}/{key}/{name}")
        for other in before - {name}:  # of an equal name it is this very state
            state = _state_of(other)
            if finished or (state and not state.finished and state.epochs <= epochs):
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._root}/{key}/{other}")

    def states(self, key: str) -> list[State]:
        """Returns the stored states of a run, the newest first, cut-off ones among them."""
        return sorted(filter(None, map(_state_of, self._names(key))), reverse=True)

    def restore(self, key: str, directory: Path) -> State | None:
        """Replaces a run directory by the newest state that is whole; returns that, if there is one."""
        for state in self.states(key):
            directory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="tfinv-") as temporary:
                archive = Path(temporary) / "state.zip"
                try:
                    self._files.get_file(f"{self._root}/{key}/{state.name}", str(archive))
                except FileNotFoundError:  # another attempt has just stored a newer one
                    continue
                if not state.name.endswith(f"-{_checksum(archive)}.zip"):
                    continue
                with replacing(directory) as partial, zipfile.ZipFile(archive) as packed:
                    partial.mkdir()
                    packed.extractall(partial)
            return state
        return None

    def _make(self, folder: str) -> None:
        if not _OBJECT_STORES & self._protocols():
            self._files.makedirs(folder, exist_ok=True)

    def _protocols(self) -> set[str]:
        protocol = self._files.protocol
        return {protocol} if isinstance(protocol, str) else {*protocol}

    def _names(self, key: str) -> set[str]:
        self._files.invalidate_cache()
        try:
            paths = self._files.ls(f"{self._root}/{key}", detail=False)
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rsplit("/", 1)[-1] for path in paths}


def _state_of(name: str) -> State | None:
    match = _STATE.fullmatch(name)
    return State(match[1] == "finished", int(match[2]), name) if match else None


def _pack(directory: Path, archive: Path) -> None:
    """Packs what is finished in a run directory; hidden names are not.

    The checkpoint comes first: should the next epoch end meanwhile, the rest is ahead of the checkpoint,
    and that epoch is repeated; never behind it.
    """
    checkpoint = directory / runs.CHECKPOINT
    paths = sorted(directory.rglob("*"), key=lambda path: (path != checkpoint, path))
    # Not compressed: what is large are weights, which hardly get smaller.
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in paths:
            inside = path.relative_to(directory)
            if any(part.startswith(".") for part in inside.parts):
                continue
            if path.is_dir():
                packed.writestr(zipfile.ZipInfo(f"{inside.as_posix()}/"), b"")
                continue
            entry = zipfile.ZipInfo(inside.as_posix())  # without times: equal files, equal checksum
            with path.open("rb") as source, packed.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, _CHUNK)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
