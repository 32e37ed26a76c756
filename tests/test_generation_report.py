"""The report on generators says what their tables say: errors by class, and who errs least."""

import json

import pandas as pd

from tests.test_report import table
from tfinv import models, report, results_page, runs, suites, summary
from tfinv.config import to_json
from tfinv.data import PROTOCOLS
from tfinv.results import Provenance, to_frame, write_csv


def add_run(docs, name, outside, protocol="rotate-49", seed=0, preset="quick", pictures=()):
    """Tables of a run: errors .05 of 4, .04 of 9, both `outside` beyond; others .02; held out .3."""
    config = runs.replace(models.default_run(name, preset), seed=seed, protocol=protocol)
    folder = docs / "results" / config.run_id
    folder.mkdir(parents=True)
    (folder / runs.CONFIG).write_text(to_json(config))
    environment = {"command": "train", "processor": "cpu", "cores": 2, "accelerators": [], "tensorflow": "2"}
    (folder / runs.ENVIRONMENT).write_text(json.dumps(environment))
    pd.DataFrame([{"epoch": 1, "loss": 0.1, "seconds": 90.0}]).to_csv(folder / runs.HISTORY, index=False)
    for picture in pictures:
        (folder / picture).touch()
    origin = Provenance(config.run_id, config.label, "mnist", protocol, seed, "")
    rows = []
    for label in map(str, range(10)):
        inside = {"4": 0.05, "9": 0.04}.get(label, 0.02)
        rows.append(origin.row("inside_mse", inside, label))
        if label in ("4", "9"):
            rows.append(origin.row("outside_mse", outside, label))
            rows.append(origin.row("outside_inside_ratio", outside / inside, label))
        if protocol == "shift-unseen":
            rows.append(origin.row("held_out_mse", 0.3, label))
        far = outside if label in ("4", "9") else inside
        rows += [origin.row("mse", inside, label, 0.0, True), origin.row("mse", far, label, 15.0, False)]
    write_csv(folder / runs.INVARIANCE, to_frame(rows))
    return folder


def test_errors_ratios_and_means_over_seeds(tmp_path):
    for seed, outside in enumerate((0.1, 0.2, 0.6)):
        add_run(tmp_path, "autoencoder", outside, seed=seed, preset="article")
    add_run(tmp_path, "address_generator", 2e-13)
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    several, single = table(text, "## rotate-49 on mnist")
    assert list(several) == [
        *("network", "4 inside", "4 outside", "4 outside / inside"),
        *("9 inside", "9 outside", "9 outside / inside", "others", "seeds", "budget"),
    ], "no column for what nobody has"
    # Mean of .1, .2, .6: .3; its spread .2646 (by hand in test_report); .3 / .05 = 6, .3 / .04 = 7.5.
    assert several["4 outside"] == several["9 outside"] == "0.3000 ± 0.6572 (sd 0.2646)"
    assert several["4 inside"] == "0.0500 ± 0.0000 (sd 0.0000)" and several["others"].startswith(
        "0.0200 ± 0.0000"
    )
    assert several["4 outside / inside"].startswith("6.0000 ±")
    assert several["9 outside / inside"].startswith("7.5000 ±")
    assert single["4 outside"] == "2.0e-13" and single["4 inside"] == "0.0500"
    leading = table(text, "### Leaderboard: error of the restricted classes outside their range")
    assert [row["network"] for row in leading] == ["address_generator_quick", "autoencoder"]
    assert [row["inside"] for row in leading] == ["0.0450", "0.0450 ± 0.0000 (sd 0.0000)"]
    assert "5.1e-06" in text and "pixels -1.0 to 1.0" in text and "Chance" not in text
    assert [row["4 outside"] for row in table(text, "### Every run")][:3] == ["0.1000", "0.2000", "0.6000"]
    assert (tmp_path / "figures" / "rotate-49-mnist.png").is_file()


def test_what_no_class_was_shown_has_a_column_and_each_protocol_a_section(tmp_path):
    add_run(tmp_path, "autoencoder", 0.1, "shift-unseen", pictures=["animation.gif", "panel.png"])
    add_run(tmp_path, "autoencoder", 0.1, "shift-49")
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert table(text, "## shift-unseen on mnist")[0]["never shown"] == "0.3000"
    assert "never shown" not in table(text, "## shift-49 on mnist")[0]
    assert text.count("autoencoder_quick-mnist-shift-unseen-s0/animation.gif") == 1


def test_headline_and_terminal(tmp_path):
    add_run(tmp_path, "autoencoder", 0.1)
    (result,) = summary.read(tmp_path / "results")
    assert report.headline(result).startswith("4 inside 0.0500, 4 outside 0.1000, 4 outside / inside 2.0000")
    networks, leading = report.network_tables(summary.networks([result]), "Networks")
    assert networks.row_count == leading.row_count == 1


def test_every_protocol_of_generation_has_its_rows():
    rows = suites.SUITES["generation"]
    protocols = {row.name: row.config("cpu", 0).protocol for row in rows}
    assert protocols["autoencoder"] == "rotate-49" and protocols["autoencoder-shift"] == "shift-49"
    assert protocols["address_generator_shift-unseen"] == "shift-unseen"
    assert set(protocols.values()) == {name for name, own in PROTOCOLS.items() if own.task == "generation"}
    for row in rows:
        config = row.config("smoke", 0)
        assert config.limit <= 600 and config.evaluation.grid_step > PROTOCOLS[config.protocol].grid_step
