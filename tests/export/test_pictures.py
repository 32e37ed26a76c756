"""Encoded pictures: what `classify_png` makes of PNG and JPEG files of any size and colour."""

import io
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfinv.export import export_saved_model, pictures
from tfinv.export.pictures import decode

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 12), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (12, 12, 3), dtype=np.uint8)


def encoded(pixels, kind="PNG", mode=None):
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, kind)
    return file.getvalue()


def decoded(*files, shape=(12, 12, 1)):
    return decode(tf.constant(list(files)), shape).numpy()


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory):
    """The endpoints of a network that tells where the brightest row is."""
    images = keras.Input((12, 12, 1))
    scores = keras.layers.Flatten()(keras.layers.AveragePooling2D((1, 12))(images))
    folder = tmp_path_factory.mktemp("exported") / "export"
    names = tuple(f"row {row}" for row in range(12))
    export_saved_model(keras.Model(images, {"scores": scores}), folder, names)
    return tf.saved_model.load(str(folder)).signatures


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_grey_stays_as_it_is_however_it_is_stored(mode):
    np.testing.assert_allclose(decoded(encoded(GREY, mode=mode))[0, ..., 0], GREY / 255, atol=1e-6)


def test_colours_become_grey_by_their_brightness_and_stay_where_wanted():
    np.testing.assert_allclose(decoded(encoded(COLOUR), shape=(12, 12, 3))[0], COLOUR / 255, atol=1e-6)
    brightness = np.asarray(Image.fromarray(COLOUR).convert("L"), np.float32) / 255
    np.testing.assert_allclose(decoded(encoded(COLOUR))[0, ..., 0], brightness, atol=1 / 255)


def test_jpeg_and_other_sizes():
    smooth = np.kron(GREY[:3, :3], np.ones((16, 20))).astype(np.uint8)  # [48, 60]
    pictures = decoded(encoded(smooth, "JPEG"), encoded(smooth), shape=(24, 30, 1))[..., 0]
    np.testing.assert_allclose(pictures[0], pictures[1], atol=0.1)
    assert np.abs(pictures[1][3::8, 4::10] - GREY[:3, :3] / 255).max() < 0.02
    assert pictures.min() >= 0.0 and pictures.max() <= 1.0


def test_bytes_are_classified_as_the_images_are(endpoints):
    files = [encoded(np.roll(GREY, shift, axis=0)) for shift in range(3)]
    images = np.stack([np.roll(GREY, shift, axis=0) for shift in range(3)])[..., None] / np.float32(255)
    found = endpoints["classify_png"](image_bytes=tf.constant(files))
    expected = endpoints["classify"](images=tf.constant(images))
    assert set(found) == set(expected) == {"scores", "probabilities", "class_index", "class_name"}
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-6)
    brightest = GREY.mean(axis=1).argmax()
    names = [f"row {(brightest + shift) % 12}".encode() for shift in range(3)]
    assert found["class_name"].numpy().tolist() == names


def test_no_file_at_all(endpoints):
    outputs = endpoints["classify_png"](image_bytes=tf.constant([], tf.string))
    assert outputs["scores"].shape == (0, 12) and outputs["class_name"].shape == (0,)


@pytest.mark.parametrize("damaged", [b"", b"no picture", encoded(GREY)[:60]])
def test_what_is_no_picture_is_refused(endpoints, damaged):
    with pytest.raises(tf.errors.InvalidArgumentError):
        endpoints["classify_png"](image_bytes=tf.constant([encoded(GREY), damaged]))


def claiming(width, height, kind):
    """A file of a few bytes that says it is a picture of that size."""
    if kind == "PNG":
        return encoded(GREY)[:16] + struct.pack(">II", width, height) + encoded(GREY)[24:]
    file = encoded(GREY, "JPEG")
    start = file.index(b"\xff\xc0") + 5  # of the frame: marker, length, precision, height, width
    return file[:start] + struct.pack(">HH", height, width) + file[start + 4 :]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_of_too_many_pixels_takes_no_memory(endpoints, kind):
    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"at most {pictures.MAX_PIXELS} pixels"):
            endpoints["classify_png"](image_bytes=tf.constant([claiming(60_000, 60_000, kind)]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most"):
        decoded(claiming(8193, 8192, kind))
    assert decoded(claiming(12, 12, "PNG")).shape == (1, 12, 12, 1), "the size is all that was changed"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP"])
def test_other_formats_are_refused(endpoints, kind):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Expected PNG or JPEG"):
        endpoints["classify_png"](image_bytes=tf.constant([encoded(GREY, kind)]))


def test_probabilities_are_shares_of_the_scores(endpoints):
    images = RANDOM.random((4, 12, 12, 1), dtype=np.float32)
    images[3] = 0.0
    outputs = endpoints["classify"](images=tf.constant(images))
    totals = outputs["probabilities"].numpy().sum(axis=1)
    np.testing.assert_allclose(totals, [1, 1, 1, 0], atol=1e-6)
    scores = outputs["scores"].numpy()[:3]
    expected = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["probabilities"][:3], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 11, 12, 1), (2, 12, 12, 3), (2, 144), (12, 12, 1)])
def test_images_of_another_shape_are_refused(endpoints, shape):
    for _ in range(2):
        with pytest.raises((tf.errors.InvalidArgumentError, TypeError, ValueError)):
            endpoints["classify"](images=tf.zeros(shape))
