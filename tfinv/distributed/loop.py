"""What `model.fit` does, where there are several workers: Keras's own fails there.

It averages each step's metrics over workers, and that reduction takes no scalars (Keras 3.15).
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfinv.distributed.team import Team


class SharedStatistics(keras.callbacks.Callback):
    """Averages the statistics of replicas before they are used: for held-out images, and after an epoch."""

    def __init__(self, team: Team):
        super().__init__()
        self._team = team

    def on_test_begin(self, logs=None):
        self._team.average_statistics(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self._team.average_statistics(self.model)


def fit(
    model: keras.Model,
    team: Team,
    data: Any,
    steps: int,
    held_out: Any,
    held_out_steps: int,
    epochs: int,
    initial_epoch: int,
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: int,
) -> None:
    """Does what `model.fit` does, with the same train and test steps, in each of several workers.

    Args:
        model: A compiled model, made in the team's scope.
        team: Several workers.
        data: What `team.share` returns, of the training data.
        steps: Steps of an epoch.
        held_out: The same of held-out data; None for none.
        held_out_steps: Steps of one pass over them.
        epochs: Number of epochs that the whole training has.
        initial_epoch: Number of finished epochs.
        callbacks: Called as by `fit`, in each worker, but without logs after a batch: reading metrics makes
            all workers wait for each other.
        verbose: As of `fit`.
    """
    strategy = team.strategy
    everybody = keras.callbacks.CallbackList(
        list(callbacks), add_progbar=verbose > 0, model=model, verbose=verbose, epochs=epochs, steps=steps
    )

    @tf.function(autograph=False)
    def train_step(iterator):
        strategy.run(model.train_step, args=(next(iterator),))

    @tf.function(autograph=False)
    def test_step(iterator):
        strategy.run(model.test_step, args=(next(iterator),))

    everybody.on_train_begin()
    batches = iter(data)
    logs: dict[str, float] = {}
    for epoch in range(initial_epoch, epochs):
        model.reset_metrics()
        everybody.on_epoch_begin(epoch)
        for step in range(steps):
            everybody.on_train_batch_begin(step)
            train_step(batches)
            everybody.on_train_batch_end(step)
        logs = _metrics(model)
        if held_out is not None:
            everybody.on_test_begin()
            model.reset_metrics()
            batches_held_out = iter(held_out)
            for _ in range(held_out_steps):
                test_step(batches_held_out)
            own = _metrics(model)
            everybody.on_test_end(own)
            logs.update({f"val_{name}": value for name, value in own.items()})
        everybody.on_epoch_end(epoch, logs)
    everybody.on_train_end(logs)


def _metrics(model: keras.Model) -> dict[str, float]:
    """Reads the metrics of all replicas, in an order that all workers share."""
    return {name: float(value) for name, value in model.get_metrics_result().items()}
