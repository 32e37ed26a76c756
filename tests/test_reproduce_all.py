"""`reproduce.py all`: every suite in one sweep and one report, also after a kill of the whole sweep."""

import os
import signal
import time

import pandas as pd
import pytest

from tests.conftest import ENVIRONMENT
from tests.test_report import table
from tests.test_reproduce import LONG, address, started, tiny_suite
from tfinv import runs, suites
from tfinv.data import get_protocol
from tfinv.errors import UsageError

# The rows of the tiny suite, each in a suite of its own: it diverges, takes long, does not.
SPLIT = "dict(zip(('first', 'second', 'third'), ((row,) for row in tiny_suite({!r})['tiny'])))"


@pytest.fixture
def three(digits_npz, monkeypatch):
    monkeypatch.setattr(suites, "SUITES", eval(SPLIT.format(str(digits_npz)), {"tiny_suite": tiny_suite}))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return [row.config("cpu", 0) for row in suites.select("all")]


def test_all_is_every_row_of_every_suite_in_their_order(three):
    assert [row.name for row in suites.select("all")] == ["cnn_00", "cnn_01", "cnn_bn_00"]
    assert [row.name for row in suites.select("all", ["cnn_bn_00", "cnn_00"])] == ["cnn_00", "cnn_bn_00"]
    assert suites.suite_of("cnn_01") == "second"
    with pytest.raises(UsageError, match="first, second, third, all"):
        suites.select("everything")


def test_a_smoke_run_leaves_out_sizes_and_no_choice():
    rows = suites.select("all")
    kept = suites.distinct(rows)
    names = {row.name for row in kept}
    families = [{row.family for row in some if not row.changes} for some in (kept, rows)]
    assert families[0] == families[1]
    assert {name for row in kept for name in row.changes} == {name for row in rows for name in row.changes}
    for field in ("model_name", "protocol", "dataset"):
        chosen = [{getattr(row.config("smoke", 0), field) for row in some} for some in (kept, rows)]
        assert chosen[0] == chosen[1]
    for field in ("imagination", "learned_from", "imagined_from", "imagined_classes"):
        chosen = [{getattr(row.config("smoke", 0).imagining, field) for row in some} for some in (kept, rows)]
        assert chosen[0] == chosen[1]
    assert {"hypernet_basic", "hypernet_convolutional", "hypernet_compensation", "em_capsnet"} <= names
    assert "cnn_01" not in names and "group_cnn_c8" not in names, "they differ in sizes"
    assert suites.distinct(rows[1:2]) == rows[1:2]


def test_curves_are_measured_in_the_steps_of_their_protocol():
    for row in suites.select("all"):
        config = row.config("article", 0)
        assert config.evaluation.grid_step in (None, get_protocol(config.protocol).grid_step), row.name


@pytest.mark.slow
def test_killed_sweep_goes_on_where_it_was_and_reports_every_suite(start_script, three, digits_npz, tmp_path):
    _, long, short = three
    prelude = (
        "from tests.test_reproduce import tiny_suite; from tfinv import suites; "
        f"suites.SUITES = {SPLIT.format(str(digits_npz))}"
    )
    options = ["all", "--output", tmp_path / "out", "--runs"]
    process = start_script("reproduce.py", *options, "--seeds", 0, prelude=prelude, cwd=tmp_path)
    started(tmp_path / "out", long)
    process.kill()  # nothing can tidy up
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and "[1/3] cnn_00 digits s0 FAILED (exit code 2)" in output
    deadline = time.monotonic() + 60
    while True:  # its worker ends with it
        try:
            with runs.locked(address(tmp_path / "out", long)):
                break
        except UsageError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    before = pd.read_csv(address(tmp_path / "out", long) / runs.HISTORY)
    assert 1 <= len(before) < LONG and not address(tmp_path / "out", short).exists()

    process = start_script("reproduce.py", *options, prelude=prelude, cwd=tmp_path)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and "1 failed" in output, errors
    assert "FAILED: cnn_00 digits s0 (exit code 2)" in output and "diverged" in output
    after = pd.read_csv(address(tmp_path / "out", long) / runs.HISTORY)
    kept = len(before) - 1  # killed between history and checkpoint, it loses that one epoch
    assert len(after) == LONG and after.seconds[:kept].tolist() == before.seconds[:kept].tolist()

    page = (tmp_path / "out" / "all-cpu" / "results.md").read_text()
    names = [row["network"] for row in table(page, "## rotate-34 on ")]
    assert sorted(names) == ["cnn_01", "cnn_bn_00"], "what failed is not made up"
    commands = {row["run"]: row["command"] for row in table(page, "### Commands and devices")}
    assert "reproduce.py second --budget cpu --only cnn_01" in commands[f"`{long.run_id}`"]
    html = (tmp_path / "out" / "all-cpu" / "results.html").read_text()
    assert all(name in html for name in names) and html.count('src="data:image/png;base64,') >= 2

    model = address(tmp_path / "out", short) / runs.MODEL
    stamp = model.stat().st_mtime_ns
    process = start_script("reproduce.py", *options, "--report-only", prelude=prelude, cwd=tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == 0 and os.stat(model).st_mtime_ns == stamp
