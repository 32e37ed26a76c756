"""TensorFlow Serving's JSON: "instances" by row or "inputs" by name, to arrays, and outputs back.

Reference:
    TensorFlow Serving, "RESTful API".
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfinv.serving.servable import RequestError, Servable


def parse(body: bytes) -> dict[str, Any]:
    """Returns a request's object; raises RequestError if it is none."""
    try:
        request = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is no JSON: {str(error)[:200]}") from None
    if not isinstance(request, dict):
        raise RequestError(f"Invalid body. Expected an object. Received: {type(request).__name__}")
    if ("instances" in request) == ("inputs" in request):
        raise RequestError('Invalid body. Expected either "instances" or "inputs".')
    if not isinstance(request.get("signature_name", ""), str):
        raise RequestError("Invalid value for signature_name. Expected a text.")
    return request


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number of JSON")


def arrays(request: Mapping[str, Any], servable: Servable) -> dict[str, np.ndarray]:
    """Returns the inputs of a request that `parse` accepted; raises RequestError if they do not fit."""
    specs = servable.inputs(request.get("signature_name", ""))
    columns = request["inputs"] if "inputs" in request else _columns(request["instances"], specs)
    if not _is_named(columns, specs):
        if len(specs) != 1:
            raise RequestError(f"Invalid inputs. Expected an object with {', '.join(specs)}.")
        columns = {next(iter(specs)): columns}
    # An unknown name is refused later, with those that are known.
    return {name: _array(name, values, specs.get(name)) for name, values in columns.items()}


def _columns(instances: Any, specs: Mapping[str, tf.TensorSpec]) -> Any:
    """Returns instances as lists by name, or as they are if each is the only input itself."""
    if not isinstance(instances, list):
        raise RequestError(f"Invalid instances. Expected a list. Received: {type(instances).__name__}")
    if not instances or not all(_is_named(instance, specs) for instance in instances):
        return instances
    names = list(instances[0])
    if any(instance.keys() != instances[0].keys() for instance in instances):
        raise RequestError("Invalid instances. Expected the same names in each.")
    return {name: [instance[name] for instance in instances] for name in names}


def _is_named(value: Any, specs: Mapping[str, tf.TensorSpec]) -> bool:
    """Tells an object of inputs from one of base64, which stands for bytes."""
    return isinstance(value, dict) and (set(value) != {"b64"} or "b64" in specs)


def _array(name: str, values: Any, spec: tf.TensorSpec | None) -> np.ndarray:
    if spec is not None and spec.dtype == tf.string:
        return np.array(_decoded(name, values), dtype=object)
    _check_numbers(name, values)
    try:
        array = np.asarray(values)
    except ValueError:
        raise RequestError(f"Invalid value for {name}. Expected lists of equal lengths.") from None
    if spec is not None and array.size == 0 and array.ndim == 1:  # no images
        array = np.zeros((0, *[side or 0 for side in spec.shape[1:]]))
    return array


def _check_numbers(name: str, values: Any) -> None:
    """Raises RequestError unless values are numbers in lists; NumPy makes texts as long as the longest."""
    kinds = set(map(type, values)) if isinstance(values, list) else {type(values)}
    if kinds <= {int, float, bool}:
        return
    if kinds - {int, float, bool, list}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds - {int, float, bool, list}))
        raise RequestError(f"Invalid value for {name}. Expected numbers. Received: {found}")
    for value in values:
        _check_numbers(name, value)


def _decoded(name: str, values: Any) -> Any:
    if isinstance(values, list):
        return [_decoded(name, value) for value in values]
    if isinstance(values, dict) and set(values) == {"b64"} and isinstance(values["b64"], str):
        try:
            return base64.b64decode(values["b64"], validate=True)
        except ValueError as error:  # also of letters that are none of ASCII
            raise RequestError(f"Invalid value for {name}. Expected base64: {error}") from None
    raise RequestError(f'Invalid value for {name}. Expected {{"b64": text}} for bytes.')


def response(outputs: Mapping[str, np.ndarray], rows: bool) -> dict[str, Any]:
    """Returns the object that answers a request in "instances" (`rows`) or in "inputs".

    Raises:
        RequestError: If the outputs are not in rows and shall be.
    """
    if rows and (not all(map(np.ndim, outputs.values())) or len(set(map(len, outputs.values()))) != 1):
        raise RequestError('The outputs are not a row an instance. Expected "inputs" for this signature.')
    columns = {name: _listed(values) for name, values in outputs.items()}
    if not rows:
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {
        "predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    }


def _listed(values: np.ndarray) -> Any:
    if values.dtype != object:
        return values.tolist()
    return [_listed(item) if isinstance(item, np.ndarray) else _text(item) for item in values]


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:  # an image, say
        return {"b64": base64.b64encode(value).decode()}
