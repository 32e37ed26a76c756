"""Small runs, trained under strategies in a process of its own: `python -m tests.replicas NAMES FOLDER`."""

import dataclasses
import sys
from pathlib import Path

from tests.conftest import digit_arrays
from tests.test_training import SMALL, TINY_CAPSNET, small_generator, small_run
from tfinv import distributed, models, runs, training
from tfinv.data import Dataset, get_protocol

# Without what differs from replica to replica: batch normalisation and dropout.
PLAIN = dataclasses.replace(SMALL, batch_normalization=False, dropout_rate=0.0)
# Two replicas share last batches unevenly: of 77 or 95 images 6 and 7, or 7 and 8, of 19 held out 1 and 2.
_RAGGED = {"limit": 95, "batch_size": 16, "validation_fraction": 0.2}
TINY_EM = models.get_model("em_capsnet").Config(
    conv_filters=4,
    primary_channels=2,
    capsule_channels=(2,),
    capsule_strides=(1,),
    decoder_units=(),
    weight_decay=1e-2,
)
RUNS = {
    "cnn": small_run(model=PLAIN, **_RAGGED),
    "capsnet": small_run("capsnet", TINY_CAPSNET, **_RAGGED),
    "em_capsnet": small_run("em_capsnet", TINY_EM, **_RAGGED),
    "adversarial": small_generator("adversarial_autoencoder", **_RAGGED),
    "shared_codes": small_generator(images_per_code=4, **_RAGGED),
}
# Those that replicas of one process train, too.
MIRRORED = ("capsnet", "adversarial")


def train(team, folder: Path, name: str, config=None):
    """Trains one of the runs; returns the model."""
    config = config or RUNS[name]
    if team.chief:
        runs.prepare(folder / name, config)
    data = Dataset("digits", **digit_arrays())
    return training.train(config, get_protocol(config.protocol), data, folder / name, team)


def main(strategies: list[str], folder: Path, run: Path | None = None) -> None:
    """Trains all runs, and that of a run directory if there is one, under each strategy."""
    import tensorflow as tf

    if "mirrored" in strategies:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for strategy in strategies:
        team = distributed.start(strategy)
        training.make_deterministic(0)
        for name in MIRRORED if strategy == "mirrored" else RUNS:
            train(team, folder / strategy, name)
        if run:
            train(team, folder / strategy, "uninterrupted", models.read_run_config(run))
        print("trained by", team.replicas)


if __name__ == "__main__":
    main(sys.argv[1].split(","), *map(Path, sys.argv[2:]))
