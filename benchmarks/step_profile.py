"""Where a training step's time goes, for each model: data, forward, gradient, the rest.

    python benchmarks/step_profile.py                     # the article's networks and ours, some minutes
    python benchmarks/step_profile.py --networks cnn:cnn_00 hypernet:address:shift-49 --csv step_profile.csv

`data` is the time in which the pipeline alone makes a batch once it runs; training makes the next batch
meanwhile, so that it is a share of the processor's time and not a wait. `forward` is the network in training
mode, `gradient` forward and backward of its loss, `step` the whole of `train_step`; one call of each a round,
interleaved. An adversarial network, whose step has several losses, has no gradient of its own.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from measuring import compiled, interleaved, train_function
from rich.console import Console
from rich.table import Table

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
NETWORKS = (
    *("cnn:cnn_00", "cnn:cnn_bn_00", "cnn:cnn_pool_00", "capsnet:article", "em_capsnet:article"),
    *(
        "efficient_capsnet:efficient_capsnet",
        "stn_cnn:stn_cnn",
        "group_cnn:group_cnn_c4",
        "autoencoder:article",
    ),
    *("adversarial_autoencoder:article", "hypernet:convolutional", "hypernet:address"),
    *("generative_capsules:continuous", "address_generator:quick"),
)


@dataclass(frozen=True)
class Config:
    """Where a training step's time goes."""

    networks: tuple[str, ...] = NETWORKS
    """Networks, MODEL:PRESET or MODEL:PRESET:PROTOCOL."""
    rounds: int = 7
    """Interleaved rounds that are counted; one more goes before them."""
    csv: Path | None = None
    """File for the rounds."""
    seed: int = 0


class Pipeline:
    """A call that goes through a stream of batches, and knows how long one took after the first ones.

    Starting a pipeline takes as long as tens of batches, which an epoch of some hundred does not notice.
    """

    FIRST, COUNTED = 10, 100

    def __init__(self, stream):
        self.stream = stream
        self.batch_seconds = None

    def __call__(self):
        batches = iter(self.stream)
        for _ in range(self.FIRST):
            next(batches)
        start = time.perf_counter()
        counted = sum(1 for _ in batches)
        self.batch_seconds = (time.perf_counter() - start) / counted


def batches_of(run, protocol, images: int):
    """The run's stream on so many images."""
    from tfinv import data

    split = data.select(protocol, data.load_dataset(run.dataset), "train", 0.0, images)
    if protocol.task == "recognition":
        return data.batches(protocol, split, run.training.batch_size, run.seed, epochs=1)
    shared = run.training.images_per_code
    return data.pairs(protocol, split, run.training.batch_size, run.seed, epochs=1, images_per_code=shared)


def parts(name: str, seed: int):
    """Part of a step -> a call of it; and the number of images and parameters."""
    import keras
    import tensorflow as tf

    from tfinv import models, training
    from tfinv.data import get_protocol, load_dataset, select

    model_name, preset, *chosen = name.split(":")
    run = models.default_run(model_name, preset)
    protocol = get_protocol(chosen[0] if chosen else run.protocol)
    dataset = load_dataset(run.dataset)
    classes = len(select(protocol, dataset, "test", limit=10).class_names)
    keras.utils.set_random_seed(seed)
    network = training.build_model(run, protocol, dataset.image_shape, classes)
    objective = models.objective(model_name, network)
    model = compiled(objective, run.training)
    train = train_function(model)
    images = (Pipeline.FIRST + Pipeline.COUNTED) * run.training.batch_size
    stream = batches_of(run, protocol, images).map(objective.adapt)
    inputs, targets = next(iter(stream))
    repeated = iter(tf.data.Dataset.from_tensors((inputs, targets)).repeat())

    @tf.function
    def forward():
        return model(inputs, training=True)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(inputs, targets, model(inputs, training=True))
        return tape.gradient(loss, model.trainable_variables)

    calls = {"forward": forward, "gradient": gradient, "step": lambda: train(repeated)}
    if hasattr(model, "further_optimizers"):
        del calls["gradient"]
    return stream, calls, run.training.batch_size, network.count_params()


def measure(name: str, config: Config) -> list[dict]:
    stream, calls, batch, parameters = parts(name, config.seed)
    pipeline = Pipeline(stream)
    # On a CPU a function returns when it is done.
    calls = {"data": pipeline, **calls}
    row = {"network": name, "batch": batch, "parameters": parameters}
    rows = []
    for number, part, seconds in interleaved(calls, config.rounds):
        seconds = pipeline.batch_seconds if part == "data" else seconds
        rows.append({**row, "round": number, "part": part, "seconds": seconds})
    return rows


def show(frame: pd.DataFrame) -> None:
    columns = ("data ms", "forward ms", "gradient ms", "step ms", "data / step", "images/s")
    table = Table("network", "parameters", "batch", *columns)
    for (name, parameters, batch), group in frame.groupby(["network", "parameters", "batch"], sort=False):
        median = group.groupby("part")["seconds"].median()
        times = [
            f"{median[part] * 1e3:.1f}" if part in median else "-" for part in ("data", "forward", "gradient")
        ]
        share, speed = median["data"] / median["step"], batch / median["step"]
        cells = (f"{parameters:,}", str(batch), *times, f"{median['step'] * 1e3:.1f}")
        table.add_row(name, *cells, f"{share:.3f}", f"{speed:.0f}")
    Console(width=140).print(table)


def main(config: Config) -> None:
    wrong = [name for name in config.networks if name.count(":") not in (1, 2)]
    if wrong:
        sys.exit(f"Expected networks as MODEL:PRESET[:PROTOCOL]. Received: {', '.join(wrong)}")
    rows = []
    for name in config.networks:
        rows += measure(name, config)
    frame = pd.DataFrame(rows)
    show(frame)
    if config.csv:
        frame.to_csv(config.csv, index=False, float_format="%.6g")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
