"""Each model for recognition is held to the contract unedited; the article's networks to their numbers."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest

from tests.backend import array
from tfinv import config as configuration
from tfinv import models
from tfinv.errors import UsageError
from tfinv.models import capsnet

METRICS = ("Ptest", "Pin", "Pout", "Pinv")
RECOGNITION = models.available("recognition")
PRESETS = [(name, preset) for name in RECOGNITION for preset in models.get_model(name).PRESETS]
IMAGES = np.random.default_rng(0).random((4, 32, 32, 3), dtype=np.float32)
LABELS = np.array([4, 0, 3, 3], np.int32)


def small(name, input_shape=(32, 32, 3), num_classes=5):
    """The model at its quickest preset: the one called quick, or else the first."""
    presets = models.get_model(name).PRESETS
    keras.utils.set_random_seed(0)
    return models.build(
        name, input_shape, num_classes, "quick" if "quick" in presets else next(iter(presets))
    )


@pytest.fixture(params=RECOGNITION, name="name")
def name_fixture(request):
    yield request.param
    keras.backend.clear_session()


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


# Conformance of every model


def test_there_are_models():
    assert {"capsnet", "cnn"} <= set(RECOGNITION)
    assert not any(name.startswith("_") for name in models.available())


def test_config_is_a_frozen_dataclass_with_defaults(name):
    config = models.get_model(name).Config
    assert config.__dataclass_params__.frozen
    assert config() == config() and hash(config()) == hash(config())
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config(), field.name, None)


@pytest.mark.parametrize("name, preset", PRESETS)
def test_preset_is_complete_and_survives_json(name, preset):
    values = models.get_preset(name, preset)
    assert isinstance(values, models.Preset)
    config = models.get_model(name).Config
    assert isinstance(values.model, config)
    assert configuration.from_dict(config, json.loads(configuration.to_json(values.model))) == values.model
    assert set(values.article) in (set(), set(METRICS))


@pytest.mark.parametrize("name, preset", PRESETS)
def test_preset_builds(name, preset):
    # The smallest image of the capsule network's kernels keeps the unstrided networks small, too.
    model = models.build(name, (17, 17, 1), 3, preset)
    assert model.output["scores"].shape == (None, 3)
    keras.backend.clear_session()


@pytest.mark.parametrize("input_shape, classes", [((28, 28, 1), 8), ((32, 32, 3), 5), ((21, 30, 2), 2)])
def test_model_maps_images_to_scores(name, input_shape, classes):
    model = small(name, input_shape, classes)
    assert model.input.shape == (None, *input_shape)
    assert model.output["scores"].shape == (None, classes)
    assert set(model.output) <= {"scores", "reconstruction"}
    if "reconstruction" in model.output:
        assert model.output["reconstruction"].shape == (None, *input_shape)
    for batch in (1, 3):
        images = np.random.default_rng(batch).random((batch, *input_shape), dtype=np.float32)
        outputs = {key: array(value) for key, value in model(images).items()}
        assert outputs["scores"].shape == (batch, classes)
        assert all(np.isfinite(value).all() for value in outputs.values())
        assert outputs["scores"].min() >= 0.0 and outputs["scores"].max() <= 1.0


def test_saved_and_loaded_model_gives_the_same_bits(name, tmp_path):
    model = small(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model.predict(IMAGES, verbose=0)
    found = loaded.predict(IMAGES, verbose=0)
    assert set(found) == set(expected)
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)


def test_objective_trains_the_model_also_on_a_ragged_batch(name, tmp_path):
    small(name).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")  # A resumed run starts from a loaded one.
    before = model.predict(IMAGES, verbose=0)["scores"]
    objective = models.objective(name, model)
    assert set(objective.loss) == set(objective.loss_weights)
    inputs, targets = objective.adapt(IMAGES, LABELS)
    objective.model.compile(
        keras.optimizers.Adam(0.01), loss=objective.loss, loss_weights=objective.loss_weights
    )
    losses = objective.model.fit(inputs, targets, batch_size=3, epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in losses.values())
    after = model.predict(IMAGES, verbose=0)["scores"]
    assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-4
    assert {id(weight) for weight in objective.model.weights} == {id(weight) for weight in model.weights}


def test_mixed_precision_gives_float32_outputs(name, mixed_precision):
    model = small(name)
    for value in model(IMAGES).values():
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
        assert np.isfinite(array(value)).all()


def test_model_needs_keras_and_tfinv_alone_to_load(name):
    strangers = []

    def visit(value):
        if isinstance(value, dict):
            if value.get("module") and value.get("class_name"):
                registered = value.get("registered_name") or ""
                known = value["module"].split(".")[0] in ("keras", "builtins")
                if not known and not registered.startswith("tfinv>"):
                    strangers.append(value["class_name"])
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    visit(keras.saving.serialize_keras_object(small(name)))
    visit(keras.saving.serialize_keras_object(models.objective(name, small(name)).model))
    assert not strangers


# The public functions


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UsageError, match=r"Unknown model.*capsnet.*cnn.*model=no_such_model"):
        models.build("no_such_model", (28, 28, 1), 8)
    with pytest.raises(UsageError, match=r"Unknown preset of cnn.*cnn_bn_00.*quick.*preset=large"):
        models.build("cnn", (28, 28, 1), 8, "large")
    with pytest.raises(UsageError, match=r"Unknown configuration of cnn.*filters.*Received: depth, width"):
        models.build("cnn", (28, 28, 1), 8, depth=3, width=2)


def test_arguments_of_build_go_above_the_preset_and_that_above_the_defaults():
    def units(**arguments):
        model = models.build("cnn", (8, 8, 1), 2, **arguments)
        return next(layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense))

    assert units() == 1024
    assert units(preset="quick") == 128
    assert units(preset="quick", dense_units=7) == 7


# The capsule network


@pytest.mark.parametrize(
    "classes, config, parameters",
    [(10, {}, 8_215_568), (10, {"decoder_units": ()}, 6_804_224), (8, {"preset": "article"}, 7_904_272)],
)
def test_capsnet_has_the_parameters_of_the_paper(classes, config, parameters):
    model = models.build("capsnet", (28, 28, 1), classes, **config)
    assert model.count_params() == parameters
    assert model.get_layer("primary_capsules").output.shape == (None, 1152, 8)
    assert model.get_layer("class_capsules").output.shape == (None, classes, 16)
    assert ("reconstruction" in model.output) == (config.get("decoder_units") != ())


def test_capsnet_without_decoder_trains_on_the_margin_alone():
    model = models.build("capsnet", (28, 28, 1), 8, "quick", decoder_units=())
    objective = models.objective("capsnet", model)
    assert objective.model is model and set(objective.loss) == {"scores"}


def test_capsnet_objective_weighs_the_reconstruction():
    objective = models.objective("capsnet", small("capsnet"))
    assert objective.loss_weights == {"scores": 1.0, "reconstruction": pytest.approx(0.0005 * 784)}
    assert {type(loss).__name__ for loss in objective.loss.values()} == {"MarginLoss", "MeanSquaredError"}
    _, targets = objective.adapt(IMAGES, LABELS)
    assert targets["scores"] is LABELS and targets["reconstruction"] is IMAGES


def test_capsnet_decodes_the_label_in_training_and_the_longest_capsule_in_prediction():
    model = small("capsnet")
    poses = array(keras.Model(model.input, model.get_layer("class_capsules").output)(IMAGES))
    lengths = np.linalg.norm(poses, axis=-1)
    np.testing.assert_allclose(array(model(IMAGES)["scores"]), lengths, atol=1e-6)

    def decoded(classes):
        masked = np.zeros_like(poses)
        masked[np.arange(4), classes] = poses[np.arange(4), classes]
        return array(model.get_layer("decoder")(masked.reshape(4, -1)))

    longest = lengths.argmax(axis=1)
    other = (longest + 1) % 5
    assert np.abs(decoded(longest) - decoded(other)).max() > 1e-4
    training = models.objective("capsnet", model).model
    for labels in (longest, other):
        inputs, _ = models.objective("capsnet", model).adapt(IMAGES, labels.astype("int32"))
        np.testing.assert_allclose(array(training(inputs)["reconstruction"]), decoded(labels), atol=1e-6)
    np.testing.assert_allclose(array(model(IMAGES)["reconstruction"]), decoded(longest), atol=1e-6)


def test_capsnet_article_preset():
    preset = capsnet.PRESETS["article"]
    assert preset.model == capsnet.Config() and preset.model.num_iterations == 3
    assert tuple(preset.article[metric] for metric in METRICS) == (0.991, 0.996, 0.249, 0.009)
    training = preset.training
    assert (training.learning_rate, training.decay_rate, training.decay_steps) == (1e-3, 0.9, None)
    assert (training.batch_size, preset.evaluation.repeats) == (100, 100)


# The convolutional networks: filters, kernels, strides, pools, normalized, dropped, and the measured values

ARTICLE = {
    "cnn_00": ((64, 128), 4, 2, 1, False, False, (0.98874, 0.99127, 0.21183, 0.00306)),
    "cnn_01": ((64, 128, 256), 4, 2, 1, False, False, (0.99041, 0.99381, 0.23292, 0.00755)),
    "cnn_02": ((32, 64, 128, 256), 4, 2, 1, False, False, (0.99082, 0.99471, 0.24506, 0.00181)),
    "cnn_dropout_00": ((32, 64, 128), 4, 2, 1, False, True, (0.99253, 0.99285, 0.23983, 0.03892)),
    "cnn_dropout_01": ((64, 128, 256), 4, 2, 1, False, True, (0.99059, 0.99468, 0.25016, 0.03763)),
    "cnn_bn_00": ((64, 128), 4, 2, 1, True, True, (0.99283, 0.99636, 0.25672, 0.04065)),
    "cnn_bn_01": ((32, 64, 128), 4, 2, 1, True, True, (0.99253, 0.99625, 0.26723, 0.03791)),
    "cnn_bn_02": ((64, 128, 256), 4, 2, 1, True, True, (0.99359, 0.99689, 0.27004, 0.03740)),
    "cnn_pool_00": ((64, 128), 5, 1, 2, True, True, (0.98573, 0.99485, 0.25211, 0.04563)),
    "cnn_pool_01": ((32, 64, 128), (5, 5, 3), 1, (2, 2, 1), True, True, (0.98942, 0.99716, 0.25010, 0.04311)),
    "cnn_pool_02": (
        (64, 128, 256),
        (5, 5, 4),
        (1, 1, 2),
        (2, 2, 1),
        True,
        True,
        (0.99274, 0.99788, 0.26453, 0.04294),
    ),
}


def test_cnn_presets_are_the_eleven_of_the_article():
    assert {name for name in models.get_model("cnn").PRESETS if name.startswith("cnn")} == set(ARTICLE)
    for name, (*_, measured) in ARTICLE.items():
        preset = models.get_preset("cnn", name)
        assert tuple(preset.article[metric] for metric in METRICS) == measured
        assert (preset.model.dense_units, preset.model.negative_slope) == (1024, 0.1)
        training = preset.training
        assert (training.epochs, training.batch_size, training.beta_1) == (300, 128, 0.95)
        assert (training.learning_rate, training.decay_rate, training.decay_steps) == (1e-4, 0.9, 10_000)


@pytest.mark.parametrize("preset", ARTICLE)
def test_cnn_layers_and_parameters(preset):
    filters, kernels, strides, pools, normalized, dropped, _ = ARTICLE[preset]
    each = [
        value if isinstance(value, tuple) else (value,) * len(filters) for value in (kernels, strides, pools)
    ]
    expected, parameters, size, channels = [], 0, 28, 1
    for maps, kernel, stride, pool in zip(filters, *each, strict=True):
        expected += [("Conv2D", maps, kernel, stride), ("LeakyReLU", 0.1)]
        expected += [("BatchNormalization",)] * normalized + [("MaxPooling2D", pool, 1)] * (pool > 1)
        parameters += (kernel * kernel * channels + 1) * maps + 4 * maps * normalized
        size, channels = math.ceil(size / stride), maps
    expected += [("Flatten",), ("Dense", 4), ("LeakyReLU", 0.1)]
    expected += [("Dropout", 0.5)] * dropped + [("Dense", 8), ("Softmax",)]
    parameters += (size * size * channels + 1) * 4 + 5 * 8

    model = models.build("cnn", (28, 28, 1), 8, preset, dense_units=4)
    fields = ("filters", "units", "kernel_size", "pool_size", "strides", "negative_slope", "rate")
    found = []
    for layer in model.layers[1:]:
        values = [getattr(layer, field) for field in fields if hasattr(layer, field)]
        sides = [value[0] if isinstance(value, tuple) else value for value in values]
        found.append((type(layer).__name__, *sides))
        assert getattr(layer, "padding", "same") == "same"
        assert getattr(layer, "activation", keras.activations.linear) is keras.activations.linear
    assert found == [tuple(entry) for entry in expected]
    assert model.count_params() == parameters


def test_cnn_scores_are_probabilities():
    scores = array(small("cnn")(IMAGES)["scores"])
    np.testing.assert_allclose(scores.sum(axis=1), np.ones(4), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("cnn", "pool_sizes", (2, -3)),
        ("cnn", "pool_sizes", (0,)),
        ("cnn", "strides", (0,)),
        ("cnn", "dense_units", 0),
        ("cnn", "dropout_rate", -1.0),
        ("cnn", "negative_slope", float("nan")),
        ("stn_cnn", "dropout_rate", 1.5),
        ("group_cnn", "filters", (8, 0)),
        ("group_cnn", "dense_filters", 0),
        ("group_cnn", "dropout_rate", -1.0),
        ("group_cnn", "negative_slope", float("nan")),
    ],
)
def test_cnns_refuse_values_out_of_range(name, field, value):
    with pytest.raises(UsageError, match=rf"Invalid value for {field}.*Received: {field}="):
        models.get_model(name).Config(**{field: value})


@pytest.mark.parametrize("field", ["kernel_sizes", "strides", "pool_sizes"])
def test_cnn_refuses_tuples_that_do_not_fit(field):
    with pytest.raises(UsageError, match=rf"{field}.*3 convolutions.*{field}=\(1, 2\)"):
        models.build("cnn", (28, 28, 1), 8, filters=(8, 8, 8), **{field: (1, 2)})
