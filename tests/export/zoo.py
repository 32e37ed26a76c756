"""Every model of the zoo, small, with weights and moving statistics as training could have left them."""

import keras
import numpy as np
import tensorflow as tf

from tfinv import models
from tfinv.data import get_protocol

NAMES = ("ant", "bee", "cat")
ROTATE = get_protocol("rotate-49")
SHAPE = (20, 20, 1)


def build(name: str) -> keras.Model:
    presets = models.get_model(name).PRESETS
    preset = "quick" if "quick" in presets else next(iter(presets))
    keras.utils.set_random_seed(0)
    if models.task_of(name) == "recognition":
        model = models.build(name, SHAPE, len(NAMES), preset)
    else:
        model = models.build_generator(name, SHAPE, SHAPE, 2, preset)
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith("variance"):
            weight.assign(random.uniform(0.5, 2.0, weight.shape))
        elif keras.backend.is_float_dtype(weight.dtype):
            weight.assign(weight + random.normal(size=weight.shape).astype(np.float32) * 0.05)
    return model


def is_generator(model: keras.Model) -> bool:
    return isinstance(model.input, dict)


def inputs_for(model: keras.Model, count: int = 6, images: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What the first endpoint of a model takes, by name; random images unless given."""
    random = np.random.default_rng(count)
    images = random.random((count, *SHAPE), dtype=np.float32) if images is None else images[:count]
    if not is_generator(model):
        return {"images": images}
    # One parameter for every three images, where that is possible: networks have to repeat it.
    groups = count // 3 if count % 3 == 0 else count
    return {"image": images, "parameter": random.uniform(-180, 180, groups).astype(np.float32)}


def expected_of(model: keras.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the endpoint should give, from Keras and NumPy alone."""
    if not is_generator(model):
        outputs = {name: np.asarray(value) for name, value in model(inputs["images"]).items()}
        scores = outputs["scores"]
        shares = scores / scores.sum(axis=1, keepdims=True)
        return {**outputs, "probabilities": shares, "class_index": scores.argmax(axis=1)}
    radians = np.radians(inputs["parameter"])
    codes = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    images = tf.constant(inputs["image"] * 2 - 1)
    rendered = np.asarray(model({"image": images, "code": tf.constant(codes)})["image"])
    return {"transformed": np.clip((rendered + 1) / 2, 0, 1)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Requires the same outputs within 1e-5, and that they tell one image from another."""
    assert set(found) - {"class_name"} == set(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5, err_msg=name)
        if len(values) > 1 and name != "class_index":
            assert np.abs(values[0] - values[-1]).max() > 1e-4, f"{name} is the same for all images"
