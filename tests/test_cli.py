"""Command lines: bad input ends in one line and exit code 2, and costs nobody a file."""

import json
import re
import resource
import runpy
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT, digit_arrays
from tfinv import cli, distributed, experiment, models, runs, training

SMALL = ["--filters", "4", "8", "--dense-units", "16", "--batch-size", "16", "--epochs", "1"]
FAST = ["--repeats", "1", "--grid-step", "180"]
RUN_ID = "cnn_quick-digits-rotate-34-s0"


@pytest.fixture(autouse=True)
def stay_as_before(monkeypatch):
    """The command line makes TensorFlow deterministic for its whole process, which here is everybody's."""
    monkeypatch.setattr(training, "make_deterministic", keras.utils.set_random_seed)


@pytest.fixture
def train(digits_npz, tmp_path):
    """Calls the training command line with small values, which `arguments` may replace."""

    def call(*arguments, output=tmp_path / "out"):
        defaults = ["--dataset", str(digits_npz), "--output", str(output), *SMALL, *FAST]
        cli.train("cnn", "quick", "Trains.", [*defaults, *map(str, arguments)])

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    np.savez(folder / "digits.npz", **digit_arrays())
    arguments = ["--dataset", str(folder / "digits.npz"), "--output", str(folder), *SMALL, *FAST]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_deterministic", keras.utils.set_random_seed)
        cli.train("cnn", "quick", "Trains.", arguments)
    return folder / RUN_ID


@pytest.fixture
def failure(capsys):
    """Expects exit code 2 and one line on stderr, which it returns."""

    def call(function, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            function(*arguments)
        output = capsys.readouterr()
        assert caught.value.code == 2
        assert output.err.startswith("error: ") and output.err.count("\n") == 1 and output.err.endswith("\n")
        assert "Traceback" not in output.out
        return output.err

    return call


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def evaluate(*arguments):
    cli.evaluate("Evaluates.", [*FAST, *map(str, arguments)])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "cnn_bn_00, .*quick. Received: preset=huge"),
        (["--preset=huge"], "preset=huge"),
        (["--protocol", "rotate-43"], "rotate-34.* Received: protocol=rotate-43"),
        (["--dataset", "mnits"], "fashion_mnist, mnist, .*dataset=mnits"),
        (["--dataset", "./no/such.npz"], r"no/such\.npz"),
        (["--restricted-classes", "3", "12"], "--restricted-classes.*Received: 12"),
        (["--excluded-classes", "3"], "Received: 3"),
        (["--overwrite", "--resume"], "one of --overwrite and --resume"),
        (["--learned-from", "moments"], "imagination=none.*Received: learned_from=moments"),
        (["--imagination", "true", "--address-steps", "3"], "imagination=true.*Received: address_steps=3"),
        (["--imagination", "operators", "--moment-passes", "3"], "learned_from=pairs.*: moment_passes=3"),
    ],
)
def test_bad_value_is_named_and_nothing_is_written(train, failure, tmp_path, arguments, message):
    error = failure(train, *arguments)
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--epochs", -1), ("--seed", -1), ("--batch-size", 0), ("--learning-rate", "nan")]
)
def test_value_out_of_bounds_is_named(train, failure, tmp_path, option, value):
    error = failure(train, option, value)
    assert f"Received: {option[2:].replace('-', '_')}={value}" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "1.5"], r"for --epochs: .*'1\.5'\. Expected: --epochs INT Passes .*default: 4\)"),
        (["--limit", "few"], r"for --limit: .*\['few'\]\. Expected: --limit {None}\|INT Use .*None\)"),
        (["--precision", "half"], r"'half' .*--precision'\. Expected one of \('float32', 'mixed_bfloat16'\)"),
        (["--preset"], r"Missing value for argument '--preset'\. Expected 1 values"),
        (["--grid", "4"], r"Unrecognized options: --grid, 4\. Perhaps you meant: --grid-step {None}\|FLOAT"),
        (["--nonsense"], r"Unrecognized options: --nonsense"),
    ],
)
def test_what_the_parser_refuses_is_named(failure, arguments, message):
    error = failure(cli.train, "cnn", "quick", "Trains.", arguments)
    assert re.fullmatch(rf"error: .*{message}\. See --help\.\n", error), error


def test_what_is_missing_is_named(failure):
    error = failure(cli.evaluate, "Evaluates.", [])
    assert re.search(r"Missing from .*: PATH Run directory, \.keras file or SavedModel folder", error), error


def test_what_the_parser_says_to_a_terminal_is_understood_too():
    said = """\x1b[31m Unrecognized options  \x1b[0m
 \x1b[31m------------------------\x1b[0m
  Unrecognized options: --x
  \x1b[31m-----------------------\x1b[0m
  Perhaps you meant:
      \x1b[1m--xs\x1b[0m INT
          Many.
  -----------------------
  For full helptext, run x
"""
    assert cli._in_one_line(said) == "Unrecognized options: --x. Perhaps you meant: --xs INT. See --help."


def test_last_of_two_presets_gives_name_and_values(train, tmp_path):
    train("--preset", "cnn_00", "--preset", "quick", "--limit", 20)
    assert json.loads((tmp_path / "out" / RUN_ID / runs.CONFIG).read_text())["model"]["dropout_rate"] == 0.5


def test_no_arguments_are_the_default_preset(monkeypatch):
    """The README's main command has none."""
    started = []
    monkeypatch.setattr(experiment, "run", lambda config, *rest: started.append((config.run_id, *rest)))
    cli.train("capsnet", "quick", "Trains.", [])
    alone = distributed.ALONE
    assert started == [("capsnet_quick-mnist-rotate-34-s0", Path("saved_models"), False, False, alone)]


def test_divergence_is_named_and_keeps_what_was_finite(train, failure, finished, tmp_path):
    error = failure(train, "--learning-rate", 1e30, "--epochs", 3)
    assert "diverged in epoch" in error and "--learning-rate" in error
    assert not (tmp_path / "out" / RUN_ID / runs.MODEL).exists()


def test_missing_extra_costs_no_run(finished, failure, train, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "out" / RUN_ID)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    assert "tfinv[tensorboard]" in failure(train, "--tensorboard", "--overwrite")
    assert contents(tmp_path / "out") == before


def test_second_process_at_one_run_is_refused(failure, train, tmp_path):
    with runs.locked(tmp_path / "out" / RUN_ID):
        assert "Another process" in failure(train)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--limit", 0), ("--limit", -5), ("--seed", -3), ("--seed", 2**70)]
)
def test_evaluation_values_out_of_bounds(failure, finished, option, value):
    assert f"Received: {option[2:]}={value}" in failure(evaluate, finished, option, value)


def test_images_too_small_for_the_network(failure, digits_npz, tmp_path):
    arguments = ["--dataset", str(digits_npz), "--output", str(tmp_path / "out")]
    error = failure(lambda: cli.train("capsnet", "quick", "Trains.", arguments))
    assert "(12, 12, 1)" in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "Cannot read the dataset file"),
        ("garbage", "Cannot read the dataset file"),
        ("shape", "x_test.shape"),
        ("labels", "y_train"),
        ("keys", "Missing arrays in .*y_test"),
    ],
)
def test_damaged_dataset_is_named_and_nothing_is_written(train, failure, tmp_path, damage, message):
    path, arrays = tmp_path / "bad.npz", digit_arrays()
    if damage == "shape":
        arrays["x_test"] = arrays["x_test"][:, :5]
    if damage == "labels":
        arrays["y_train"] = arrays["y_train"] - 1
    if damage == "keys":
        del arrays["y_test"]
    np.savez(path, **arrays)
    if damage in ("cut", "garbage"):
        path.write_bytes(path.read_bytes()[:-50] if damage == "cut" else b"garbage")
    error = failure(train, "--dataset", path)
    assert re.search(message, error) and "bad" in error
    assert not (tmp_path / "out").exists()


def test_existing_run_is_kept(train, failure, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out" / RUN_ID)
    before = contents(tmp_path / "out")
    error = failure(train)
    assert RUN_ID in error and "--resume, --overwrite" in error
    assert contents(tmp_path / "out") == before
    assert "training.batch_size 16 -> 8" in failure(train, "--resume", "--batch-size", 8)
    assert contents(tmp_path / "out") == before


def test_folder_of_something_else_is_kept(train, failure, tmp_path):
    (tmp_path / "out" / RUN_ID).mkdir(parents=True)
    (tmp_path / "out" / RUN_ID / "thesis.tex").write_text("years of work")
    for option in ("--overwrite", "--resume"):
        assert "Not a run directory" in failure(train, option)
    assert contents(tmp_path / "out") == {f"{RUN_ID}/thesis.tex": b"years of work"}


def test_output_that_cannot_be_written_is_named(failure, tmp_path, train, finished):
    (tmp_path / "file").write_text("not a folder")
    assert str(tmp_path / "file") in failure(lambda: train(output=tmp_path / "file" / "below"))
    assert str(tmp_path / "file") in failure(evaluate, finished, "--output", tmp_path / "file" / "below")
    assert contents(tmp_path) == {"file": b"not a folder"}


def test_damaged_checkpoint_is_named(train, failure, finished, tmp_path, digits_npz):
    run = tmp_path / "out" / RUN_ID
    shutil.copytree(finished, run)
    (run / runs.CHECKPOINT).write_bytes(b"garbage")
    error = failure(train, "--resume", "--epochs", 2, "--dataset", finished.parent / "digits.npz")
    assert str(run / runs.CHECKPOINT) in error and "--overwrite" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.keras"], "No model at nothing.keras"),
        (["{run}", "--dataset", "mnits"], "dataset=mnits"),
        (["{run}", "--protocol", "rotate-43"], "protocol=rotate-43"),
        (["{run}", "--excluded-classes", "0"], r"Expected \[N, 9\]"),
        (["{folder}"], "Cannot read a model from"),
        (["{file}"], "Cannot read a model from"),
    ],
)
def test_bad_evaluation_is_named_and_nothing_is_written(failure, finished, tmp_path, arguments, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no model")
    places = {"run": finished, "folder": tmp_path / "folder", "file": tmp_path / "file"}
    words = [word.format(**places) for word in arguments]
    if "--dataset" not in words:
        words += ["--dataset", str(finished.parent / "digits.npz")]
    error = failure(evaluate, *words, "--output", tmp_path / "out")
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


# Good input


def test_finished_run_holds_everything(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        *("config.json", "history.csv", "invariance.csv", "model.keras", "best.keras", "checkpoint.npz"),
        *("export", "figures"),
    }
    assert {path.name for path in (finished / "figures").iterdir()} == {
        *("accuracy.png", "taken_for.png", "training.png"),
    }
    rows = pd.read_csv(finished / runs.INVARIANCE)
    assert set(rows.run_id) == {RUN_ID} and {"Ptest", "Pinv", "accuracy"} <= set(rows.metric)
    assert not [name for name in names if "partial" in name]


def test_evaluation_of_run_file_and_export_agree(finished, tmp_path, failure):
    data = ["--dataset", finished.parent / "digits.npz"]
    tables = []
    for index, model in enumerate((finished, finished / runs.MODEL, finished / runs.EXPORT)):
        evaluate(model, *data, "--output", tmp_path / str(index))
        tables.append(pd.read_csv(tmp_path / str(index) / runs.INVARIANCE))
        assert (tmp_path / str(index) / "figures" / "accuracy.png").is_file()
    stored = pd.read_csv(finished / runs.INVARIANCE)
    for table in tables:
        assert table.value.equals(stored.value) and table.metric.tolist() == stored.metric.tolist()
        assert set(table.run_id) == {RUN_ID} and set(table.model) == {"cnn_quick"}
    before = contents(tmp_path / "0")
    assert "--overwrite" in failure(evaluate, finished, *data, "--output", tmp_path / "0")
    assert contents(tmp_path / "0") == before
    evaluate(finished, *data, "--output", tmp_path / "0", "--overwrite", "--seed", 1)


def test_no_restricted_images_are_no_crash(train, tmp_path):
    train("--limit", 3)
    assert pd.read_csv(tmp_path / "out" / RUN_ID / runs.INVARIANCE).set_index("metric").value.isna()["Pinv"]


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    text, errors = capsys.readouterr()
    assert caught.value.code == 0 and text.startswith("usage:") and not errors
    if script.stem.startswith("train_"):
        presets = models.get_model(script.stem.removeprefix("train_")).PRESETS
        assert all(f"{preset}: {entry.description[:30]}" in text for preset, entry in presets.items())
        assert all(entry.description for entry in presets.values())
        assert "--protocol" in text and "--restricted-classes" in text


# Real processes


@pytest.mark.slow
def test_bad_input_of_a_real_process(start_script, tmp_path):
    options = ["--dataset", tmp_path / "no.npz", "--output", tmp_path / "out"]
    process = start_script("train_capsnet.py", *options, cwd=tmp_path)
    text, errors = process.communicate()
    assert process.returncode == 2 and not text
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "no.npz" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_full_disk_keeps_the_earlier_checkpoint(start_script, finished, tmp_path, train):
    shutil.copytree(finished, tmp_path / "out" / RUN_ID)
    before = contents(tmp_path / "out" / RUN_ID)
    data = finished.parent / "digits.npz"
    assert len(before[runs.CHECKPOINT]) > 20_000
    options = ["--dataset", data, "--output", tmp_path / "out", *SMALL, *FAST, "--resume", "--epochs", 2]
    process = start_script(
        "train_cnn.py",
        *options,
        # No file may grow beyond this: what a full disk does, without one. Python ignores the signal.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)),
    )
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert errors.startswith("error: File too large") and errors.count("\n") == 1, errors
    after = contents(tmp_path / "out" / RUN_ID)
    assert after.keys() == before.keys(), "half-written files stayed"
    for name in (runs.CHECKPOINT, runs.BEST_MODEL, runs.MODEL):
        assert after[name] == before[name]
    train("--dataset", data, "--resume", "--epochs", 2)
    assert len(pd.read_csv(tmp_path / "out" / RUN_ID / runs.HISTORY)) == 2


# Any model


def test_any_model_is_trained_by_name(digits_npz, tmp_path):
    arguments = ["--dataset", str(digits_npz), "--output", str(tmp_path), *SMALL, *FAST]
    cli.train_any("Trains.", ["cnn", *arguments])
    assert (tmp_path / RUN_ID / runs.MODEL).is_file()


@pytest.mark.parametrize("arguments", [["cmm", "--epochs", "1"], [], ["--epochs", "1"]])
def test_model_that_is_missing_or_unknown_is_named(failure, arguments):
    assert all(name in failure(cli.train_any, "Trains.", arguments) for name in models.available())
