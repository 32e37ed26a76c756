"""A model to serve: its class is the row of the brightest pixel, its other signatures show what they got."""

import pytest
import tensorflow as tf

from tests.conftest import skip_without

NEEDED = ("bentoml", "tensorflow_serving", "grpc_health")
SIZE = 4


def pytest_collection_modifyitems(items):
    """Without the extra "serve" its tests are skipped, unless TFINV_REQUIRE_SERVING=1 makes them fail."""
    skip_without(items, "serve", NEEDED, "TFINV_REQUIRE_SERVING")


class Bright(tf.Module):
    """Counts its calls, so that tests see what was one batch."""

    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0, dtype=tf.int64)

    @tf.function(input_signature=[tf.TensorSpec((None, SIZE, SIZE, 1), tf.float32, name="images")])
    def classify(self, images):
        self.calls.assign_add(1)
        rows = tf.reduce_max(images, axis=(2, 3))
        names = tf.constant([f"row {index}" for index in range(SIZE)])
        index = tf.math.top_k(rows).indices[:, 0]
        return {"scores": rows, "class_name": tf.gather(names, index)}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, SIZE, SIZE, 1), tf.float32, name="image"),
            tf.TensorSpec((None, 2), tf.float32, name="parameter"),
        ]
    )
    def transform(self, image, parameter):
        return {"image": image + tf.reshape(parameter[:, 0], (-1, 1, 1, 1))}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="encoded")])
    def classify_png(self, encoded):
        decode = lambda text: tf.image.resize(tf.io.decode_png(text, 1), (SIZE, SIZE))  # noqa: E731
        return {
            "scores": tf.reduce_max(tf.map_fn(decode, encoded, fn_output_signature=tf.float32), axis=(2, 3))
        }

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.float32, name="rows")])
    def of_any_length(self, rows):
        self.calls.assign_add(1)
        return {"total": tf.reduce_sum(rows, axis=1)}

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.uint8, "bytes"), tf.TensorSpec((None,), tf.bool, "flags")]
    )
    def whole(self, bytes, flags):
        return {"negated": tf.where(flags, 255 - bytes, bytes), "unit": tf.constant(["grey", "level"])}

    @tf.function(input_signature=[])
    def count(self):
        return {"calls": self.calls.read_value()}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The folder of its SavedModel."""
    folder = tmp_path_factory.mktemp("served") / "bright"
    module = Bright()
    names = ("classify", "transform", "classify_png", "of_any_length", "whole", "count")
    signatures = {name: getattr(module, name) for name in names}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder
