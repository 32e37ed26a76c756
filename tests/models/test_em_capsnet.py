"""The matrix capsule network: sizes of the paper, its objective, the margin's rise, and that it learns."""

import keras
import numpy as np
import pytest

from tests.backend import array
from tfinv import models
from tfinv.errors import UsageError
from tfinv.losses import SpreadLoss
from tfinv.models import em_capsnet
from tfinv.ops import EM_VARIANTS

IMAGES = np.random.default_rng(0).random((4, 19, 17, 1), dtype=np.float32)


def tiny(**config):
    """A network of a few capsules for images of 19x17 and five classes."""
    keras.utils.set_random_seed(0)
    sizes = dict(conv_filters=8, primary_channels=2, capsule_channels=(3, 4), decoder_units=(16,))
    return models.build("em_capsnet", IMAGES.shape[1:], 5, **{**sizes, **config})


@pytest.fixture(autouse=True)
def clear():
    yield
    keras.backend.clear_session()


# Architecture


@pytest.mark.parametrize("classes, parameters", [(10, 318_964), (8, 317_936)])
def test_has_the_parameters_of_the_paper(classes, parameters):
    # A convolution with bias, one of 1x1 for 32 poses and activations, two of 9 * 32 * 32 transformations,
    # 32 transformations a class; and for each parent of three layers one beta_u and one beta_a.
    by_hand = (25 + 1) * 32 + (32 + 1) * 32 * 17 + 2 * 9 * 32 * 32 * 16 + 32 * classes * 16
    assert by_hand + 2 * (32 + 32 + classes) == parameters
    model = models.build("em_capsnet", (28, 28, 1), classes, decoder_units=())
    assert model.count_params() == parameters


def test_article_preset():
    preset = em_capsnet.PRESETS["article"]
    assert preset.model.variant == "article" and preset.model.batch_normalization
    assert (preset.model.num_iterations, preset.model.final_inverse_temperature) == (2, 0.01)
    assert preset.model.decoder_units == (512, 1024)
    assert tuple(preset.article.values()) == (0.976, 0.989, 0.218, 0.090)
    assert (preset.training.epochs, preset.training.batch_size) == (100, 50)
    model = models.build("em_capsnet", (28, 28, 1), 8, "article")
    shapes = {layer.name: layer.output for layer in model.layers}
    assert shapes["normalization"].shape == (None, 28, 28, 1)
    assert shapes["convolution"].shape == (None, 12, 12, 32)
    for name, positions, channels in (
        ("primary_capsules", 12, 8),
        ("conv_capsules_1", 5, 16),
        ("conv_capsules_2", 3, 16),
    ):
        poses, activations = shapes[name]
        assert poses.shape == (None, positions, positions, channels, 4, 4)
        assert activations.shape == (None, positions, positions, channels)
    assert [part.shape for part in shapes["class_capsules"]] == [(None, 8, 18), (None, 8)]
    assert model.get_layer("decoder").count_params() == 145 * 512 + 513 * 1024 + 1025 * 784


def test_variants_and_options_reach_the_layers():
    model = tiny(
        variant="article", num_iterations=3, final_inverse_temperature=0.02, implementation="reference"
    )
    routed = [layer for layer in model.layers if layer.name.endswith(("capsules_1", "capsules_2"))]
    for layer in [*routed, model.get_layer("class_capsules")]:
        assert (layer.variant, layer.num_iterations) == ("article", 3)
        assert (layer.final_inverse_temperature, layer.implementation) == (0.02, "reference")
    assert len(routed) == 2 and not model.losses
    model = tiny(weight_decay=0.5, kernel_size=2, capsule_channels=(3,), capsule_strides=(2,))
    kernels = [weight for weight in model.weights if weight.path.endswith("kernel")]
    penalized = [kernel for kernel in kernels if "decoder" not in kernel.path and "dense" not in kernel.path]
    assert len(penalized) == 4
    expected = sum(0.5 * np.sum(array(kernel) ** 2) for kernel in penalized)
    assert sum(float(array(loss)) for loss in model.losses) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UsageError, match=r"capsule_strides.*2 entries.*capsule_strides=\(1,\)"):
        tiny(capsule_strides=(1,))


# Objective


@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_decodes_the_label_in_training_and_the_most_active_capsule_in_prediction(variant):
    model = tiny(variant=variant)
    # Activations start almost equal; make the choice clear, and another than that of the longest pose.
    layer = model.get_layer("class_capsules")
    layer.beta_a.assign(np.array([0.0, 0.0, 0.0, 300.0, 0.0]))
    poses, activations = (array(part) for part in keras.Model(model.input, layer.output)(IMAGES))
    outputs = model(IMAGES)
    np.testing.assert_allclose(array(outputs["scores"]), activations, atol=1e-6)
    assert set(activations.argmax(axis=1)) == {3}

    def decoded(classes):
        masked = np.zeros_like(poses)
        masked[np.arange(4), classes] = poses[np.arange(4), classes]
        return array(model.get_layer("decoder")(masked.reshape(4, -1)))

    np.testing.assert_allclose(array(outputs["reconstruction"]), decoded(np.full(4, 3)), atol=1e-5)
    labels = np.array([4, 0, 2, 1], np.int32)
    assert np.abs(decoded(labels) - decoded(np.full(4, 3))).max() > 1e-3
    objective = models.objective("em_capsnet", model)
    inputs, targets = objective.adapt(IMAGES, labels)
    np.testing.assert_allclose(array(objective.model(inputs)["reconstruction"]), decoded(labels), atol=1e-5)
    assert targets["scores"] is labels and targets["reconstruction"] is IMAGES


def test_objective_is_the_spread_and_the_weighted_reconstruction():
    objective = models.objective("em_capsnet", tiny())
    assert {name: type(loss).__name__ for name, loss in objective.loss.items()} == {
        "scores": "SpreadLoss",
        "reconstruction": "MeanSquaredError",
    }
    assert objective.loss_weights == {"scores": 1.0, "reconstruction": pytest.approx(0.05 * 19 * 17)}
    model = tiny(decoder_units=())
    objective = models.objective("em_capsnet", model)
    assert objective.model is model and set(model.output) == {"scores"}
    assert {name: type(loss) for name, loss in objective.loss.items()} == {"scores": SpreadLoss}


# The margin


class Margins(keras.callbacks.Callback):
    """Notes the margin of each step."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(float(array(self.loss.margin.value)))


def margins(epochs, start=0, **config):
    """The margins of a fit of four steps an epoch."""
    objective = models.objective("em_capsnet", tiny(**config))
    objective.model.compile("sgd", objective.loss, loss_weights=objective.loss_weights)
    noted = Margins(objective.loss["scores"])
    inputs, targets = objective.adapt(IMAGES, np.array([0, 1, 2, 0], np.int32))
    objective.model.fit(
        inputs,
        targets,
        batch_size=1,
        epochs=epochs,
        initial_epoch=start,
        callbacks=[*objective.callbacks, noted],
        verbose=0,
    )
    return noted.seen


def test_margin_rises_linearly_over_a_fifth_of_the_epochs():
    rise = np.concatenate([np.linspace(0.2, 0.9, 9)[:8], np.full(32, 0.9)])  # 2 of 10 epochs of 4 steps
    np.testing.assert_allclose(margins(10), rise, atol=1e-6)
    np.testing.assert_allclose(margins(1, decoder_units=()), [0.2, 0.9, 0.9, 0.9], atol=1e-6)


def test_a_resumed_training_has_the_margins_of_the_uninterrupted_one():
    np.testing.assert_array_equal(margins(10, 1), margins(10)[4:])


# Training


@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_learns_a_few_patterns(variant):
    random = np.random.default_rng(1)
    labels = np.arange(60) % 5
    patterns = random.integers(0, 2, (5, 19, 17, 1))[labels].astype("float32")
    images = np.clip(patterns + random.normal(size=patterns.shape) * 0.1, 0.0, 1.0).astype("float32")
    model = tiny(variant=variant, primary_channels=4, capsule_channels=(8, 8), decoder_units=())
    objective = models.objective("em_capsnet", model)
    inputs, targets = objective.adapt(images, labels.astype("int32"))
    objective.model.compile(
        keras.optimizers.Adam(0.01), loss=objective.loss, loss_weights=objective.loss_weights
    )
    loss = objective.model.fit(inputs, targets, batch_size=20, epochs=8, verbose=0).history["loss"]
    assert np.isfinite(loss).all() and all(np.isfinite(weight).all() for weight in model.get_weights())
    assert loss[-1] < 0.6 * loss[0]
    scores = model.predict(images, verbose=0)["scores"]
    assert np.mean(scores.argmax(axis=1) == labels) > 0.9
