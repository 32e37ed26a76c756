"""Every model of the zoo, exported, computes what Keras does; a new model is tested without an edit here."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import ENVIRONMENT
from tests.export import zoo
from tests.export.test_saved_model import operations
from tfinv import export, models
from tfinv.errors import UsageError

# What one runs who takes the layers only.
LAYERS_ALONE = """
import sys
import keras, numpy as np
import tfinv.layers
for folder in sys.argv[1:]:
    model = keras.models.load_model(folder + "/model.keras")
    stored = np.load(folder + "/inputs.npz")
    inputs = {name: keras.ops.convert_to_tensor(stored[name]) for name in stored}
    outputs = model(inputs if len(inputs) > 1 else inputs["images"])
    np.savez(folder + "/outputs.npz", **{name: np.asarray(value) for name, value in outputs.items()})
strangers = [name for name in sys.modules if name.startswith("tfinv.") and
             not name.startswith(("tfinv.layers", "tfinv.ops", "tfinv.errors"))]
sys.exit(f"also imported: {strangers}" if strangers else 0)
"""


@pytest.fixture(scope="module", params=models.available(), name="model")
def model_fixture(request):
    yield zoo.build(request.param)
    keras.backend.clear_session()


def require(module):
    """Skips without the module, but fails where TFINV_REQUIRE_ONNX=1 asks for it."""
    if importlib.util.find_spec(module) is None:
        if os.environ.get("TFINV_REQUIRE_ONNX", "0") not in ("", "0"):
            pytest.fail(f"TFINV_REQUIRE_ONNX is set, but there is no {module}")
        pytest.skip(f"no {module}")


def test_saved_model(model, tmp_path):
    if zoo.is_generator(model):
        export.export_generator(model, tmp_path / "export", zoo.ROTATE)
    else:
        export.export_saved_model(model, tmp_path / "export", zoo.NAMES)
    assert not [name for name in operations(tmp_path / "export") if "Tfinv" in name]
    signatures = tf.saved_model.load(str(tmp_path / "export")).signatures
    for count in (6, 1):
        inputs = zoo.inputs_for(model, count)
        found = {}
        for endpoint in {"serving_default", "reconstruct"} & set(signatures):
            outputs = signatures[endpoint](**{name: tf.constant(value) for name, value in inputs.items()})
            found |= {name: value.numpy() for name, value in outputs.items()}
        zoo.assert_same(found, zoo.expected_of(model, inputs))


def test_onnx(model, tmp_path):
    require("tf2onnx")
    require("onnxruntime")
    import onnxruntime

    names = () if zoo.is_generator(model) else zoo.NAMES
    export.export_onnx(model, tmp_path / "model.onnx", names, zoo.ROTATE)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    dynamic = {value.name: value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())}
    assert all(size == ("G" if name == "parameter" else "N") for name, size in dynamic.items())
    stored = json.loads(session.get_modelmeta().custom_metadata_map.get("class_names", "[]"))
    assert stored == list(names)
    for count in (6, 1):
        inputs = zoo.inputs_for(model, count)
        values = session.run(None, inputs)
        found = {output.name: value for output, value in zip(session.get_outputs(), values, strict=True)}
        zoo.assert_same(found, zoo.expected_of(model, inputs))


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_litert(model, tmp_path):
    names = () if zoo.is_generator(model) else zoo.NAMES
    export.export_litert(model, tmp_path / "model.tflite", names, zoo.ROTATE)
    interpreters = [tf.lite.Interpreter]
    if importlib.util.find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter

        interpreters.append(Interpreter)
    for interpreter in interpreters:
        run = interpreter(str(tmp_path / "model.tflite")).get_signature_runner("predict")
        for count in (6, 1):
            inputs = zoo.inputs_for(model, count)
            zoo.assert_same(run(**inputs), zoo.expected_of(model, inputs))
    if names:
        with zipfile.ZipFile(tmp_path / "model.tflite") as archive:
            assert archive.read("labels.txt").decode().splitlines() == list(names)


def test_double_precision_becomes_float32():
    images = keras.Input((4,), dtype="float64")
    copy = export.portable(keras.Model(images, keras.layers.Dense(2, dtype="float64")(images)))
    assert {variable.dtype for variable in copy.variables} == {"float32"}
    assert copy(tf.ones((3, 4))).dtype == tf.float32


def test_mixed_precision_becomes_float32(model, tmp_path):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        zoo.build(model_name(model)).save(tmp_path / "mixed.keras")
    finally:
        keras.config.set_dtype_policy(policy)
    mixed = keras.models.load_model(tmp_path / "mixed.keras", compile=False)
    layers = mixed._flatten_layers(include_self=False)
    # A network may choose float32 for all that it computes; of the others, the next lines prove something.
    chosen = {layer.dtype_policy.name for layer in layers} <= {"float32"}
    assert ("bfloat16" in str(mixed.get_config())) is not chosen
    copy = export.portable(mixed)
    assert "bfloat16" not in str(copy.get_config())
    inputs = zoo.inputs_for(model)
    zoo.assert_same(zoo.expected_of(copy, inputs), zoo.expected_of(model, inputs))


def model_name(model):
    """The module of a model that `zoo.build` made."""
    return next(name for name in models.available() if name == model.name)


@pytest.mark.slow
def test_file_loads_where_the_layers_alone_are_imported(tmp_path):
    folders, expected = [tmp_path / name for name in models.available()], []
    for folder in folders:
        model = zoo.build(folder.name)
        inputs = {name: value for name, value in zoo.inputs_for(model).items() if name != "parameter"}
        if zoo.is_generator(model):
            inputs["code"] = np.ones((1, 2), np.float32)
        folder.mkdir()
        model.save(folder / "model.keras")
        np.savez(folder / "inputs.npz", **inputs)
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        expected.append(model(tensors if zoo.is_generator(model) else tensors["images"]))
    command = [sys.executable, "-c", LAYERS_ALONE, *map(str, folders)]
    finished = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for folder, outputs in zip(folders, expected, strict=True):
        found = np.load(folder / "outputs.npz")
        assert set(found) == set(outputs)
        for name, value in outputs.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=folder.name)


def test_onnx_without_the_extra_names_it(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find(name))
    with pytest.raises(UsageError, match=r"not installed: pip install 'tfinv\[onnx\]'"):
        export.export_onnx(zoo.build("cnn"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
