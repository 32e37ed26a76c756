"""Run directories are never overwritten by accident, and go on only with the same configuration."""

import dataclasses
import json
import os
import subprocess

import pytest

from tests.conftest import ROOT
from tests.test_config import run_config
from tfinv import runs
from tfinv.errors import UsageError

CONFIG = run_config()


@pytest.fixture
def run(tmp_path):
    """A run directory with a result in it."""
    directory = tmp_path / "run"
    runs.prepare(directory, CONFIG)
    (directory / "history.csv").write_text("precious")
    return directory


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_new_run_directory_has_its_configuration(tmp_path):
    runs.prepare(tmp_path / "some" / "where", CONFIG)
    assert runs.read_config(tmp_path / "some" / "where")["training"]["batch_size"] == 128
    assert list(contents(tmp_path / "some" / "where")) == ["config.json"]
    (tmp_path / "empty").mkdir()
    runs.prepare(tmp_path / "empty", CONFIG)  # an empty folder is as good as none


def test_existing_run_is_refused_untouched(run):
    before = contents(run)
    with pytest.raises(UsageError, match=r"--resume, --overwrite") as caught:
        runs.prepare(run, dataclasses.replace(CONFIG, seed=1))
    assert str(run) in str(caught.value) and contents(run) == before


def test_overwrite_starts_again(run):
    runs.prepare(run, dataclasses.replace(CONFIG, seed=1), overwrite=True)
    assert list(contents(run)) == ["config.json"] and runs.read_config(run)["seed"] == 1


def test_resume_keeps_what_is_there(run):
    longer = runs.replace(CONFIG, epochs=99, repeats=3)  # more epochs and another evaluation are fine
    runs.prepare(run, longer, resume=True)
    assert contents(run)["history.csv"] == "precious"
    assert runs.read_config(run)["training"]["epochs"] == 99


def finish(directory, epochs=2):
    """Adds what a finished run has."""
    (directory / runs.HISTORY).write_text("epoch\n" + "".join(f"{epoch}\n" for epoch in range(epochs)))
    for name in (runs.CHECKPOINT, runs.MODEL, runs.INVARIANCE):
        (directory / name).write_text("of the whole run")
    for name in (runs.EXPORT, runs.FIGURES):
        (directory / name).mkdir()


def test_resume_with_another_evaluation_deletes_the_results_of_the_former(tmp_path):
    runs.prepare(tmp_path / "run", CONFIG)
    finish(tmp_path / "run")
    kept = [runs.CHECKPOINT, runs.CONFIG, runs.HISTORY, runs.MODEL]
    everything = sorted([*kept, runs.INVARIANCE, runs.EXPORT, runs.FIGURES])
    for config, names in (
        (CONFIG, everything),
        (runs.replace(CONFIG, epochs=99), everything),
        (runs.replace(CONFIG, epochs=99, repeats=3), sorted(kept)),
    ):
        runs.prepare(tmp_path / "run", config, resume=True)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names


def test_resume_without_a_checkpoint_is_refused_untouched(tmp_path):
    runs.prepare(tmp_path / "run", CONFIG)
    finish(tmp_path / "run")
    (tmp_path / "run" / runs.CHECKPOINT).unlink()
    with pytest.raises(UsageError, match=r"its epochs have left no checkpoint.npz.*--overwrite"):
        runs.prepare(tmp_path / "run", runs.replace(CONFIG, epochs=99), resume=True)
    assert runs.read_config(tmp_path / "run")["training"]["epochs"] != 99
    assert (tmp_path / "run" / runs.INVARIANCE).is_file()


def test_resume_of_nothing_is_a_new_run(tmp_path):
    runs.prepare(tmp_path / "run", CONFIG, resume=True)
    assert runs.read_config(tmp_path / "run")["seed"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (runs.replace(CONFIG, batch_size=7), "training.batch_size 128 -> 7"),
        (dataclasses.replace(CONFIG, seed=4), "seed 0 -> 4"),
        (dataclasses.replace(CONFIG, restricted_classes=(1,)), r"restricted_classes None -> \[1\]"),
        (
            dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dropout_rate=0.1)),
            "model.dropout_rate 0.5 -> 0.1",
        ),
    ],
)
def test_resume_with_another_configuration_names_the_difference(run, changed, message):
    before = contents(run)
    with pytest.raises(UsageError, match=message) as caught:
        runs.prepare(run, changed, resume=True)
    assert str(run) in str(caught.value) and contents(run) == before


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, how):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"Not a run directory.*no config.json"):
        runs.prepare(tmp_path, CONFIG, **how)
    assert contents(tmp_path) == {"thesis.tex": "years of work"}


def test_overwrite_and_resume_exclude_each_other(run):
    before = contents(run)
    with pytest.raises(UsageError, match=r"one of --overwrite and --resume"):
        runs.prepare(run, CONFIG, overwrite=True, resume=True)
    assert contents(run) == before


@pytest.mark.parametrize("text", ["", "{", '{"seed": ', "[1, 2]", "3", "\udcff"])
def test_damaged_configuration_is_named(run, text):
    (run / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    for use in (lambda: runs.read_config(run), lambda: runs.prepare(run, CONFIG, resume=True)):
        with pytest.raises(UsageError, match=r"Damaged configuration") as caught:
            use()
        assert str(run / "config.json") in str(caught.value) and "\n" not in str(caught.value)
    assert (run / "history.csv").read_text() == "precious"


def test_no_configuration_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no config.json"):
        runs.read_config(tmp_path / "nowhere")


def test_failed_write_keeps_the_old_configuration(run, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    before = contents(run)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left"):
        runs.prepare(run, runs.replace(CONFIG, epochs=9), resume=True)
    assert contents(run) == before


def test_replace_finds_the_section_of_a_field():
    changed = runs.replace(CONFIG, epochs=2, repeats=3, limit=4)
    assert (changed.training.epochs, changed.evaluation.repeats, changed.limit) == (2, 3, 4)
    assert changed.model == CONFIG.model and CONFIG.limit is None
    with pytest.raises(TypeError):
        runs.replace(CONFIG, spam=1)


def test_configuration_is_plain_json(run):
    values = json.loads((run / "config.json").read_text())
    assert values["model_name"] == "cnn" and values["model"]["filters"] == [32, 64]


def test_fewer_epochs_are_no_resumption(tmp_path):
    config = CONFIG
    runs.prepare(tmp_path / "run", runs.replace(config, epochs=9))
    with pytest.raises(UsageError, match=r"training.epochs 9 -> 8 \(give --epochs\)"):
        runs.prepare(tmp_path / "run", runs.replace(config, epochs=8), resume=True)
    runs.prepare(tmp_path / "run", runs.replace(config, epochs=10), resume=True)


def test_what_a_killed_process_left_is_removed(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / f".partial-{'0' * 32}-config.json").write_text("{")
    runs.prepare(directory, CONFIG)
    assert [path.name for path in directory.iterdir()] == [runs.CONFIG]


def test_command_is_without_what_depends_on_the_machine():
    command = "python scripts/train.py cnn --output 'my runs' --epochs 3 --resume --output=/here --seed 1"
    assert runs.repeatable(command) == "python scripts/train.py cnn --epochs 3 --seed 1"
    assert runs.repeatable("python train.py --dataset 'a b.npz'") == "python train.py --dataset 'a b.npz'"


@pytest.fixture
def clone(tmp_path):
    """A git clone with one source file, committed."""
    (tmp_path / "clone" / "tfinv").mkdir(parents=True)
    (tmp_path / "clone" / "tfinv" / "a.py").write_text("a = 1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path / "clone", check=True)
    return tmp_path / "clone"


def test_commit_of_a_clone_and_whether_its_sources_differ(clone):
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True
    ).stdout.strip()
    assert runs.commit(clone) == {"commit": head, "modified": False} and len(head) == 40
    (clone / "notes.txt").touch()  # no source
    assert runs.commit(clone)["modified"] is False
    (clone / "tfinv" / "b.py").touch()
    assert runs.commit(clone) == {"commit": head, "modified": True}
    (clone / "tfinv" / "b.py").unlink()
    (clone / "tfinv" / "a.py").write_text("a = 2\n")
    assert runs.commit(clone)["modified"] is True


def test_no_commit_where_there_is_no_clone(clone, tmp_path, monkeypatch):
    unknown = {"commit": None, "modified": None}
    (tmp_path / "empty").mkdir()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "empty", check=True)
    assert runs.commit(tmp_path / "empty") == unknown, "nothing is committed"
    installed = clone / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    assert runs.commit(installed) == unknown, "that clone is not the package's"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.commit(clone) == unknown, "no git"


def test_environment_keeps_what_the_epochs_before_were_made_with(tmp_path):
    def written(devices):
        runs.write_environment(tmp_path, devices, ["train.py"])
        return json.loads((tmp_path / runs.ENVIRONMENT).read_text())

    first = written(["cpu"])
    assert written(["other"])["accelerators"] == ["other"], "before the first epoch"
    first = written(["cpu"])
    assert "earlier" not in first
    (tmp_path / runs.HISTORY).write_text("epoch\n1\n")
    assert written(["cpu"]) == first
    second = written(["other"])
    assert second == {**first, "accelerators": ["other"], "earlier": [first]}
    third = written(["cpu"])
    assert [part["accelerators"] for part in third["earlier"]] == [["cpu"], ["other"]]
    assert written(["cpu"]) == third


def test_environment_has_versions_and_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "commit", lambda clone: {"commit": str(clone), "modified": False})
    runs.write_environment(tmp_path, [], ["train.py"])
    environment = json.loads((tmp_path / runs.ENVIRONMENT).read_text())
    assert {"python", "tfinv", "tensorflow", "keras", "numpy"} <= set(environment)
    assert environment["commit"] == str(ROOT) and environment["modified"] is False


@pytest.mark.parametrize(
    ("given", "said"), [("1", True), ("TRUE", True), ("0", False), (None, "as TensorFlow chooses")]
)
def test_environment_says_of_onednn_what_tensorflow_reads(tmp_path, monkeypatch, given, said):
    monkeypatch.delenv(runs.ONEDNN, raising=False)
    if given is not None:
        monkeypatch.setenv(runs.ONEDNN, given)
    runs.write_environment(tmp_path, [], ["train.py"])
    assert json.loads((tmp_path / runs.ENVIRONMENT).read_text())["onednn"] == said
