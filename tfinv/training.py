"""Training by `model.fit`, with checkpoints from which a killed run goes on bitwise the same."""

import contextlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from tfinv import imagination, models, results, runs
from tfinv.config import RunConfig, TrainingConfig
from tfinv.data import PROTOCOLS, Dataset, Protocol, Split, batches, pairs, select
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError
from tfinv.files import replacing


def make_deterministic(seed: int) -> None:
    """Seeds everything and makes TensorFlow's ops deterministic, for the whole process."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Builds layers under a dtype policy and restores the previous one."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)


def make_optimizer(config: TrainingConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The optimizer, with the learning rate multiplied by `decay_rate` every `decay_steps` steps."""
    schedule = keras.optimizers.schedules.ExponentialDecay(
        config.learning_rate, config.decay_steps or steps_per_epoch, config.decay_rate, staircase=True
    )
    if config.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(schedule)
    return keras.optimizers.Adam(schedule, beta_1=config.beta_1)


def build_model(
    config: RunConfig, protocol: Protocol, image_shape: tuple[int, int, int], num_classes: int
) -> keras.Model:
    """Builds the network of a run.

    Raises:
        UsageError: If the configured network does not fit images of that shape.
    """
    build = models.get_model(config.model_name).build
    try:
        if protocol.task == "recognition":
            return build(config.model, image_shape, num_classes)
        code_size = get_transform(protocol.transformation).CODE_SIZE
        return build(config.model, image_shape, protocol.output_shape(image_shape), code_size)
    except ValueError as error:  # Keras's word for a kernel larger than its input, a negative size, ...
        reason = " ".join(str(error).split())
        raise UsageError(
            f"The network {config.label} cannot be built for images of shape {image_shape}: {reason}"
        ) from None


def check(config: RunConfig, protocol: Protocol, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raises UsageError if `train` could not start.

    That is for a network of another task than the protocol's, one that cannot be built, options that mean
    nothing for the task, or a missing extra.
    """
    task = models.task_of(config.model_name)
    if task != protocol.task:
        fitting = [name for name, known in PROTOCOLS.items() if known.task == task]
        raise UsageError(
            f"{config.model_name} is for {task}. Expected a protocol for that: {', '.join(fitting)}. "
            f"Received: protocol={protocol.name}, for {protocol.task}"
        )
    if task == "generation" and config.imagining.imagination != "none":
        raise UsageError(
            "Imagination is for recognition. Expected imagination=none for a network that renders. "
            f"Received: imagination={config.imagining.imagination}"
        )
    if task == "recognition" and config.training.images_per_code != 1:
        raise UsageError(
            "Codes are for generation. Expected images_per_code=1 for a network that recognises. "
            f"Received: images_per_code={config.training.images_per_code}"
        )
    model = build_model(config, protocol, image_shape, num_classes)
    if task == "generation" and protocol.upright != ("code" not in model.input):
        wanted = "of images alone" if protocol.upright else "that takes a code"
        raise UsageError(
            f"{config.label} does not get what it needs under protocol {protocol.name}. Expected a network "
            f"{wanted}. Received: one with the inputs {', '.join(model.input)}"
        )
    if protocol.upright and config.training.images_per_code != 1:
        raise UsageError(
            "No network is told a code under this protocol. Expected images_per_code=1. "
            f"Received: images_per_code={config.training.images_per_code}"
        )
    if config.training.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("TensorBoard is not installed: pip install 'tfinv[tensorboard]'")


def train(config: RunConfig, protocol: Protocol, dataset: Dataset, directory: Path) -> keras.Model:
    """Trains the network of a run, from its last checkpoint if there is one.

    Writes history.csv, checkpoint.npz (last) and best.keras after each epoch, model.keras at the end, and
    imagination.keras before all if a transformation is learned.

    Args:
        config: The run.
        protocol: Its protocol.
        dataset: Its dataset.
        directory: Its run directory, prepared.

    Returns:
        The trained prediction model, in float32.
    """
    training = config.training
    split = select(protocol, dataset, "train", training.validation_fraction, config.limit)
    held_out = select(protocol, dataset, "validation", training.validation_fraction, config.limit)
    keras.utils.set_random_seed(config.seed)
    num_classes = len(split.class_names)
    with dtype_policy(training.precision):
        model = build_model(config, protocol, dataset.image_shape, num_classes)
        objective = models.objective(config.model_name, model)
    steps = -(-len(split) // training.batch_size)
    optimizer = make_optimizer(training, steps)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    objective.model.compile(
        optimizer,
        loss=objective.loss,
        loss_weights=objective.loss_weights,
        metrics={"scores": [accuracy]} if protocol.task == "recognition" else None,
        # On a CPU, XLA's convolutions are 2-20 times slower than oneDNN's.
        jit_compile="auto" if tf.config.list_physical_devices("GPU") else False,
    )
    optimizer.build(objective.model.trainable_variables)
    checkpoint = Checkpoint(directory, model, config.run_id, objective.best_by)
    start = checkpoint.restore(objective.model)
    callbacks: list[keras.callbacks.Callback] = [*objective.callbacks, checkpoint]
    if training.tensorboard:
        callbacks.insert(0, keras.callbacks.TensorBoard(directory / "tensorboard"))
    if start < training.epochs:
        train_data = _train_data(config, protocol, split, directory, start)
        held_out_data = None
        if len(held_out):
            held_out_data = _held_out_data(config, protocol, held_out).map(objective.adapt)
        objective.model.fit(
            train_data.map(objective.adapt),
            validation_data=held_out_data,
            initial_epoch=start,
            epochs=training.epochs,
            steps_per_epoch=steps,
            shuffle=False,  # the pipeline does
            callbacks=callbacks,
            # A bar where somebody watches, a line an epoch in a log.
            verbose=1 if sys.stdout.isatty() else 2,
        )
    if training.precision != "float32":  # what is kept and exported is in full precision
        trained, model = model, build_model(config, protocol, dataset.image_shape, num_classes)
        best = directory / runs.BEST_MODEL
        if best.is_file():
            model.set_weights(keras.models.load_model(best, compile=False).get_weights())
            save_model(model, best)
        model.set_weights(trained.get_weights())
    save_model(model, directory / runs.MODEL)
    return model


def _train_data(
    config: RunConfig, protocol: Protocol, split: Split, directory: Path, start: int
) -> tf.data.Dataset:
    """Batches of the epochs that remain, imagined ones among them if the run asks for that."""
    size, epochs, imagining = config.training.batch_size, config.training.epochs, config.imagining
    if protocol.task == "generation":
        shared = config.training.images_per_code
        return pairs(protocol, split, size, config.seed, epochs, start, images_per_code=shared)
    if imagining.imagination == "none":
        return batches(protocol, split, size, config.seed, epochs, start)
    learned = imagination.load_or_learn(protocol, split, imagining, config.seed, directory)
    stream = imagination.ImaginedStream(protocol, imagining, learned)
    return stream.batches(split, size, config.seed, epochs, start)


def _held_out_data(config: RunConfig, protocol: Protocol, split: Split) -> tf.data.Dataset:
    """Batches of one pass over the held-out images, always the same."""
    training = config.training
    arguments: dict[str, Any] = {"shuffle": False, "stream": "validation"}
    if protocol.task == "recognition":
        return batches(protocol, split, training.batch_size, config.seed, **arguments)
    arguments["images_per_code"] = training.images_per_code
    return pairs(protocol, split, training.batch_size, config.seed, **arguments)


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a .keras file atomically, without the optimizer: its state is twice the weights."""
    if model.compiled and hasattr(model, "output"):  # a functional one, as those of tfinv.models
        model = keras.Model(model.input, model.output, name=model.name)
    with replacing(path) as partial:
        model.save(partial)


class Checkpoint(keras.callbacks.Callback):
    """Keeps history.csv, the last state and the best model, each replaced atomically after every epoch.

    The state is every variable: weights, optimizer, and the seeds of dropout, which Keras's own
    weight files leave out. `keras.callbacks.BackupAndRestore` would redraw the dropout of a resumed run.
    """

    def __init__(self, directory: Path, prediction_model: keras.Model, run_id: str, best_by: str = "loss"):
        super().__init__()
        self._directory = directory
        self._prediction_model = prediction_model
        self._run_id = run_id
        self._best_by = best_by
        self._history: list[dict[str, Any]] = []
        self._epoch_start = 0.0

    def restore(self, model: keras.Model) -> int:
        """Loads the last state into a compiled `model`; returns the number of finished epochs.

        Raises:
            UsageError: If the checkpoint is damaged or of another model.
        """
        path = self._directory / runs.CHECKPOINT
        if not path.is_file():
            return 0
        variables = _state(model)
        try:
            with np.load(path) as stored:
                history = json.loads(str(stored["history"]))
                values = [stored[f"variable_{index}"] for index in range(len(stored.files) - 1)]
            if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
                raise ValueError("it is of another model")
        except Exception as error:
            raise UsageError(f"Damaged checkpoint: {path} ({error}). Start again with --overwrite.") from None
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self._history = history
        return len(history)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = {"run_id": self._run_id, "epoch": epoch + 1, "seconds": time.monotonic() - self._epoch_start}
        row.update({key: float(value) for key, value in (logs or {}).items()})
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if not math.isfinite(row["loss"]):
            raise UsageError(
                f"Training diverged in epoch {epoch + 1}: loss={row['loss']} at learning_rate="
                f"{row['learning_rate']:g}. The epochs before it are kept; start again with a lower "
                "--learning-rate and --overwrite."
            )
        improved = self._merit(row) > max(map(self._merit, self._history), default=-np.inf)
        self._history.append(row)
        if improved:
            save_model(self._prediction_model, self._directory / runs.BEST_MODEL)
        results.write_csv(self._directory / runs.HISTORY, pd.DataFrame(self._history))
        self._save()

    def _merit(self, row: dict[str, Any]) -> float:
        """Returns how good an epoch was: on held-out images if there are any."""
        if self._best_by == "loss":
            return -row.get("val_loss", row["loss"])
        # Named "accuracy" in a model of one output, "scores_accuracy" beside others.
        return max((key.startswith("val_"), row[key]) for key in row if key.endswith("accuracy"))[1]

    def _save(self) -> None:
        values = {f"variable_{index}": np.asarray(v) for index, v in enumerate(_state(self.model))}
        values["history"] = np.array(json.dumps(self._history))
        with replacing(self._directory / runs.CHECKPOINT) as partial, partial.open("wb") as file:
            np.savez(file, **values)  # type: ignore[arg-type]


def _state(model: keras.Model) -> list[keras.Variable]:
    optimizers = [model.optimizer, *getattr(model, "further_optimizers", ())]
    return [*model.variables, *(variable for optimizer in optimizers for variable in optimizer.variables)]
