"""tf.data pipelines: every image freshly transformed each time it is drawn.

Order and parameters are stateless functions of (seed, epoch, index), so that a run resumed at
an epoch sees exactly what an uninterrupted one sees.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfinv.config import check_batches, check_range
from tfinv.data.dataset import Dataset
from tfinv.data.datasets import load_dataset
from tfinv.data.protocol import Protocol, Range, Split, get_protocol, select
from tfinv.data.stored import reader
from tfinv.data.transforms import get_transform

# Different uses of one seed must not share random numbers.
_PURPOSES = ("order", "parameters")
_STREAMS = ("train", "validation", "test", "pairs", "starts", "steps", "groups")
# Up to so many images, order and parameters of an epoch are drawn at once; of more, batch by batch, because
# tables of all images would be most of the memory that training takes.
WHOLE_EPOCH = 2**20


def sample_parameters(
    protocol: Protocol,
    restricted: np.ndarray,
    seed: int,
    epoch,
    override: Range | None = None,
    stream: str = "train",
    indices: tf.Tensor | None = None,
) -> tf.Tensor:
    """Draws one parameter for each image, from the range of its class; none of those that are held out.

    Args:
        protocol: Gives the transformation and the ranges.
        restricted: Which images are of a restricted class [N], bool; of known length.
        seed: Seed, at least 0.
        epoch: Pass number, at least 0 (int or scalar tensor).
        override: Range for all images in place of the protocol's; nothing is held out then.
        stream: What for: "train", "validation", "test", "groups" of images that share a parameter, or
            "pairs", "starts", "steps" of imagination; each has random numbers of its own.
        indices: Which of all images these are [N], of any length: the parameters of each then depend on its
            index and not on N.

    Returns:
        Parameters [N, *PARAMETER_SHAPE], float32.
    """
    transform = get_transform(protocol.transformation)
    free, limited = override or protocol.free, override or protocol.restricted
    key = stateless_key(seed, epoch, "parameters", stream)
    low = tf.where(restricted, np.float32(limited.low), np.float32(free.low))
    high = tf.where(restricted, np.float32(limited.high), np.float32(free.high))

    def draw(own_key):
        if indices is not None:
            return transform.sample(_uniforms_at(own_key, indices, transform.PARAMETER_SHAPE), low, high)
        shape = (restricted.shape[0], *transform.PARAMETER_SHAPE)
        return transform.sample(tf.random.stateless_uniform(shape, own_key, alg="philox"), low, high)

    held_out = protocol.held_out
    if held_out is None or override is not None:
        return draw(key)
    return _redrawn(draw, key, lambda drawn: transform.contains(drawn, *held_out.bounds))


def _uniforms_at(key: tf.Tensor, indices: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Uniforms in [0, 1) [N, *shape] that are a function of the key and of each index alone.

    Reference:
        SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    """
    size = int(np.prod(shape, dtype=int))
    key = tf.bitcast(key, tf.uint64)
    counters = tf.cast(indices, tf.uint64)[:, tf.newaxis] * np.uint64(size) + np.arange(size, dtype=np.uint64)
    bits = _mixed(_mixed(counters + key[0]) + key[1])
    values = tf.cast(tf.bitwise.right_shift(bits, np.uint64(40)), tf.float32) * np.float32(2.0**-24)
    return tf.reshape(values, (-1, *shape))


def _mixed(bits: tf.Tensor) -> tf.Tensor:
    """A bijection of 64 bits, each of which changes half the others."""
    bits += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint64(shift))) * np.uint64(
            factor
        )
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint64(31)))


def _redrawn(draw: Callable, key: tf.Tensor, refused: Callable) -> tf.Tensor:
    """Returns `draw(key)`, with those parameters that are `refused` drawn again until none is."""

    def again(attempt, parameters):
        fresh = draw(tf.random.fold_in(key, attempt, alg="philox"))
        mask = tf.reshape(refused(parameters), [-1] + [1] * (parameters.shape.rank - 1))
        return attempt + 1, tf.where(mask, fresh, parameters)

    begin = (tf.constant(1, tf.int64), draw(key))
    return tf.while_loop(lambda _, parameters: tf.reduce_any(refused(parameters)), again, begin)[1]


def stateless_key(seed: int, epoch, purpose: str, stream: str) -> tf.Tensor:
    """Returns the key of an epoch's random numbers; no two purposes ("order", "parameters") share any."""
    use = _PURPOSES.index(purpose) + len(_PURPOSES) * _STREAMS.index(stream)
    start = tf.constant([seed, use], tf.int64)
    return tf.random.fold_in(start, tf.cast(epoch, tf.int64), alg="philox")


def render(protocol: Protocol, images: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Scales pixels to the protocol's range, widens the images by its margin and transforms them.

    Args:
        protocol: Gives the transformation and the pixel range.
        images: [N, H, W, C], uint8 in 0..255 or floating point in 0..1.
        parameters: [N, *PARAMETER_SHAPE].

    Returns:
        Images [N, *protocol.output_shape((H, W, C))], float32.
    """
    return transformed(protocol, scale_pixels(protocol, images), parameters)


def transformed(protocol: Protocol, values: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Does what `render` does to images whose pixels are scaled already, float32."""
    transform, black = get_transform(protocol.transformation), protocol.pixel_range[0]
    return transform.apply(values, parameters, fill_value=black, margin=protocol.margin)


def scale_pixels(protocol: Protocol, images: tf.Tensor) -> tf.Tensor:
    """Scales pixels to the protocol's range.

    Args:
        protocol: Gives the pixel range.
        images: Of any shape, uint8 in 0..255 or floating point in 0..1.

    Returns:
        The same shape, float32.
    """
    black, white = protocol.pixel_range
    scale = (white - black) / (255.0 if images.dtype.is_integer else 1.0)
    return tf.cast(images, tf.float32) * scale + black


def make_dataset(
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
) -> tf.data.Dataset:
    """Makes the pipeline of one part of a dataset under a protocol.

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

    Returns:
        A dataset of (images [B, H, W, C] float32, labels [B] int32), `epochs - start_epoch` epochs
        long, of known cardinality.

    Raises:
        UsageError: If a name is unknown, a number is out of its range, or the classes do not fit the dataset.
    """
    check_batches(batch_size)
    check_range("epochs", epochs, low=0)
    check_range("start_epoch", start_epoch, low=0)
    protocol = get_protocol(protocol)
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
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
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Makes the pipeline of selected images; `make_dataset` selects them, too.

    Args:
        protocol: Gives the transformation and the ranges.
        split: The images.
        batch_size: Images a batch, at least 1; the last batch of an epoch may be smaller.
        seed: Seed of the order and of the parameters, at least 0.
        epochs: Number of epochs that the whole training has.
        start_epoch: First epoch to deliver, for resuming.
        shuffle: Whether each epoch has its own order.
        stream: What for, as in `sample_parameters`.
        replace: Returns the parameters of an epoch [N, *PARAMETER_SHAPE] to use in place of those drawn,
            given the epoch, those drawn, the place of each image in its batch [N] and whether its class is
            restricted [N].
        part: (k, n) delivers the k-th of n parts of each batch alone, as equal as they can be: what one of n
            workers trains on.

    Returns:
        As `make_dataset`.
    """
    images_at, labels = reader(split.images), tf.constant(split.labels)

    @tf.autograph.experimental.do_not_convert
    def load(indices, parameters):
        return render(protocol, images_at(indices), parameters), tf.gather(labels, indices)

    drawn = draws(protocol, split, batch_size, seed, epochs, start_epoch, shuffle, stream, replace)
    return mapped(drawn, load, part)


@tf.autograph.experimental.do_not_convert
def part_of(batch: Any, part: tuple[int, int]) -> Any:
    """Cuts the k-th of n parts, as equal as they can be, out of a batch, for `part` (k, n).

    The batch is tensors nested in any way. The shortest one's length divides those of all others: images that
    share a code stay together.
    """
    index, count = part
    units = tf.reduce_min([tf.shape(tensor)[0] for tensor in tf.nest.flatten(batch)])
    first, end = (units * (index + step) // count for step in (0, 1))

    def own(tensor):
        each = tf.shape(tensor)[0] // units
        return tensor[first * each : end * each]

    return tf.nest.map_structure(own, batch)


def mapped(dataset: tf.data.Dataset, function: Callable, part: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
    """Maps elements, or that part of each (see `part_of`), in parallel with what consumes them, in order."""
    if part[1] > 1:
        dataset = dataset.map(lambda *batch: part_of(batch, part))
    options = tf.data.Options()
    # It finds nothing to tune here, and may keep an iterator's end waiting for as long as the iterator lived.
    options.autotune.enabled = False
    data = dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return data.prefetch(tf.data.AUTOTUNE).with_options(options)


def draws(
    protocol: Protocol,
    split: Split,
    batch_size: int,
    seed: int,
    epochs: int,
    start_epoch: int,
    shuffle: bool,
    stream: str,
    replace: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Makes the batches of (indices of images [B], their parameters [B, *PARAMETER_SHAPE]); see `batches`."""
    count = len(split)
    if count > WHOLE_EPOCH and replace is None:
        return _draws_by_batch(protocol, split, batch_size, seed, epochs, start_epoch, shuffle, stream)

    # Nothing in here needs AutoGraph, which warns about the module look-up of the transformation.
    @tf.autograph.experimental.do_not_convert
    def epoch_batches(epoch):
        order = tf.range(count)
        if shuffle:
            key = stateless_key(seed, epoch, "order", stream)
            order = tf.random.experimental.stateless_shuffle(order, key, alg="philox")
        # The parameter belongs to the image, not to its place in the order.
        parameters = tf.gather(
            sample_parameters(protocol, split.restricted, seed, epoch, stream=stream), order
        )
        if replace is not None:
            restricted = tf.gather(tf.constant(split.restricted), order)
            parameters = replace(epoch, parameters, tf.range(count) % batch_size, restricted)
        return cut((order, parameters), batch_size)

    dataset = tf.data.Dataset.range(start_epoch, epochs).flat_map(epoch_batches)
    steps = -(-count // batch_size) * max(epochs - start_epoch, 0)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps))


def cut(tensors: tuple[tf.Tensor, ...], size: int) -> tf.data.Dataset:
    """Cuts tensors of one length into batches, which costs less than to collect one entry after another."""
    starts = tf.data.Dataset.range(0, tensors[0].shape[0], size)
    return starts.map(lambda start: tuple(tensor[start : start + size] for tensor in tensors))


def _draws_by_batch(
    protocol: Protocol,
    split: Split,
    batch_size: int,
    seed: int,
    epochs: int,
    start_epoch: int,
    shuffle: bool,
    stream: str,
) -> tf.data.Dataset:
    """Does what `draws` does with the memory of a batch: the order is a permutation that is computed."""
    count = len(split)
    steps = -(-count // batch_size)
    restricted = tf.constant(split.restricted)

    @tf.autograph.experimental.do_not_convert
    def batch(number):
        epoch = number // steps
        first = number % steps * batch_size
        places = tf.range(first, tf.minimum(first + batch_size, count))
        if shuffle:
            key = stateless_key(seed, epoch, "order", stream)
            places = tf.random.experimental.index_shuffle(places, key, tf.constant(count - 1, tf.int64))
        own = tf.gather(restricted, places)
        return places, sample_parameters(protocol, own, seed, epoch, stream=stream, indices=places)

    return tf.data.Dataset.range(start_epoch * steps, max(epochs, start_epoch) * steps).map(batch)
