"""A transformation learned from images of the free classes alone: no pairs, no parameters.

Operators follow from moments (`tfinv.imagination.moments`). They know only the principal components they were
found in, so that images lose what is fine. An address field that does the same in these components, and bends
little, keeps it.
"""

import numpy as np
import tensorflow as tf

from tfinv.config import ImaginationConfig
from tfinv.data import Protocol, Split, render, sample_parameters
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError
from tfinv.imagination.address import BATCH_SIZE, bending, descend, start_address_field
from tfinv.imagination.moments import fit_generator, measure_moments, operators_of
from tfinv.imagination.pairs import free_images, steps_of
from tfinv.layers import AddressField, LinearOperators

# Images that share a step, and so one read of its operator.
_GROUP = 8
# Weights of the field's bends. Much larger than with pairs: components say nothing of single cells.
_STIFFNESS_OF_START = 3.0
_STIFFNESS = 0.1


def check_unpaired(protocol: Protocol, split: Split, config: ImaginationConfig) -> None:
    """Raises UsageError unless free classes are shown under a whole period of one parameter."""
    transform = get_transform(protocol.transformation)
    whole = transform.PERIOD is not None and protocol.free.high - protocol.free.low == transform.PERIOD
    if not whole or transform.PARAMETER_SHAPE != ():
        raise UsageError(
            "Only a transformation of one parameter, whose whole period the free classes are shown under, "
            f"can be learned from moments. Expected learned_from=pairs for protocol {protocol.name}. "
            "Received: learned_from=moments"
        )
    pixels = int(np.prod(split.images.shape[1:3]))
    if config.moment_components > pixels:
        raise UsageError(
            f"Invalid value for moment_components. Expected at most {pixels}, the number of pixels. "
            f"Received: moment_components={config.moment_components}"
        )


def learn_operators_unpaired(
    protocol: Protocol, split: Split, config: ImaginationConfig, seed: int = 0
) -> list[LinearOperators]:
    """Learns linear operators from the moments of images of the free classes.

    Args:
        protocol: Says which classes are free.
        split: Training images; those of restricted classes are not looked at.
        config: Number of steps, components, passes and classes.
        seed: Seed of classes and parameters.

    Returns:
        A single layer. Its direction is that of the transformation or the opposite one, which moments do not
        tell.

    Raises:
        UsageError: If the classes or the protocol do not allow it, or the moments do not turn.
    """
    check_unpaired(protocol, split, config)
    steps = steps_of(protocol, config)
    train, _ = free_images(split, config, seed)
    moments = measure_moments(protocol, train, config, seed)
    operators = operators_of(fit_generator(moments), moments, config.operator_steps)
    with tf.device("CPU:0"):  # where the input pipeline runs
        layer = LinearOperators(config.operator_steps, steps.range.low, steps.range.high, name="operators_0")
        layer.build([(None, *split.images.shape[1:]), (None,)])
    layer.kernel.assign(operators)
    return [layer]


def learn_address_field_unpaired(
    protocol: Protocol,
    split: Split,
    config: ImaginationConfig,
    operators: list[LinearOperators],
    seed: int = 0,
) -> AddressField:
    """Learns the address field that does in the operators' components what the operators do.

    Args:
        protocol: Says which classes are free.
        split: Training images; those of restricted classes are not looked at.
        config: Number of gradient steps, and of the classes.
        operators: What `learn_operators_unpaired` learned.
        seed: Seed of images, parameters and steps.

    Returns:
        The layer; its parameter is a step, as that of the operators.
    """
    train, _ = free_images(split, config, seed)
    (layer,) = operators
    field = start_address_field(
        protocol, steps_of(protocol, config), operators, split.images.shape[1:], _STIFFNESS_OF_START
    )
    pictures, black = tf.constant(train.images), protocol.pixel_range[0]
    bends = tf.constant(bending(*split.images.shape[1:3]), tf.float32)
    kernel, bias = field.layer_weights[-1]
    identity = tf.zeros((1,))

    def loss(key, number):
        chosen = tf.random.stateless_uniform((BATCH_SIZE,), key, maxval=len(train), dtype=tf.int32)
        turns = sample_parameters(protocol, np.zeros(BATCH_SIZE, bool), seed, -1 - number, stream="pairs")
        images = render(protocol, tf.gather(pictures, chosen), turns) - black
        numbers = tf.random.stateless_uniform(
            (BATCH_SIZE // _GROUP,), key + 1, maxval=layer.num_steps, dtype=tf.int32
        )
        steps = layer.low + layer.step_size * tf.cast(numbers, tf.float32)
        # No step at all projects an image on the components.
        agreement = tf.reduce_mean((layer([field([images, steps]), identity]) - layer([images, steps])) ** 2)
        stillness = tf.reduce_mean((field([images, identity]) - images) ** 2)
        coefficients = tf.concat([kernel, bias[tf.newaxis]], axis=0)
        coefficients = tf.reshape(coefficients, (coefficients.shape[0], -1, 2))
        bent = tf.einsum("epa,pq,eqa->", coefficients, bends, coefficients)
        return agreement + stillness + _STIFFNESS * bent / float(np.prod(coefficients.shape))

    descend(field, loss, config.address_steps, seed)
    return field
