"""A process for one run: started, watched, ended, on whatever machine. Imports no TensorFlow."""

import contextlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.5


def work(
    config: str,
    output: Path,
    command: Sequence[str],
    log: IO,
    watch: Callable[[], None],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Resumes or starts a run in a process of its own, and waits until that ends.

    Args:
        config: The run's configuration as JSON.
        output: Folder in which its run directory is or will be made.
        command: Command line that environment.json shall name.
        log: Open file that gets what the process says.
        watch: Called every POLL_SECONDS while it is at work.
        environment: Further environment variables.

    Returns:
        Exit code of the process, or minus the signal that killed it.
    """
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tfinv.worker", str(output), *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment} if environment else None,
        start_new_session=True,  # CTRL-C reaches this process alone, which then ends that one
    )
    if process.stdin is None:
        raise RuntimeError("The worker has no stdin.")
    try:
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its log says why
            process.stdin.write(config.replace("\n", " ") + "\n")
            process.stdin.flush()
        while process.poll() is None:
            watch()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()  # nothing to tidy up: files are replaced atomically
            process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return process.returncode


def threads(cores: float) -> dict[str, str]:
    """Returns the variables of a process that shares a machine: as many threads as its part of the cores."""
    # TensorFlow would start a thread a core of the machine, in each of the runs that share it.
    count = str(max(1, math.floor(cores)))
    return {"TF_NUM_INTRAOP_THREADS": count, "TF_NUM_INTEROP_THREADS": count}


def reason_of(code: int) -> str:
    """Returns an exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
