"""tf.data pipelines: every image freshly transformed each time it is drawn.

Order and parameters are stateless functions of (seed, epoch, index), so that a run resumed at
an epoch sees exactly what an uninterrupted one sees.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfinv.data.dataset import Dataset
from tfinv.data.datasets import load_dataset
from tfinv.data.protocol import Protocol, Range, Split, get_protocol, select
from tfinv.data.transforms import get_transform

# Different uses of one seed must not share random numbers.
_PURPOSES = ("order", "parameters")
_STREAMS = ("train", "validation", "test", "pairs", "starts", "steps")


def sample_parameters(
    protocol: Protocol,
    restricted: np.ndarray,
    seed: int,
    epoch,
    override: Range | None = None,
    stream: str = "train",
) -> tf.Tensor:
    """Draws one parameter for each image, from the range of its class.

    Args:
        protocol: Gives the transformation and the ranges.
        restricted: Which images are of a restricted class [N], bool.
        seed: Seed, at least 0.
        epoch: Pass number, at least 0 (int or scalar tensor).
        override: Range for all images in place of the protocol's.
        stream: What for: "train", "validation", "test", or "pairs", "starts", "steps" of imagination; each
            has random numbers of its own.

    Returns:
        Parameters [N, *PARAMETER_SHAPE], float32.
    """
    transform = get_transform(protocol.transformation)
    free, limited = override or protocol.free, override or protocol.restricted
    shape = (len(restricted), *transform.PARAMETER_SHAPE)
    uniforms = tf.random.stateless_uniform(shape, _key(seed, epoch, "parameters", stream), alg="philox")
    low = tf.where(restricted, np.float32(limited.low), np.float32(free.low))
    high = tf.where(restricted, np.float32(limited.high), np.float32(free.high))
    return transform.sample(uniforms, low, high)


def _key(seed: int, epoch, purpose: str, stream: str) -> tf.Tensor:
    use = _PURPOSES.index(purpose) + len(_PURPOSES) * _STREAMS.index(stream)
    start = tf.constant([seed, use], tf.int64)
    return tf.random.fold_in(start, tf.cast(epoch, tf.int64), alg="philox")


def render(protocol: Protocol, images: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Scales pixels to the protocol's range and transforms the images.

    Args:
        protocol: Gives the transformation and the pixel range.
        images: [N, H, W, C], uint8 in 0..255 or floating point in 0..1.
        parameters: [N, *PARAMETER_SHAPE].

    Returns:
        Images [N, H, W, C], float32.
    """
    black, white = protocol.pixel_range
    scale = (white - black) / (255.0 if images.dtype.is_integer else 1.0)
    values = tf.cast(images, tf.float32) * scale + black
    return get_transform(protocol.transformation).apply(values, parameters, fill_value=black)


def make_dataset(
    protocol: str | Protocol,
    split: str,
    batch_size: int,
    seed: int,
    data: str | Dataset = "mnist",
    epochs: int = 1,
    start_epoch: int = 0,
    shuffle: bool | None = None,
    validation_fraction: float = 0.0,
    limit: int | None = None,
) -> tf.data.Dataset:
    """Makes the pipeline of one part of a dataset under a protocol.

    Args:
        protocol: Name or Protocol.
        split: "train", "validation" or "test".
        batch_size: Images a batch; the last batch of an epoch may be smaller.
        seed: Seed of the order and of the parameters.
        data: Name, path of an .npz, or Dataset.
        epochs: Number of epochs that the whole training has.
        start_epoch: First epoch to deliver, for resuming.
        shuffle: Whether each epoch has its own order; by default for the training part only.
        validation_fraction: Part of the training images that is held out for "validation".
        limit: Use at most that many images.

    Returns:
        A dataset of (images [B, H, W, C] float32, labels [B] int32), `epochs - start_epoch` epochs
        long, of known cardinality.

    Raises:
        UsageError: If a name is unknown or the classes do not fit the dataset.
    """
    protocol = get_protocol(protocol)
    dataset = load_dataset(data) if isinstance(data, str) else data
    part = select(protocol, dataset, split, validation_fraction, limit)
    shuffle = split == "train" if shuffle is None else shuffle
    return batches(protocol, part, batch_size, seed, epochs, start_epoch, shuffle, split)


def batches(
    protocol: Protocol,
    split: Split,
    batch_size: int,
    seed: int,
    epochs: int = 1,
    start_epoch: int = 0,
    shuffle: bool = True,
    stream: str = "train",
    replace: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Makes the pipeline of selected images; see `make_dataset` and, for `stream`, `sample_parameters`.

    `replace` returns the parameters of an epoch [N, *PARAMETER_SHAPE] to use in place of those drawn, given
    the epoch, those drawn, the place of each image in its batch [N] and whether its class is restricted [N].
    """
    count = len(split)
    images, labels = tf.constant(split.images), tf.constant(split.labels)

    # Nothing in here needs AutoGraph, which warns about the module look-up of the transformation.
    @tf.autograph.experimental.do_not_convert
    def epoch_batches(epoch):
        order = tf.range(count)
        if shuffle:
            key = _key(seed, epoch, "order", stream)
            order = tf.random.experimental.stateless_shuffle(order, key, alg="philox")
        # The parameter belongs to the image, not to its place in the order.
        parameters = tf.gather(
            sample_parameters(protocol, split.restricted, seed, epoch, stream=stream), order
        )
        if replace is not None:
            restricted = tf.gather(tf.constant(split.restricted), order)
            parameters = replace(epoch, parameters, tf.range(count) % batch_size, restricted)
        return tf.data.Dataset.from_tensor_slices((order, parameters)).batch(batch_size)

    @tf.autograph.experimental.do_not_convert
    def load(indices, parameters):
        return render(protocol, tf.gather(images, indices), parameters), tf.gather(labels, indices)

    dataset = tf.data.Dataset.range(start_epoch, epochs).flat_map(epoch_batches)
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    steps = -(-count // batch_size) * max(epochs - start_epoch, 0)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(tf.data.AUTOTUNE)
