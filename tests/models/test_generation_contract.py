"""Each generator is held to the contract unedited."""

import json

import keras
import numpy as np
import pytest

from tests.backend import array
from tfinv import config as configuration
from tfinv import models
from tfinv.errors import UsageError

GENERATORS = models.available("generation")
PRESETS = [(name, preset) for name in GENERATORS for preset in models.get_model(name).PRESETS]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (6, 16, 12, 1)).astype(np.float32)
CODES = RANDOM.uniform(-1, 1, (6, 2)).astype(np.float32)


def small(name, output_shape=(16, 12, 1)):
    presets = models.get_model(name).PRESETS
    preset = "quick" if "quick" in presets else next(iter(presets))
    keras.utils.set_random_seed(0)
    return models.build_generator(name, (16, 12, 1), output_shape, 2, preset)


@pytest.fixture(params=GENERATORS, name="name")
def name_fixture(request):
    yield request.param
    keras.backend.clear_session()


def rendered(model, images=IMAGES, codes=CODES):
    return array(model({"image": images, "code": codes})["image"])


# Conformance of every generator


def test_tasks():
    assert "autoencoder" in GENERATORS and "cnn" not in GENERATORS
    assert sorted([*GENERATORS, *models.available("recognition")]) == models.available()
    assert models.task_of("cnn") == "recognition" and models.task_of("autoencoder") == "generation"


@pytest.mark.parametrize("name, preset", PRESETS)
def test_preset_is_complete_and_survives_json(name, preset):
    values = models.get_preset(name, preset)
    config = models.get_model(name).Config
    assert isinstance(values.model, config)
    assert configuration.from_dict(config, json.loads(configuration.to_json(values.model))) == values.model
    assert models.default_run(name, preset).protocol == (values.protocol or "rotate-49")


@pytest.mark.parametrize("output_shape", [(16, 12, 1), (24, 20, 1)])
def test_model_maps_images_and_codes_to_images(name, output_shape):
    model = small(name, output_shape)
    assert {key: value.shape for key, value in model.input.items()} == {
        "image": (None, 16, 12, 1),
        "code": (None, 2),
    }
    assert {key: value.shape for key, value in model.output.items()} == {"image": (None, *output_shape)}
    assert rendered(model).shape == (6, *output_shape)
    assert np.isfinite(rendered(model)).all()


def test_shared_codes_are_those_of_successive_images(name):
    model = small(name)
    for groups in (1, 2, 3, 6):
        shared = rendered(model, codes=CODES[:groups])
        repeated = rendered(model, codes=CODES[:groups].repeat(6 // groups, axis=0))
        np.testing.assert_allclose(shared, repeated, atol=1e-5)


def test_saved_and_loaded_model_gives_the_same_bits(name, tmp_path):
    model = small(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(rendered(loaded), rendered(model))


def test_objective_trains_the_model(name):
    model = small(name)
    if name == "adversarial_autoencoder" and keras.backend.backend() != "tensorflow":
        with pytest.raises(UsageError, match="KERAS_BACKEND=tensorflow"):
            models.objective(name, model)
        return
    objective = models.objective(name, model)
    assert set(objective.loss) == set(objective.loss_weights)
    targets = np.broadcast_to(CODES[:, 0, None, None, None], IMAGES.shape)
    inputs, targets = objective.adapt({"image": IMAGES, "code": CODES}, {"image": targets})
    objective.model.compile(
        keras.optimizers.Adam(0.003), loss=objective.loss, loss_weights=objective.loss_weights
    )
    before = rendered(model)
    losses = objective.model.fit(inputs, targets, batch_size=4, epochs=4, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert np.abs(rendered(model) - before).max() > 1e-4
    # All of the network's own; a critic has further ones.
    assert {id(weight) for weight in model.weights} <= {id(weight) for weight in objective.model.weights}


def test_mixed_precision_gives_float32_images(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        output = small(name)({"image": IMAGES, "code": CODES})["image"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(output.dtype) == "float32" and np.isfinite(array(output)).all()


def test_models_of_the_other_task_are_refused():
    with pytest.raises(UsageError, match=r"one for recognition: capsnet, cnn.*autoencoder, for generation"):
        models.build("autoencoder", (28, 28, 1), 10)
    with pytest.raises(
        UsageError,
        match=r"one for generation: address_generator, .*autoencoder.*Received: cnn, for recognition",
    ):
        models.build_generator("cnn", (28, 28, 1), (28, 28, 1), 2)
    with pytest.raises(UsageError, match=r"latent_size.*Received: laten_size"):
        models.build_generator("autoencoder", (28, 28, 1), (28, 28, 1), 2, laten_size=3)
