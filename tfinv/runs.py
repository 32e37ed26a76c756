"""Run directories: one a configuration and seed, never overwritten by accident."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from tfinv.config import RunConfig, from_dict, to_json
from tfinv.errors import UsageError
from tfinv.files import remove_partial, replacing

CONFIG = "config.json"
# The variable that makes TensorFlow compute with oneDNN on a CPU: faster, not bitwise repeatable.
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
ENVIRONMENT = "environment.json"
HISTORY = "history.csv"
INVARIANCE = "invariance.csv"
MODEL = "model.keras"
BEST_MODEL = "best.keras"
CHECKPOINT = "checkpoint.npz"
EXPORT = "export"
FIGURES = "figures"
# What is kept of a run whose model is not.
TABLES = (CONFIG, ENVIRONMENT, HISTORY, INVARIANCE)
_SOURCE = Path(__file__).resolve().parents[1]


def digest(config: RunConfig) -> str:
    """Returns 8 hexadecimal digits that change with any value of a configuration."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:8]


def prepare(
    directory: Path,
    config: RunConfig,
    overwrite: bool = False,
    resume: bool = False,
    extendable: bool = True,
) -> None:
    """Creates a run directory and writes its config.json.

    Args:
        directory: The run directory.
        config: What is going to run.
        overwrite: Delete an earlier run of that name.
        resume: Go on with an earlier run; its configuration must be the same but for more epochs and the
            evaluation. For another evaluation its results are deleted; for more epochs the first of them does
            that.
        extendable: Whether with more epochs a run goes on as if it had had them from the start.

    Raises:
        UsageError: If a run exists and neither is given, both are, the configuration differs, or there is
            nothing to go on from.
        OSError: If the directory cannot be written.
    """
    if overwrite and resume:
        raise UsageError("Choose one of --overwrite and --resume.")
    if directory.is_dir():
        remove_partial(directory)
        remove_partial(directory / FIGURES)
    if directory.exists() and any(directory.iterdir()):
        if not (directory / CONFIG).is_file():
            raise UsageError(f"Not a run directory, so it is left alone: {directory} (no {CONFIG})")
        if not (overwrite or resume):
            raise UsageError(
                f"Run directory exists: {directory}. Use --resume, --overwrite or another --output."
            )
        if resume:
            _check_same(directory, config, extendable)
            if epochs_of(directory) and not (directory / CHECKPOINT).is_file():
                raise UsageError(
                    f"Cannot resume {directory}: its epochs have left no {CHECKPOINT}. Use --overwrite or "
                    "another --output."
                )
            if read_config(directory).get("evaluation") != json.loads(to_json(config))["evaluation"]:
                remove_results(directory)
        else:
            shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / CONFIG) as partial:
        partial.write_text(to_json(config))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps a second process of this machine away from a run directory, which need not exist yet.

    Raises:
        UsageError: If another process holds it.
    """
    # Outside the directory, because --overwrite deletes that, and not beside it, where it would be litter.
    name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    lock = filelock.FileLock(Path(tempfile.gettempdir()) / f"tfinv-{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(f"Another process is at work in {directory}. Wait for it or end it.") from None
    try:
        yield
    finally:
        lock.release()


def read_config(directory: Path) -> dict[str, Any]:
    """Returns the configuration of a run as nested dicts.

    Raises:
        UsageError: If the directory holds no readable config.json.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UsageError(f"Not a run directory: {directory} (no {CONFIG})")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"Damaged configuration: {path} ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"Damaged configuration: {path} (not a JSON object)")
    return values


def epochs_of(directory: Path) -> int:
    """Returns the number of finished epochs of a run, which need not exist: the rows of its history."""
    # Without pandas, for a machine of a cluster that only minds a run.
    history = directory / HISTORY
    return max(0, len(history.read_text().splitlines()) - 1) if history.is_file() else 0


def write_environment(
    directory: Path, devices: list[str], command: list[str], team: dict[str, Any] | None = None
) -> None:
    """Writes environment.json: what a run's figures and times were measured with.

    Of a run that goes on elsewhere, or with other versions, it keeps what the epochs before were made with,
    under "earlier".

    Args:
        directory: The run directory.
        devices: Names of the accelerators, empty for none.
        command: Command line that started the run.
        team: How training was shared, by name.
    """
    environment = {
        "command": repeatable(shlex.join(["python", *command])),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "accelerators": devices,
        **(team or {}),
        "onednn": _onednn(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("tfinv", "tensorflow", "keras", "numpy")},
        **commit(_SOURCE),
    }
    path = directory / ENVIRONMENT
    if path.is_file():
        before = json.loads(path.read_text())
        earlier = before.pop("earlier", [])
        if before != environment and epochs_of(directory):
            earlier.append(before)
        if earlier:
            environment["earlier"] = earlier
    with replacing(path) as partial:
        partial.write_text(json.dumps(environment, indent=2) + "\n")


def _onednn() -> bool | str:
    """Returns whether oneDNN is switched on, as TensorFlow reads it; or that TensorFlow is left to choose."""
    given = os.environ.get(ONEDNN, "").lower()
    return {"1": True, "true": True, "0": False, "false": False}.get(given, "as TensorFlow chooses")


def repeatable(command: str) -> str:
    """Returns a command line without what depends on the machine, not on the run: where, and how often."""
    words = iter(shlex.split(command))
    kept = []
    for word in words:
        if word == "--output":
            next(words, None)
        elif word != "--resume" and not word.startswith("--output="):
            kept.append(word)
    return shlex.join(kept)


def commit(clone: Path) -> dict[str, Any]:
    """Returns the commit of a git clone, and whether its sources differ from that; both None if it is none.

    Args:
        clone: Its top folder. What lies deeper in some clone, such as an installed package, is not of it.
    """
    unknown = {"commit": None, "modified": None}
    if not (clone / ".git").exists():
        return unknown
    git = ["git", "-C", str(clone)]
    # A file that git does not know yet, such as a new model, changes the sources, too.
    status = [*git, "status", "--porcelain", "--untracked-files=all", "--", "tfinv", "custom_ops"]
    try:
        head, changes = (
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
            for command in ([*git, "rev-parse", "HEAD"], status)
        )
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, or another user's clone
        return unknown
    return {"commit": head, "modified": bool(changes)}


def _version(name: str) -> str | None:
    """Of the module in use: its package may have another name (tensorflow-cpu) or none (a clone)."""
    return getattr(sys.modules.get(name), "__version__", None)


def _processor() -> str:
    """The processor's own name, which `platform` does not tell on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def remove_results(directory: Path) -> None:
    """Removes what was made of a run's model, where that is no longer what the run is about."""
    (directory / INVARIANCE).unlink(missing_ok=True)
    for folder in (EXPORT, FIGURES):
        if (directory / folder).is_dir():
            shutil.rmtree(directory / folder)


def _check_same(directory: Path, config: RunConfig, extendable: bool) -> None:
    stored = read_config(directory)
    with contextlib.suppress(UsageError):  # of another network or version: then it differs
        # An option that was added since has its default.
        stored = json.loads(to_json(from_dict(RunConfig[type(config.model)], stored)))  # type: ignore[misc]
    old, new = _flat(stored), _flat(json.loads(to_json(config)))
    differing = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key != "training.epochs" and not key.startswith("evaluation.")
    ]
    started_with, epochs = old.get("training.epochs", 0), new["training.epochs"]
    if epochs < started_with:
        differing.append(f"training.epochs {started_with} -> {epochs} (give --epochs)")
    if epochs > started_with and not extendable:
        differing.append(
            f"training.epochs {started_with} -> {epochs} (a schedule of {config.model_name} spans them all: "
            f"give --epochs {started_with}, or start again with --overwrite)"
        )
    if differing:
        raise UsageError(f"Cannot resume {directory} with another configuration: {'; '.join(differing)}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def replace(config: RunConfig, **changes: Any) -> RunConfig:
    """Returns a run configuration with other values: fields of it, its training, evaluation or imagining."""
    parts: dict[str, Any] = {}
    for part in ("training", "evaluation", "imagining"):
        section = getattr(config, part)
        own = {key: value for key, value in changes.items() if key in section.__dataclass_fields__}
        parts[part] = dataclasses.replace(section, **own)
        changes = {key: value for key, value in changes.items() if key not in own}
    return dataclasses.replace(config, **parts, **changes)
