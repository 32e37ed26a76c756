"""How long a sweep of the whole test set takes: 200 angles, or all diagonal shifts, of each generator.

    python benchmarks/generation_sweep.py --csv docs/benchmarks/generation_sweep.csv
    python benchmarks/generation_sweep.py --networks autoencoder:quick --rounds 3

It is `tfinv.generation.evaluate_generation`, which `scripts/evaluate.py` and each training call, of untrained
weights. `images` are the pictures rendered, test images times parameters; time grows with them. `expected` is
the same sweep of something that renders black: what it takes to make the pictures to compare with.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

NETWORKS = (
    *(
        "autoencoder:quick",
        "autoencoder:article",
        "hypernet:basic",
        "hypernet:convolutional",
        "hypernet:address",
    ),
    *("generative_capsules:addressed", "generative_capsules:continuous", "generative_capsules:digits"),
    *("address_generator:quick", "address_generator:shift"),
)


@dataclass(frozen=True)
class Config:
    """Sweeps of generators over the whole test set."""

    networks: tuple[str, ...] = NETWORKS
    """Networks, MODEL:PRESET; each is swept under the protocol of its preset."""
    rounds: int = 1
    """Sweeps of each."""
    limit: int | None = None
    """Use at most that many test images."""
    csv: Path | None = None
    """File for the rounds."""


def sweeps(name: str, config: Config):
    """Yields a row a sweep: of the network, and of what renders black."""
    import tensorflow as tf

    from tfinv import generation, models, training
    from tfinv.data import get_protocol, load_dataset, select

    run = models.default_run(*name.split(":"))
    protocol, dataset = get_protocol(run.protocol), load_dataset(run.dataset)
    split = select(protocol, dataset, "test", limit=config.limit)
    network = training.build_model(run, protocol, dataset.image_shape, len(split.class_names))
    shape = protocol.output_shape(dataset.image_shape)

    class Black:
        """A SavedModel's interface, so that it is traced as a network is."""

        @staticmethod
        def tfinv_signature(image, code):
            return {"image": tf.fill((tf.shape(image)[0], *shape), protocol.pixel_range[0])}

    for number in range(config.rounds):
        for part, model in (("network", network), ("expected", Black())):
            start = time.perf_counter()
            curve = generation.evaluate_generation(model, protocol, data=dataset, limit=config.limit)
            seconds = time.perf_counter() - start
            parameters = curve[curve.metric == "mse"].groupby("label").size().max()
            row = {"network": name, "protocol": protocol.name, "parameters": parameters}
            yield {
                **row,
                "images": parameters * len(split),
                "round": number,
                "part": part,
                "seconds": seconds,
            }


def show(frame: pd.DataFrame) -> None:
    table = Table("network", "protocol", "parameters", "images", "seconds", "expected s", "images/s")
    for (name, protocol), group in frame.groupby(["network", "protocol"], sort=False):
        seconds = group.groupby("part").seconds.median()
        images = group.images.iloc[0]
        cells = (str(group.parameters.iloc[0]), f"{images:,}", f"{seconds['network']:.1f}")
        table.add_row(
            name, protocol, *cells, f"{seconds['expected']:.1f}", f"{images / seconds['network']:,.0f}"
        )
    Console(width=120).print(table)


def main(config: Config) -> None:
    wrong = [name for name in config.networks if ":" not in name]
    if wrong:
        sys.exit(f"Expected networks as MODEL:PRESET. Received: {', '.join(wrong)}")
    frame = pd.DataFrame([row for name in config.networks for row in sweeps(name, config)])
    show(frame)
    if config.csv:
        frame.to_csv(config.csv, index=False, float_format="%.6g")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
