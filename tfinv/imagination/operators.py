"""Linear operators from pairs, in closed form."""

import keras
import numpy as np
import tensorflow as tf

from tfinv.config import ImaginationConfig
from tfinv.data import Protocol, Split
from tfinv.data.transforms import get_transform
from tfinv.imagination.pairs import Steps, direction, free_images, pixels, starts_along, steps_of
from tfinv.layers import LinearOperators

_BATCH = 2000
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# Steps that choose the ridge; it is the same for all.
_JUDGED_STEPS = 4


def learn_operators(
    protocol: Protocol, split: Split, config: ImaginationConfig, seed: int = 0
) -> list[LinearOperators]:
    """Learns linear operators by ridge regression on pairs of images of the free classes.

    A pair is an image under a parameter and under that parameter plus a step. The operator of a step is
    (G + ridge)^-1 C with G = sum x' x over first images and C = sum x' y over pairs, both as rows. All steps
    have the same first images, hence one G and one eigenvalue decomposition.

    Args:
        protocol: Says which classes are free.
        split: Training images; those of restricted classes are not looked at.
        config: Number of steps, pairs and classes, and the ridge.
        seed: Seed of classes, pairs and starts.

    Returns:
        One layer for each component of the parameter, to be applied one after the other: right where steps of
        different components add, as those of shifts; affine maps, whose do not, take an address field.

    Raises:
        UsageError: If the classes or the protocol do not allow it.
    """
    steps = steps_of(protocol, config)
    train, held_out = free_images(split, config, seed)
    components = int(np.prod(get_transform(protocol.transformation).PARAMETER_SHAPE, dtype=int))
    layers = []
    for component in range(components):
        with tf.device("CPU:0"):  # where the input pipeline runs
            layer = LinearOperators(
                config.operator_steps,
                steps.range.low,
                steps.range.high,
                steps.periodic,
                name=f"operators_{component}",
            )
            layer.build([(None, *split.images.shape[1:]), (None,)])
        layer.kernel.assign(_fit(protocol, steps, train, held_out, component, layer, config, seed))
        layers.append(layer)
    return layers


def _fit(
    protocol: Protocol,
    steps: Steps,
    train: Split,
    held_out: Split,
    component: int,
    layer: LinearOperators,
    config: ImaginationConfig,
    seed: int,
) -> np.ndarray:
    """Operators [S, P, P] of one component."""
    moves = [layer.low + number * layer.step_size for number in range(layer.num_steps)]
    # A fixed start makes a second pair of an image the same as the first.
    varied = steps.start is not None or bool(get_transform(protocol.transformation).PARAMETER_SHAPE)
    count = config.operator_pairs if varied else min(config.operator_pairs, len(train))
    size = layer.kernel.shape[-1]
    gram, cross = np.zeros((size, size)), np.zeros((len(moves), size, size), np.float32)
    for epoch in range(-(-count // len(train))):
        part = train.only(np.arange(len(train)) < count - epoch * len(train))
        for first, images, start in _batches(protocol, steps, part, component, seed, epoch):
            gram += first.T @ first
            for number, move in enumerate(moves):
                second = pixels(protocol, images, start + move * direction(protocol, component))
                cross[number] += first.T @ second
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values, 0.0).astype(np.float32), vectors.astype(np.float32)
    scale = float(values.mean()) or 1.0

    def solve(number: int, ridge: float) -> np.ndarray:
        # What no image shows, such as a pixel that is always black, has the eigenvalue zero.
        inverse = 1.0 / np.maximum(values + ridge * scale, scale * 1e-9)
        return vectors @ (inverse[:, np.newaxis] * (vectors.T @ cross[number]))

    ridge = config.ridge
    if ridge is None:
        judged = np.linspace(0, len(moves), _JUDGED_STEPS, endpoint=False).astype(int)
        errors = dict.fromkeys(_RIDGES, 0.0)
        for first, images, start in _batches(protocol, steps, held_out, component, seed + 1, 0):
            for number in judged:
                second = pixels(protocol, images, start + moves[number] * direction(protocol, component))
                for candidate in _RIDGES:
                    errors[candidate] += np.sum((first @ solve(number, candidate) - second) ** 2)
        ridge = min(errors, key=errors.__getitem__)
    for number in range(len(moves)):  # in place: the operators take as much memory as all else together
        cross[number] = solve(number, ridge)
    return cross


def _batches(protocol: Protocol, steps: Steps, split: Split, component: int, seed: int, epoch: int):
    """First images as rows of pixels, the untransformed images and the parameters started from."""
    start = starts_along(protocol, steps, split.restricted, seed, epoch, component)
    for place in range(0, len(split), _BATCH):
        images, parameters = split.images[place : place + _BATCH], start[place : place + _BATCH]
        yield pixels(protocol, images, parameters), images, parameters


def assemble(protocol: Protocol, image_shape: tuple[int, int, int], layers: list) -> keras.Model:
    """Returns the model from images [N, H, W, C] above black and steps [G, *PARAMETER_SHAPE] to images.

    Args:
        protocol: Gives the shape of a parameter.
        image_shape: Height, width and channels.
        layers: One layer that takes all components, or one for each of them.
    """
    shape = get_transform(protocol.transformation).PARAMETER_SHAPE
    images = keras.Input(image_shape, name="images")
    parameters = keras.Input(shape, name="steps")
    outputs = images
    for component, layer in enumerate(layers):
        outputs = layer([outputs, parameters if len(layers) == 1 else parameters[:, component]])
    return keras.Model([images, parameters], outputs, name="imagination")
