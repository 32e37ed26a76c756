"""docs/results.md says what the tables say, run by run, and never mixes what does not belong together."""

import json

import pandas as pd
import pytest

from tests.test_config import run_config
from tfinv import models, report, runs
from tfinv.config import RunConfig, to_json
from tfinv.data import get_protocol
from tfinv.errors import UsageError
from tfinv.results import Provenance, to_frame, write_csv

ROTATE_34 = get_protocol("rotate-34")


def article_run(**changes):
    preset = models.get_preset("cnn", "cnn_bn_00")
    return RunConfig("cnn", "cnn_bn_00", preset.model, preset.training, **changes)


def add_run(docs, config, value, restricted=("3", "4")):
    folder = docs / "results" / config.run_id
    folder.mkdir(parents=True)
    (folder / runs.CONFIG).write_text(to_json(config))
    environment = {"command": "python train.py", "processor": "cpu", "cores": 2, "accelerators": []}
    (folder / runs.ENVIRONMENT).write_text(json.dumps({**environment, "tensorflow": "2"}))
    pd.DataFrame([{"epoch": 1, "loss": 0.1, "seconds": 90.0}]).to_csv(folder / runs.HISTORY, index=False)
    origin = Provenance(config.run_id, config.label, config.dataset, config.protocol, config.seed, "")
    rows = [origin.row("repeats", 20)]
    for name in ROTATE_34.evaluations:
        rows += [origin.row(name, value), origin.row(f"{name}_variance", 0.0001)]
    rows += [
        origin.row("accuracy", value, label, angle, abs(angle) <= 45)
        for label in (*restricted, "5")
        for angle in (-90.0, 0.0, 90.0)
    ]
    write_csv(folder / runs.INVARIANCE, to_frame(rows))


def test_each_dataset_and_each_choice_of_classes_has_its_own_section(tmp_path):
    add_run(tmp_path, article_run(), 0.1234)
    add_run(tmp_path, article_run(dataset="fashion_mnist"), 0.9)
    add_run(tmp_path, article_run(restricted_classes=(0, 1), seed=5), 0.5, ("0", "1"))
    (tmp_path / "results" / article_run().run_id / "taken_for.png").touch()
    report.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "## rotate-34 on mnist\n" in text and "## rotate-34 on fashion_mnist\n" in text
    assert "## rotate-34 on mnist, restricted classes 0, 1\n" in text
    assert text.count("0.1234 ± 0.0100") == 4 and "| 1.5 min | 20 |" in text
    # The article's figures stand beside its own test only.
    assert text.count("0.9928") == 1
    assert text.count("(results/cnn_bn_00-mnist-rotate-34-s0/taken_for.png)") == text.count(".png)") - 3 == 1
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"rotate-34-mnist.png", "rotate-34-fashion_mnist.png", "rotate-34-mnist-0-1.png"}


def test_no_runs_are_named(tmp_path):
    with pytest.raises(UsageError, match="No runs"):
        report.render_results(tmp_path)


def test_the_article_speaks_for_its_own_network_protocol_and_dataset_only():
    config = article_run()
    assert report.article_figures(config, ROTATE_34, "mnist")["Pinv"] == 0.04065
    assert not report.article_figures(run_config(), ROTATE_34, "mnist")
    assert not report.article_figures(config, ROTATE_34, "./mnist.npz")
    assert not report.article_figures(config, ROTATE_34.replace((0, 1)), "mnist")
    narrower = RunConfig("cnn", "cnn_bn_00", models.get_model("cnn").Config(filters=(4,)))
    assert not report.article_figures(narrower, ROTATE_34, "mnist")
