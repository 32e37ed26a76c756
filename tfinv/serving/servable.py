"""A loaded SavedModel that answers requests: refuses malformed ones by name, and runs many as one batch."""

import contextlib
import math
import os
import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow as tf

from tfinv import export
from tfinv.config import check_range
from tfinv.errors import UsageError, reason_of

# What a request means that names no signature, the first that there is.
_DEFAULTS = ("serving_default", "classify", "transform", "generate")
# Encoded images decoded at once: a picture of a few kilobytes may unfold to half a gigabyte.
_MAX_DECODING = 2
_MAX_REASON = 300
# What TensorFlow writes around the reason of an error.
_NODE, _ASSERTED = re.compile(r"\{\{[^}]*\}\}"), re.compile(r"assertion failed: \[(.*?)\]")


class RequestError(Exception):
    """A request that gets no answer.

    Args:
        reason: For whoever sent it; made one line and shortened, because it may quote the request.
        kind: "invalid", "unknown" (no such model or signature), "large", or "busy".
    """

    def __init__(self, reason: str, kind: Literal["invalid", "unknown", "large", "busy"] = "invalid"):
        super().__init__(" ".join(reason[:_MAX_REASON].split()))
        self.kind = kind


@dataclass(frozen=True)
class Limits:
    """What one request, and one batch, may cost."""

    max_batch_size: int = 256
    """Images of one request, and of the batch that concurrent requests are gathered into."""
    max_body_bytes: int = 16 * 2**20
    """Bytes of one request."""
    batch_timeout: float = 0.0
    """Seconds that a request waits for others to share its batch, beyond the time that earlier ones take; at
    most an hour."""
    max_waiting: int = 512
    """Requests under way; more are refused at once."""

    def __post_init__(self) -> None:
        check_range("max_batch_size", self.max_batch_size, low=1)
        check_range("max_body_bytes", self.max_body_bytes, low=1)
        check_range("batch_timeout", self.batch_timeout, low=0.0, high=3600.0)
        check_range("max_waiting", self.max_waiting, low=1)


class Servable:
    """A SavedModel.

    Args:
        path: Its folder.
        limits: What is accepted.

    Raises:
        UsageError: If there is no SavedModel with signatures.
    """

    def __init__(self, path: str | Path, limits: Limits | None = None):
        self.limits = limits or Limits()
        try:
            self._module = export.load(path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise UsageError(f"Cannot read a SavedModel from {path}: {reason_of(error)}") from None
        signatures = dict(self._module.signatures)
        if not signatures:
            raise UsageError(f"Nothing to serve: {path} has no signatures.")
        self._signatures = {
            name: _Signature(name, function, self.limits) for name, function in signatures.items()
        }
        self.default = next((name for name in _DEFAULTS if name in signatures), next(iter(signatures)))

    @property
    def signatures(self) -> dict[str, dict[str, dict[str, tf.TensorSpec]]]:
        """Inputs and outputs of each signature."""
        return {
            name: {"inputs": signature.inputs, "outputs": signature.outputs}
            for name, signature in self._signatures.items()
        }

    def inputs(self, signature: str = "") -> dict[str, tf.TensorSpec]:
        """Returns the inputs of a signature, of `default` if not named; raises RequestError if unknown."""
        return self._signature(signature).inputs

    def predict(self, inputs: Mapping[str, np.ndarray], signature: str = "") -> dict[str, np.ndarray]:
        """Returns the outputs of a signature for one request; to be called from many threads.

        Args:
            inputs: Arrays by name, the first axis the images. Text is an array of bytes.
            signature: Its name; the default one if empty.

        Raises:
            RequestError: If there is no such signature, the inputs are not what it takes, or too many wait.
        """
        return self._signature(signature).call(inputs)

    def _signature(self, name: str) -> "_Signature":
        found = self._signatures.get(name or self.default)
        if found is None:
            raise RequestError(
                f"Unknown signature. Expected one of {', '.join(self._signatures)}. Received: {name}",
                "unknown",
            )
        return found


class _Signature:
    """A signature with its checks, batched by TensorFlow's own batching op."""

    def __init__(self, name: str, function, limits: Limits):
        self._name, self._function, self._limits = name, function, limits
        self.inputs: dict[str, tf.TensorSpec] = dict(sorted(function.structured_input_signature[1].items()))
        self.outputs: dict[str, tf.TensorSpec] = dict(function.structured_outputs)
        specs = list(self.inputs.values())
        encoded = any(spec.dtype == tf.string for spec in specs)
        self._turn = threading.Semaphore(_MAX_DECODING) if encoded else contextlib.nullcontext()
        # One image that cannot be decoded would fail the batch, and with it the requests of others.
        self._batches = (
            not encoded and all(map(_in_rows, specs)) and all(map(_has_rows, self.outputs.values()))
        )
        if self._batches:
            self._batched = tf.function(self._gathered(), input_signature=specs, autograph=False)

    def _gathered(self):
        @tf.nondifferentiable_batch_function(
            num_batch_threads=max(os.cpu_count() or 1, 1),
            max_batch_size=self._limits.max_batch_size,
            batch_timeout_micros=int(self._limits.batch_timeout * 1e6),
            max_enqueued_batches=self._limits.max_waiting,
            autograph=False,
        )
        def gathered(*values):
            outputs = self._function(**dict(zip(self.inputs, values, strict=True)))
            return [outputs[name] for name in self.outputs]

        def batched(*values):
            # The op's queue has the name of its scope: without one of its own, other functions share it.
            with tf.name_scope(f"queue_{uuid.uuid4().hex}"):
                return gathered(*values)

        return batched

    def call(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self._checked(inputs)
        sizes = {len(value) for value in values if value.ndim}
        try:
            if self._batches and len(sizes) == 1 and 0 not in sizes:
                found = self._batched(*map(tf.constant, values))
                outputs = dict(zip(self.outputs, found, strict=True))
            else:
                with self._turn:
                    outputs = self._function(
                        **{name: tf.constant(value) for name, value in zip(self.inputs, values, strict=True)}
                    )
        except tf.errors.UnavailableError:
            raise RequestError("Too many requests are waiting; try again later.", "busy") from None
        except tf.errors.InvalidArgumentError as error:  # such as bytes that are no image
            raise RequestError(f"Refused by the model: {_reason(error)}") from None
        return {name: value.numpy() for name, value in outputs.items()}

    def _checked(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if set(inputs) != set(self.inputs):
            raise RequestError(
                f"Invalid inputs of {self._name}. Expected {', '.join(self.inputs)}. "
                f"Received: {', '.join(inputs) or 'nothing'}"
            )
        return [self._value(name, spec, inputs[name]) for name, spec in self.inputs.items()]

    def _value(self, name: str, spec: tf.TensorSpec, value: np.ndarray) -> np.ndarray:
        check_shape(name, spec, value.shape, self._limits)
        if spec.dtype == tf.string:
            if value.size and not all(isinstance(item, bytes) for item in value.ravel()):
                raise RequestError(f"Invalid value for {name}. Expected bytes. Received: {value.dtype}")
            return value
        kinds = (np.bool_,) if spec.dtype == tf.bool else (np.integer, np.floating)
        if not (any(np.issubdtype(value.dtype, kind) for kind in kinds) or value.size == 0):
            raise RequestError(
                f"Invalid value for {name}. Expected {spec.dtype.name}. Received: {value.dtype}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            cast = value.astype(spec.dtype.as_numpy_dtype)
        if not np.isfinite(cast).all():
            raise RequestError(
                f"Invalid value for {name}. Expected finite numbers. Received: NaN or infinity"
            )
        if spec.dtype.is_integer and not np.array_equal(cast, value):
            raise RequestError(
                f"Invalid value for {name}. Expected {spec.dtype.name}. Received: other numbers"
            )
        return cast


def check_shape(name: str, spec: tf.TensorSpec, shape: Sequence[int], limits: Limits) -> None:
    """Raises RequestError unless an array of that shape may be an input; ask before making one."""
    if not spec.shape.is_compatible_with(tf.TensorShape(shape)):
        raise RequestError(
            f"Invalid shape of {name}. Expected {_listed(spec.shape)}. Received: {_listed(shape)}"
        )
    if len(shape) and shape[0] > limits.max_batch_size:
        raise RequestError(
            f"Too many images. Expected at most {limits.max_batch_size} a request. Received: {shape[0]}",
            "large",
        )
    # Sides that the signature leaves open, such as of an image of any size.
    if math.prod(shape) * spec.dtype.size > limits.max_body_bytes * 4:
        raise RequestError(f"{name} is too large. Received: shape {_listed(shape)}", "large")


def _has_rows(spec: tf.TensorSpec) -> bool:
    """Tells values of any number of rows."""
    return bool(spec.shape.rank) and spec.shape[0] is None


def _in_rows(spec: tf.TensorSpec) -> bool:
    """Tells what those of several requests can be joined of: rows of one shape."""
    return _has_rows(spec) and None not in spec.shape[1:]


def _listed(shape) -> str:
    return f"[{', '.join('any' if side is None else str(side) for side in shape)}]"


def _reason(error: tf.errors.OpError) -> str:
    message = error.message or type(error).__name__
    if asserted := _ASSERTED.search(message):
        return asserted[1]
    # Above the reason may be where the graph was made, below are the nodes.
    lines = [line.strip() for line in _NODE.sub("", message.split("[[", 1)[0]).splitlines()]
    return next(filter(None, reversed(lines)), type(error).__name__)[:200]
