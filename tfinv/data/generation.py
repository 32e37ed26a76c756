"""tf.data pipelines of generation: an image and a parameter's code in, the transformed image out.

Order and parameters are stateless functions of (seed, epoch, index), as in pipeline.py.
"""

from pathlib import Path

import tensorflow as tf

from tfinv.config import check_batches, check_range
from tfinv.data.dataset import Dataset
from tfinv.data.datasets import load_dataset
from tfinv.data.pipeline import (
    cut,
    draws,
    mapped,
    sample_parameters,
    scale_pixels,
    stateless_key,
    transformed,
)
from tfinv.data.protocol import Protocol, Split, get_protocol, select
from tfinv.data.stored import reader
from tfinv.data.transforms import get_transform


def make_pairs(
    protocol: str | Protocol,
    split: str,
    batch_size: int,
    seed: int,
    data: str | Path | Dataset = "mnist",
    epochs: int = 1,
    start_epoch: int = 0,
    shuffle: bool | None = None,
    validation_fraction: float = 0.0,
    limit: int | None = None,
    images_per_code: int = 1,
) -> tf.data.Dataset:
    """Makes the pipeline of one part of a dataset for generation; the twin of `make_dataset`.

    Args:
        protocol: Name or Protocol.
        split: "train", "validation" or "test".
        batch_size: Images a batch; the last batch of an epoch may be smaller.
        seed: Seed of the order and of the parameters.
        data: Name, path, or Dataset.
        epochs: Number of epochs that the whole training has.
        start_epoch: First epoch to deliver, for resuming.
        shuffle: Whether each epoch has its own order; by default for the training part only.
        validation_fraction: Part of the training images that is held out for "validation".
        limit: Use at most that many images.
        images_per_code: Successive images that share a parameter, a divisor of `batch_size`.

    Returns:
        A dataset of ({"image": [B, H, W, C], "code": [G, CODE_SIZE]}, {"image": [B, H', W', C]}), float32 in
        the protocol's pixel range, with B = G * images_per_code, of known cardinality. Of ({"image":
        transformed}, {"image": upright}) under a protocol that asks for upright images.

    Raises:
        UsageError: If a name is unknown, a number is out of its range, or the classes do not fit the dataset.
    """
    check_batches(batch_size, images_per_code)
    check_range("epochs", epochs, low=0)
    check_range("start_epoch", start_epoch, low=0)
    protocol = get_protocol(protocol)
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    part = select(protocol, dataset, split, validation_fraction, limit)
    shuffle = split == "train" if shuffle is None else shuffle
    return pairs(protocol, part, batch_size, seed, epochs, start_epoch, shuffle, split, images_per_code)


def pairs(
    protocol: Protocol,
    split: Split,
    batch_size: int,
    seed: int,
    epochs: int = 1,
    start_epoch: int = 0,
    shuffle: bool = True,
    stream: str = "train",
    images_per_code: int = 1,
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Makes the pipeline of selected images; `make_pairs` selects them, too.

    Args:
        protocol, split, batch_size, seed, epochs, start_epoch, shuffle, stream, part: As in
            `tfinv.data.batches`.
        images_per_code: Successive images that share a parameter, a divisor of `batch_size`.

    Returns:
        As `make_pairs`.
    """
    images_at, code = reader(split.images), get_transform(protocol.transformation).code

    @tf.autograph.experimental.do_not_convert
    def load(indices, parameters):
        upright = scale_pixels(protocol, images_at(indices))
        target = transformed(protocol, upright, tf.repeat(parameters, images_per_code, axis=0))
        if protocol.upright:
            return {"image": target}, {"image": upright}
        return {"image": upright, "code": code(parameters)}, {"image": target}

    arguments = (protocol, split, batch_size, seed, epochs, start_epoch, shuffle, stream)
    drawn = draws(*arguments) if images_per_code == 1 else _group_draws(*arguments, images_per_code)
    return mapped(drawn, load, part)


def _group_draws(
    protocol: Protocol,
    split: Split,
    batch_size: int,
    seed: int,
    epochs: int,
    start_epoch: int,
    shuffle: bool,
    stream: str,
    size: int,
) -> tf.data.Dataset:
    """Makes the batches of (indices of images [G * size], parameters [G, *PARAMETER_SHAPE]).

    A group holds images of restricted classes or of free ones, so that its parameter may be drawn from the
    whole of their range; at most two an epoch have both, and the smaller range. The first images fill up the
    last group.
    """
    count = len(split)
    groups = -(-count // size)
    restricted = tf.constant(split.restricted)

    @tf.autograph.experimental.do_not_convert
    def epoch_batches(epoch):
        order = tf.range(count)
        if shuffle:
            order = _shuffled(order, stateless_key(seed, epoch, "order", stream))
        order = tf.gather(order, tf.argsort(tf.cast(tf.gather(restricted, order), tf.int32), stable=True))
        order = tf.gather(order, tf.range(groups * size) % count)
        members = tf.reshape(order, (groups, size))
        if shuffle:
            members = _shuffled(members, stateless_key(seed, epoch, "order", "groups"))
        limited = tf.reduce_any(tf.gather(restricted, members), axis=1)
        parameters = sample_parameters(protocol, limited, seed, epoch, stream=stream)
        return cut((members, parameters), batch_size // size)

    dataset = tf.data.Dataset.range(start_epoch, epochs).flat_map(epoch_batches)
    dataset = dataset.map(lambda members, parameters: (tf.reshape(members, [-1]), parameters))
    steps = -(-count // batch_size) * max(epochs - start_epoch, 0)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps))


def _shuffled(values: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_shuffle(values, key, alg="philox")
