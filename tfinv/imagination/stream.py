"""Training batches of which a part is imagined."""

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfinv.config import ImaginationConfig
from tfinv.data import Protocol, Split, batches, mapped, sample_parameters
from tfinv.imagination.pairs import Steps, starts, steps_of

# Successive images that share a step, and so one read of its operator. Each starts from its own image, and
# batches are shuffled, so that nothing else connects them.
_GROUP = 16


@dataclass(frozen=True)
class ImaginedStream:
    """Makes the training batches; all randomness is a function of (seed, epoch, place).

    Attributes:
        protocol: What the classes may be shown.
        config: What is imagined.
        model: Model from images above black and steps to images; None with `imagination` "true".
    """

    protocol: Protocol
    config: ImaginationConfig
    model: keras.Model | None

    def batches(
        self, split: Split, batch_size: int, seed: int, epochs: int, start_epoch: int = 0
    ) -> tf.data.Dataset:
        """Makes the pipeline, as `tfinv.data.batches` does without imagination.

        The first images of each batch are rendered where imagination starts, and from there on by the learned
        transformation alone; the others are shown in the range of their class, by the true one.
        """
        if self.model is None:
            everywhere = dataclasses.replace(self.protocol, restricted=self.protocol.free)
            return batches(everywhere, split, batch_size, seed, epochs, start_epoch)
        count = round(self.config.imagined_share * batch_size)
        steps = steps_of(self.protocol, self.config)
        only_restricted = self.config.imagined_classes == "restricted"
        labels = tf.constant(np.unique(split.labels[split.restricted]), tf.int32)

        def start(epoch, parameters, places, restricted):
            imagined = places < count
            if only_restricted:
                imagined &= restricted
            imagined = tf.reshape(imagined, [-1] + [1] * (parameters.shape.rank - 1))
            return tf.where(imagined, starts(self.protocol, steps, split.restricted, seed, epoch), parameters)

        @tf.autograph.experimental.do_not_convert
        def imagine(number, batch):
            images, batch_labels = batch
            imagined = self._imagine(images[:count], count, steps, seed, number)
            if only_restricted:
                known = tf.reduce_any(batch_labels[:count, tf.newaxis] == labels, axis=1)
                imagined = tf.where(known[:, tf.newaxis, tf.newaxis, tf.newaxis], imagined, images[:count])
            images = tf.ensure_shape(tf.concat([imagined, images[count:]], axis=0), images.shape)
            return images, batch_labels

        data = batches(self.protocol, split, batch_size, seed, epochs, start_epoch, replace=start)
        if not count:
            return data
        first = start_epoch * -(-len(split) // batch_size)
        numbers = tf.data.Dataset.range(first, first + data.cardinality())
        return mapped(tf.data.Dataset.zip(numbers, data), imagine)

    def _imagine(self, images: tf.Tensor, count: int, steps: Steps, seed: int, number) -> tf.Tensor:
        """Images [N, H, W, C] of N <= count under random steps."""
        groups = -(-count // _GROUP)
        # The last batch of an epoch is filled up.
        missing = groups * _GROUP - tf.shape(images)[0]
        filled = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        filled = tf.ensure_shape(filled, [groups * _GROUP, *images.shape[1:]])
        drawn = sample_parameters(
            self.protocol, np.zeros(groups, bool), seed, number, steps.range, stream="steps"
        )
        return render_learned(self.model, self.protocol, filled, drawn)[: tf.shape(images)[0]]


def render_learned(
    model: keras.Model, protocol: Protocol, images: tf.Tensor, parameters: tf.Tensor
) -> tf.Tensor:
    """Transforms images by a learned transformation; the twin of `tfinv.data.render`.

    Args:
        model: Learned transformation.
        protocol: Gives the pixel range, which a learned transformation may leave a little: it is cut off.
        images: Images in the pixel range [N, H, W, C].
        parameters: [G, *PARAMETER_SHAPE], each that of N / G successive images.

    Returns:
        Images [N, H, W, C], float32.
    """
    black, white = protocol.pixel_range
    return tf.clip_by_value(model([images - black, parameters]) + black, black, white)
