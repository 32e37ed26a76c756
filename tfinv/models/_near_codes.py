"""A mean squared error that is lowered for codes near a given one first, and then for ever farther ones."""

import keras
from keras import ops

_FIRST_REACH, _LAST_REACH = 0.1, 2.0


@keras.saving.register_keras_serializable(package="tfinv")
class NearCodesError(keras.losses.Loss):
    """Mean squared error with gradients that are weighted by exp(-distance^2 / (2 reach^2)).

    The value is that of the plain error, whatever the reach, so that epochs can be compared. Change the reach
    during training with `loss.reach.assign(value)`. JAX alone freezes it when a step is traced.

    Called on images [N, H + 1, W, C], the last row full of the distance of each image's code, as
    `with_distances` makes them, and on rendered images [N, H, W, C].

    Args:
        reach: Distance of a code up to which it matters.
    """

    def __init__(self, reach: float = _LAST_REACH, name: str = "near_codes_error", **kwargs):
        super().__init__(name=name, **kwargs)
        self.reach = keras.Variable(reach, trainable=False, dtype="float32", name="reach")

    def call(self, y_true, y_pred):
        targets, distances = y_true[:, :-1], y_true[:, -1:]
        reach = ops.cast(self.reach, y_pred.dtype)
        weights = ops.exp(-0.5 * ops.square(distances / reach))
        fixed = ops.stop_gradient(y_pred)
        return ops.mean(ops.square(fixed + weights * (y_pred - fixed) - targets), axis=-1)

    def get_config(self):
        return {**super().get_config(), "reach": float(ops.convert_to_numpy(self.reach))}


def with_distances(images, departures):
    """Appends a row that is full of the length of the departure of each image's code.

    Args:
        images: [N, H, W, C].
        departures: Differences of codes from the given one [G, E]; G divides N.

    Returns:
        [N, H + 1, W, C].
    """
    distances = ops.sqrt(ops.sum(ops.square(departures), axis=-1, keepdims=True))
    row = ops.ones_like(images[:, :1])
    groups = ops.reshape(row, (ops.shape(departures)[0], -1)) * ops.cast(distances, row.dtype)
    return ops.concatenate([images, ops.reshape(groups, ops.shape(row))], axis=1)


class ReachSchedule(keras.callbacks.Callback):
    """Widens the reach of a `NearCodesError` exponentially, step by step, during the first epochs.

    It depends on the number of the step and that of all epochs alone, so that a training resumed with as many
    epochs goes on as if never stopped.

    Args:
        loss: The loss that the model is compiled with.
        start: Reach of the first step.
        end: Reach from the end of the rise on.
        rise: Share of all epochs that the rise takes.
    """

    def __init__(
        self,
        loss: NearCodesError,
        start: float = _FIRST_REACH,
        end: float = _LAST_REACH,
        rise: float = 0.6,
    ):
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
        # Without a known number of steps, the reach grows epoch by epoch.
        if self.params.get("steps"):
            self._assign(batch / self.params["steps"])

    def _assign(self, part_of_epoch: float) -> None:
        done = (self._epoch + part_of_epoch) / (self._rise * self.params["epochs"])
        self._loss.reach.assign(self._start * (self._end / self._start) ** min(1.0, done))
