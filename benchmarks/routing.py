"""Fused routing on the CPU against TensorFlow graphs and XLA: correctness, then time, memory and scaling.

    python benchmarks/routing.py                         # everything, about 15 minutes
    python benchmarks/routing.py --parts speed memory --csv docs/benchmarks

`speed` times all peers in interleaved rounds of one process, after each has computed what the reference
computes; `memory` gives each a process of its own and reads its peak; `scaling` grows one axis at a time up
to 8 times the base size, and the threads; `huge` routes a batch whose votes are a tensor of 6.2 GB, of which
a graph holds several. The inputs are random (--seed). docs/performance.md has what was measured.
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro
from measuring import alone, interleaved, peak_of
from rich.console import Console
from rich.table import Table
from routing_peers import DYNAMIC, EM, EM_WIDE, HUGE, PEERS, Problem, compiled, largest_difference

Part = Literal["speed", "memory", "scaling", "huge"]
SIZES = {"dynamic": DYNAMIC, "em": EM, "em wide": EM_WIDE}
TOLERANCE = 1e-3  # of the largest entry of each tensor; float32 sums in different orders
AXES = ("batch", "children", "parents")
FACTORS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Config:
    """Time, memory and scaling of the fused routing against its peers."""

    parts: tuple[Part, ...] = ("speed", "memory", "scaling", "huge")
    sizes: tuple[Literal["dynamic", "em", "em wide"], ...] = ("dynamic", "em", "em wide")
    rounds: int = 9
    """Interleaved rounds that are counted; one more goes before them."""
    csv: Path | None = None
    """Folder for routing_speed.csv, routing_memory.csv, routing_scaling.csv and its figure."""
    seed: int = 0


def finish(run, inputs: list) -> None:
    run(*inputs)[0].numpy()


def clock(run, inputs: list) -> float:
    start = time.perf_counter()
    finish(run, inputs)
    return time.perf_counter() - start


def measure_speed(config: Config) -> list[dict]:
    rows = []
    for size in config.sizes:
        problem, console = SIZES[size], Console()
        inputs = problem.inputs(config.seed)
        for direction in ("forward", "forward+backward"):
            runs = {peer: compiled(peer, problem, direction != "forward") for peer in PEERS}
            expected = runs["matmul (reference)"](*inputs)
            gaps = {peer: largest_difference(run(*inputs), expected) for peer, run in runs.items()}
            console.print(f"{size}, {direction}: largest difference {max(gaps.values()):.1e}")
            wrong = {peer: gap for peer, gap in gaps.items() if not gap <= TOLERANCE}
            if wrong:
                sys.exit(f"These do not compute the same; nothing is timed: {wrong}")
            calls = {peer: partial(finish, run, inputs) for peer, run in runs.items()}
            for number, peer, seconds in interleaved(calls, config.rounds):
                row = {"size": size, "direction": direction, "peer": peer, "round": number}
                rows.append({**row, "seconds": seconds, "difference": gaps[peer]})
    return rows


def show_speed(frame: pd.DataFrame) -> None:
    for (size, direction), group in frame.groupby(["size", "direction"], sort=False):
        times = group.groupby("peer", sort=False)["seconds"].agg(["median", "min"]) * 1e3
        table = Table("peer", "median ms", "minimum ms", "times fused", title=f"{size}, {direction}")
        for peer, row in times.iterrows():
            ratio = row["median"] / times["median"]["fused"]
            table.add_row(str(peer), f"{row['median']:.1f}", f"{row['min']:.1f}", f"{ratio:.1f}")
        Console().print(table)


# Memory: a fresh process for each measurement


def measure_peak(peer: str, problem: Problem, seed: int, threads: int = 2) -> dict[str, float]:
    """Peak resident memory of one call above what the process held before it, and its time.

    What the fused op keeps from the call before counts as taken by this one.
    """
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # its allocator keeps what it had: no peak would show
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    inputs = problem.inputs(seed)
    run = compiled(peer, problem)
    peak, process, seconds = peak_of(lambda: clock(run, inputs), peer)
    return {"peak_bytes": peak, "process_bytes": process, "seconds": seconds}


def measure_memory(config: Config) -> list[dict]:
    rows = []
    for size in config.sizes:
        for peer in PEERS:
            measured = alone(measure_peak, peer, SIZES[size], config.seed)
            rows.append({"size": size, "peer": peer, "votes_bytes": SIZES[size].votes_bytes, **measured})
    return rows


def show_memory(frame: pd.DataFrame) -> None:
    for size, group in frame.groupby("size", sort=False):
        peaks = group.set_index("peer")["peak_bytes"] / 2**20
        votes = group["votes_bytes"].iloc[0] / 2**20
        table = Table(
            "peer", "peak MiB", "times fused", title=f"{size}, forward+backward; votes {votes:.0f} MiB"
        )
        for peer, peak in peaks.items():
            table.add_row(str(peer), f"{peak:.0f}", f"{peak / peaks['fused']:.1f}")
        Console().print(table)


# Scaling of the fused op


def measure_threads(problem: Problem, threads: int, rounds: int, seed: int) -> list[float]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    inputs, run = problem.inputs(seed), compiled("fused", problem)
    clock(run, inputs)
    return [clock(run, inputs) for _ in range(rounds)]


def measure_scaling(config: Config) -> list[dict]:
    rows = []
    for size in config.sizes:
        if size == "em wide":
            continue
        base = SIZES[size]
        problems = {(axis, factor): base.times(axis, factor) for axis in AXES for factor in FACTORS}
        problems |= {("iterations", count): replace(base, iterations=count) for count in range(1, 6)}
        # Each once, the base, which is on every axis, too.
        calls = {
            problem: partial(finish, compiled("fused", problem), problem.inputs(config.seed))
            for problem in dict.fromkeys(problems.values())
        }
        for number, timed, seconds in interleaved(calls, config.rounds):
            rows += [
                {"size": size, "axis": axis, "factor": factor, "round": number, "seconds": seconds}
                for (axis, factor), problem in problems.items()
                if problem == timed
            ]
        for threads in range(1, len(os.sched_getaffinity(0)) + 1):
            for number, seconds in enumerate(
                alone(measure_threads, base, threads, config.rounds, config.seed)
            ):
                row = {"size": size, "axis": "threads", "factor": threads, "round": number}
                rows.append({**row, "seconds": seconds})
    return rows


def show_scaling(frame: pd.DataFrame) -> None:
    table = Table("size", "axis", "factor", "median ms", "time / first", title="Fused, forward+backward")
    for (size, axis), group in frame.groupby(["size", "axis"], sort=False):
        medians = group.groupby("factor")["seconds"].median() * 1e3
        for factor, median in medians.items():
            table.add_row(size, axis, str(factor), f"{median:.1f}", f"{median / medians.iloc[0]:.2f}")
    Console().print(table)


def draw_scaling(frame: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    labels = {"dynamic": "dynamic routing", "em": "EM routing"}
    for (size, axis), group in frame.groupby(["size", "axis"], sort=False):
        medians = group.groupby("factor")["seconds"].median()
        panel = panels[{"iterations": 1, "threads": 2}.get(axis, 0)]
        label = labels[size] + (f", {axis}" if axis in AXES else "")
        values = medians / medians.iloc[0] if axis in AXES else medians * 1e3
        values = medians.iloc[0] / medians if axis == "threads" else values
        style = {"batch": "o-", "children": "s--", "parents": "^:"}.get(axis, "o-")
        color = {"dynamic": "tab:blue", "em": "tab:orange"}[size]
        panel.plot(medians.index, values, style, color=color, label=label, markersize=5)
    panels[0].plot(FACTORS, FACTORS, color="0.7", zorder=0, label="proportional")
    threads = sorted(frame[frame["axis"] == "threads"]["factor"].unique())
    panels[2].plot(threads, threads, color="0.7", zorder=0, label="proportional")
    panels[2].set_xticks(threads)
    for panel, x, y in zip(
        panels,
        ("times the base size of one axis", "routing iterations", "threads"),
        ("time / time at the base size", "milliseconds", "speed / speed of one thread"),
        strict=True,
    ):
        panel.set(xlabel=x, ylabel=y, ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle("Fused routing, forward and backward, medians")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(config: Config) -> None:
    measures = {"speed": (measure_speed, show_speed), "memory": (measure_memory, show_memory)}
    measures["scaling"] = (measure_scaling, show_scaling)
    if config.csv:
        config.csv.mkdir(parents=True, exist_ok=True)
    for part in config.parts:
        if part == "huge":
            measured = alone(measure_peak, "fused", HUGE, config.seed)
            call, process = measured["peak_bytes"] / 1e9, measured["process_bytes"] / 1e9
            print(f"Votes of {HUGE.votes_bytes / 1e9:.1f} GB: {measured['seconds']:.1f} s forward+backward")
            print(
                f"Peak of the process {process:.2f} GB, of the call {call:.2f} GB above what it held before"
            )
            if config.csv:
                pd.DataFrame([measured]).to_csv(config.csv / "routing_huge.csv", index=False)
            continue
        measure, show = measures[part]
        frame = pd.DataFrame(measure(config))
        show(frame)
        if config.csv:
            frame.to_csv(config.csv / f"routing_{part}.csv", index=False, float_format="%.6g")
            if part == "scaling":
                draw_scaling(frame, config.csv / "routing_scaling.png")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
