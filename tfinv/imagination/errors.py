"""How far a learned transformation is from the true one; an analysis, on which no choice is based."""

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from tfinv.data import Protocol, Split, render, seen_in_training
from tfinv.data.transforms import get_transform
from tfinv.imagination.pairs import Steps
from tfinv.imagination.stream import render_learned
from tfinv.results import Provenance, to_frame

# Images that tell which of two directions is meant.
_JUDGES = 200


def nearer_direction(model: keras.Model, protocol: Protocol, split: Split) -> keras.Model:
    """Returns a transformation learned without pairs, or its reverse if that is nearer to the true one.

    Moments do not tell which of the two directions is positive; to compare, one has to choose.

    Args:
        model: Learned transformation.
        protocol: Gives the transformation and the ranges.
        split: Images.
    """
    images, steps = model.inputs
    reverse = keras.Model([images, steps], model([images, -steps]), name=model.name)
    angle = (protocol.free.high - protocol.free.low) / 6
    some = split.only(np.arange(len(split)) < _JUDGES)
    pictures, parameter = tf.constant(some.images[:]), tf.constant([angle])
    upright = render(protocol, pictures, tf.zeros(len(some)))
    true = render(protocol, pictures, tf.repeat(parameter, len(some)))

    def distance(candidate: keras.Model) -> float:
        return float(tf.reduce_sum((render_learned(candidate, protocol, upright, parameter) - true) ** 2))

    return min((model, reverse), key=distance)


def relative_errors(
    model: keras.Model,
    protocol: Protocol,
    split: Split,
    step: float,
    limit: int | None = 500,
    provenance: Provenance | None = None,
    steps: Steps | None = None,
) -> pd.DataFrame:
    """Compares imagined images with truly transformed ones, for each class and parameter.

    This does what training must not: it looks at restricted classes beyond their range.

    Args:
        model: Learned transformation.
        protocol: Gives the transformation and the ranges.
        split: Images to transform, untransformed themselves; not those that were learned from.
        step: Distance of two parameters of the transformation's grid, in its unit. Those outside the free
            range are left out: they were not learned.
        limit: Images a class, at most.
        provenance: First columns of the rows.
        steps: What the model learned, beyond which nothing is compared; all of the free range if not given.

    Returns:
        Tidy rows of the metric "relative_error": the sum of squared differences of pixels over the sum of
        squares of the true pixels (above black).
    """
    provenance = provenance or Provenance("", "imagination", "", protocol.name, 0, "")
    transform = get_transform(protocol.transformation)
    grid = transform.grid(step)
    free, restricted = (seen_in_training(protocol, grid, restricted) for restricted in (False, True))
    identity = tf.zeros((1, *transform.PARAMETER_SHAPE))
    rows = []
    for label, name in enumerate(split.class_names):
        part = split.only(split.labels == label)
        images = tf.constant(part.images[:limit])
        if not len(part):
            continue
        upright = render(protocol, images, tf.repeat(identity, len(images), axis=0))
        for index in np.flatnonzero(free if steps is None else free & steps.covers(grid)):
            parameter = tf.constant(grid[index : index + 1])
            true = render(protocol, images, tf.repeat(parameter, len(images), axis=0))
            difference = render_learned(model, protocol, upright, parameter) - true
            energy = tf.reduce_sum((true - protocol.pixel_range[0]) ** 2)
            seen = bool((restricted if part.restricted[0] else free)[index])
            value = float(tf.reduce_sum(difference**2) / energy)
            rows.append(provenance.row("relative_error", value, name, float(np.ravel(grid[index])[0]), seen))
    return to_frame(rows)
