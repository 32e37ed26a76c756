"""An address field from pairs: started from what linear operators imply, then fitted by gradients."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfinv.config import ImaginationConfig
from tfinv.data import Protocol, Split, render, sample_parameters
from tfinv.data.transforms import get_transform
from tfinv.imagination.pairs import Steps, direction, free_images, starts, steps_of
from tfinv.layers import AddressField, LinearOperators

BATCH_SIZE = 64
_LEARNING_RATE = 0.01
# A cell is read from four neighbours, which lie within this many cells of the largest weight.
_NEIGHBOURHOOD = 2
# Weight of the field's bends against the operators' addresses: a cell that is dark in most images, of which
# operators tell little, follows its neighbours.
_STIFFNESS = 1e-3


def learn_address_field(
    protocol: Protocol,
    split: Split,
    config: ImaginationConfig,
    operators: list[LinearOperators],
    seed: int = 0,
) -> AddressField:
    """Learns an address field from pairs of images of the free classes, for continuous parameters.

    Args:
        protocol: Says which classes are free.
        split: Training images; those of restricted classes are not looked at.
        config: Number of gradient steps, and of the classes.
        operators: What `learn_operators` learned from the same images.
        seed: Seed of pairs, starts and steps.

    Returns:
        The layer; its parameter is a step, as that of the operators.

    Raises:
        UsageError: If the classes or the protocol do not allow it.
    """
    steps = steps_of(protocol, config)
    train, _ = free_images(split, config, seed)
    field = start_address_field(protocol, steps, operators, split.images.shape[1:])
    _fit(protocol, steps, field, train, config.address_steps, seed)
    return field


def start_address_field(
    protocol: Protocol,
    steps: Steps,
    operators: list[LinearOperators],
    image_shape: tuple[int, int, int],
    stiffness: float = _STIFFNESS,
) -> AddressField:
    """Makes the address field that is closest to the addresses the operators read.

    Args:
        protocol: Gives the shape of a parameter.
        steps: What the field covers.
        operators: Operators of each component.
        image_shape: Height, width and channels.
        stiffness: Weight of the field's bends against the operators' addresses.
    """
    transform = get_transform(protocol.transformation)
    shape = transform.PARAMETER_SHAPE
    with tf.device("CPU:0"):  # where the input pipeline runs
        field = AddressField(
            # Of less than a turn, too: addresses are affine in cosine and sine of an angle, not in the angle.
            period=transform.PERIOD if shape == () else None,
            scale=max(abs(steps.range.low), abs(steps.range.high)),
        )
        field.build([(None, *image_shape), (None, *shape)])
    size = image_shape[:2]
    codes, addresses, weights = [], [], []
    for component, layer in enumerate(operators):
        moves = layer.low + layer.step_size * np.arange(layer.num_steps)
        parameters = np.stack([move * direction(protocol, component) for move in moves]).astype(np.float32)
        codes.append(np.asarray(field.codes(parameters)))
        kernel = layer.kernel.numpy()
        read = [_centroids(operator.T, *size) for operator in kernel]
        addresses.append(np.stack([places for places, _ in read]))
        weights.append(np.stack([share for _, share in read]))
    code = np.concatenate(codes)
    code = np.concatenate([code, np.ones((len(code), 1))], axis=1)  # [S, F], F = E + 1; the last is the bias
    weight = np.concatenate(weights)  # [S, P]
    places = np.concatenate(addresses) - np.asarray(field.initial_addresses(size))  # [S, P, 2]
    count = code.shape[1]
    normal = np.einsum("pq,ef->peqf", stiffness * len(code) * bending(*size), np.eye(count))
    cells = np.arange(weight.shape[1])
    normal[cells, :, cells, :] += np.einsum("se,sp,sf->pef", code, weight, code)
    target = np.einsum("se,sp,spa->pea", code, weight, places)
    solution = np.linalg.solve(normal.reshape(target[..., 0].size, -1), target.reshape(-1, 2))
    values = solution.reshape(len(cells), count, 2).swapaxes(0, 1).reshape(count, -1)  # [F, P * 2]
    kernel, bias = field.layer_weights[-1]
    kernel.assign(values[:-1])
    bias.assign(values[-1])
    return field


def bending(height: int, width: int) -> np.ndarray:
    """Quadratic form [P, P] of the squared second differences of a field on a grid."""
    rows, columns = (np.diff(np.eye(size), axis=0) for size in (height, width))
    along = [
        np.kron(np.diff(rows, axis=0), np.eye(width)),
        np.kron(np.eye(height), np.diff(columns, axis=0)),
        np.sqrt(2.0) * np.kron(rows, columns),
    ]
    # A little of the field itself, for where a map of constant images tells nothing at all.
    return sum((form.T @ form for form in along), 1e-6 * np.eye(height * width))


def _centroids(operator: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each output cell of an operator [P, P] is read from [P, 2], and how sure that is [P], 0..1."""
    rows, columns = np.divmod(np.arange(height * width), width)
    peak = np.argmax(operator, axis=1)
    near = (np.abs(rows - rows[peak, np.newaxis]) <= _NEIGHBOURHOOD) & (
        np.abs(columns - columns[peak, np.newaxis]) <= _NEIGHBOURHOOD
    )
    weights = np.where(near, np.maximum(operator, 0.0), 0.0)
    total = np.maximum(weights.sum(axis=1), 1e-6)
    places = np.stack([weights @ rows, weights @ columns], axis=-1) / total[:, np.newaxis]
    # Of a cell that is read from the map, the weights sum to one, and there are no others.
    scattered = np.abs(operator).sum(axis=1)
    return places, np.where(total > 0.5, np.minimum(total / np.maximum(scattered, 1e-6), 1.0), 0.0) ** 2


def descend(
    field: AddressField, loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], count: int, seed: int
) -> None:
    """Lowers a loss by steps of Adam, with a rate that falls to zero.

    Args:
        field: Its weights are changed.
        loss: From the key [2] of a step's random numbers and the number of the step, int64.
        count: Number of steps.
        seed: Seed of the keys.
    """
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, max(count, 1)), beta_2=0.99
    )
    variables = field.trainable_variables
    optimizer.build(variables)

    @tf.function(autograph=False, reduce_retracing=True)
    def step(number):
        with tf.GradientTape() as tape:
            value = loss(tf.stack([tf.constant(seed, tf.int64), number]), number)
        optimizer.apply(tape.gradient(value, variables), variables)

    for number in range(count):
        step(tf.constant(number, tf.int64))


def _fit(protocol: Protocol, steps: Steps, field: AddressField, train: Split, count: int, seed: int) -> None:
    """Gradient descent on the squared difference of pairs, with steps of any size."""
    pictures, black = tf.constant(train.images), protocol.pixel_range[0]
    same = np.zeros(BATCH_SIZE, bool)

    def loss(key, number):
        chosen = tf.random.stateless_uniform((BATCH_SIZE,), key, maxval=len(train), dtype=tf.int32)
        images = tf.gather(pictures, chosen)
        start = starts(protocol, steps, same, seed, -1 - number, "pairs")
        move = sample_parameters(protocol, same, seed, -1 - number, steps.range, "steps")
        first = render(protocol, images, start) - black
        second = render(protocol, images, start + move) - black
        return tf.reduce_mean((field([first, move]) - second) ** 2)

    descend(field, loss, count, seed)
