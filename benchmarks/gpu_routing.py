"""The fused routing kernels on an NVIDIA GPU, through JAX: parity, sanitizers, time, memory.

    python benchmarks/gpu_routing.py all --csv gpu_routing.csv
    python benchmarks/gpu_routing.py parity             # outputs and every gradient against float64
    python benchmarks/gpu_routing.py sanitize           # small shapes under compute-sanitizer
    python benchmarks/gpu_routing.py time --rounds 50   # against XLA and torch.compile
    python benchmarks/gpu_routing.py memory             # of the same, each in a process of its own
    python benchmarks/gpu_routing.py all --device cpu --rounds 3 --small      # a rehearsal without a GPU

Needs nvcc, keras, and jax with CUDA; PyTorch with CUDA is a peer where it is installed. TensorFlow is not
used. The library is compiled on the first use (about two minutes). A peer must first compute what the
kernels compute, or it is not timed. Exit status: 0, 1 if something differs or a sanitizer complains, 2
without a GPU.
"""

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from gpu_routing_peers import (
    PEERS,
    TIMED,
    TIMED_SMALL,
    Case,
    arrays_of,
    both_ways,
    factors_of,
    fused,
    parity_cases,
    peers_of,
    votes_form,
)
from measuring import interleaved

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["KERAS_BACKEND"] = "jax"
# Memory is measured, and PyTorch shares the card: take what is needed, not most of it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Of the norm of the tensor. Single precision through exponentials is at some 1e-6. Above that the problem may
# be ill-conditioned: then so many times what the votes form loses in float32, or what rounding the inputs
# changes, is granted.
PARITY, CONDITIONED, PEERS_AGREE = 2e-5, 16.0, 1e-3


def distance(found, truth) -> float:
    """Norm of the difference by the norm of the truth; NaN and other shapes are infinitely far."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if found.shape != truth.shape or not np.isfinite(found).all():
        return float("inf")
    # A gradient that is 0 in exact arithmetic (a softmax over one parent) has no norm to go by.
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-6 * truth.size**0.5))


def reference_on_host(case: Case, arrays: list, factors: list, dtype: str) -> list:
    """Outputs and gradients of the votes form in another precision, on the host."""
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            cast = [[value.astype(dtype) for value in values] for values in (arrays, factors)]
            return jax.device_get(jax.jit(both_ways(votes_form(case)))(*cast))
    finally:
        jax.config.update("jax_enable_x64", False)


def check_parity(device, small: bool) -> list[dict]:
    """Compares outputs and gradients with the votes form in float64, and one run with another bit for bit."""
    import jax

    rows = []
    for case in parity_cases(small):
        arrays, factors = arrays_of(case), factors_of(case)
        with jax.default_device(device):
            run = jax.jit(both_ways(fused(case)))
            found, again = (jax.device_get(run(arrays, factors)) for _ in range(2))
        truth = reference_on_host(case, arrays, factors, "float64")
        errors = list(map(distance, found, truth))
        limits = [PARITY] * len(errors)
        if max(errors) > PARITY:
            noise = np.random.default_rng(1)
            moved = [value * (1 + noise.uniform(-(2.0**-23), 2.0**-23, value.shape)) for value in arrays]
            others = reference_on_host(case, arrays, factors, "float32")
            others = zip(others, reference_on_host(case, moved, factors, "float64"), truth, strict=True)
            limits = [max(PARITY, CONDITIONED * max(distance(a, c), distance(b, c))) for a, b, c in others]
        inputs = (
            ["poses", "activations", "weights", "beta_u", "beta_a"] if case.variant else ["poses", "weights"]
        )
        names = ["outputs", "output_activations"][: len(factors)]
        names += [f"d{name}" for name in [*inputs, "bias"][: len(arrays)]]
        for name, error, limit, one, other in zip(names, errors, limits, found, again, strict=True):
            repeats = one.tobytes() == other.tobytes()
            passed = error <= limit and repeats
            rows.append({"case": case.name, "metric": f"error {name}", "value": error, "passed": passed})
            if not passed:
                told = "repeats" if repeats else "does not repeat"
                print(f"DIFFERS {case.name} {name}: {error:.3g} of {limit:.3g}, {told}")
        print(f"{case.name:48s} worst {max(errors):.1e}", flush=True)
    return rows


def run_kernels(device, small: bool) -> None:
    """Runs the problems of `check_parity` and compares nothing: under a sanitizer it takes long enough."""
    import jax

    for case in parity_cases(small):
        with jax.default_device(device):
            jax.block_until_ready(jax.jit(both_ways(fused(case)))(arrays_of(case), factors_of(case)))
        print(case.name, flush=True)


def sanitize(arguments: argparse.Namespace) -> list[dict]:
    """Runs the small parity cases under each tool of compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return [
            {
                "case": "sanitize",
                "metric": "compute-sanitizer is not on the PATH",
                "value": 1,
                "passed": False,
            }
        ]

    def run(check: str) -> dict:
        command = [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        command += [sys.executable, __file__, "run", "--small", "--device", arguments.device]
        # An allocation for each array, or what is read beyond one would be found in the pool.
        environment = os.environ | {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}
        finished = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        summary = [line for line in finished.stdout.splitlines() if "SUMMARY" in line]
        print(f"{check}: exit {finished.returncode}; {'; '.join(summary)}", flush=True)
        if finished.returncode:
            print(finished.stdout[-4000:])
        passed = finished.returncode == 0 and bool(summary)
        return {"case": "sanitize", "metric": check, "value": finished.returncode, "passed": passed}

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(run, ("memcheck", "racecheck", "synccheck")))


# Timing


def operations(case: Case, backward: bool) -> float:
    """Operations on votes that the fused kernels do, recomputation included, exponentials not."""
    size = case.child_dim**2 if case.variant else case.parent_dim
    vote = 2 * size * case.child_dim
    per_iteration, per_adjoint, per_gradient = (8, 17, 17) if case.variant else (4, 6, 8)
    count = case.iterations * (vote + per_iteration * size)
    if backward:
        count += (case.iterations - 1) * (vote + per_adjoint * size)
        count += 3 * vote + case.iterations * per_gradient * size
    return float(count) * case.batch * case.children * case.parents


def least_bytes(case: Case, backward: bool) -> float:
    """Inputs read once and results written once."""
    values = sum(value.size for value in arrays_of(case)), sum(value.size for value in factors_of(case))
    return 4.0 * (values[0] * (2 if backward else 1) + values[1] * (2 if backward else 1))


def card_limits(device) -> tuple[float, float]:
    """Measured: bytes/s of a large copy, read and written, and float32 operations/s of a large product."""
    import jax
    import jax.numpy as jnp

    big = 1 << (28 if device.platform != "cpu" else 22)
    edge = 8192 if device.platform != "cpu" else 512
    with jax.default_device(device):
        values, matrix = jnp.ones(big, jnp.float32), jax.random.normal(jax.random.key(0), (edge, edge))
        copy, product = jax.jit(lambda x: x + 1.0), jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
        seconds = [
            min(time_once(lambda f=f, x=x: f(x), jax.block_until_ready, 5) for _ in range(5))
            for f, x in ((copy, values), (product, matrix))
        ]
    return 8.0 * big / seconds[0], 2.0 * edge**3 / seconds[1]


def run_several(start: Callable, wait: Callable, calls: int) -> None:
    for _ in range(calls):
        last = start()
    wait(last)


def time_once(start: Callable, wait: Callable, calls: int) -> float:
    begun = time.perf_counter()
    run_several(start, wait, calls)
    return (time.perf_counter() - begun) / calls


def peak_memory(case: Case, name: str, device, backward: bool) -> float:
    """Bytes above inputs at the peak of a call, of this peer alone: call it in a process of its own."""
    peers = peers_of(case, device, backward, only=name)
    start, wait = peers[name]
    if name == "torch.compile":
        import torch

        wait(start())
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        wait(start())
        return float(torch.cuda.max_memory_allocated() - before)
    before = device.memory_stats()["bytes_in_use"]
    wait(start())
    return float(device.memory_stats()["peak_bytes_in_use"] - before)


def peak_memory_apart(index: int, name: str, backward: bool) -> float | None:
    """`peak_memory` in a process of its own; JAX cannot forget an earlier peak."""
    command = [sys.executable, __file__, "memory-of-one", "--peer", name, "--index", str(index)]
    # Autotuning at compilation would raise the peak by its trial buffers.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    finished = subprocess.run(
        command + (["--backward"] if backward else []),
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        print(f"no memory figure for {name}: {finished.stderr.strip()[-300:]}")
        return None
    return float(finished.stdout.strip().splitlines()[-1])


def measure_memory() -> list[dict]:
    """Peak memory of every peer; several processes at once, since each sees its own allocations alone."""
    runs = [(i, way, peer) for i in range(len(TIMED)) for way in (False, True) for peer in PEERS]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda run: peak_memory_apart(run[0], run[2], run[1]), runs)
        rows = []
        for (index, backward, peer), memory in zip(runs, found, strict=True):
            if memory is None:
                continue
            case = f"{TIMED[index].name} {way_of(backward)}"
            print(f"{case:50s} {peer:14s} peak {memory / 2**20:.1f} MiB", flush=True)
            rows.append(
                {"case": case, "peer": peer, "metric": "peak MiB", "value": memory / 2**20, "passed": True}
            )
    return rows


def way_of(backward: bool) -> str:
    return "forward+backward" if backward else "forward"


def time_peers(device, rounds: int, small: bool) -> list[dict]:
    """Interleaved rounds of every peer, after checking that all compute the same."""
    bandwidth, rate = card_limits(device)
    rows = [{"case": "card", "metric": "copy GB/s", "value": bandwidth / 1e9, "passed": True}]
    rows.append({"case": "card", "metric": "float32 product TFLOP/s", "value": rate / 1e12, "passed": True})
    print(f"{device.device_kind}: copy {bandwidth / 1e9:.0f} GB/s, product {rate / 1e12:.1f} TFLOP/s")
    for case in TIMED_SMALL if small else TIMED:
        for backward in (False, True):
            way = way_of(backward)
            peers = peers_of(case, device, backward)
            results = {name: list(map(to_host, wait(start()))) for name, (start, wait) in peers.items()}
            agrees = {}
            for name, values in results.items():
                # TF32 keeps ten bits; it is timed as what XLA does unasked, and not held to float32.
                worst = max(map(distance, values, results["fused"]))
                agrees[name] = worst <= PEERS_AGREE or name == "xla-tf32"
                rows.append(
                    {
                        "case": f"{case.name} {way}",
                        "peer": name,
                        "metric": "difference",
                        "value": worst,
                        "passed": agrees[name],
                    }
                )
                if not agrees[name]:
                    print(f"DIFFERS {case.name} {way}: {name} by {worst:.2g}; not timed")
            seconds: dict[str, list[float]] = {name: [] for name in peers if agrees[name]}
            calls = 10 if device.platform != "cpu" else 1
            several = {name: partial(run_several, *peers[name], calls) for name in seconds}
            for _, name, value in interleaved(several, rounds):
                seconds[name].append(value / calls)
            for name, values in seconds.items():
                median, least = statistics.median(values), min(values)
                facts = {"median ms": 1e3 * median, "min ms": 1e3 * least}
                facts["fused is faster by"] = median / statistics.median(seconds["fused"])
                if name == "fused":
                    facts["TFLOP/s"] = operations(case, backward) / median / 1e12
                    facts["share of TFLOP/s"] = operations(case, backward) / median / rate
                    facts["least GB/s"] = least_bytes(case, backward) / median / 1e9
                    facts["share of GB/s"] = least_bytes(case, backward) / median / bandwidth
                rows += [
                    {
                        "case": f"{case.name} {way}",
                        "peer": name,
                        "metric": key,
                        "value": value,
                        "passed": True,
                    }
                    for key, value in facts.items()
                ]
                told = ", ".join(f"{key} {value:.3g}" for key, value in facts.items())
                print(f"{case.name} {way:17s} {name:14s} {told}", flush=True)
    return rows


def to_host(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def find_device(kind: str):
    """The first device of a kind, or None after saying why there is none."""
    import jax

    if kind == "cpu":
        return jax.devices("cpu")[0]
    try:
        return jax.devices("cuda")[0]
    except RuntimeError:
        print(
            "This benchmark needs an NVIDIA GPU that JAX can use; rehearse with --device cpu.",
            file=sys.stderr,
        )
        return None


def main() -> int:
    """Parses the command line and runs what it asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=["all", "parity", "sanitize", "time", "memory", "run", "memory-of-one"]
    )
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds of ten calls")
    parser.add_argument("--small", action="store_true", help="small cases only")
    parser.add_argument("--csv", type=Path, help="where to write one row for each number")
    parser.add_argument("--peer", default="fused", choices=PEERS, help="for memory-of-one, of `memory`")
    parser.add_argument("--index", type=int, default=0, help="likewise")
    parser.add_argument("--backward", action="store_true", help="likewise")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    if device is None:
        return 2
    from tfinv.ops import fused_jax

    if arguments.what == "memory-of-one":
        print(peak_memory(TIMED[arguments.index], arguments.peer, device, arguments.backward))
        return 0
    info = fused_jax.load()
    print(f"{device.device_kind}; {info}")
    if arguments.device == "gpu" and not info.cuda:
        print(
            "The library was compiled without CUDA: is nvcc on the PATH? See TFINV_CUDA=1.", file=sys.stderr
        )
        return 1
    if arguments.what == "run":
        run_kernels(device, arguments.small)
        return 0
    rows = []
    if arguments.what in ("all", "parity"):
        rows += check_parity(device, arguments.small)
    if arguments.what in ("all", "sanitize") and arguments.device == "gpu":
        rows += sanitize(arguments)
    if arguments.what in ("all", "time"):
        rows += time_peers(device, arguments.rounds, arguments.small)
    if arguments.what in ("all", "memory") and arguments.device == "gpu":
        rows += measure_memory()
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, ["device", "case", "peer", "metric", "value", "passed"])
            writer.writeheader()
            writer.writerows({"device": device.device_kind, "peer": "", **row} for row in rows)
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows)} figures, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
