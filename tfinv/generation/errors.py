"""Measures how well a generator renders each class at each parameter of a transformation."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from rich.progress import track

from tfinv.data import (
    Dataset,
    Protocol,
    Split,
    get_protocol,
    load_dataset,
    never_seen,
    render,
    scale_pixels,
    seen_in_training,
    select,
)
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError, reason_of
from tfinv.export import is_generator, load_model
from tfinv.results import Provenance, to_frame

BATCH_SIZE = 500


class Renderer:
    """Any generator behind two functions, so that images are encoded once for all parameters.

    Args:
        model: A generator of tfinv.models, a SavedModel of one, or any function that maps images [N, H, W, C]
            in the protocol's pixel range and a code [1, E] to images [N, H', W', C] or a dict with "image";
            under a protocol that asks for upright images, transformed images alone.
        protocol: Gives the transformation and the pixel range.
    """

    def __init__(self, model: Any, protocol: Protocol):
        self._model = model
        self._protocol = protocol
        self._code = get_transform(protocol.transformation).code
        self._parts = None if protocol.upright else _parts_of(model)
        self.traceable = isinstance(model, keras.Model) or hasattr(model, "tfinv_signature")

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Returns what `rendered` needs of images [N, H, W, C] (uint8, or in 0..1): [N, ...]."""
        if self._protocol.upright:  # it is the parameter that makes what the model gets
            return images
        scaled = scale_pixels(self._protocol, images)
        return self._parts[0](scaled, training=False) if self._parts else scaled

    def rendered(self, features: tf.Tensor, parameter: tf.Tensor) -> tf.Tensor:
        """Returns the images [N, H', W', C] under one parameter [*PARAMETER_SHAPE]."""
        if self._protocol.upright:
            inputs = {"image": self.transformed(features, parameter)}
        else:
            inputs = {"image": features, "code": self._code(parameter[tf.newaxis])}
        if self._parts:
            return self._parts[1]({"latent": features, "code": inputs["code"]}, training=False)
        if isinstance(self._model, keras.Model):
            images = self._model(inputs, training=False)
        elif hasattr(self._model, "tfinv_signature"):
            images = self._model.tfinv_signature(**inputs)
        else:
            images = self._model(*inputs.values())
        return images["image"] if isinstance(images, dict) else images

    def transformed(self, images: tf.Tensor, parameter: tf.Tensor) -> tf.Tensor:
        """Returns images [N, H, W, C] (uint8, or in 0..1) transformed by one parameter, [N, H', W', C]."""
        return render(self._protocol, images, tf.repeat(parameter[tf.newaxis], tf.shape(images)[0], axis=0))

    def expected(self, images: tf.Tensor, parameter: tf.Tensor) -> tf.Tensor:
        """Returns what should be rendered of images [N, H, W, C] (uint8, or in 0..1): [N, H', W', C]."""
        if self._protocol.upright:
            return scale_pixels(self._protocol, images)
        return self.transformed(images, parameter)

    def errors(self, images: tf.Tensor, features: tf.Tensor, parameter: tf.Tensor) -> tf.Tensor:
        """Returns the mean squared error over the pixels of each image [N], in the protocol's pixel range."""
        difference = self.rendered(features, parameter) - self.expected(images, parameter)
        return tf.reduce_mean(tf.square(difference), axis=(1, 2, 3))


def _parts_of(model: Any) -> tuple[keras.Model, keras.Model] | None:
    """Returns encoder and decoder of a generator that is nothing but these."""
    if not (isinstance(model, keras.Model) and is_generator(model)):
        return None
    parts = {layer.name: layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)}
    if set(parts) != {"encoder", "decoder"}:
        return None
    inputs = parts["decoder"].input
    if not isinstance(inputs, dict) or set(inputs) != {"latent", "code"}:
        return None
    return parts["encoder"], parts["decoder"]


def evaluate_generation(
    model: Any,
    protocol: str | Protocol,
    step: float | None = None,
    data: str | Path | Dataset = "mnist",
    limit: int | None = None,
    provenance: Provenance | None = None,
) -> pd.DataFrame:
    """Measures the error of every class at every parameter of the transformation's grid.

    Args:
        model: As for `Renderer`, or the path of a .keras file or SavedModel folder.
        protocol: Name or Protocol.
        step: Distance of two grid points, more than 0, in the unit of the transformation; the protocol's own
            if None.
        data: Name, path of an .npz, or Dataset.
        limit: Use at most that many test images.
        provenance: First columns of the rows.

    Returns:
        Tidy rows: what `summarise` makes of the curve, and the curve itself, metric "mse" for each class and
        parameter.

    Raises:
        UsageError: If a name or path is unknown, the step is not positive, or the model does not fit the
            images.
    """
    if step is not None and not step > 0:
        raise UsageError(f"Invalid value for step. Expected more than 0. Received: {step}")
    protocol = get_protocol(protocol)
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    split = select(protocol, dataset, "test", limit=limit)
    provenance = provenance or Provenance("", "", dataset.name, protocol.name, 0, "")
    renderer = Renderer(load_model(model) if isinstance(model, (str, Path)) else model, protocol)
    _check_renderer(renderer, protocol, split)
    transform = get_transform(protocol.transformation)
    grid = transform.grid(step or protocol.grid_step)
    errors = _sweep(renderer, split, grid)
    rows = []
    for label, name in enumerate(split.class_names):
        mask = split.labels == label
        if not mask.any():
            continue
        seen = seen_in_training(protocol, grid, bool(split.restricted[mask][0]))
        means = errors[:, mask].mean(axis=1, dtype=np.float64)
        for parameter, mean, inside in zip(grid, means, seen, strict=True):
            scalar = float(np.ravel(parameter)[0])
            rows.append(provenance.row("mse", float(mean), name, scalar, bool(inside)))
    curve = to_frame(rows)
    return pd.concat([summarise(curve, protocol, grid, provenance), curve], ignore_index=True)


def _sweep(renderer: Renderer, split: Split, grid: np.ndarray) -> np.ndarray:
    """Returns the error of each image at each parameter [M, N]."""
    table, errors = np.empty((len(grid), len(split)), np.float32), renderer.errors
    # Batch by batch, so that no more images and features than that are in memory.
    for start in track(range(0, len(split), BATCH_SIZE), description="Errors"):
        images = tf.constant(split.images[start : start + BATCH_SIZE])
        batch = (images, renderer.features(images))
        if not start and renderer.traceable:  # one graph for all; another function may be NumPy's
            signature = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in batch]
            signature.append(tf.TensorSpec(grid.shape[1:], tf.float32))
            errors = tf.function(errors, input_signature=signature, autograph=False)
        for row, parameter in zip(table, grid, strict=True):
            row[start : start + BATCH_SIZE] = errors(*batch, tf.constant(parameter))
    return table


def _check_renderer(renderer: Renderer, protocol: Protocol, split: Split) -> None:
    images = tf.constant(split.images[:1])
    parameter = tf.zeros(get_transform(protocol.transformation).PARAMETER_SHAPE)
    try:
        shape = tuple(renderer.rendered(renderer.features(images), parameter).shape)
    except Exception as error:
        raise UsageError(
            f"The model does not render images of shape {images.shape} under {protocol.name}: "
            f"{reason_of(error)}"
        ) from error
    expected = (1, *protocol.output_shape(images.shape[1:]))
    if shape != expected:
        raise UsageError(
            f"The model renders images of another size than protocol {protocol.name}. "
            f"Expected {expected}. Received: {shape}"
        )


def summarise(
    curve: pd.DataFrame, protocol: Protocol, grid: np.ndarray, provenance: Provenance
) -> pd.DataFrame:
    """Averages the errors of each class over parameters that blur alike (see tfinv.data.transforms).

    Args:
        curve: Rows of the metric "mse", for each class all of `grid` in its order.
        protocol: Gives the ranges.
        grid: Parameters of the sweep [M, *PARAMETER_SHAPE].
        provenance: First columns of the rows.

    Returns:
        Tidy rows for each class: "inside_mse" within its training range; for restricted ones "outside_mse"
        outside it and "outside_inside_ratio", of errors that count at least as much as `resolution`, below
        which they are rounding; "held_out_mse" where no class was ever shown, which counts as neither, if
        there is such a range. NaN where the sweep has no such parameter.
    """
    comparable = get_transform(protocol.transformation).comparable(grid)
    held_out = never_seen(protocol, grid)
    restricted = set(map(str, protocol.restricted_classes))
    rows = []
    for label, part in curve.groupby("label", sort=False):
        errors, seen = part.value.to_numpy(), part.in_training_range.to_numpy(bool)
        means = {"inside_mse": _mean(errors[seen & comparable])}
        if label in restricted:
            means["outside_mse"] = _mean(errors[~seen & ~held_out & comparable])
            least = resolution(protocol)
            outside, inside = (np.maximum(means[f"{place}_mse"], least) for place in ("outside", "inside"))
            means["outside_inside_ratio"] = float(outside / inside)
        if protocol.held_out is not None:
            means["held_out_mse"] = _mean(errors[held_out & comparable])
        rows += [provenance.row(metric, value, str(label)) for metric, value in means.items()]
    return to_frame(rows)


def resolution(protocol: Protocol) -> float:
    """Returns the mean squared error of rounding pixels to the 256 levels that images are stored in."""
    black, white = protocol.pixel_range
    return ((white - black) / 255.0) ** 2 / 12.0


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
