"""Protocols: which class is seen under which transformations, as data.

A protocol names a transformation and gives ranges of its parameter; the code that draws
parameters and images from it is in pipeline.py and the same for all protocols.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tfinv.config import Task, check_choices, check_range
from tfinv.data.dataset import Dataset
from tfinv.data.stored import Images, take
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError


@dataclass(frozen=True)
class Range:
    """Parameters from `low` to `high`, for every component of the parameter alike."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(
                f"Invalid range. Expected low < high. Received: low={self.low}, high={self.high}"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high."""
        return self.low, self.high


@dataclass(frozen=True)
class Evaluation:
    """One test: which images, drawn from which range.

    Attributes:
        description: What is measured, for tables.
        classes: "all" images or those of the "restricted" classes.
        range: Range of the parameter; None for the ranges of training.
    """

    description: str
    classes: Literal["all", "restricted"]
    range: Range | None = None

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class Protocol:
    """Who sees what in training, and what is asked in the test.

    Attributes:
        name: Name, used in run ids.
        transformation: Name of a module in tfinv.data.transforms.
        free: Range of all classes but the restricted ones.
        restricted_classes: Labels (of the dataset) that are seen in `restricted` only.
        restricted: Range of the restricted classes.
        excluded_classes: Labels (of the dataset) that are left out; the others are renumbered from 0.
        evaluations: Tests by name of their metric.
        pixel_range: Values of a black and of a white pixel; -1 and 1 for generation.
        task: "recognition" of the transformed image, or its "generation" from the image and the parameter.
        upright: Generation reversed, also called compensation: the upright image is asked for, from the
            transformed one, whose parameter nobody tells.
        margin: Pixels by which the transformed image exceeds the image on each side.
        held_out: Range of parameters that no class is ever shown; for parameters of several components, where
            all of them lie in it.
        grid_step: Distance of two points of its evaluation sweep, in the unit of the transformation.
    """

    name: str
    transformation: str
    free: Range
    restricted_classes: tuple[int, ...]
    restricted: Range
    excluded_classes: tuple[int, ...] = ()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    pixel_range: tuple[float, float] = (0.0, 1.0)
    task: Task = "recognition"
    upright: bool = False
    margin: int = 0
    held_out: Range | None = None
    grid_step: float = 5.0

    def __post_init__(self) -> None:
        if self.task == "generation" and self.pixel_range != (-1.0, 1.0):
            raise UsageError(
                "Generators render pixels from -1 to 1. Expected pixel_range=(-1.0, 1.0) of a protocol for "
                f"generation. Received: {self.pixel_range}"
            )
        held_out = self.held_out
        for seen in (self.free, self.restricted):
            if held_out is not None and _covers(held_out, seen, get_transform(self.transformation).PERIOD):
                raise UsageError(
                    f"Nothing is left to show. Expected held_out not to cover {seen}. "
                    f"Received: held_out={held_out}"
                )

    def output_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the shape of the transformed images."""
        height, width, channels = image_shape
        return height + 2 * self.margin, width + 2 * self.margin, channels

    def replace(
        self,
        restricted_classes: tuple[int, ...] | None = None,
        excluded_classes: tuple[int, ...] | None = None,
    ) -> "Protocol":
        """Returns the protocol with other classes; None keeps its own."""
        return dataclasses.replace(
            self,
            restricted_classes=self.restricted_classes if restricted_classes is None else restricted_classes,
            excluded_classes=self.excluded_classes if excluded_classes is None else excluded_classes,
        )

    def kept_classes(self, dataset: Dataset) -> tuple[int, ...]:
        """Returns the labels of `dataset` that take part, in the order of their new numbers.

        Raises:
            UsageError: If a restricted class is excluded or not in the dataset, or fewer than two
                classes are left.
        """
        kept = tuple(label for label in dataset.classes if label not in self.excluded_classes)
        trained = set(np.unique(dataset.y_train).tolist()) & set(kept)
        missing = [label for label in self.restricted_classes if label not in trained]
        if missing:
            raise UsageError(
                f"Restricted classes must occur in training and not be excluded. Expected classes of "
                f"{dataset.name}: {_listed(kept)} (choose with --restricted-classes). "
                f"Received: {_listed(missing)}"
            )
        if len(kept) < 2:
            raise UsageError(
                f"At least two classes are needed. {dataset.name} has {_listed(dataset.classes)}. "
                f"Received: excluded_classes={_listed(self.excluded_classes)}"
            )
        return kept


def _covers(outer: Range, inner: Range, period: float | None) -> bool:
    """Tells whether a range has another in it, modulo the period if there is one."""
    if period is None:
        return outer.low <= inner.low and inner.high <= outer.high
    behind = (inner.low - outer.low) % period
    return outer.high - outer.low >= min(behind + inner.high - inner.low, period)


def seen_in_training(protocol: Protocol, parameters: np.ndarray, restricted: bool) -> np.ndarray:
    """Tells which parameters [M, *PARAMETER_SHAPE] training has for a restricted, or a free, class [M]."""
    limits = protocol.restricted if restricted else protocol.free
    inside = get_transform(protocol.transformation).contains(parameters, *limits.bounds)
    return inside & ~never_seen(protocol, parameters)


def never_seen(protocol: Protocol, parameters: np.ndarray) -> np.ndarray:
    """Tells which parameters [M, *PARAMETER_SHAPE] are held out from all classes [M]."""
    if protocol.held_out is None:
        return np.zeros(len(parameters), bool)
    return get_transform(protocol.transformation).contains(parameters, *protocol.held_out.bounds)


def _listed(labels) -> str:
    return ", ".join(map(str, labels)) or "none"


@dataclass(frozen=True)
class Split:
    """The images of a protocol's part of a dataset.

    Attributes:
        images: [N, H, W, C], as in the dataset.
        labels: Renumbered labels [N], int32.
        restricted: Which images are of a restricted class [N], bool.
        class_names: The dataset's label of each renumbered one, as text.
    """

    images: Images
    labels: np.ndarray
    restricted: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, mask: np.ndarray) -> "Split":
        """Returns the images where `mask` [N] is true."""
        return Split(take(self.images, mask), self.labels[mask], self.restricted[mask], self.class_names)


SPLITS = ("train", "validation", "test")


def select(
    protocol: Protocol,
    dataset: Dataset,
    split: str,
    validation_fraction: float = 0.0,
    limit: int | None = None,
) -> Split:
    """Takes the protocol's classes from one part of a dataset.

    Args:
        protocol: The protocol.
        dataset: The dataset.
        split: "train", "validation" or "test"; the validation images are the last of the training ones.
        validation_fraction: Part of the training images that is held out, 0..1.
        limit: Keep at most that many images, at least 1; all if None.

    Returns:
        Its images of the classes that are kept, in the dataset's order.

    Raises:
        UsageError: If `split` is unknown, a number is out of its range, or the classes do not fit (see
            `Protocol.kept_classes`).
    """
    check_range("validation_fraction", validation_fraction, low=0.0, high=1.0)
    check_range("limit", 1 if limit is None else limit, low=1)
    if split not in SPLITS:
        raise UsageError(f"Unknown split. Expected one of {', '.join(SPLITS)}. Received: split={split}")
    kept = protocol.kept_classes(dataset)
    part = "test" if split == "test" else "train"
    all_labels = dataset.labels(part)
    # A table of the labels' new numbers: of millions of labels, nothing larger than a byte is made here.
    numbers = np.full(max(dataset.classes) + 1, -1, np.int32)
    numbers[list(kept)] = np.arange(len(kept))
    indices = np.flatnonzero((numbers >= 0)[all_labels])
    if part == "train":
        held_out = round(len(indices) * validation_fraction)
        cut = len(indices) - held_out
        indices = indices[:cut] if split == "train" else indices[cut:]
    indices = indices[:limit]
    labels = all_labels[indices]
    return Split(
        images=take(dataset.images(part), indices),
        labels=numbers[labels],
        restricted=np.isin(labels, protocol.restricted_classes),
        class_names=tuple(map(str, kept)),
    )


_ROTATE_49 = Protocol(
    name="rotate-49",
    transformation="rotation",
    free=Range(-180, 180),
    restricted_classes=(4, 9),
    restricted=Range(-45, 45),
    pixel_range=(-1.0, 1.0),
    task="generation",
    grid_step=1.8,
)
_SHIFT_49 = Protocol(
    name="shift-49",
    transformation="shift",
    free=Range(-20, 20),
    restricted_classes=(4, 9),
    restricted=Range(-5, 5),
    pixel_range=(-1.0, 1.0),
    task="generation",
    margin=20,
    grid_step=1.0,
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="rotate-34",
            transformation="rotation",
            free=Range(0, 360),
            restricted_classes=(3, 4),
            restricted=Range(-45, 45),
            excluded_classes=(6, 9),
            evaluations={
                "Ptest": Evaluation("all test images, training ranges", "all"),
                "Pin": Evaluation("restricted classes within their range", "restricted", Range(-45, 45)),
                "Pout": Evaluation("restricted classes outside it", "restricted", Range(45, 315)),
                "Pinv": Evaluation("restricted classes about upside down", "restricted", Range(135, 225)),
            },
        ),
        # As far as most strokes stay in a picture of 28x28.
        Protocol(
            name="shift-34",
            transformation="shift",
            free=Range(-6, 7),
            restricted_classes=(3, 4),
            restricted=Range(-1, 2),
            excluded_classes=(6, 9),
            evaluations={
                "Ptest": Evaluation("all test images, training ranges", "all"),
                "Pin": Evaluation("restricted classes within their range", "restricted", Range(-1, 2)),
                "Pout": Evaluation("restricted classes 2-6 to the right and down", "restricted", Range(2, 7)),
                "Pinv": Evaluation("restricted classes 4-6 to the right and down", "restricted", Range(4, 7)),
            },
            grid_step=1.0,
        ),
        _ROTATE_49,
        dataclasses.replace(_ROTATE_49, name="upright-49", upright=True),
        _SHIFT_49,
        # A corner of the space of shifts: right and down by 10 pixels or more.
        dataclasses.replace(_SHIFT_49, name="shift-unseen", held_out=Range(10, 20)),
        Protocol(
            name="affine",
            transformation="affine",
            free=Range(-0.3, 0.3),
            restricted_classes=(4, 9),
            restricted=Range(-0.1, 0.1),
            pixel_range=(-1.0, 1.0),
            task="generation",
            grid_step=0.02,
        ),
    )
}


def get_protocol(name: str | Protocol) -> Protocol:
    """Returns the protocol `name`; raises UsageError that lists the known ones."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise UsageError(
            f"Unknown protocol. Expected one of {', '.join(PROTOCOLS)}. Received: protocol={name}"
        )
    return PROTOCOLS[name]
