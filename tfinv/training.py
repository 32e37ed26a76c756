"""Training by `model.fit`, with checkpoints from which a killed run goes on bitwise the same."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfinv import distributed, imagination, models, runs
from tfinv.checkpoint import Checkpoint, save_model
from tfinv.config import RunConfig, TrainingConfig, to_json
from tfinv.data import PROTOCOLS, Dataset, Protocol, Split, batches, fingerprint, pairs, select
from tfinv.data.transforms import get_transform
from tfinv.distributed import ALONE, Team
from tfinv.errors import UsageError, reason_of
from tfinv.replicas import GlobalMean


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
        raise UsageError(
            f"The network {config.label} cannot be built for images of shape {image_shape}: "
            f"{reason_of(error)}"
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
    unchanged = getattr(config.model, "unchanged", None)
    if unchanged is not None:
        transform = get_transform(protocol.transformation)
        known = transform.code(tf.zeros((1, *transform.PARAMETER_SHAPE)))[0].numpy()
        if not np.allclose(unchanged, known):
            raise UsageError(
                "Invalid value for unchanged. Expected the code of no transformation under protocol "
                f"{protocol.name}: {' '.join(f'{value:g}' for value in known)}. "
                f"Received: unchanged={unchanged}"
            )
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


def check_team(config: RunConfig, protocol: Protocol, dataset: Dataset, team: Team) -> None:
    """Raises UsageError if the replicas of a team could not share a run."""
    training = config.training
    for part in ("train", "validation"):
        count = len(select(protocol, dataset, part, training.validation_fraction, config.limit))
        team.check_batches(count, training.batch_size, training.images_per_code)
    if team.name == "multiworker" and config.imagining.imagination != "none":
        raise UsageError(
            "Imagination is for one process. Expected imagination=none with --strategy multiworker. "
            f"Received: imagination={config.imagining.imagination}"
        )
    if team.name == "multiworker" and training.tensorboard:
        raise UsageError("TensorBoard is for one process. Expected no --tensorboard with several workers.")


def train(
    config: RunConfig, protocol: Protocol, dataset: Dataset, directory: Path, team: Team = ALONE
) -> keras.Model:
    """Trains the network of a run, from its last checkpoint if there is one.

    Writes history.csv, checkpoint.npz (last) and best.keras after each epoch, model.keras at the end, and
    imagination.keras before all if a transformation is learned. Of a team only the chief writes.

    Args:
        config: The run.
        protocol: Its protocol.
        dataset: Its dataset.
        directory: Its run directory, prepared; of no use to workers other than the chief.
        team: The replicas that train it.

    Returns:
        The trained prediction model, in float32, which no strategy needs any more.

    Raises:
        ConnectionError: If another worker is gone.
        UsageError: If the loss diverges, moments to learn from do not turn, a checkpoint or a learned
            transformation is damaged, or a worker has another configuration or dataset than the chief.
    """
    with distributed.losses_named(team):
        return _train(config, protocol, dataset, directory, team)


def _train(
    config: RunConfig, protocol: Protocol, dataset: Dataset, directory: Path, team: Team
) -> keras.Model:
    training = config.training
    split = select(protocol, dataset, "train", training.validation_fraction, config.limit)
    held_out = select(protocol, dataset, "validation", training.validation_fraction, config.limit)
    team.agree("configuration", f"{to_json(config)}{tf.__version__} {keras.__version__}".encode())
    team.agree("dataset", fingerprint(split.images) + split.labels.tobytes() if team.workers > 1 else b"")
    keras.utils.set_random_seed(config.seed)
    num_classes = len(split.class_names)
    steps = -(-len(split) // training.batch_size)
    with team.scope(), dtype_policy(training.precision):
        model = build_model(config, protocol, dataset.image_shape, num_classes)
        objective = models.objective(config.model_name, model)
        optimizer = make_optimizer(training, steps)
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        several = team.replicas > 1
        objective.model.compile(
            optimizer,
            loss={name: GlobalMean(loss) if several else loss for name, loss in objective.loss.items()},
            loss_weights=objective.loss_weights,
            metrics={"scores": [accuracy]} if protocol.task == "recognition" else None,
            # On a CPU, XLA's convolutions are 2-20 times slower than oneDNN's. A strategy's sums are not its.
            jit_compile="auto" if tf.config.list_physical_devices("GPU") and team is ALONE else False,
        )
        optimizer.build(objective.model.trainable_variables)
    checkpoint = Checkpoint(directory, model, config.run_id, objective.best_by, team)
    start = checkpoint.restore(objective.model)
    team.part_seeds(model)
    callbacks: list[keras.callbacks.Callback] = [*objective.callbacks, checkpoint]
    if team.strategy:
        callbacks.insert(0, distributed.SharedStatistics(team))
    if training.tensorboard:
        callbacks.insert(0, keras.callbacks.TensorBoard(directory / "tensorboard"))
    if start < training.epochs:
        train_data = _train_data(config, protocol, split, directory, start, team).map(objective.adapt)
        held_out_data = None
        if len(held_out):
            held_out_data = team.share(_held_out_data(config, protocol, held_out, team).map(objective.adapt))
        loop = distributed.fit if team.workers > 1 else _fit
        loop(
            objective.model,
            team,
            team.share(train_data),
            steps,
            held_out_data,
            -(-len(held_out) // training.batch_size),
            training.epochs,
            start,
            callbacks,
            # A bar where somebody watches, a line an epoch in a log.
            (1 if sys.stdout.isatty() else 2) if team.chief else 0,
        )
    # What is kept and exported is in full precision, and of one process.
    if training.precision != "float32" or team.strategy:
        trained, model = model, build_model(config, protocol, dataset.image_shape, num_classes)
        best = directory / runs.BEST_MODEL
        if training.precision != "float32" and team.chief and best.is_file():
            model.set_weights(keras.models.load_model(best, compile=False).get_weights())
            save_model(model, best)
        model.set_weights(trained.get_weights())
    if team.chief:
        save_model(model, directory / runs.MODEL)
    return model


def _fit(model, team, data, steps, held_out, held_out_steps, epochs, start, callbacks, verbose) -> None:
    """Keras's own loop, for one process; the twin of `tfinv.distributed.fit`."""
    model.fit(
        data,
        validation_data=held_out,
        # Shared data start over at their end.
        validation_steps=held_out_steps if held_out is not None and team.strategy else None,
        initial_epoch=start,
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # the pipeline does
        callbacks=callbacks,
        verbose=verbose,
    )


def _train_data(
    config: RunConfig, protocol: Protocol, split: Split, directory: Path, start: int, team: Team
) -> tf.data.Dataset:
    """Batches of the epochs that remain, imagined ones among them if the run asks for that."""
    size, epochs, imagining = config.training.batch_size, config.training.epochs, config.imagining
    if protocol.task == "generation":
        shared = config.training.images_per_code
        arguments = (protocol, split, size, config.seed, epochs, start)
        return pairs(*arguments, images_per_code=shared, part=team.part)
    if imagining.imagination == "none":
        return batches(protocol, split, size, config.seed, epochs, start, part=team.part)
    learned = imagination.load_or_learn(protocol, split, imagining, config.seed, directory)
    stream = imagination.ImaginedStream(protocol, imagining, learned)
    return stream.batches(split, size, config.seed, epochs, start)


def _held_out_data(config: RunConfig, protocol: Protocol, split: Split, team: Team) -> tf.data.Dataset:
    """Batches of one pass over the held-out images, always the same."""
    training = config.training
    arguments: dict[str, Any] = {"shuffle": False, "stream": "validation", "part": team.part}
    if protocol.task == "recognition":
        return batches(protocol, split, training.batch_size, config.seed, **arguments)
    arguments["images_per_code"] = training.images_per_code
    return pairs(protocol, split, training.batch_size, config.seed, **arguments)
