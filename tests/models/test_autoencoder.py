"""The article's autoencoder: its layers and their sizes, its training, and that it learns."""

import keras
import numpy as np
import pytest

from tests.backend import array
from tfinv import models
from tfinv.errors import UsageError

# Convolutions 4x4 with bias to 64 and 128 maps, 7x7 of which are left; 1024 units; 10 numbers.
ENCODER = 17 * 64 + (16 * 64 + 1) * 128 + (7 * 7 * 128 + 1) * 1024 + 1025 * 10


@pytest.fixture(autouse=True)
def clear():
    yield
    keras.backend.clear_session()


@pytest.mark.parametrize("side, cells, filters", [(28, 7, (128, 64)), (68, 17, (256, 128))])
def test_layers_are_the_articles(side, cells, filters):
    model = models.build_generator("autoencoder", (28, 28, 1), (side, side, 1), 2, "article")
    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")
    assert encoder.count_params() == ENCODER == 6_566_090
    wide, narrow = filters
    by_hand = (10 + 2 + 1) * 1024 + 1025 * cells * cells * wide + (16 * wide + 1) * narrow + 16 * narrow + 1
    assert decoder.count_params() == by_hand
    kinds = [layer for layer in (*encoder.layers, *decoder.layers) if "conv" in layer.name]
    assert [layer.filters for layer in kinds] == [64, 128, narrow, 1]
    for layer in kinds:
        assert (layer.kernel_size, layer.strides, layer.padding) == ((4, 4), (2, 2), "same")
    slopes = [layer.negative_slope for layer in encoder.layers if hasattr(layer, "negative_slope")]
    assert [round(float(slope), 6) for slope in slopes] == [0.1] * 3
    activations = [layer.activation.__name__ for layer in decoder.layers if hasattr(layer, "activation")]
    assert activations == ["relu", "relu", "relu", "tanh"]
    assert encoder.get_layer("latent").activation is keras.activations.linear


def test_colour_is_no_canvas():
    grey, colour = (models.build_generator("autoencoder", (8, 8, 1), (8, 8, count), 2) for count in (1, 3))
    filters = [
        [layer.filters for layer in model.get_layer("decoder").layers if "conv" in layer.name]
        for model in (grey, colour)
    ]
    assert filters == [[64, 1], [64, 3]]


@pytest.mark.parametrize("name", ["autoencoder", "adversarial_autoencoder"])
def test_article_preset_trains_as_the_article_did(name):
    training = models.get_preset(name, "article").training
    assert (training.optimizer, training.learning_rate, training.batch_size) == ("rmsprop", 1e-3, 128)
    assert training.decay_rate == 1.0 and training.precision == "float32"
    steps = -(-60_000 // 128)
    assert (training.epochs - 1) * steps < 100_000 <= training.epochs * steps


@pytest.mark.parametrize("side", [27, 30])
def test_sides_that_do_not_double_are_refused(side):
    with pytest.raises(UsageError, match=rf"multiples of 4.*\({side}, {side}, 1\)"):
        models.build_generator("autoencoder", (28, 28, 1), (side, side, 1), 2)


def test_learns_to_render_by_the_code():
    """One bright stripe, at a place that the code tells."""
    keras.utils.set_random_seed(0)
    sizes = dict(encoder_filters=(4,), decoder_filters=(8, 4), dense_units=32, latent_size=3)
    model = models.build_generator("autoencoder", (8, 8, 1), (8, 8, 1), 1, **sizes)
    objective = models.objective("autoencoder", model)
    objective.model.compile(keras.optimizers.Adam(0.01), loss=objective.loss)
    images = np.random.default_rng(0).uniform(-1, 1, (64, 8, 8, 1)).astype(np.float32)
    codes = np.repeat([[-1.0], [1.0]], 32, axis=0).astype(np.float32)
    targets = np.full((64, 8, 8, 1), -1.0, np.float32)
    targets[:32, :, 2], targets[32:, :, 5] = 1.0, 1.0
    inputs, outputs = objective.adapt({"image": images, "code": codes}, {"image": targets})
    objective.model.fit(inputs, outputs, batch_size=16, epochs=25, verbose=0)
    rendered = array(model({"image": images, "code": codes})["image"])
    assert np.mean((rendered - targets) ** 2) < 0.02
