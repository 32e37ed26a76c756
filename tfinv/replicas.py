"""What a replica has to know of the others, so that many of them lower the loss that one alone would.

Written for TensorFlow's distribution strategies; without one, nothing here changes anything.
"""

import keras
import tensorflow as tf
from keras import ops


def place(count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, int]:
    """Returns where in the batch of all replicas this one's samples start, that batch's size, and replicas.

    The last batch of an epoch may give replicas different numbers of samples.

    Args:
        count: Samples of this replica, int32 scalar.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync if context else 1
    if replicas == 1:
        return tf.zeros_like(count), count, 1
    own = tf.one_hot(context.replica_id_in_sync_group, replicas) * tf.cast(count, tf.float32)
    counts = tf.cast(context.all_reduce(tf.distribute.ReduceOp.SUM, own), tf.int32)
    start = tf.cumsum(counts, exclusive=True)[context.replica_id_in_sync_group]
    return start, tf.reduce_sum(counts), replicas


class GlobalMean(keras.losses.Loss):
    """A loss whose gradients, summed over replicas, are those of its mean over the batch of all replicas.

    Keras divides each replica's mean by the number of replicas: the mean of means, in which the samples of a
    replica that got fewer of a ragged batch count for more. The value stays the replica's own mean, because
    Keras's history weighs it by the number of samples already.

    Args:
        loss: A loss that is a mean over its samples.
    """

    def __init__(self, loss: keras.losses.Loss):
        super().__init__(name=loss.name)
        self._loss = loss

    def __call__(self, y_true, y_pred, sample_weight=None):
        value = self._loss(y_true, y_pred, sample_weight)
        count = tf.shape(y_pred)[0]
        _, everything, replicas = place(count)
        fixed = ops.stop_gradient(value)
        return fixed + tf.cast(count * replicas / everything, value.dtype) * (value - fixed)

    def call(self, y_true, y_pred):
        """The loss of each sample."""
        return self._loss.call(y_true, y_pred)
