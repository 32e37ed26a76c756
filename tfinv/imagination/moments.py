"""A rotation group from images whose parameters nobody knows, by the moments that it leaves as they are.

Where free classes are shown under every parameter of a period, transforming all images changes no statistic
of them. The generator A of the transformation, x(t) = exp(t A) x, therefore satisfies linear equations: means
m, second moments C and third moments T of principal components obey

    A m = 0,  A C - C A = 0,  sum over the three axes of A applied to T = 0,

for each class as for all. Second moments show which planes turn, third ones how fast they turn relative to
each other. The least singular vector of these equations is the generator; since a whole period returns the
image, its frequencies are whole multiples of one.

Axes: P pixels, D principal components, L labels.

Reference:
    The equations are those of Lie group models of images (Rao and Ruderman 1999, "Learning Lie groups for
    invariant visual perception"), put to moments, so that no pair of images is needed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfinv.config import ImaginationConfig
from tfinv.data import Protocol, Split, render, sample_parameters
from tfinv.errors import UsageError

_BATCH = 1000
# The first block is solved with its unit, the others by what the ones before say.
_FIRST_BLOCK = 24
_GROWTH = 1.2
# Squared misfit of the least singular vector, in that of the next: digits have .04.
_MOST_MISFIT = 0.3
_MOST_ITERATIONS = 300
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Moments:
    """Moments of whitened principal components.

    Attributes:
        components: Principal components as columns [P, D], about black.
        scales: Root mean square of each [D], descending.
        shares: Part of the images that is of each label [L].
        means: Mean of each label [L, D].
        seconds: Second moments of each label [L, D, D].
        thirds: Third moments of all images [D, D, D].
    """

    components: np.ndarray
    scales: np.ndarray
    shares: np.ndarray
    means: np.ndarray
    seconds: np.ndarray
    thirds: np.ndarray


def measure_moments(protocol: Protocol, split: Split, config: ImaginationConfig, seed: int) -> Moments:
    """Measures the moments of images as training shows them.

    Args:
        protocol: Gives the ranges that parameters are drawn from; the parameters themselves are not used.
        split: Images of free classes.
        config: Number of principal components and of passes over the images.
        seed: Seed of the parameters.
    """
    return moments_of(
        lambda number: _shown(protocol, split, seed, number), config.moment_passes, config.moment_components
    )


def moments_of(
    shown: Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]], passes: int, num_components: int
) -> Moments:
    """Measures the moments of rows of pixels.

    Args:
        shown: Returns the batches of a pass: rows [N, P] and their labels [N].
        passes: Number of passes.
        num_components: Number of principal components.
    """
    gram, numbers, count = 0.0, np.zeros(0, int), 0
    for number in range(passes):
        for rows, labels in shown(number):
            gram, count = gram + rows.T @ rows, count + len(rows)
            numbers = np.union1d(numbers, labels)
    values, vectors = np.linalg.eigh(gram / count)
    kept = slice(None, -num_components - 1, -1)
    components, scales = vectors[:, kept], np.sqrt(np.maximum(values[kept], 1e-12))
    white = (components / scales).astype(np.float32)
    d = len(scales)
    counts, means = np.zeros(len(numbers)), np.zeros((len(numbers), d))
    seconds, thirds = np.zeros((len(numbers), d, d)), np.zeros((d * d, d))
    for number in range(passes):
        for rows, labels in shown(number):
            values = rows @ white
            products = (values[:, :, np.newaxis] * values[:, np.newaxis]).reshape(len(values), d * d)
            thirds += products.T @ values
            for place, label in enumerate(numbers):
                own = values[labels == label]
                counts[place] += len(own)
                means[place] += own.sum(axis=0)
                seconds[place] += own.T @ own
    means, seconds = means / counts[:, np.newaxis], seconds / counts[:, np.newaxis, np.newaxis]
    thirds = thirds.reshape(d, d, d) / counts.sum()
    return Moments(components, scales, counts / counts.sum(), means, seconds, thirds)


def _shown(protocol: Protocol, split: Split, seed: int, number: int):
    """Yields rows of pixels above black [N * C, P], float32, and their labels [N * C] of a pass."""
    parameters = sample_parameters(protocol, split.restricted, seed, number, stream="pairs")
    for first in range(0, len(split), _BATCH):
        part = slice(first, first + _BATCH)
        images = render(protocol, tf.constant(split.images[part]), parameters[part]).numpy()
        rows = np.moveaxis(images - protocol.pixel_range[0], -1, 1)
        yield rows.reshape(-1, rows.shape[2] * rows.shape[3]), split.labels[part].repeat(rows.shape[1])


class _Equations:
    """The equations on a generator of the first D components, and the gradient of their squares."""

    def __init__(self, moments: Moments, d: int):
        self._shares, self._means = moments.shares, moments.means[:, :d]
        self._seconds, self._thirds = moments.seconds[:, :d, :d], moments.thirds[:d, :d, :d]
        squares = moments.scales[:d] ** 2
        # That of all images is the unit matrix in whitened components; in plain ones it says which components
        # may turn into each other.
        self._distance = np.subtract.outer(squares, squares) ** 2 / np.multiply.outer(squares, squares)

    def gradient(self, generator: np.ndarray) -> np.ndarray:
        """Returns half the gradient of the sum of squares for skew-symmetric generators [D, D]."""
        a = generator
        first = a @ self._means.T  # [D, L]
        second = a @ self._seconds - self._seconds @ a
        third = np.tensordot(a, self._thirds, 1)
        third = third + third.transpose(1, 0, 2) + third.transpose(1, 2, 0)
        total = a * self._distance + (first * self._shares) @ self._means
        total += np.tensordot(self._shares, second @ self._seconds - self._seconds @ second, 1)
        total += 3.0 * np.tensordot(third, self._thirds, ((1, 2), (1, 2)))
        return (total - total.T) / 2.0


def fit_generator(moments: Moments) -> np.ndarray:
    """Finds the generator that the moments imply.

    Args:
        moments: Moments of images shown under every parameter of a period.

    Returns:
        Skew-symmetric [D, D] on whitened components, whose frequencies are whole numbers: a period is a
        turn by 2 pi. Which of the two directions is positive is left to chance.

    Raises:
        UsageError: If the moments do not turn, or not periodically.
    """
    sizes = [_block(moments, _FIRST_BLOCK)]
    while sizes[-1] < len(moments.scales):
        sizes.append(_block(moments, int(sizes[-1] * _GROWTH)))
    generator = _whole(_first_block(moments, sizes[0]))
    for size in sizes[1:]:
        generator = _whole(_extended(_Equations(moments, size), generator, size))
    return generator


def _block(moments: Moments, most: int) -> int:
    """Number of leading components, `most` or few less, that splits no plane: its two have the same scale."""
    scales = moments.scales
    if most >= len(scales):
        return len(scales)
    return max(range(most - 3, most + 1), key=lambda size: scales[size - 1] / scales[size])


def _first_block(moments: Moments, d: int) -> np.ndarray:
    """The least singular vector, in the unit that makes its frequencies whole."""
    equations, upper = _Equations(moments, d), np.triu_indices(d, 1)
    columns = []
    for row, column in zip(*upper, strict=True):
        turn = np.zeros((d, d))
        turn[row, column], turn[column, row] = 1.0, -1.0
        columns.append(equations.gradient(turn)[upper])
    values, vectors = np.linalg.eigh(np.array(columns))
    if values[0] > _MOST_MISFIT * values[1]:
        raise UsageError(
            "The free classes' statistics do not turn, so that no transformation can be learned from them "
            "(--learned-from pairs needs no such thing). Misfit of the best generator and of the next: "
            f"{values[0]:.3g}, {values[1]:.3g}"
        )
    generator = np.zeros((d, d))
    generator[upper] = vectors[:, 0]
    generator -= generator.T
    frequencies = np.linalg.eigvalsh(1j * generator)[d // 2 :]
    return generator / _unit(frequencies)


def _unit(frequencies: np.ndarray) -> float:
    """The largest number of which all frequencies are nearly whole multiples."""
    largest = frequencies.max()
    for unit in np.linspace(largest, largest / 12, 4000):
        places = frequencies / unit
        if np.abs(places - np.round(places)).max() < 0.2:
            # Strong components turn fast enough to be told from noise: let all have a say.
            whole = np.round(places)
            return float(frequencies @ whole / (whole @ whole))
    raise UsageError(
        "The free classes' statistics turn, but with no common period, so that no transformation can be "
        "learned from them (--learned-from pairs needs no such thing). Their frequencies: "
        + ", ".join(f"{value:.2f}" for value in frequencies)
    )


def _extended(equations: _Equations, known: np.ndarray, d: int) -> np.ndarray:
    """The generator of d components whose first block is known, by conjugate gradients."""
    free = np.ones((d, d), bool)
    free[: len(known), : len(known)] = False
    start = np.zeros((d, d))
    start[: len(known), : len(known)] = known
    return start + _solve(lambda a: equations.gradient(a) * free, -equations.gradient(start) * free)


def _solve(apply: Callable[[np.ndarray], np.ndarray], right: np.ndarray) -> np.ndarray:
    """Conjugate gradients for a symmetric positive definite map of matrices."""
    solution, residual, direction = np.zeros_like(right), right, right
    square = np.vdot(residual, residual)
    end = _TOLERANCE**2 * square
    for _ in range(_MOST_ITERATIONS):
        if square <= end:
            break
        image = apply(direction)
        step = square / np.vdot(direction, image)
        solution, residual = solution + step * direction, residual - step * image
        previous, square = square, np.vdot(residual, residual)
        direction = residual + (square / previous) * direction
    return solution


def _whole(generator: np.ndarray) -> np.ndarray:
    """The generator with its frequencies rounded to whole numbers."""
    frequencies, planes = np.linalg.eigh(1j * generator)
    return ((planes * (-1j * np.round(frequencies))) @ planes.conj().T).real


def operators_of(generator: np.ndarray, moments: Moments, count: int) -> np.ndarray:
    """Returns the operators of `count` equal steps of a period, on rows of pixels [S, P, P], float32."""
    frequencies, planes = np.linalg.eigh(1j * generator)
    read = (moments.components / moments.scales) @ planes.conj()  # [P, D]
    write = planes.T @ (moments.components * moments.scales).T
    turns = np.exp(-2j * np.pi * np.multiply.outer(np.arange(count) / count, np.round(frequencies)))
    return np.stack([((read * turn) @ write).real for turn in turns]).astype(np.float32)
