"""Training step of each generation model beside the same network written naively: correctness, time, memory.

    python benchmarks/generation_steps.py --csv docs/benchmarks
    python benchmarks/generation_steps.py --networks hypernet:basic --images-per-code 1

A step is forward, loss, gradient and the optimizer's update: tfinv's as `fit` takes it, the naive one written
by hand, on layers that follow the papers' formulas (`generation_peers.py`). Both start with the same weights
and get the same batch. As many images share a code as in the preset, which is of no use to the naive network:
it gets each code once an image. `--images-per-code 1` shows what is left where no images share one.

Rendered images and the losses of the first steps have to agree before anything is timed, in interleaved
rounds of one process. Memory is the peak of one step above what the process held before it (weights and the
optimizer's state), each in a process of its own.
"""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from measuring import alone, compiled, interleaved, peak_of, train_function
from rich.console import Console
from rich.table import Table

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

NETWORKS = (
    *("autoencoder:article", "adversarial_autoencoder:article"),
    *("hypernet:basic", "hypernet:convolutional", "hypernet:address"),
    *("generative_capsules:addressed", "generative_capsules:continuous", "generative_capsules:digits"),
    "address_generator:quick",
)
FORMS = ("tfinv", "naive")
STEPS = 3  # whose losses are compared; those after the first depend on all gradients
TOLERANCE = 1e-3  # of a loss, and of the largest pixel; float32 sums in different orders


@dataclass(frozen=True)
class Config:
    """Training steps of the generation models beside naive ones."""

    networks: tuple[str, ...] = NETWORKS
    """Networks, MODEL:PRESET."""
    batch: int | None = None
    """Images a step; the preset's if not given."""
    images_per_code: int | None = None
    """Images that share a parameter, as far as they divide the batch; the preset's if not given."""
    rounds: int = 9
    """Interleaved rounds that are counted; one more goes before them."""
    memory: bool = True
    """Whether to measure memory, too."""
    csv: Path | None = None
    """Folder for generation_steps.csv and generation_memory.csv."""
    seed: int = 0


@dataclass(frozen=True)
class Form:
    """A network in one form, on one batch."""

    render: Callable[[], dict]
    """Its outputs."""
    train: Callable[[], dict]
    """Takes a training step; returns the losses by name."""


def sizes(name: str, config: Config):
    """The run of a network, images a batch, and images a code."""
    from tfinv import models

    run = models.default_run(*name.split(":"))
    batch = config.batch or run.training.batch_size
    return run, batch, math.gcd(batch, config.images_per_code or run.training.images_per_code)


def forms_of(name: str, config: Config) -> dict[str, Form]:
    """The network as tfinv's and as the naive one, from the same weights on the same batch."""
    import tensorflow as tf
    from generation_peers import naive

    from tfinv import data, models, training

    run, batch, shared = sizes(name, config)
    protocol, dataset = data.get_protocol(run.protocol), data.load_dataset(run.dataset)
    split = data.select(protocol, dataset, "train", limit=batch)
    inputs, targets = next(iter(data.pairs(protocol, split, batch, config.seed, images_per_code=shared)))
    repeated = {key: tf.repeat(value, batch // len(value), axis=0) for key, value in inputs.items()}

    training.make_deterministic(config.seed)
    network = training.build_model(run, protocol, dataset.image_shape, len(split.class_names))
    # Untrained, no output depends on the code, and addresses lie in the kinks of their weights.
    rng = np.random.default_rng(config.seed)
    noisy = [value + 0.02 * rng.standard_normal(value.shape, np.float32) for value in network.get_weights()]
    network.set_weights(noisy)
    peer, objective = naive(network), models.objective(run.model_name, network)
    fit, step = train_function(compiled(objective, run.training)), naive_step(run, objective, peer)

    def stream(*batch):
        return iter(tf.data.Dataset.from_tensors(batch).repeat())

    adapted, plain = stream(*objective.adapt(inputs, targets)), stream(repeated, targets)
    return {
        "tfinv": Form(lambda: network(inputs), lambda: fit(adapted)),
        "naive": Form(lambda: peer(repeated), lambda: step(*next(plain))),
    }


def naive_step(run, objective, peer):
    """The naive training step of what `objective` is the objective of."""
    import tensorflow as tf
    from generation_peers import adversarial_step, naive, near_codes_error, rendering_step

    from tfinv import training

    optimizers = [training.make_optimizer(run.training, 100) for _ in range(3)]
    if run.model_name == "address_generator":
        reach = float(objective.loss["image"].reach)
        return rendering_step(peer, optimizers[0], near_codes_error(run.model.unchanged, reach))
    if run.model_name != "adversarial_autoencoder":
        return rendering_step(peer, optimizers[0])
    model = objective.model

    def noise(shape, number):  # the model's own, or losses could not be compared
        seed = tf.cast(model._noise.state.value, tf.int64)
        for value in (optimizers[2].iterations.value, number):
            seed = tf.random.fold_in(seed, tf.cast(value, tf.int64), alg="philox")
        return tf.random.stateless_uniform(shape, seed, alg="philox")

    networks = peer.get_layer("encoder"), peer.get_layer("decoder"), naive(model.critic)
    return adversarial_step(*networks, optimizers, noise, model.critic_steps, model.penalty)


def losses_of(form: Form) -> dict[str, float]:
    return {key: float(value) for key, value in form.train().items()}


def check(name: str, forms: dict[str, Form]) -> None:
    """Exits unless both forms render the same and have the same losses."""
    rendered, expected = (forms[form].render()["image"].numpy() for form in FORMS)
    gaps = {"image": np.abs(rendered - expected).max() / np.abs(expected).max()}
    means, losses = (pd.DataFrame([losses_of(forms[form]) for _ in range(STEPS)]) for form in FORMS)
    losses = losses.expanding().mean()  # `fit` reports means since the first step
    for key in losses:
        gaps[key] = ((means[key] - losses[key]).abs() / losses[key].abs()).max()
    print(f"{name}: largest difference {max(gaps.values()):.1e}")
    if not max(gaps.values()) <= TOLERANCE:
        sys.exit(f"These do not compute the same; nothing is timed: {gaps}")


def measure(name: str, config: Config) -> list[dict]:
    forms, (_, batch, shared) = forms_of(name, config), sizes(name, config)
    check(name, forms)
    rows = []
    calls = {form: partial(losses_of, made) for form, made in forms.items()}
    for number, form, seconds in interleaved(calls, config.rounds):
        row = {"network": name, "batch": batch, "images_per_code": shared, "form": form, "round": number}
        rows.append({**row, "seconds": seconds})
    return rows


def measure_peak(name: str, form: str, config: Config) -> int:
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # its allocator keeps what it had: no peak would show
    made = forms_of(name, config)[form]
    return peak_of(lambda: losses_of(made), form)[0]


def show(frame: pd.DataFrame, memory: pd.DataFrame) -> None:
    table = Table(*("network", "batch", "images a code", "tfinv ms", "naive ms", "times"))
    if len(memory):
        for header in ("tfinv MiB", "naive MiB", "times"):
            table.add_column(header)
    for (name, batch, shared), group in frame.groupby(["network", "batch", "images_per_code"], sort=False):
        cells = cells_of(group.groupby("form")["seconds"].median() * 1e3, ".1f")
        if len(memory):
            peaks = memory[memory["network"] == name].set_index("form")["peak_bytes"]
            cells += cells_of(peaks / 2**20, ".0f")
        table.add_row(name, str(batch), str(shared), *cells)
    Console(width=140).print(table)


def cells_of(values: pd.Series, spec: str) -> list[str]:
    return [*(format(values[form], spec) for form in FORMS), f"{values['naive'] / values['tfinv']:.2f}"]


def main(config: Config) -> None:
    from tfinv import models

    generators = models.available("generation")
    wrong = [name for name in config.networks if ":" not in name or name.split(":")[0] not in generators]
    if wrong:
        sys.exit(f"Expected MODEL:PRESET of {', '.join(generators)}. Received: {', '.join(wrong)}")
    rows, peaks = [], []
    for name in config.networks:
        rows += measure(name, config)
        for form in FORMS if config.memory else ():
            peak = alone(measure_peak, name, form, config)
            peaks.append({"network": name, "form": form, "peak_bytes": peak})
    frame, memory = pd.DataFrame(rows), pd.DataFrame(peaks)
    show(frame, memory)
    if config.csv:
        config.csv.mkdir(parents=True, exist_ok=True)
        frame.to_csv(config.csv / "generation_steps.csv", index=False, float_format="%.6g")
        if config.memory:
            memory.to_csv(config.csv / "generation_memory.csv", index=False)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
