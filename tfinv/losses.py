"""Losses of capsule networks; labels are integers, scores are one value a class."""

import keras
from keras import ops


def _one_hot(labels, scores):
    return ops.one_hot(ops.cast(ops.reshape(labels, (-1,)), "int32"), scores.shape[-1], dtype=scores.dtype)


@keras.saving.register_keras_serializable(package="tfinv")
class MarginLoss(keras.losses.Loss):
    """Wants the capsule of the true class longer than `present`, all others shorter than `absent`.

    Called on labels [B] and capsule lengths [B, J] in [0, 1); returns the mean over the batch.

    Args:
        present: Length from which the true class costs nothing, m+.
        absent: Length up to which another class costs nothing, m-.
        absent_weight: Weight of the other classes, lambda.

    Reference:
        Sabour et al. 2017, "Dynamic Routing Between Capsules", equation 4.
    """

    def __init__(
        self,
        present: float = 0.9,
        absent: float = 0.1,
        absent_weight: float = 0.5,
        name: str = "margin_loss",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.present = present
        self.absent = absent
        self.absent_weight = absent_weight

    def call(self, y_true, y_pred):
        true_class = _one_hot(y_true, y_pred)
        too_short = ops.square(ops.relu(self.present - y_pred))
        too_long = ops.square(ops.relu(y_pred - self.absent))
        return ops.sum(true_class * too_short + self.absent_weight * (1.0 - true_class) * too_long, axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "present": self.present,
            "absent": self.absent,
            "absent_weight": self.absent_weight,
        }


@keras.saving.register_keras_serializable(package="tfinv")
class SpreadLoss(keras.losses.Loss):
    """Wants the activation of the true class above every other one by `margin`.

    Called on labels [B] and activations [B, J]; returns the mean over the batch. Raise the margin during
    training with `loss.margin.assign(value)`. JAX alone freezes it when a step is traced: compile the
    model again after assigning there.

    Args:
        margin: Distance from which another class costs nothing; the paper raises it from 0.2 to 0.9.

    Reference:
        Hinton et al. 2018, "Matrix capsules with EM routing", equation 3.
    """

    def __init__(self, margin: float = 0.2, name: str = "spread_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.margin = keras.Variable(margin, trainable=False, dtype="float32", name="margin")

    def call(self, y_true, y_pred):
        true_class = _one_hot(y_true, y_pred)
        true_activation = ops.sum(true_class * y_pred, axis=-1, keepdims=True)
        too_close = ops.relu(ops.cast(self.margin, y_pred.dtype) - (true_activation - y_pred))
        return ops.sum((1.0 - true_class) * ops.square(too_close), axis=-1)

    def get_config(self):
        return {**super().get_config(), "margin": float(ops.convert_to_numpy(self.margin))}
