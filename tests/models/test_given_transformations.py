"""Networks that are given the transformation: invariance of the group CNN, and where the STN starts from."""

import keras
import numpy as np
import pytest

from tests.backend import array
from tfinv import models
from tfinv.errors import UsageError
from tfinv.models.group_cnn import symmetric_kernel

LABELS = np.array([4, 0, 3], np.int32)


def images_of(size, count=3):
    return np.random.default_rng(size).random((count, size, size, 1), dtype=np.float32)


def randomized(model):
    """Gives the normalisations other statistics than those they start at."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        if "normalization" in weight.path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


@pytest.fixture(autouse=True)
def clear():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()


# Group convolutions


@pytest.mark.parametrize("preset, rotations", [("group_cnn_c8", 8), ("group_cnn_c4", 4)])
def test_group_cnn_has_as_many_maps_as_the_best_cnn_of_the_article(preset, rotations):
    model = models.build("group_cnn", (28, 28, 1), 8, preset)
    maps = [layer.output.shape for layer in model.layers if type(layer).__name__ == "GroupConv2D"]
    expected = [(14, 14, 64), (7, 7, 128), (1, 1, 1024)]
    assert maps == [(None, *size, rotations, total // rotations) for *size, total in expected]


@pytest.mark.parametrize("preset", ["group_cnn_c8", "group_cnn_c4", "quick"])
@pytest.mark.parametrize("size", [28, 17])
def test_group_cnn_gives_turned_images_the_same_scores(preset, size):
    images = images_of(size)
    model = randomized(models.build("group_cnn", (size, size, 1), 5, preset))
    scores = array(model(images)["scores"])
    assert np.abs(scores - scores[::-1]).max() > 1e-3
    for quarters in (1, 2, 3):
        turned = np.rot90(images, quarters, axes=(1, 2)).copy()
        np.testing.assert_allclose(array(model(turned)["scores"]), scores, atol=1e-5)


def test_other_networks_do_not():
    images = images_of(28)
    for name, config in (("cnn", {}), ("group_cnn", dict(num_rotations=1))):
        model = models.build(name, (28, 28, 1), 5, "quick", **config)
        scores = array(model(images)["scores"])
        assert np.abs(array(model(images[:, ::-1, ::-1].copy())["scores"]) - scores).max() > 1e-3


def test_group_cnn_chooses_kernels_that_are_symmetric_on_the_map():
    assert [symmetric_kernel(4, 2, size) for size in (28, 14, 7, 17)] == [4, 4, 5, 5]
    assert [symmetric_kernel(3, 1, size) for size in (28, 7)] == [3, 3]
    assert symmetric_kernel(4, 1, 28) == 5


def test_group_cnn_refuses_strides_that_leave_out_pixels_of_one_side():
    with pytest.raises(UsageError, match="kernel_size"):
        models.build("group_cnn", (28, 28, 1), 5, "quick", kernel_size=2, strides=4)


# The spatial transformer


@pytest.mark.parametrize("transformation", ["affine", "rotation"])
def test_stn_cnn_starts_as_the_network_it_stands_before(transformation):
    images = images_of(28)
    model = randomized(models.build("stn_cnn", (28, 28, 1), 5, "quick", transformation=transformation))
    seen = keras.Model(model.input, model.get_layer("transformer").output)(images)
    np.testing.assert_array_equal(array(seen), images)
    plain = models.build("cnn", (28, 28, 1), 5, "quick")
    plain.set_weights(model.get_weights()[-len(plain.weights) :])
    expected = array(plain(images)["scores"])
    np.testing.assert_allclose(array(model(images)["scores"]), expected, atol=1e-6)


@pytest.mark.parametrize("transformation", ["affine", "rotation"])
def test_stn_cnn_learns_where_to_look_from_the_first_step(transformation):
    model = models.build("stn_cnn", (28, 28, 1), 5, "quick", transformation=transformation)
    objective = models.objective("stn_cnn", model)
    objective.model.compile("sgd", objective.loss, loss_weights=objective.loss_weights)
    inputs, targets = objective.adapt(images_of(28), LABELS)
    objective.model.fit(inputs, targets, verbose=0)
    kernel, bias = model.get_layer("localisation").get_weights()
    assert np.abs(kernel).max() > 0.0 and np.abs(bias).min() > 0.0
