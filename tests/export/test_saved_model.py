"""The exported SavedModel: needs no tfinv, gives the same scores, takes any batch size."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.conftest import ENVIRONMENT
from tests.fused import fused_fixture  # noqa: F401
from tests.test_training import SMALL, TINY_CAPSNET
from tfinv import models
from tfinv.errors import UsageError
from tfinv.export import export_saved_model, with_implementation
from tfinv.layers import Length, RoutingCapsules

NAMES = ("0", "1", "2", "3", "4", "5", "7", "8")

# What a stranger runs who has TensorFlow only.
STRANGER = """
import sys
sys.modules["tfinv"] = None  # importing it fails from here on
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
outputs = model.signatures["classify"](images=tf.constant(np.load(sys.argv[2])))
np.savez(sys.argv[3], **{name: value.numpy().astype("U") if value.dtype == tf.string else value.numpy()
                         for name, value in outputs.items()})
"""


def build(name, **changes):
    keras.utils.set_random_seed(0)
    config = {"cnn": SMALL, "capsnet": TINY_CAPSNET}[name]
    return models.build(name, (12, 12, 1), 8, **{**vars(config), **changes})


def random_images(count):
    return np.random.default_rng(0).random((count, 12, 12, 1), dtype=np.float32)


@pytest.fixture(scope="module", params=["cnn", "capsnet"])
def exported(request, tmp_path_factory):
    """A model and the folder of its export."""
    model, folder = build(request.param), tmp_path_factory.mktemp("exported") / "export"
    export_saved_model(model, folder, NAMES)
    return model, folder


@pytest.mark.slow
def test_a_process_without_tfinv_gets_the_same_scores(exported, tmp_path):
    model, folder = exported
    images = random_images(7)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", STRANGER, folder, tmp_path / "images.npy", tmp_path / "outputs.npz"]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": ""}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    outputs = np.load(tmp_path / "outputs.npz")
    expected = np.asarray(model(images)["scores"])
    np.testing.assert_allclose(outputs["scores"], expected, atol=1e-5)
    np.testing.assert_array_equal(outputs["class_index"], expected.argmax(axis=1))
    assert outputs["class_name"].tolist() == [NAMES[index] for index in expected.argmax(axis=1)]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_any_batch_size(exported, count):
    model, folder = exported
    loaded, images = tf.saved_model.load(str(folder)), random_images(count)
    outputs = loaded.signatures["classify"](images=tf.constant(images))
    assert {name: value.shape.as_list() for name, value in outputs.items()} == {
        "scores": [count, 8],
        "probabilities": [count, 8],
        "class_index": [count],
        "class_name": [count],
    }
    if count:  # the model itself cannot take none: a bug of oneDNN's convolution in TensorFlow 2.21
        np.testing.assert_allclose(outputs["scores"], model(images)["scores"], atol=1e-5)
    if "reconstruction" in model.output:
        pictures = loaded.signatures["reconstruct"](images=tf.constant(images))["reconstruction"]
        assert pictures.shape == images.shape
        if count:
            np.testing.assert_allclose(pictures, model(images)["reconstruction"], atol=1e-5)


def test_endpoints_and_their_types(exported):
    model, folder = exported
    loaded = tf.saved_model.load(str(folder))
    endpoints = {"classify", "classify_png", "serving_default"}
    if "reconstruction" in model.output:
        endpoints.add("reconstruct")
    assert set(loaded.signatures) == endpoints
    for name in endpoints:
        signature = loaded.signatures[name]
        inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
        if name == "classify_png":
            assert inputs == {"image_bytes": tf.TensorSpec((None,), tf.string, "image_bytes")}
        else:
            assert inputs == {"images": tf.TensorSpec((None, 12, 12, 1), tf.float32, "images")}
        if name == "reconstruct":
            assert list(outputs) == ["reconstruction"]
        else:
            types = {key: value.dtype for key, value in outputs.items()}
            expected = {"scores": tf.float32, "probabilities": tf.float32}
            assert types == {**expected, "class_index": tf.int32, "class_name": tf.string}


def test_reconstruct_needs_a_decoder(tmp_path):
    export_saved_model(build("capsnet", decoder_units=()), tmp_path / "export", NAMES)
    assert "reconstruct" not in tf.saved_model.load(str(tmp_path / "export")).signatures


def test_export_leaves_out_dropout(tmp_path):
    model = build("cnn", dropout_rate=0.9)
    export_saved_model(model, tmp_path / "export", NAMES)
    classify = tf.saved_model.load(str(tmp_path / "export")).signatures["classify"]
    first, second = (classify(images=tf.constant(random_images(3)))["scores"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_existing_export_is_replaced_only_by_a_complete_one(tmp_path, monkeypatch):
    folder = tmp_path / "export"
    export_saved_model(build("cnn"), folder, NAMES)
    before = sorted(path.name for path in folder.rglob("*"))

    def full(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tf.saved_model, "save", full)
        with pytest.raises(OSError, match=r"Cannot write .*export: No space left on device"):
            export_saved_model(build("cnn"), folder, NAMES)
    assert sorted(path.name for path in folder.rglob("*")) == before
    export_saved_model(build("cnn"), folder, NAMES[::-1])
    outputs = tf.saved_model.load(str(folder)).signatures["classify"](images=tf.constant(random_images(1)))
    assert outputs["class_name"].numpy()[0].decode() == NAMES[::-1][int(outputs["class_index"][0])]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


# The implementation of the routing


def operations(folder):
    """Types of all operations in a SavedModel."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    graphs = [graph.graph_def for graph in saved.meta_graphs]
    functions = [function for graph in graphs for function in graph.library.function]
    return {node.op for graph in graphs for node in graph.node} | {
        node.op for function in functions for node in function.node_def
    }


def test_a_model_with_the_fused_op_is_exported_without_it(fused, tmp_path):
    model = build("capsnet", implementation="fused")
    model.export(tmp_path / "fused", verbose=False)
    assert "Tfinv>DynamicRouting" in operations(tmp_path / "fused")  # else the next line proves nothing
    export_saved_model(model, tmp_path / "export", NAMES)
    assert not [name for name in operations(tmp_path / "export") if "Tfinv" in name]
    assert model.get_layer("class_capsules").implementation == "fused"
    images = random_images(7)
    loaded, expected = tf.saved_model.load(str(tmp_path / "export")), model(images)
    scores = loaded.signatures["classify"](images=tf.constant(images))["scores"]
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-5)
    pictures = loaded.signatures["reconstruct"](images=tf.constant(images))["reconstruction"]
    np.testing.assert_allclose(pictures, expected["reconstruction"], atol=1e-5)


@pytest.mark.parametrize("implementation", ["auto", "fused"])
def test_reference_replaces_it_at_any_depth(fused, implementation):
    inputs = keras.Input((6, 3))
    inner = keras.Model(inputs, RoutingCapsules(4, 5, implementation=implementation)(inputs), name="inner")
    outer = keras.Sequential([keras.Input((6, 3)), inner, RoutingCapsules(2, 3, use_bias=True), Length()])
    copy = with_implementation(outer, "reference")
    found = [layer.implementation for layer in copy._flatten_layers() if isinstance(layer, RoutingCapsules)]
    assert found == ["reference"] * 2
    assert outer.get_layer("inner").layers[1].implementation == implementation
    poses = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(copy(poses), outer(poses), atol=1e-5)
    assert with_implementation(copy, "reference") is copy


def test_an_implementation_of_another_library_is_left_alone():
    @keras.saving.register_keras_serializable(package="elsewhere")
    class Other(keras.layers.Layer):
        implementation = "auto"

        def get_config(self):
            return {**super().get_config(), "implementation": self.implementation}

        @classmethod
        def from_config(cls, config):
            return cls(**{key: value for key, value in config.items() if key != "implementation"})

    model = keras.Sequential([keras.Input((3,)), Other()])
    assert with_implementation(model, "reference") is model


def test_names_that_are_no_names_of_the_classes_are_refused(tmp_path):
    for names in (NAMES[:-1], (*NAMES, "another")):
        with pytest.raises(UsageError, match=f"a name for each of the {len(NAMES)} classes"):
            export_saved_model(build("cnn"), tmp_path / "export", names)
    assert not (tmp_path / "export").exists()


@keras.saving.register_keras_serializable("here")
class Known(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def test_layers_that_cannot_be_made_anew_are_named(tmp_path):
    class Mine(Known):
        """Not registered."""

    for layer in (Known(), Mine(), keras.layers.Lambda(lambda values: values / 255)):
        images = keras.Input((4, 8))
        poses = RoutingCapsules(3, 4, implementation="auto")(layer(images))
        model = keras.Model(images, Length()(poses))
        if type(layer) is Known:
            assert with_implementation(model, "reference") is not model
        else:
            with pytest.raises(UsageError, match=r"registered .* and no Lambda"):
                with_implementation(model, "reference")
