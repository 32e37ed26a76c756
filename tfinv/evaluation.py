"""Measures invariance: accuracy of any classifier under a protocol's transformations."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from rich.progress import track

from tfinv import export
from tfinv.config import check_range
from tfinv.data import (
    Dataset,
    Protocol,
    Split,
    get_protocol,
    load_dataset,
    render,
    sample_parameters,
    seen_in_training,
    select,
)
from tfinv.data.transforms import get_transform
from tfinv.errors import UsageError, reason_of
from tfinv.results import Provenance, to_frame

BATCH_SIZE = 500

Classify = Callable[[tf.Tensor, tf.Tensor], np.ndarray]


def evaluate_invariance(
    model: Any,
    protocol: str | Protocol,
    repeats: int = 20,
    seed: int = 0,
    data: str | Path | Dataset = "mnist",
    limit: int | None = None,
    provenance: Provenance | None = None,
) -> pd.DataFrame:
    """Runs the protocol's tests (Ptest, Pin, Pout, Pinv for rotate-34).

    Args:
        model: A keras.Model, a path of a .keras file or SavedModel folder, or any callable that maps
            images [N, H, W, C] float32 to scores [N, classes] (or a dict with "scores").
        protocol: Name or Protocol.
        repeats: Passes over the test images, each with fresh random parameters.
        seed: Seed of the parameters.
        data: Name, path of an .npz, or Dataset.
        limit: Use at most that many test images.
        provenance: First columns of the rows.

    Returns:
        Tidy rows: for each test the mean accuracy over the passes (metric "Ptest"), its variance
        across passes ("Ptest_variance", NaN for a single pass), and the number of passes ("repeats").

    Raises:
        UsageError: If a name or path is unknown, the protocol is one of generation, or the classes do not fit
            the dataset.
    """
    check_range("repeats", repeats, low=1)
    protocol, split, provenance = _prepare(protocol, data, limit, provenance)
    if not protocol.evaluations:
        raise UsageError(f"Protocol {protocol.name} has no tests of recognition. Expected one that has.")
    classify = _classifier(model, protocol, split)
    rows = [provenance.row("repeats", repeats)]
    passes: dict[str, list[float]] = {name: [] for name in protocol.evaluations}
    for repeat in track(range(repeats), description="Invariance"):
        for index, (name, test) in enumerate(protocol.evaluations.items()):
            part = split if test.classes == "all" else split.only(split.restricted)
            draw = repeat * len(protocol.evaluations) + index
            parameters = sample_parameters(protocol, part.restricted, seed, draw, test.range, "test")
            # No images, no accuracy: a small limit may leave none of a restricted class.
            correct = _predict(classify, part, parameters) == part.labels if len(part) else [np.nan]
            passes[name].append(float(np.mean(correct)))
    for name, test in protocol.evaluations.items():
        variance = np.var(passes[name], ddof=1) if repeats > 1 else np.nan
        rows.append(provenance.row(name, float(np.mean(passes[name])), test.classes))
        rows.append(provenance.row(f"{name}_variance", float(variance), test.classes))
    return to_frame(rows)


def accuracy_curve(
    model: Any,
    protocol: str | Protocol,
    step: float = 5.0,
    data: str | Path | Dataset = "mnist",
    limit: int | None = None,
    provenance: Provenance | None = None,
) -> pd.DataFrame:
    """Measures the accuracy of every class at every parameter of the transformation's grid.

    Args:
        model: As in `evaluate_invariance`.
        protocol: Name or Protocol.
        step: Distance of two grid points, in the unit of the transformation, at least 0.01.
        data: Name, path of an .npz, or Dataset.
        limit: Use at most that many test images.
        provenance: First columns of the rows.

    Returns:
        Tidy rows: metric "accuracy" for each class and parameter, and metric "taken_for:<class>" with
        the share of a restricted class's images that is recognised as <class>.

    Raises:
        UsageError: As `evaluate_invariance`, or if the step is out of its range.
    """
    check_range("step", step, low=0.01)
    protocol, split, provenance = _prepare(protocol, data, limit, provenance)
    classify = _classifier(model, protocol, split)
    transform = get_transform(protocol.transformation)
    grid = transform.grid(step)
    seen = {restricted: seen_in_training(protocol, grid, restricted) for restricted in (False, True)}
    rows = []
    for index, parameter in enumerate(track(grid, description="Accuracy curve")):
        predicted = _predict(classify, split, np.repeat(parameter[np.newaxis], len(split), axis=0))
        scalar = float(np.ravel(parameter)[0])
        for label, name in enumerate(split.class_names):
            mask = split.labels == label
            if not mask.any():
                continue
            restricted = bool(split.restricted[mask][0])
            place = (name, scalar, bool(seen[restricted][index]))
            rows.append(provenance.row("accuracy", float(np.mean(predicted[mask] == label)), *place))
            if restricted:
                shares = np.bincount(predicted[mask], minlength=len(split.class_names)) / mask.sum()
                rows += [
                    provenance.row(f"taken_for:{other}", share, *place)
                    for other, share in zip(split.class_names, shares, strict=False)
                ]
    return to_frame(rows)


def call_model(model: Any, images: tf.Tensor) -> dict[str, Any]:
    """Calls any model on images; returns its outputs with the class scores under "scores".

    Raises:
        UsageError: If the model has several outputs and none is named so.
        ValueError: If an export takes images of another shape.
    """
    if isinstance(model, keras.Model):
        outputs = model(images, training=False)
    elif hasattr(model, "tfinv_signature"):
        name, spec = next(iter(model.tfinv_signature.structured_input_signature[1].items()))
        if not spec.shape.is_compatible_with(images.shape):  # TensorFlow finds out only in some calls
            raise ValueError(f"Expected shape {spec.shape}")
        outputs = model.tfinv_signature(**{name: images})
    else:
        outputs = model(images)
    if not isinstance(outputs, dict):
        return {"scores": outputs}
    if "scores" in outputs:
        return outputs
    if len(outputs) == 1:
        return {"scores": next(iter(outputs.values()))}
    raise UsageError(f'The model has no output "scores". Received: {", ".join(outputs)}')


def _prepare(
    protocol: str | Protocol, data: str | Path | Dataset, limit: int | None, provenance: Provenance | None
) -> tuple[Protocol, Split, Provenance]:
    protocol = get_protocol(protocol)
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    split = select(protocol, dataset, "test", limit=limit)
    return protocol, split, provenance or Provenance("", "", dataset.name, protocol.name, 0, "")


def _classifier(model: Any, protocol: Protocol, split: Split) -> Classify:
    """Returns a function from raw images and parameters to class indices; one graph where possible."""
    if isinstance(model, (str, Path)):
        model = export.load_model(model)

    def classify(images, parameters):
        scores = call_model(model, render(protocol, images, parameters))["scores"]
        return tf.argmax(scores, axis=-1)

    if isinstance(model, keras.Model) or hasattr(model, "tfinv_signature"):
        shape = get_transform(protocol.transformation).PARAMETER_SHAPE
        signature = [
            tf.TensorSpec((None, *split.images.shape[1:]), split.images.dtype),
            tf.TensorSpec((None, *shape), tf.float32),
        ]
        classify = tf.function(classify, input_signature=signature, autograph=False)
    _check_scores(model, protocol, split)
    return lambda images, parameters: np.asarray(classify(images, parameters))


def _check_scores(model: Any, protocol: Protocol, split: Split) -> None:
    parameter = tf.zeros((1, *get_transform(protocol.transformation).PARAMETER_SHAPE))
    images = render(protocol, tf.constant(split.images[:1]), parameter)
    try:
        scores = call_model(model, images)["scores"]
    except UsageError:
        raise
    except Exception as error:
        shape = images.shape
        raise UsageError(f"The model does not accept images of shape {shape}: {reason_of(error)}") from error
    shape = np.shape(scores)
    if len(shape) != 2 or shape[-1] != len(split.class_names):
        raise UsageError(
            f"The model must give one score a class. Expected [N, {len(split.class_names)}] for the "
            f"classes {', '.join(split.class_names)}. Received: scores.shape={tuple(shape)}"
        )


def _predict(classify: Classify, split: Split, parameters) -> np.ndarray:
    parameters = tf.convert_to_tensor(parameters)
    return np.concatenate(list(_predicted_batches(classify, split, parameters)))


def _predicted_batches(classify: Classify, split: Split, parameters: tf.Tensor) -> Iterator[np.ndarray]:
    for start in range(0, len(split), BATCH_SIZE):
        stop = start + BATCH_SIZE
        yield classify(tf.constant(split.images[start:stop]), parameters[start:stop])
