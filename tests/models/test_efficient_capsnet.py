"""Efficient-CapsNet: the sizes of the paper, its objective, and that it learns."""

import keras
import numpy as np
import pytest

from tests.backend import array
from tfinv import models
from tfinv.errors import UsageError

IMAGES = np.random.default_rng(0).random((4, 15, 13, 1), dtype=np.float32)


def tiny(**config):
    """A network of two primary capsules for images of 15x13 and five classes."""
    keras.utils.set_random_seed(0)
    sizes = dict(filters=(4, 8), kernel_sizes=(5, 3), strides=(1, 2), primary_pose_dim=4, decoder_units=(16,))
    return models.build("efficient_capsnet", IMAGES.shape[1:], 5, **{**sizes, **config})


@pytest.fixture(autouse=True)
def clear():
    yield
    keras.backend.clear_session()


def count(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


# Architecture


def test_has_the_parameters_of_the_paper():
    model = models.build("efficient_capsnet", (28, 28, 1), 10, decoder_units=())
    # Four convolutions with bias, scale and shift behind each; 9x9 kernels with bias; matrices and priors.
    convolutions = (25 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64 + (9 * 64 + 1) * 128
    by_hand = convolutions + 2 * (32 + 64 + 64 + 128) + (81 + 1) * 128 + 160 * (8 * 16 + 1)
    assert count(model.trainable_weights) == by_hand == 161_824
    assert count(model.non_trainable_weights) == 2 * (32 + 64 + 64 + 128)  # means and variances


def test_maps_collapse_to_sixteen_capsules():
    model = models.build("efficient_capsnet", (28, 28, 1), 10, "efficient_capsnet")
    shapes = {layer.name: layer.output.shape[1:] for layer in model.layers if hasattr(layer, "output")}
    for number, shape in enumerate([(24, 24, 32), (22, 22, 64), (20, 20, 64), (9, 9, 128)], start=1):
        assert shapes[f"convolution_{number}"] == shapes[f"normalization_{number}"] == shape
        convolution = model.get_layer(f"convolution_{number}")
        assert convolution.activation is keras.activations.relu and convolution.padding == "valid"
    assert shapes["primary_capsules"] == (16, 8) and shapes["class_capsules"] == (10, 16)
    assert model.get_layer("decoder").count_params() == 161 * 512 + 513 * 1024 + 1025 * 784


@pytest.mark.parametrize("field", ["kernel_sizes", "strides"])
def test_tuples_that_do_not_fit_are_refused(field):
    with pytest.raises(UsageError, match=rf"{field}.*2 convolutions.*{field}=\(1,\)"):
        tiny(**{field: (1,)})


# Objective


def test_objective_is_the_margin_and_the_image_decoded_from_the_capsule_of_the_label():
    model = tiny()
    objective = models.objective("efficient_capsnet", model)
    assert {name: type(loss).__name__ for name, loss in objective.loss.items()} == {
        "scores": "MarginLoss",
        "reconstruction": "MeanSquaredError",
    }
    assert objective.loss_weights == {"scores": 1.0, "reconstruction": 0.392}
    labels = np.array([4, 0, 2, 1], np.int32)
    inputs, targets = objective.adapt(IMAGES, labels)
    poses = array(keras.Model(model.input, model.get_layer("class_capsules").output)(IMAGES))
    masked = np.zeros_like(poses)
    masked[np.arange(4), labels] = poses[np.arange(4), labels]
    outputs = objective.model(inputs)
    expected = array(model.get_layer("decoder")(masked.reshape(4, -1)))
    np.testing.assert_allclose(array(outputs["reconstruction"]), expected, atol=1e-6)
    np.testing.assert_allclose(array(outputs["scores"]), np.linalg.norm(poses, axis=-1), atol=1e-6)
    assert targets["scores"] is labels and targets["reconstruction"] is IMAGES


# Training


def test_learns_a_few_patterns():
    random = np.random.default_rng(1)
    labels = np.arange(60) % 5
    patterns = random.integers(0, 2, (5, 15, 13, 1))[labels].astype("float32")
    images = np.clip(patterns + random.normal(size=patterns.shape) * 0.1, 0.0, 1.0).astype("float32")
    model = tiny(decoder_units=())
    objective = models.objective("efficient_capsnet", model)
    objective.model.compile(
        keras.optimizers.Adam(0.01), loss=objective.loss, loss_weights=objective.loss_weights
    )
    inputs, targets = objective.adapt(images, labels.astype("int32"))
    loss = objective.model.fit(inputs, targets, batch_size=20, epochs=8, verbose=0).history["loss"]
    assert loss[-1] < 0.3 * loss[0]
    # The routing learned, too: its priors started at zero.
    assert np.abs(array(model.get_layer("class_capsules").bias)).min() > 1e-4
    # By the statistics of the batch: their moving means lag behind 24 steps.
    scores = array(model(images, training=True)["scores"])
    assert np.mean(scores.argmax(axis=1) == labels) > 0.9
