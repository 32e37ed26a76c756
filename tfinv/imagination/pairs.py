"""What a transformation is learned from: pairs of images of the free classes, as training may show them."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfinv.config import ImaginationConfig
from tfinv.data import Protocol, Range, Split, StoredImages, render, sample_parameters
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError

# Images that judge a ridge, and what a learned transformation is compared by.
_HELD_OUT = 0.1
_MOST_HELD_OUT = 2000


@dataclass(frozen=True)
class Steps:
    """How far a transformation is to be learned: every parameter that leads from a start into the free range.

    Attributes:
        range: Steps, for every component of the parameter alike.
        periodic: Whether the step behind the last is the first.
        start: Range of the parameters that are started from; None for the image as it is.
    """

    range: Range
    periodic: bool
    start: Range | None

    def covers(self, parameters: np.ndarray) -> np.ndarray:
        """Tells which parameters [M, *PARAMETER_SHAPE] are among the steps [M]."""
        inside = (parameters >= self.range.low) & (parameters <= self.range.high)
        return self.periodic | np.all(inside.reshape(len(parameters), -1), axis=-1)


def steps_of(protocol: Protocol, config: ImaginationConfig) -> Steps:
    """Returns what is to be learned under a protocol.

    Raises:
        UsageError: If images of restricted classes are never seen as they are, but are to be started from, or
            transformed images are larger than the image, or some parameters are never to be shown.
    """
    if protocol.margin:
        raise UsageError(
            "Imagined images are as large as the image. Expected a protocol without a margin. "
            f"Received: protocol={protocol.name}, with {protocol.margin} pixels on each side"
        )
    if protocol.held_out is not None:
        raise UsageError(
            "Imagination shows all of the free range. Expected a protocol that holds out no parameters. "
            f"Received: protocol={protocol.name}, held_out={protocol.held_out.bounds}"
        )
    transform = get_transform(protocol.transformation)
    start = protocol.restricted if config.imagined_from == "range" else None
    identity = np.zeros((1, *transform.PARAMETER_SHAPE), np.float32)
    if start is None and not transform.contains(identity, protocol.restricted.low, protocol.restricted.high):
        raise UsageError(
            "Restricted classes are never seen untransformed. Expected imagined_from=range for protocol "
            f"{protocol.name}. Received: imagined_from={config.imagined_from}"
        )
    period = transform.PERIOD
    if period is not None and protocol.free.high - protocol.free.low >= period:
        return Steps(Range(0.0, period), True, start)
    low, high = (start.low, start.high) if start else (0.0, 0.0)
    # Where a range does not contain its end, as of shifts, the last start is a whole step before it.
    if start and not transform.contains(np.full_like(identity, high), low, high):
        high -= 1.0
    return Steps(Range(protocol.free.low - low, protocol.free.high - high), False, start)


def free_images(split: Split, config: ImaginationConfig, seed: int) -> tuple[Split, Split]:
    """Takes the images a transformation is learned from, and those held out to judge it.

    Args:
        split: Training images.
        config: Gives the number of free classes.
        seed: Draws the classes and the order of the images.

    Returns:
        The images to learn from and the held-out ones, both of free classes only, shuffled; of a dataset
        on disk, about `operator_pairs` at most.

    Raises:
        UsageError: If there are not so many free classes, or too few images.
    """
    labels = np.unique(split.labels[~split.restricted])
    count = len(labels) if config.operator_classes is None else config.operator_classes
    if count > len(labels):
        raise UsageError(
            f"Invalid value for operator_classes. Expected at most {len(labels)}, the number of free "
            f"classes. Received: operator_classes={count}"
        )
    random = np.random.default_rng(seed)
    chosen = np.isin(split.labels, random.permutation(labels)[:count]) & ~split.restricted
    indices = random.permutation(np.flatnonzero(chosen))
    if isinstance(split.images, StoredImages):  # read into memory: only so many
        indices = indices[: config.operator_pairs + _MOST_HELD_OUT]
    held_out = min(round(len(indices) * _HELD_OUT), _MOST_HELD_OUT)
    if not held_out:
        raise UsageError(f"Too few images of free classes to learn a transformation from: {len(indices)}.")
    return _at(split, indices[held_out:]), _at(split, indices[:held_out])


def _at(split: Split, indices: np.ndarray) -> Split:
    return Split(split.images[indices], split.labels[indices], split.restricted[indices], split.class_names)


def starts(
    protocol: Protocol, steps: Steps, restricted: np.ndarray, seed: int, epoch, stream: str = "starts"
) -> tf.Tensor:
    """Draws the parameters that images start from, before a step.

    Args:
        protocol: Gives the transformation.
        steps: Gives the range of starts.
        restricted: Of the images [N]; only their number matters.
        seed: Seed.
        epoch: Number of the draw.
        stream: As in `sample_parameters`.

    Returns:
        Parameters [N, *PARAMETER_SHAPE].
    """
    if steps.start is None:
        shape = get_transform(protocol.transformation).PARAMETER_SHAPE
        return tf.zeros((len(restricted), *shape))
    return sample_parameters(protocol, restricted, seed, epoch, steps.start, stream)


def starts_along(
    protocol: Protocol, steps: Steps, restricted: np.ndarray, seed: int, epoch, component: int
) -> tf.Tensor:
    """Draws starts of pairs that differ in one component; the other ones vary over the whole free range."""
    own = starts(protocol, steps, restricted, seed, 2 * epoch, "pairs")
    if own.shape.rank == 1:
        return own
    others = sample_parameters(protocol, restricted, seed, 2 * epoch + 1, protocol.free, "pairs")
    return tf.where(tf.range(own.shape[1]) == component, own, others)


def direction(protocol: Protocol, component: int) -> np.ndarray:
    """Returns the parameter that is one in a component and zero in the others [*PARAMETER_SHAPE]."""
    shape = get_transform(protocol.transformation).PARAMETER_SHAPE
    return np.eye(*shape, dtype=np.float32)[component] if shape else np.ones((), np.float32)


def pixels(protocol: Protocol, images: np.ndarray, parameters: tf.Tensor) -> np.ndarray:
    """Renders images as rows of pixels above black, a row a channel [N * C, H * W], float32."""
    rendered = render(protocol, tf.constant(images), parameters).numpy() - protocol.pixel_range[0]
    return np.moveaxis(rendered, -1, 1).reshape(-1, rendered.shape[1] * rendered.shape[2])
