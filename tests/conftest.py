"""Fixtures of all tests. Imports no TensorFlow: some lanes run layers and ops without it."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# Numbers must not depend on the machine's accelerator, nor messages on the width of its terminal.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    # As scripts do themselves, but too late where TensorFlow was loaded before them.
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "200",
}


def pytest_collection_modifyitems(items):
    """Files with slow tests go first: a worker that began one last would leave the others without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def skip_without(items, marker: str, needed: tuple[str, ...], variable: str) -> None:
    """Skips the items with a marker if a module is missing, unless `variable` is 1: then they fail."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing and os.environ.get(variable) != "1":
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


def digit_arrays(train: int = 120, test: int = 60, size: int = 12) -> dict[str, np.ndarray]:
    """Ten classes in turn, each a blotchy pattern of its own with a little noise; uint8 [N, H, W, 1]."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2, (10, size // 2, size // 2)).repeat(2, axis=1).repeat(2, axis=2) * 180
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 10
        noise = random.integers(0, 60, (count, size, size))
        arrays[f"x_{part}"] = (patterns[labels] + noise).astype(np.uint8)[..., np.newaxis]
        arrays[f"y_{part}"] = labels
    return arrays


@pytest.fixture
def digits():
    """A small dataset with the classes 0..9."""
    from tfinv.data import Dataset

    return Dataset("digits", **digit_arrays())


@pytest.fixture(scope="session")
def digits_npz(tmp_path_factory) -> Path:
    """The same as a user's own file."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, **digit_arrays())
    return path


@pytest.fixture
def deterministic():
    """Deterministic ops for one test; TensorFlow itself can only switch them on."""
    import tensorflow as tf
    from tensorflow.python.util import _pywrap_determinism

    before = _pywrap_determinism.is_enabled()
    tf.config.experimental.enable_op_determinism()
    yield
    _pywrap_determinism.enable(before)


@pytest.fixture
def start_script():
    """Starts `scripts/<name>` with arguments; what still runs at the end of the test is killed."""
    started = []

    def start(name: str, *arguments, prelude: str = "", **options) -> subprocess.Popen:
        script = str(ROOT / "scripts" / name)
        code = f"import runpy, sys; {prelude}; sys.argv[0] = {script!r}; "
        code += f"runpy.run_path({script!r}, None, '__main__')"
        command = [sys.executable, *(["-c", code] if prelude else [script]), *map(str, arguments)]
        # A test run in the background of a shell ignores SIGINT, and what it starts would, too.
        options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        process = subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
