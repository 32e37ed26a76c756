"""Exported generators: parameters in the transformation's own units, any number of images."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import ENVIRONMENT
from tfinv import models
from tfinv.data import get_protocol
from tfinv.data.transforms import rotation
from tfinv.errors import UsageError
from tfinv.export import export_generator

ROTATE, SHIFT = get_protocol("rotate-49"), get_protocol("shift-49")
SIZES = dict(encoder_filters=(4, 8), decoder_filters=(8, 4), dense_units=16, latent_size=4)
IMAGES = np.random.default_rng(0).random((6, 12, 12, 1), dtype=np.float32)
# What a stranger runs who has TensorFlow only.
STRANGER = """
import sys
sys.modules["tfinv"] = None  # importing it fails from here on
import numpy as np, tensorflow as tf
transform = tf.saved_model.load(sys.argv[1]).signatures["transform"]
image, parameter = tf.constant(np.load(sys.argv[2])), tf.constant([[3.0, -5.0]])
np.save(sys.argv[3], transform(image=image, parameter=parameter)["transformed"])
"""


def network(output_shape=(12, 12, 1)):
    keras.utils.set_random_seed(1)
    return models.build_generator("autoencoder", (12, 12, 1), output_shape, 2, **SIZES)


@pytest.fixture(scope="module")
def shifting(tmp_path_factory):
    """A generator of shifts on a canvas of 52x52, and its SavedModel."""
    model, folder = network((52, 52, 1)), tmp_path_factory.mktemp("exported") / "export"
    export_generator(model, folder, SHIFT)
    return model, folder


def rendered(model, codes):
    """What a model makes of the images, in 0..1."""
    inputs = {"image": tf.constant(IMAGES * 2 - 1), "code": tf.constant(codes, tf.float32)}
    return np.clip((np.asarray(model(inputs)["image"]) + 1) / 2, 0, 1)


class Rotating(keras.layers.Layer):
    """Rotates images in -1..1, by the angle that the code tells."""

    def call(self, inputs):
        image, code = inputs
        angle = tf.atan2(code[:, 1], code[:, 0]) * (180 / np.pi)
        return rotation.apply(image, tf.repeat(angle, tf.shape(image)[0] // tf.shape(code)[0]), -1.0)


def test_transform_takes_degrees_and_pixels_of_0_to_1(tmp_path):
    image, code = keras.Input((12, 12, 1), name="image"), keras.Input((2,), name="code")
    model = keras.Model({"image": image, "code": code}, {"image": Rotating()([image, code])})
    export_generator(model, tmp_path / "export", ROTATE)
    transform = tf.saved_model.load(str(tmp_path / "export")).signatures["transform"]
    turned = transform(image=tf.constant(IMAGES[:2]), parameter=tf.constant([90.0, 180.0]))["transformed"]
    # Counter-clockwise, as rot90 turns.
    np.testing.assert_allclose(turned[0], np.rot90(IMAGES[0]), atol=1e-4)
    np.testing.assert_allclose(turned[1], np.rot90(IMAGES[1], 2), atol=1e-4)


def test_endpoints_and_any_number_of_images(shifting):
    model, folder = shifting
    signatures = tf.saved_model.load(str(folder)).signatures
    assert set(signatures) == {"transform", "generate", "serving_default"}
    inputs = signatures["transform"].structured_input_signature[1]
    assert {name: spec.shape.as_list() for name, spec in inputs.items()} == {
        "image": [None, 12, 12, 1],
        "parameter": [None, 2],
    }
    for count, groups in ((6, 6), (6, 2), (1, 1), (0, 1), (0, 0)):
        values = {"image": tf.constant(IMAGES[:count]), "parameter": tf.fill((groups, 2), 10.0)}
        assert signatures["transform"](**values)["transformed"].shape == (count, 52, 52, 1)
        values = {"image": tf.constant(IMAGES[:count] * 2 - 1), "code": tf.fill((groups, 2), 0.5)}
        found = signatures["generate"](**values)["image"].numpy()
        assert found.shape == (count, 52, 52, 1)
        if count == 6:
            np.testing.assert_allclose((found + 1) / 2, rendered(model, [[0.5, 0.5]]), atol=1e-5)
    for count, groups in ((6, 0), (6, 4), (1, 2)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="as many parameters as divide the images"):
            signatures["transform"](image=tf.constant(IMAGES[:count]), parameter=tf.zeros((groups, 2)))
        with pytest.raises(tf.errors.InvalidArgumentError, match="as many parameters as divide the images"):
            signatures["generate"](image=tf.constant(IMAGES[:count]), code=tf.zeros((groups, 2)))


@pytest.mark.slow
def test_a_process_without_tfinv_shifts_by_pixels(shifting, tmp_path):
    model, folder = shifting
    np.save(tmp_path / "images.npy", IMAGES)
    command = [sys.executable, "-I", "-c", STRANGER, folder, tmp_path / "images.npy", tmp_path / "found.npy"]
    finished = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    expected = rendered(model, [[3 / 20, -5 / 20]])
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)


def test_a_network_that_reads_the_code_off_the_image(tmp_path):
    model = models.build_generator(
        "hypernet", (12, 12, 1), (12, 12, 1), 2, variant="address", control="image", filters=(2, 4)
    )
    export_generator(model, tmp_path / "export", ROTATE)
    signatures = tf.saved_model.load(str(tmp_path / "export")).signatures
    found = signatures["transform"](image=tf.constant(IMAGES))["transformed"]
    expected = np.asarray(model({"image": tf.constant(IMAGES * 2 - 1)})["image"])
    np.testing.assert_allclose(found, np.clip((expected + 1) / 2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("affine", r"from codes of 2 numbers.*protocol=affine.*and codes of 6 numbers"),
        ("shift-49", r"images of \(12, 12, 1\).*protocol=shift-49.*images of \(52, 52, 1\)"),
        ("rotate-34", r"protocol=rotate-34, which is of recognition"),
    ],
)
def test_another_protocol_is_refused(name, reason, tmp_path):
    with pytest.raises(UsageError, match=reason):
        export_generator(network(), tmp_path / "export", get_protocol(name))
    assert not list(tmp_path.iterdir())
