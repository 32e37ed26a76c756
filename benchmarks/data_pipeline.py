"""Rotated images a second on one core: tfinv against PIL, scipy.ndimage and keras.layers.RandomRotation.

    python benchmarks/data_pipeline.py
    python benchmarks/data_pipeline.py --csv data_pipeline.csv --minimum 30000

Every peer first has to compute what tfinv computes, or nothing is timed. Then all take the same uint8
images to rotated float32 images in 0..1, each by an angle of its own, in interleaved rounds on one core.
The images are synthetic, so nothing is downloaded. Takes about 30 seconds. The target is 30,000
images/s for tfinv; docs/performance.md has what was measured.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy import ndimage

SIZE = 28
PEERS = {
    "tfinv rotation": "tfinv",
    "tfinv make_dataset": "make_dataset",
    "PIL": "pil",
    "scipy.ndimage": "scipy",
    "Keras RandomRotation": "keras",
}


@dataclass(frozen=True)
class Config:
    """Rotated images a second on one core, after checking that all peers compute the same."""

    images: int = 25_600
    """Images a round for the tf.data pipelines."""
    slow_images: int = 2_560
    """Images a round for the peers that take one image at a time."""
    batch_size: int = 128
    rounds: int = 7
    core: int | None = None
    """Core to run on; by default the first one allowed."""
    minimum: float = 0.0
    """Exit with 1 if the median of a tfinv pipeline is below so many images a second."""
    csv: Path | None = None
    """Where to write one row for each peer and round."""
    seed: int = 0


def digits(count: int, seed: int) -> np.ndarray:
    """Draws `count` images [N, 28, 28, 1] uint8 of smooth strokes, black at the border as MNIST."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, 12)[:, np.newaxis]
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    images = np.empty((count, SIZE, SIZE, 1), np.uint8)
    for index in range(count):
        start, bend, end = rng.uniform(6.0, SIZE - 7.0, size=(3, 2))
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end  # quadratic Bezier curve [12, 2]
        squares = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
        images[index, ..., 0] = 255.0 * np.exp(-np.min(squares, axis=-1) / 2.0)
    return images


# One image at a time; uint8 [H, W] in, float32 [H, W] in 0..1 out


def rotate_pil(image: np.ndarray, degrees: float) -> np.ndarray:
    rotated = Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(rotated, np.float32) * np.float32(1 / 255)


def rotate_scipy(image: np.ndarray, degrees: float) -> np.ndarray:
    values = image.astype(np.float32) * np.float32(1 / 255)
    return ndimage.rotate(values, degrees, order=1, reshape=False, mode="grid-constant")


ONE_BY_ONE = {"pil": rotate_pil, "scipy": rotate_scipy}


# Correctness


def check_peers(images: np.ndarray) -> list[tuple[str, str, float, float]]:
    """Compares the peers with tfinv on random and special angles.

    PIL repeats the border pixel where tfinv and the others blend it with the fill value, so PIL is compared
    inside only: where the rotated image of an all-white one is white. It also truncates to uint8.

    Returns:
        (peer, compared area, largest difference, tolerance) for each peer.
    """
    import keras

    from tfinv.data.transforms import rotation

    special = [0.0, 45.0, -45.0, 90.0, 180.0, -100.0]
    angles = np.concatenate(
        [special, np.random.default_rng(1).uniform(-180, 180, len(images) - len(special))]
    )
    angles = angles.astype(np.float32)
    # Noise shows what smooth strokes would hide, at the border above all.
    images = np.concatenate([images, np.random.default_rng(2).integers(0, 256, images.shape, np.uint8)])
    angles = np.concatenate([angles, angles])
    values = images.astype(np.float32) * np.float32(1 / 255)
    ours = rotation.apply(values, angles).numpy()
    inside = rotation.apply(np.ones_like(values), angles).numpy() > 1 - 1e-5

    rows = []
    for name, peer in (("PIL", "pil"), ("scipy.ndimage", "scipy")):
        theirs = [ONE_BY_ONE[peer](i[..., 0], float(a)) for i, a in zip(images, angles, strict=True)]
        gap = np.abs(np.stack(theirs)[..., np.newaxis] - ours)
        if peer == "pil":
            rows.append((name, "inside", float(gap[inside].max()), 1.01 / 255))
        else:
            rows.append((name, "everywhere", float(gap.max()), 2e-5))
    gap = 0.0
    for image, angle, expected in zip(values, angles, ours, strict=True):
        turn = float(angle) / 360
        layer = keras.layers.RandomRotation((turn, turn), fill_mode="constant")
        gap = max(gap, float(np.abs(np.asarray(layer(image, training=True)) - expected).max()))
    rows.append(("Keras RandomRotation", "everywhere", gap, 2e-5))
    return rows


# Timed runs: each maker returns a function that makes one pass and returns the number of images


def count_images(dataset) -> int:
    return sum(int(images.shape[0]) for images, *_ in dataset)


def one_thread(dataset):
    """Keeps tf.data to one thread of its own."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


def make_tfinv(images: np.ndarray, config: Config) -> Callable[[], int]:
    """Shuffled indices, batch, gather uint8, cast, rotate: only what a training pipeline needs."""
    import tensorflow as tf

    from tfinv.data.transforms import rotation

    pixels = tf.constant(images)

    def load(indices, uniforms):
        values = tf.cast(tf.gather(pixels, indices), tf.float32) * (1 / 255)
        return (rotation.apply(values, rotation.sample(uniforms, -180.0, 180.0)),)

    rng = np.random.default_rng(config.seed)
    rows = (rng.permutation(len(images)).astype(np.int32), rng.random(len(images), dtype=np.float32))
    dataset = one_thread(tf.data.Dataset.from_tensor_slices(rows).batch(config.batch_size).map(load))
    return lambda: count_images(dataset)


def make_make_dataset(images: np.ndarray, config: Config) -> Callable[[], int]:
    """The real training pipeline, with its own order, class-dependent angles and labels."""
    from tfinv import data

    labels = np.arange(len(images)) % 10
    digits = data.Dataset("synthetic", images, labels, images[:10], labels[:10])
    protocol = data.get_protocol("rotate-34").replace(excluded_classes=())
    dataset = one_thread(data.make_dataset(protocol, "train", config.batch_size, config.seed, data=digits))
    return lambda: count_images(dataset)


def make_keras(images: np.ndarray, config: Config) -> Callable[[], int]:
    import keras
    import tensorflow as tf

    pixels = tf.constant(images)
    layer = keras.layers.RandomRotation(0.5, fill_mode="constant", seed=config.seed)

    def load(indices):
        return (layer(tf.cast(tf.gather(pixels, indices), tf.float32) * (1 / 255), training=True),)

    order = np.random.default_rng(config.seed).permutation(len(images)).astype(np.int32)
    dataset = one_thread(tf.data.Dataset.from_tensor_slices(order).batch(config.batch_size).map(load))
    return lambda: count_images(dataset)


def make_one_by_one(peer: str, images: np.ndarray, config: Config) -> Callable[[], int]:
    rotate, count = ONE_BY_ONE[peer], min(config.slow_images, len(images))
    rng = np.random.default_rng(config.seed)
    angles = rng.uniform(-180.0, 180.0, count)
    order = rng.permutation(len(images))[:count]

    def run() -> int:
        batch = np.empty((config.batch_size, SIZE, SIZE, 1), np.float32)
        for place, (index, angle) in enumerate(zip(order, angles, strict=True)):
            batch[place % config.batch_size, ..., 0] = rotate(images[index, ..., 0], angle)
        return count

    return run


def time_peers(images: np.ndarray, config: Config) -> list[dict[str, object]]:
    """Times all peers in turn, round by round, after one round that is not counted."""
    makers = {"tfinv": make_tfinv, "make_dataset": make_make_dataset, "keras": make_keras}
    runs = {
        name: makers[peer](images, config) if peer in makers else make_one_by_one(peer, images, config)
        for name, peer in PEERS.items()
    }
    rows = []
    for number in range(-1, config.rounds):
        for name, run in runs.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            count = run()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            if number >= 0:
                row = {"peer": name, "round": number, "images": count}
                rows.append({**row, "seconds": seconds, "cpu_seconds": cpu_seconds})
    return rows


def show_checks(rows: list[tuple[str, str, float, float]]) -> bool:
    """Prints the comparison; returns whether all peers agree."""
    table = Table(
        "peer", "compared", "largest difference", "tolerance", title="Same result as tfinv, pixels 0..1"
    )
    for name, area, gap, tolerance in rows:
        table.add_row(name, area, f"{gap:.1e}" + ("" if gap <= tolerance else " FAILED"), f"{tolerance:.1e}")
    Console().print(table)
    return all(gap <= tolerance for _, _, gap, tolerance in rows)


def show_times(frame: pd.DataFrame, core: int) -> None:
    """Prints images a second of each peer: median, slowest and fastest round, median relative to tfinv's.

    The median a CPU second leaves out the time that other processes held the core.
    """
    groups = frame.assign(per_cpu_second=frame["images"] / frame["cpu_seconds"]).groupby("peer", sort=False)
    rates = groups["images_per_second"].agg(["median", "min", "max"])
    rates["cpu"] = groups["per_cpu_second"].median()
    table = Table("peer", title=f"Rotated 28x28 images a second, core {core}")
    for column in ("median", "slowest", "fastest", "of tfinv", "per CPU s"):
        table.add_column(column, justify="right")
    for name, rate in rates.iterrows():
        share = rate["median"] / rates["median"].iloc[0]
        values = (f"{rate[key]:,.0f}" for key in ("median", "min", "max"))
        table.add_row(str(name), *values, f"{share:.2f}", f"{rate['cpu']:,.0f}")
    Console().print(table)


def main(config: Config) -> int:
    core = min(os.sched_getaffinity(0)) if config.core is None else config.core
    os.sched_setaffinity(0, {core})  # before TensorFlow is imported, whose threads inherit it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    images = digits(config.images, config.seed)
    if not show_checks(check_peers(images[:32])):
        return 1
    frame = pd.DataFrame(time_peers(images, config))
    frame["images_per_second"] = frame["images"] / frame["seconds"]
    show_times(frame, core)
    if config.csv:
        frame.to_csv(config.csv, index=False)
    ours = frame[frame["peer"].str.startswith("tfinv")]
    slowest = ours.groupby("peer")["images_per_second"].median().min()
    if slowest < config.minimum:
        print(f"Expected at least {config.minimum:,.0f} images/s. Received: {slowest:,.0f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
