"""What is exported: a function with named inputs and outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Endpoint:
    """A function to export.

    Attributes:
        call: Maps tensors, in the order of the signature, to a dict of named tensors.
        signature: Name, shape and type of each input; None in a shape is any number.
    """

    call: Callable[..., dict[str, tf.Tensor]]
    signature: tuple[tf.TensorSpec, ...]

    def function(self) -> tf.function:
        """Returns the function as a graph."""
        return tf.function(self.call, input_signature=self.signature, autograph=False)


def at_least_one(values: tf.Tensor) -> tf.Tensor:
    """Returns `values` [N, ...], and zeros [1, ...] in place of none.

    oneDNN's convolution gives an empty batch the wrong shape.
    """
    shape = tf.shape(values)
    missing = tf.cast(tf.equal(shape[:1], 0), tf.int32)
    return tf.concat([values, tf.zeros(tf.concat([missing, shape[1:]], axis=0))], axis=0)
