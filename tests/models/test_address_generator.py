"""The address generator: reads beyond the image, its near codes, and that it learns."""

import keras
import numpy as np
import pytest

from tests.backend import BACKEND, array, gradients, tensor
from tfinv import models
from tfinv.errors import UsageError
from tfinv.models._near_codes import NearCodesError, ReachSchedule, with_distances

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def fresh():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()


def generator(input_shape=(8, 6, 1), output_shape=(14, 12, 1), preset="shift", **config):
    return models.build_generator("address_generator", input_shape, output_shape, 2, preset, **config)


def test_untrained_image_is_in_the_centre_of_a_black_canvas():
    images = RANDOM.uniform(-1, 1, (2, 8, 6, 1)).astype("float32")
    rendered = array(generator()({"image": images, "code": np.ones((1, 2), np.float32)})["image"])
    expected = np.pad(images, [(0, 0), (3, 3), (3, 3), (0, 0)], constant_values=-1.0)
    np.testing.assert_allclose(rendered, expected, atol=1e-5)


def test_addresses_are_affine_in_the_code_and_black_beyond_the_edges():
    model = generator((8, 6, 1), (8, 6, 1))
    kernel = model.get_layer("addresses").layer_weights[-1][0]
    moves = np.zeros((2, 16, 2), np.float32)
    moves[0, :, 0] = 0.3  # with codes seen ten times enlarged: three rows a unit of the first number
    kernel.assign(moves.reshape(kernel.shape))
    images = RANDOM.uniform(-1, 1, (2, 8, 6, 1)).astype("float32")
    codes = np.array([[1.0, 0.5], [-2.0, 0.5]], np.float32)
    rendered = array(model({"image": images, "code": codes})["image"])
    expected = np.full_like(images, -1.0)
    expected[0, :5], expected[1, 6:] = images[0, 3:], images[1, :2]
    np.testing.assert_allclose(rendered, expected, atol=1e-4)


def test_wrong_sizes_are_refused():
    with pytest.raises(UsageError, match=r"Expected 2 numbers.*unchanged=\(1.0,\)"):
        generator(unchanged=(1.0,))
    with pytest.raises(UsageError, match=r"keep channels.*\(8, 6, 3\)"):
        generator((8, 6, 1), (8, 6, 3))


def test_loss_is_the_plain_error_and_its_gradient_that_of_near_codes():
    targets, rendered = RANDOM.normal(size=(2, 4, 3, 3, 2)).astype("float32")
    departures = np.array([[0.3, 0.4], [0.0, 2.0]], np.float32)
    loss = NearCodesError(reach=0.5)
    packed = with_distances(tensor(targets), tensor(departures))
    np.testing.assert_allclose(array(packed)[:, -1, 1, 0], [0.5, 0.5, 2.0, 2.0], rtol=1e-6)
    error = np.mean((rendered - targets) ** 2)
    np.testing.assert_allclose(array(loss(packed, tensor(rendered))), error, rtol=1e-5)
    (found,) = gradients(lambda images: loss(packed, images), rendered)
    weights = np.exp([-0.5, -0.5, -8.0, -8.0]).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(found, weights * 2 * (rendered - targets) / targets.size, rtol=1e-4, atol=1e-7)


class Noted(keras.callbacks.Callback):
    """Notes the reach of each step."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.seen = loss, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(float(array(self.loss.reach.value)))


def reaches(epochs, start=0):
    """The reaches of a fit of four steps an epoch."""
    model = generator((4, 4, 1), (4, 4, 1), grid=(2, 2))
    objective = models.objective("address_generator", model)
    loss = objective.loss["image"]
    noted = Noted(loss)
    model.compile("adam", objective.loss)
    images, codes = np.zeros((8, 4, 4, 1), np.float32), np.zeros((8, 2), np.float32)
    inputs, targets = objective.adapt({"image": images, "code": codes}, {"image": images})
    callbacks = [*objective.callbacks, noted]
    model.fit(inputs, targets, 2, epochs, initial_epoch=start, verbose=0, callbacks=callbacks)
    assert isinstance(callbacks[0], ReachSchedule)
    return noted.seen


@pytest.mark.skipif(BACKEND == "torch", reason="Keras on torch trains too slowly for a test")
def test_reach_grows_and_a_resumed_training_has_that_of_the_uninterrupted_one():
    seen = reaches(5)
    np.testing.assert_allclose(seen, 0.1 * 20.0 ** np.minimum(np.arange(20) / 12, 1.0), rtol=1e-5)
    np.testing.assert_array_equal(reaches(5, 2), seen[8:])


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="torch trains too slowly for a test, and JAX freezes the reach"
)
def test_learns_shifts_wider_than_the_image():
    count, size, widest = 2048, 4, 6
    images = RANDOM.uniform(-1, 1, (count, size, size, 1)).astype("float32")
    shifts = RANDOM.integers(-widest, widest + 1, (count, 2))
    targets = np.full((count, size + 2 * widest, size + 2 * widest, 1), -1.0, np.float32)
    for target, image, (right, down) in zip(targets, images, shifts, strict=True):
        target[widest + down : widest + down + size, widest + right : widest + right + size] = image
    inputs = {"image": images, "code": (shifts / widest).astype("float32")}
    model = generator((size, size, 1), targets.shape[1:])
    objective = models.objective("address_generator", model)
    given, wanted = objective.adapt(inputs, {"image": targets})
    model.compile(keras.optimizers.Adam(0.02), objective.loss)
    model.fit(given, wanted, 64, 12, shuffle=False, verbose=0, callbacks=list(objective.callbacks))
    error = np.mean((model.predict(inputs, verbose=0)["image"] - targets) ** 2)
    untrained = generator((size, size, 1), targets.shape[1:]).predict(inputs, verbose=0)["image"]
    assert error < 0.1 * np.mean((untrained - targets) ** 2)
