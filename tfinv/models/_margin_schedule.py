"""How the margin of the spread loss rises during training."""

import keras

from tfinv.losses import SpreadLoss


class MarginSchedule(keras.callbacks.Callback):
    """Raises the margin of a spread loss linearly during the first epochs, step by step.

    It depends on the number of the step and that of all epochs alone, so that a training resumed with as many
    epochs goes on as if never stopped.
    On the JAX backend a compiled step keeps the margin it was traced with; see `SpreadLoss`.

    Args:
        loss: The loss that the model is compiled with.
        start: Margin of the first step.
        end: Margin from the end of the rise on.
        rise: Share of all epochs that the rise takes.

    Reference:
        Hinton et al. 2018, "Matrix capsules with EM routing", section 3.
    """

    def __init__(self, loss: SpreadLoss, start: float = 0.2, end: float = 0.9, rise: float = 0.2):
        super().__init__()
        self._loss = loss
        self._start = start
        self._end = end
        self._rise = rise
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._assign(0.0)

    def on_train_batch_begin(self, batch, logs=None):
        # Without a known number of steps, the margin rises epoch by epoch.
        if self.params.get("steps"):
            self._assign(batch / self.params["steps"])

    def _assign(self, part_of_epoch: float) -> None:
        done = (self._epoch + part_of_epoch) / (self._rise * self.params["epochs"])
        self._loss.margin.assign(self._start + (self._end - self._start) * min(1.0, done))
