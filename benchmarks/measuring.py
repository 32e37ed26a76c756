"""What benchmarks measure with: interleaved rounds, a process of one's own, and the peak of its memory."""

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def interleaved(calls: Mapping[Name, Callable], rounds: int) -> Iterator[tuple[int, Name, float]]:
    """Calls each by turns and yields (round, its key, seconds), but for a first round that is not counted."""
    for number in range(-1, rounds):
        for who, call in calls.items():
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            if number >= 0:
                yield number, who, seconds


def compiled(objective, config):
    """The training model of an objective, with the optimizer of the TrainingConfig `config`, without XLA."""
    from tfinv import training

    model, optimizer = objective.model, training.make_optimizer(config, 100)
    model.compile(optimizer, loss=objective.loss, loss_weights=objective.loss_weights, jit_compile=False)
    return model


def train_function(model):
    """What `fit` calls with an iterator of batches: one training step."""
    return model.make_train_function() or model.train_function


def alone(function, *arguments):
    """Calls function(*arguments) in a new process, which inherits nothing but the environment."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def kept(peer: str) -> int:
    """Bytes that the fused op keeps between calls."""
    if peer != "fused":
        return 0
    from tfinv import ops

    function = ctypes.CDLL(ops.build_info().library).tfinv_kept_bytes
    function.restype = ctypes.c_size_t
    return function()


def peak_of(call, peer: str) -> tuple:
    """Peak of a second call above what the process held before it, that of the process, and its result."""
    call()  # traces, compiles, and fills the caches of the allocator
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS") - kept(peer)
    result = call()
    return resident("VmHWM") - before, resident("VmHWM"), result
