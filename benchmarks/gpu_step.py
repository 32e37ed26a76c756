"""Training steps of the article's capsule networks on an NVIDIA GPU, through Keras on JAX.

    python benchmarks/gpu_step.py --csv gpu_step.csv
    python benchmarks/gpu_step.py --rounds 1 --batches 4      # a rehearsal: runs on a CPU, too

Times in interleaved rounds: each network with the fused routing and with the reference, which XLA compiles
together with the rest. Their first losses, from the same weights and images, must agree. Random images;
Adam. Needs keras and jax; TensorFlow is not used.
"""

import argparse
import csv
import dataclasses
import os
import statistics
import sys
from pathlib import Path

import numpy as np
from measuring import interleaved

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

NETWORKS, IMPLEMENTATIONS, CLASSES = ("capsnet", "em_capsnet"), ("fused", "reference"), 10
TOLERANCE = 1e-3  # of the loss: convolutions may be in TF32


def make_step(network: str, implementation: str, batch: int):
    """(Call of one training step that returns the loss, parameters) of the article's network."""
    import jax
    import keras

    from tfinv import models

    keras.utils.set_random_seed(0)
    preset = models.get_preset(network, "article")
    config = dataclasses.replace(preset.model, implementation=implementation)
    model = models.get_model(network).build(config, (28, 28, 1), CLASSES)
    objective = models.objective(network, model)
    objective.model.compile("adam", objective.loss, objective.loss_weights)
    rng = np.random.default_rng(0)
    images = rng.random((batch, 28, 28, 1), dtype=np.float32)
    labels = rng.integers(0, CLASSES, batch).astype(np.int32)
    inputs, targets = jax.device_put(objective.adapt(images, labels))

    def step() -> float:
        return float(objective.model.train_on_batch(inputs, targets, return_dict=True)["loss"])

    return step, objective.model.count_params()


def main() -> int:
    """Parses the command line, checks, times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds of ten steps")
    parser.add_argument("--batches", type=int, nargs="+", default=[100, 500], help="images of a batch")
    parser.add_argument("--csv", type=Path, help="where to write one row for each number")
    arguments = parser.parse_args()
    import jax

    device, rows, failed = jax.devices()[0].device_kind, [], 0
    for network in NETWORKS:
        for batch in arguments.batches:
            made = {name: make_step(network, name, batch) for name in IMPLEMENTATIONS}
            losses = {name: step() for name, (step, _) in made.items()}
            if max(losses.values()) - min(losses.values()) > TOLERANCE * abs(losses["fused"]):
                print(f"DIFFERS {network}: {losses}; not timed")
                failed = 1
                continue
            calls = {name: lambda step=step: [step() for _ in range(10)] for name, (step, _) in made.items()}
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for _, name, value in interleaved(calls, arguments.rounds):
                seconds[name].append(value / 10)
            for name, values in seconds.items():
                median = 1e3 * statistics.median(values)
                row = {"device": device, "network": network, "batch": batch, "routing": name}
                rows.append({**row, "median ms": f"{median:.4g}", "min ms": f"{1e3 * min(values):.4g}"})
                print(f"{device}: {network}, batch {batch}, {name}: {median:.3g} ms a step", flush=True)
    if arguments.csv and rows:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return failed


if __name__ == "__main__":
    sys.exit(main())
