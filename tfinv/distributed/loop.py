"""What `model.fit` does, where there are several workers: Keras's own fails there.

It averages each step's metrics over workers, and that reduction takes no scalars (Keras 3.15).
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfinv.distributed.team import Team


class SharedStatistics(keras.callbacks.Callback):
    """Replaces moving statistics of batch normalisation by their means over replicas, before they are used.

    That is for held-out images, and after an epoch.
    """

    def __init__(self, team: Team):
        super().__init__()
        self._strategy: Any = team.strategy
        self._statistics: list[keras.Variable] = []

    def on_train_begin(self, logs=None):
        names = ("moving_mean", "moving_variance")
        weights = self.model.non_trainable_weights
        self._statistics = [weight for weight in weights if weight.path.endswith(names)]
        self._means = tf.function(self._average, autograph=False)

    def on_test_begin(self, logs=None):
        self._share()

    def on_epoch_end(self, epoch, logs=None):
        self._share()

    def _share(self):
        if self._statistics:
            for variable, value in zip(self._statistics, self._means(), strict=True):
                variable.assign(value)

    def _average(self):
        own = self._strategy.run(lambda: [tf.identity(variable.value) for variable in self._statistics])
        return [self._strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None) for values in own]


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
    strategy: Any = team.strategy
    everybody = keras.callbacks.CallbackList(
        list(callbacks), add_progbar=verbose > 0, model=model, verbose=verbose, epochs=epochs, steps=steps
    )

    names: dict[str, tuple[str, ...]] = {}  # of the metrics that a step returns

    @tf.function(autograph=False)
    def train_step(iterator):
        names["train"] = tuple(strategy.run(model.train_step, args=(next(iterator),)))

    @tf.function(autograph=False)
    def test_step(iterator):
        names["test"] = tuple(strategy.run(model.test_step, args=(next(iterator),)))

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
        logs = _metrics(model, names["train"])
        if held_out is not None:
            everybody.on_test_begin()
            model.reset_metrics()
            batches_held_out = iter(held_out)
            for _ in range(held_out_steps):
                test_step(batches_held_out)
            own = _metrics(model, names["test"])
            everybody.on_test_end(own)
            logs.update({f"val_{name}": value for name, value in own.items()})
        everybody.on_epoch_end(epoch, logs)
    everybody.on_train_end(logs)


def _metrics(model: keras.Model, names: tuple[str, ...]) -> dict[str, float]:
    """Reads all metrics of all replicas, in an order that workers share; returns those that are named."""
    values = {name: float(value) for name, value in model.get_metrics_result().items()}
    return {name: values[name] for name in names}
