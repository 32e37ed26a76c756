"""The zoo: every model is small, and its card and its weights say what its tables say."""

import importlib
import json

import keras
import numpy as np
import pytest

from tests.conftest import ROOT
from tfinv import cli, experiment, models, reference, results, runs, training
from tfinv.config import EvaluationConfig
from tfinv.errors import UsageError

ZOO = ROOT / "saved_models" / "reference"
MODELS = sorted(path.parent for path in ZOO.glob(f"*/{runs.MODEL}"))


@pytest.fixture
def run(digits_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "make_deterministic", keras.utils.set_random_seed)
    options = ["--dataset", digits_npz, "--output", tmp_path, "--epochs", 1, "--batch-size", 16]
    options += ["--filters", 4, "--dense-units", 8, "--repeats", 2, "--grid-step", 90]
    cli.train("cnn", "cnn_00", "", list(map(str, options)))
    return tmp_path / "cnn_00-digits-rotate-34-s0"


def test_added_model_is_the_same_packed(run, tmp_path, monkeypatch):
    folder = reference.add(run, tmp_path / "zoo")
    old, new = (keras.models.load_model(path / runs.MODEL) for path in (run, folder))
    for before, after in zip(old.get_weights(), new.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert (folder / runs.MODEL).stat().st_size < (run / runs.MODEL).stat().st_size
    card = (folder / "README.md").read_text()
    assert "classes 3 and 4" in card and "seed 0" in card and "The user's own." in card and "Pinv" in card
    with pytest.raises(UsageError, match="--overwrite"):
        reference.add(run, tmp_path / "zoo")
    first = (folder / runs.MODEL).read_bytes()
    assert (reference.add(run, tmp_path / "zoo", overwrite=True) / runs.MODEL).read_bytes() == first
    monkeypatch.setattr(reference, "MODEL_BYTES", 100)
    with pytest.raises(UsageError, match=r"at most 0.0001 MB\. Received: 0\.0 MB"):
        reference.add(run, tmp_path / "zoo", overwrite=True)
    assert (folder / runs.MODEL).read_bytes() == first, "what is refused replaces nothing"
    monkeypatch.undo()
    monkeypatch.setattr(reference, "ZOO_BYTES", len(first) + 10)
    reference.add(run, tmp_path / "zoo", overwrite=True)
    (tmp_path / "zoo" / "other").mkdir()
    (tmp_path / "zoo" / "other" / runs.MODEL).write_bytes(b"0" * 11)
    with pytest.raises(UsageError, match="The zoo would be too large"):
        reference.add(run, tmp_path / "zoo", overwrite=True)
    (run / runs.INVARIANCE).unlink()
    with pytest.raises(UsageError, match=f"lacks {runs.INVARIANCE}"):
        reference.add(run, tmp_path / "zoo", overwrite=True)


def test_licence_of_any_dataset_module(monkeypatch):
    """Its contract is `load` alone."""
    assert "CC BY-SA" in reference._licence("mnist")
    monkeypatch.delattr(importlib.import_module("tfinv.data.datasets.mnist"), "SPEC")
    assert reference._licence("mnist") == "Its licence is not stated."


def test_zoo_is_small():
    sizes = [(folder / runs.MODEL).stat().st_size for folder in MODELS]
    assert max(sizes, default=0) <= reference.MODEL_BYTES and sum(sizes) <= reference.ZOO_BYTES


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_card_says_what_the_tables_say(folder):
    config = models.read_run_config(folder)
    assert config.run_id == folder.name
    assert (folder / "README.md").read_text() == "\n".join(reference.card(folder, config))
    assert "accelerators" in json.loads((folder / runs.ENVIRONMENT).read_text())
    # The run of that name in docs/results.md was trained the same; it may be tested on more images.
    quoted = ROOT / "docs" / "results" / folder.name
    if quoted.is_dir():
        trained = models.read_run_config(quoted)
        assert runs.replace(trained, curve_images=config.evaluation.curve_images) == config


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_model_computes_what_its_table_says(folder):
    stored = results.read_csv(folder / runs.INVARIANCE)
    if models.task_of(models.read_run_config(folder).model_name) == "generation":
        table = experiment.evaluate(folder, settings=EvaluationConfig(grid_step=45.0), limit=200)
        inside = table[table.metric == "inside_mse"].value.mean()
        expected = stored[stored.metric == "inside_mse"].value.mean()
        assert inside == pytest.approx(expected, rel=0.15, abs=1e-9)
        return
    table = experiment.evaluate(folder, settings=EvaluationConfig(repeats=1), limit=2000)
    for metric in ("Ptest", "Pinv"):
        found, expected = (rows[rows.metric == metric].value.item() for rows in (table, stored))
        assert found == pytest.approx(expected, abs=0.02), metric
