"""Copies of a model that compute the same elsewhere: in float32, by the implementation that is asked for."""

from collections.abc import Callable
from typing import Any

import keras

from tfinv.errors import UsageError, reason_of

_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def portable(model: keras.Model, implementation: str = "reference") -> keras.Model:
    """Returns a model with the same weights that computes in float32 and routes by one implementation.

    Args:
        model: Any functional or sequential model.
        implementation: "reference", which needs TensorFlow only, or "fused".

    Returns:
        A copy, or `model` itself if nothing is to be changed.

    Raises:
        UsageError: If something is to be changed, and the network has layers that cannot be made anew.
    """

    def change(values, of_tfinv):
        return _single(_implemented(values, of_tfinv, implementation))

    return _copied(functional(model), change)


def with_implementation(model: keras.Model, implementation: str) -> keras.Model:
    """Returns a model with the same weights whose tfinv layers run one implementation; as `portable`."""
    return _copied(model, lambda values, of_tfinv: _implemented(values, of_tfinv, implementation))


def functional(model: keras.Model) -> keras.Model:
    """Returns a sequential model as a functional one, which knows its inputs also when it was just loaded."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs[0], name=model.name)
    return model


def chooses_implementation(model: keras.Model) -> bool:
    """Tells whether any layer of a model has more than one implementation."""
    found = []

    def look(values, of_tfinv):
        found.append(of_tfinv and "implementation" in values)
        return values

    _changed(model.get_config(), look)
    return any(found)


def _copied(model: keras.Model, change: Callable) -> keras.Model:
    """Returns a model made from a changed configuration, or `model` itself if that changes nothing."""
    config = model.get_config()
    changed = _changed(config, change)
    if changed == config:
        return model
    try:
        copy = model.__class__.from_config(changed)
    except (TypeError, ValueError) as error:
        raise UsageError(
            "Of this network no copy can be made that computes the same elsewhere. Expected layers that are "
            f"registered (keras.saving.register_keras_serializable) and no Lambda. {reason_of(error)}"
        ) from error
    copy.set_weights(model.get_weights())
    return copy


def _changed(config: Any, change: Callable, of_tfinv: bool = False) -> Any:
    """Returns a configuration with each of its dicts changed, told whether it is a tfinv layer's own."""
    if isinstance(config, dict):
        here = str(config.get("registered_name")).startswith("tfinv>")
        parts = {key: _changed(value, change, here and key == "config") for key, value in config.items()}
        return change(parts, of_tfinv)
    if isinstance(config, list | tuple):
        return type(config)(_changed(value, change) for value in config)
    return config


def _implemented(values: dict[str, Any], of_tfinv: bool, implementation: str) -> dict[str, Any]:
    if of_tfinv and "implementation" in values:
        return values | {"implementation": implementation}
    return values


def _single(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration of a layer, policy or tensor in float32 in place of half precision."""
    for key in ("dtype", "name") if values.keys() == {"name"} else ("dtype",):
        name = values.get(key)
        if isinstance(name, str) and (
            name in _OTHER_FLOATS or name in {f"mixed_{half}" for half in _OTHER_FLOATS}
        ):
            return values | {key: "float32"}
    return values
