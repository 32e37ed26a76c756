"""The export script: what it writes, what it refuses, and that refusing costs nothing; the fused op."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import ENVIRONMENT, ROOT
from tests.export.test_saved_model import build, operations, random_images
from tests.fused import fused_fixture  # noqa: F401
from tests.test_cli import contents, failure, finished, stay_as_before  # noqa: F401
from tfinv import cli, experiment, export, models, runs
from tfinv.config import EvaluationConfig
from tfinv.export import load_model


def call(*arguments):
    cli.export("Exports.", list(map(str, arguments)))


@pytest.fixture
def file(tmp_path):
    """A .keras file of a capsule network."""
    build("capsnet").save(tmp_path / "capsules.keras")
    return tmp_path / "capsules.keras"


# What it writes


def test_a_run_gets_its_classes_names_and_all_formats(finished, tmp_path, capsys):  # noqa: F811
    before = contents(finished)
    onnx, litert = tmp_path / "new" / "model.onnx", tmp_path / "new" / "model.tflite"
    call(finished, "--output", tmp_path / "export", "--litert", litert)
    assert contents(finished) == before and litert.stat().st_size > 1000 and not onnx.exists()
    assert f"Written: {tmp_path / 'export'}" in capsys.readouterr().out
    images = tf.constant(random_images(5))
    found = tf.saved_model.load(str(tmp_path / "export")).signatures["classify"](images=images)
    expected = keras.models.load_model(finished / runs.MODEL)(images)["scores"]
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)
    assert set(found["class_name"].numpy()) <= {name.encode() for name in "01234578"}


def test_a_file_gets_a_folder_beside_it(file, capsys):
    call(file, "--class-names", *"abcdefgh")
    found = tf.saved_model.load(str(file.parent / "capsules_export")).signatures
    assert found["classify"](images=tf.constant(random_images(1)))["class_name"].numpy()[0] in b"abcdefgh"
    call(file, "--litert", file.parent / "capsules.tflite")
    assert "Kept: " in capsys.readouterr().out
    call(file, "--overwrite")


def test_a_network_of_a_single_output_is_one_of_scores(tmp_path):
    keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]).save(
        tmp_path / "own.keras"
    )
    call(tmp_path / "own.keras")
    classify = tf.saved_model.load(str(tmp_path / "own_export")).signatures["classify"]
    assert classify(images=tf.zeros((2, 4, 4, 1)))["probabilities"].shape == (2, 3)


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(tmp_path):
    export.export_saved_model(build("cnn"), tmp_path / "export", tuple("abcdefgh"))
    np.save(tmp_path / "images.npy", random_images(2))
    module = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
    place = ["--dir", tmp_path / "export", "--tag_set", "serve", "--signature_def", "classify"]
    inputs = ["--inputs", f"images={tmp_path / 'images.npy'}", "--outdir", tmp_path / "outputs"]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": ""}
    for command, expected in ((["show", *place], "class_name"), (["run", *place, *inputs], "probabilities")):
        done = subprocess.run([*module, *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and expected in done.stdout, done.stderr
    assert np.load(tmp_path / "outputs" / "scores.npy").shape == (2, 8)


# What it refuses


def test_bad_input_ends_in_one_line_and_costs_nothing(file, finished, failure, tmp_path):  # noqa: F811
    call(file)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "note.txt").write_text("mine")
    (tmp_path / "broken.keras").write_text("no model")
    models.build_generator("autoencoder", (12, 12, 1), (12, 12, 1), 2, "quick").save(tmp_path / "g.keras")
    before, before_run = contents(tmp_path), contents(finished)
    for arguments, message in (
        ((tmp_path / "missing.keras",), "No model at"),
        ((tmp_path / "broken.keras",), "Cannot read a model"),
        ((tmp_path / "notes" / "note.txt",), "Expected a run directory or a .keras file"),
        ((tmp_path / "capsules_export",), "Expected a run directory or a .keras file"),
        ((file,), "It exists: .*capsules_export.*--overwrite"),
        ((finished,), "It exists: .*export.*--overwrite"),
        ((file, "--overwrite", "--output", tmp_path / "notes"), "Not a SavedModel.*notes"),
        ((file, "--litert", tmp_path / "notes" / "note.txt"), "It exists.*note.txt"),
        ((file, "--litert", tmp_path / "notes", "--overwrite"), "Received the folder"),
        ((file, "--overwrite", "--class-names", "a", "b"), "each of the 8 classes.*Received: a, b"),
        ((tmp_path / "g.keras",), "--protocol"),
        ((tmp_path / "g.keras", "--protocol", "affine"), "codes of 2 numbers"),
        ((tmp_path / "g.keras", "--protocol", "rotate-49", "--class-names", "a"), "no --class-names.*a"),
        ((file, "--overwrite", "--protocol", "rotate-49"), "no --protocol.*rotate-49"),
        ((tmp_path / "g.keras", "--protocol", "rotate-50"), "Unknown protocol"),
        ((finished, "--overwrite", "--fused"), "no layer with a fused op"),
    ):
        line = failure(call, *arguments)
        assert re.search(message, line), line
        assert contents(tmp_path) == before and contents(finished) == before_run


# The fused op


def test_a_network_without_the_op_is_refused_before_anything_is_written(tmp_path, capsys):
    images = keras.Input((12, 12, 1))
    keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(images))).save(tmp_path / "plain.keras")
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path / "plain.keras", "--litert", tmp_path / "plain.tflite", "--fused")
    assert "no layer with a fused op" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plain.keras"]


def test_fused_export_keeps_the_op_and_brings_its_library(fused, file, digits_npz, capsys):
    folder = file.parent / "fused"
    call(file, "--fused", "--output", folder)
    assert fused.library in capsys.readouterr().out
    assert "Tfinv>DynamicRouting" in operations(folder)
    images, model = tf.constant(random_images(7)), keras.models.load_model(file)
    for load in (export.load, load_model):
        outputs = load(folder).signatures["classify"](images=images)
        np.testing.assert_allclose(outputs["scores"], model(images)["scores"], atol=1e-5)
    rows = experiment.evaluate(
        folder, dataset=str(digits_npz), settings=EvaluationConfig(repeats=1), limit=20
    )
    assert set(rows.implementation) == {"fused"}
    # In another process, after the copy of the library, as README.txt says.
    text = (folder / "assets.extra" / "README.txt").read_text()
    code = text[text.index("    import tensorflow") :].replace("\n    ", "\n").strip()
    code = f"import sys; sys.modules['tfinv'] = None; FOLDER = {str(folder)!r}\n{code}\n"
    code += "print(model.signatures['classify'](images=tf.zeros((2, 12, 12, 1)))['scores'].shape)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "(2, 8)", done.stderr


# Loads without a library of tfinv's own: from the copy, and then without that.
WITHOUT_LIBRARY = """
import pathlib, sys, tfinv.export
from tfinv.errors import UsageError
folder = pathlib.Path(sys.argv[1])
for copy in [*folder.glob("assets.extra/*.so")] * (sys.argv[2] == "without"):
    copy.unlink()
try:
    print(sorted(tfinv.export.load(folder).signatures))
except UsageError as error:
    print("refused:", error)
"""


def test_missing_library_is_named_in_one_line_with_the_remedy(fused, file):
    folder = file.parent / "fused"
    call(file, "--fused", "--output", folder)
    environment = os.environ | ENVIRONMENT | {"TFINV_DISABLE_FUSED": "1", "PYTHONPATH": str(ROOT)}
    refusal = r"refused: \S*fused contains fused ops \(Tfinv>DynamicRouting\).*build.py tensorflow.*--fused"
    for copy, expected in (("with", r"\['classify', "), ("without", refusal)):
        command = [sys.executable, "-c", WITHOUT_LIBRARY, folder, copy]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        line = done.stdout.strip()
        assert "\n" not in line and re.match(expected, line), done.stdout + done.stderr
