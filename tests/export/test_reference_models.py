"""Trained networks of saved_models/reference, exported to each format, say of digits what Keras says."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import ROOT
from tests.export import zoo
from tests.export.test_parity import require
from tfinv import export, models, report, runs
from tfinv.data import load_dataset
from tfinv.export import load_model

FOLDERS = sorted(path.parent for path in (ROOT / "saved_models" / "reference").glob(f"*/{runs.MODEL}"))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def trained(request):
    """A network of the zoo, the names of its classes, and its protocol."""
    protocol = report.protocol_of(models.read_run_config(request.param))
    model = load_model(request.param / runs.MODEL)
    names = () if zoo.is_generator(model) else tuple(map(str, protocol.kept_classes(load_dataset("mnist"))))
    yield model, names, protocol
    keras.backend.clear_session()


def saved_model(model, names, protocol, path):
    if zoo.is_generator(model):
        export.export_generator(model, path, protocol)
    else:
        export.export_saved_model(model, path, names)
    signatures = tf.saved_model.load(str(path)).signatures

    def run(inputs):
        found = {}
        for endpoint in {"serving_default", "reconstruct"} & set(signatures):
            outputs = signatures[endpoint](**{name: tf.constant(value) for name, value in inputs.items()})
            found |= {name: value.numpy() for name, value in outputs.items()}
        if "class_name" in found:
            assert [names[index] for index in found["class_index"]] == found["class_name"].astype(
                "U"
            ).tolist()
        return found

    return run


def onnx(model, names, protocol, path):
    require("tf2onnx")
    require("onnxruntime")
    import onnxruntime

    export.export_onnx(model, path, names, protocol)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    stored = json.loads(session.get_modelmeta().custom_metadata_map.get("class_names", "[]"))
    assert stored == list(names)
    outputs = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(outputs, session.run(outputs, inputs), strict=True))


def litert(model, names, protocol, path):
    export.export_litert(model, path, names, protocol)
    run = tf.lite.Interpreter(str(path)).get_signature_runner("predict")
    return lambda inputs: run(**inputs)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize("to", [saved_model, onnx, litert], ids=lambda to: to.__name__)
def test_trained_network_computes_the_same(trained, to, tmp_path):
    model, names, protocol = trained
    run = to(model, names, protocol, tmp_path / "exported")
    digits = (load_dataset("mnist").x_test[:60] / 255).astype(np.float32)
    for count in (60, 1):
        inputs = zoo.inputs_for(model, count, digits)
        zoo.assert_same(run(inputs), zoo.expected_of(model, inputs))
