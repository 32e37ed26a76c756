"""Images a second and peak memory of the pipeline of a sharded dataset, against its size.

    pip install -e '.[shards]'
    python benchmarks/dataset_scaling.py --csv docs/benchmarks

Generates a dataset of each size (28x28 grey, ten classes, blotches with noise), reads batches of protocol
rotate-34 from it in a process of its own, and deletes it. A pass is not finished: a shuffled order visits all
shards from the first batch on. What is read is checked to be what was written. About 4 GB of disk for ten
million images, which the file cache of the system may hold: see the size beside the machine's memory.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH_SIZE = 128
TEST_IMAGES = 1000
_DISTINCT = 2000


@dataclass(frozen=True)
class Config:
    """Cost of a sharded dataset against its size."""

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    batches: int = 1500
    """Batches that are read, of 128 images; of a small dataset several epochs."""
    csv: Path | None = None
    """Folder for dataset_scaling.csv and dataset_scaling.png."""
    scratch: Path | None = None
    """Folder to generate datasets in; the system's temporary one by default."""


def blotches() -> np.ndarray:
    """Distinct images [M, 28, 28, 1] of ten classes in turn; a sixth of the pixels is not black."""
    random = np.random.default_rng(0)
    images = np.zeros((_DISTINCT, 28, 28, 1), np.uint8)
    patterns = random.integers(0, 2, (10, 8, 8)).repeat(2, axis=1).repeat(2, axis=2)
    noise = random.integers(100, 256, (_DISTINCT, 16, 16))
    images[:, 6:22, 6:22, 0] = patterns[np.arange(_DISTINCT) % 10] * noise
    return images


def generated(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields `count` images and labels; the index of each image is in its first pixels."""
    distinct = blotches()
    for start in range(0, count, _DISTINCT):
        images = distinct[: count - start].copy()
        numbers = np.arange(start, start + len(images), dtype=np.uint32)
        images[:, 0, :4, 0] = numbers[:, np.newaxis].view(np.uint8)
        yield images, (numbers % 10).astype(np.uint16)


def peak_mib() -> float:
    """Peak resident memory of this process; ru_maxrss would count what its parent had before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def read(folder: Path, batches: int) -> None:
    """Reads batches and prints seconds, images and MiB; what a process of its own does."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    # What TensorFlow takes for any pipeline is measured on a handful of images in memory.
    from tfinv.data import Dataset, load_dataset, make_dataset

    few = blotches()[:500]
    labels = np.arange(500) % 10
    list(make_dataset("rotate-34", "train", BATCH_SIZE, 0, Dataset("few", few, labels, few, labels)))
    before = peak_mib()
    begin = time.perf_counter()
    dataset = load_dataset(folder)
    some = dataset.x_train[:: max(len(dataset.y_train) // 100, 1)]
    numbers = np.ascontiguousarray(some[:, 0, :4, 0]).view(np.uint32)[:, 0]
    if not np.array_equal(numbers, np.arange(len(dataset.y_train))[:: max(len(dataset.y_train) // 100, 1)]):
        raise SystemExit("what was read is not what was written")
    steps = -(-len(dataset.y_train) * 8 // 10 // BATCH_SIZE)
    stream = iter(make_dataset("rotate-34", "train", BATCH_SIZE, 0, dataset, epochs=-(-batches // steps) + 1))
    next(stream)
    first = time.perf_counter()
    images = sum(len(next(stream)[1]) for _ in range(batches))
    print(first - begin, time.perf_counter() - first, images, before, peak_mib())


def measure(size: int, batches: int, scratch: Path) -> dict[str, float]:
    """Generates, reads in another process, deletes; returns a row."""
    from tfinv.data import write_shards

    begin = time.perf_counter()
    folder = write_shards(scratch / f"n{size}", {"train": generated(size), "test": generated(TEST_IMAGES)})
    written = time.perf_counter() - begin
    disk = sum(file.stat().st_size for file in folder.iterdir())
    command = [sys.executable, __file__, "--read", str(folder), str(batches)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    first, seconds, images, before, peak = map(float, output.splitlines()[-1].split())
    return {
        "images": size,
        "disk_mib": disk / 2**20,
        "write_images_per_s": (size + TEST_IMAGES) / written,
        "first_batch_s": first,
        "read_images": int(images),
        "read_images_per_s": images / seconds,
        "epoch_s": first + size / (images / seconds),
        "base_mib": before,
        "peak_mib": peak,
    }


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draws time of an epoch and memory against size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    time_axes.loglog(table.images, table.epoch_s, "o-", label="so many images, from images/s and first batch")
    time_axes.loglog(table.images, table.epoch_s.iloc[-1] * table.images / table.images.iloc[-1], "k:", lw=1)
    time_axes.set(xlabel="images", ylabel="seconds", title="Time (dotted: proportional to size)")
    memory_axes.loglog(table.images, table.peak_mib, "o-", label="peak memory of the process")
    memory_axes.loglog(table.images, table.images * 784 / 2**20, "k--", lw=1, label="the images in memory")
    memory_axes.set(xlabel="images", ylabel="MiB", title="Memory")
    memory_axes.legend()
    for axes in (time_axes, memory_axes):
        axes.grid(color="#DDDDDD", linewidth=0.6)
    figure.savefig(path, dpi=120)


def main(config: Config) -> None:
    """Measures each size and prints the table."""
    with tempfile.TemporaryDirectory(dir=config.scratch) as scratch:
        rows = []
        for size in config.sizes:
            with tempfile.TemporaryDirectory(dir=scratch) as own:
                rows.append(measure(size, config.batches, Path(own)))
            print({key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    table = pd.DataFrame(rows)
    if config.csv is not None:
        table.round(3).to_csv(config.csv / "dataset_scaling.csv", index=False)
        draw(table, config.csv / "dataset_scaling.png")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(tyro.cli(Config, description=__doc__))
