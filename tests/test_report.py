"""docs/results.md says what the tables say, run by run, and never mixes what does not belong together."""

import json

import pandas as pd
import pytest

from tests.test_config import run_config
from tfinv import models, report, results_page, runs, summary
from tfinv.config import RunConfig, to_json
from tfinv.data import get_protocol
from tfinv.errors import UsageError
from tfinv.results import Provenance, to_frame, write_csv

ROTATE_34 = get_protocol("rotate-34")


def article_run(**changes):
    preset = models.get_preset("cnn", "cnn_bn_00")
    return RunConfig("cnn", "cnn_bn_00", preset.model, preset.training, **changes)


def add_run(docs, config, value, restricted=("3", "4"), onednn=False, **values):
    """Tables of a run whose tests all have one value, but for those given by name."""
    folder = docs / "results" / config.run_id
    folder.mkdir(parents=True)
    (folder / runs.CONFIG).write_text(to_json(config))
    environment = {
        "command": "python train.py --output here",
        "processor": "cpu",
        "cores": 2,
        "accelerators": [],
        "onednn": onednn,
    }
    (folder / runs.ENVIRONMENT).write_text(json.dumps({**environment, "tensorflow": "2"}))
    pd.DataFrame([{"epoch": 1, "loss": 0.1, "seconds": 90.0}]).to_csv(folder / runs.HISTORY, index=False)
    origin = Provenance(config.run_id, config.label, config.dataset, config.protocol, config.seed, "")
    rows = [origin.row("repeats", 20)]
    for name in ROTATE_34.evaluations:
        rows += [origin.row(name, values.get(name, value)), origin.row(f"{name}_variance", 0.0001)]
    rows += [
        origin.row("accuracy", value, label, angle, abs(angle) <= 45)
        for label in (*restricted, "5")
        for angle in (-90.0, 0.0, 90.0)
    ]
    write_csv(folder / runs.INVARIANCE, to_frame(rows))
    return folder


def table(text, heading):
    """Rows of the Markdown table below a heading, as dicts."""
    blocks = text.split(heading, 1)[1].split("\n\n")
    lines = next(block for block in blocks if block.startswith("|")).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def network(name, seed=0, **changes):
    preset = models.get_preset("cnn", name)
    return runs.replace(RunConfig("cnn", name, preset.model, preset.training, seed=seed), **changes)


def test_each_dataset_and_each_choice_of_classes_has_its_own_section(tmp_path):
    add_run(tmp_path, article_run(), 0.1234)
    add_run(tmp_path, article_run(dataset="fashion_mnist"), 0.9)
    add_run(tmp_path, article_run(restricted_classes=(0, 1), seed=5), 0.5, ("0", "1"))
    (tmp_path / "results" / article_run().run_id / "taken_for.png").touch()
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "## rotate-34 on mnist\n" in text and "## rotate-34 on fashion_mnist\n" in text
    assert "## rotate-34 on mnist, restricted classes 0, 1\n" in text
    # A standard deviation of .01 over 20 passes: 2.093 x .01 / sqrt(20) = .0047.
    assert text.count("0.1234 ± 0.0047 (sd 0.0100)") == 4 and "| 1.5 min |" in text and "| 20 | all |" in text
    # The article's figures stand beside its own test only.
    own, others = text.split("## rotate-34 on fashion_mnist")
    assert own.count("0.9928") == 2 and "0.9928" not in others
    assert text.count("(results/cnn_bn_00-mnist-rotate-34-s0/taken_for.png)") == text.count(".png)") - 3 == 1
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"rotate-34-mnist.png", "rotate-34-fashion_mnist.png", "rotate-34-mnist-0-1.png"}


def test_excluded_classes_are_another_section_unless_they_are_the_protocols_own(tmp_path):
    add_run(tmp_path, article_run(), 0.5)
    for seed, excluded in enumerate(((), (6,), (6, 9)), start=1):
        add_run(tmp_path, article_run(excluded_classes=excluded, seed=seed), 0.5)
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    headings = [line for line in text.splitlines() if line.startswith("## rotate-34")]
    own = "## rotate-34 on mnist"
    assert sorted(headings) == [own, f"{own}, excluded classes 6", f"{own}, excluded classes none"]
    assert all(f"`{article_run(seed=seed).run_id}`" in text for seed in range(4))
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {f"rotate-34-mnist{end}.png" for end in ("", "-without-6", "-without-none")}


def test_one_training_evaluated_twice_is_no_second_seed(tmp_path):
    folder = add_run(tmp_path, network("cnn_00", repeats=3), 0.5)
    folder.rename(folder.with_name("longer"))
    add_run(tmp_path, network("cnn_00", repeats=7), 0.5)
    with pytest.raises(UsageError, match=r"one run for seed 0 of cnn_00.*cnn_00-mnist.*longer"):
        summary.networks(summary.read(tmp_path / "results"))


def test_mean_and_spread_are_over_seeds_and_the_spread_over_passes_stands_apart(tmp_path):
    for seed, value in enumerate((0.1, 0.2, 0.6)):
        add_run(tmp_path, network("cnn_00", seed), value)
    add_run(tmp_path, network("cnn_01"), 0.5)
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    several, single = table(text, "## rotate-34 on mnist\n\n")
    # Mean of .1, .2, .6: .3; deviations -.2, -.1, .3: (.04 + .01 + .09) / 2 = .07, its root .2646; Student's
    # t for 3 seeds 4.3027: 4.3027 x .2646 / sqrt(3) = .6572.
    assert (several["network"], several["Pinv"], several["seeds"]) == (
        "cnn_00",
        "0.3000 ± 0.6572 (sd 0.2646)",
        "3: 0, 1, 2",
    )
    assert several["Pinv (article)"] == "0.0031" and "300 epochs, rate 0.0001 x 0.9" in several["budget"]
    assert (single["Ptest"], single["seeds"]) == ("0.5000", "one: 0"), "one seed has no spread over seeds"
    each = table(text, "### Every run")
    assert [row["Pout"] for row in each] == [
        f"{value} ± 0.0047 (sd 0.0100)" for value in ("0.1000", "0.2000", "0.6000", "0.5000")
    ]
    assert [row["run"] for row in each][2] == "`cnn_00-mnist-rotate-34-s2`"


def test_two_budgets_of_a_network_are_two_rows(tmp_path):
    add_run(tmp_path, network("cnn_00", 0, epochs=15), 0.5)
    add_run(tmp_path, network("cnn_00", 1, epochs=3), 0.4)
    add_run(tmp_path, network("cnn_00", 2, epochs=3, repeats=7), 0.2)  # passes make no other network
    add_run(tmp_path, network("cnn_00", 3, epochs=3, beta_1=0.5), 0.1)
    results_page.render_results(tmp_path)
    rows = table((tmp_path / "results.md").read_text(), "## rotate-34 on mnist\n\n")
    assert [(row["Pinv"], row["seeds"]) for row in rows] == [
        ("0.3000 ± 1.2706 (sd 0.1414)", "2: 1, 2"),  # 12.706 x .1414 / sqrt(2)
        ("0.1000", "one: 3"),
        ("0.5000", "one: 0"),
    ]
    assert len({row["network"] for row in rows}) == 3
    assert rows[2]["network"] == "cnn_00, 15 epochs, rate 0.0001 x 0.9 every 10,000 steps"


def test_a_budget_names_what_is_not_usual():
    config = runs.replace(run_config(), epochs=3, learning_rate=2e-3, decay_rate=1.0)
    assert summary.budget(config) == "3 epochs, rate 0.002"
    config = runs.replace(config, decay_rate=0.5, decay_steps=100, precision="mixed_bfloat16", limit=200)
    assert summary.budget(config) == "3 epochs, rate 0.002 x 0.5 every 100 steps, mixed_bfloat16, 200 images"


def test_leaderboard_is_by_pinv_among_the_able(tmp_path):
    for name, ptest, pinv in (
        ("cnn_00", 0.97, 0.3),
        ("cnn_01", 0.9699, 0.9),
        ("cnn_02", 0.99, 0.4),
        ("cnn_bn_00", float("nan"), 0.5),
        ("cnn_pool_00", 0.99, float("nan")),
    ):
        add_run(tmp_path, network(name), 0.5, Ptest=ptest, Pinv=pinv)
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    rows = table(text, "### Leaderboard")
    assert [(row["place"], row["network"], row["Pinv"]) for row in rows] == [
        ("1", "cnn_02", "0.4000"),
        ("2", "cnn_00", "0.3000"),
        ("3", "cnn_pool_00", "-"),
    ]
    assert "Below that: `cnn_01`, `cnn_bn_00`." in text


def test_the_order_is_that_of_the_suite_and_strangers_come_last(tmp_path):
    add_run(tmp_path, network("cnn_00", imagination="true"), 0.5)
    for name in ("quick", "cnn_pool_00", "cnn_bn_00", "cnn_00"):
        add_run(tmp_path, network(name), 0.5)
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    rows = table(text, "## rotate-34 on mnist\n\n")
    assert [row["network"] for row in rows] == ["cnn_00", "cnn_bn_00", "cnn_pool_00", "cnn_00_true"]
    own = table(text, "## rotate-34 on mnist: what imagination depends on")
    assert [row["network"] for row in own] == ["cnn_quick"]


def test_a_published_run_replaces_the_older_of_its_name(tmp_path):
    old = add_run(tmp_path / "docs", network("cnn_00"), 0.1)
    (old / "taken_for.png").touch()
    new = add_run(tmp_path / "new", network("cnn_00", epochs=7), 0.2)
    (new / runs.MODEL).touch()
    (new / runs.FIGURES).mkdir()
    for name in ("reconstructions.png", "accuracy.png"):
        (new / runs.FIGURES / name).touch()
    results_page.add_run(tmp_path / "docs", new, ["reconstructions.png", "taken_for.png"])
    assert {path.name for path in old.iterdir()} == {
        *(runs.CONFIG, runs.ENVIRONMENT, runs.HISTORY, runs.INVARIANCE, "reconstructions.png")
    }
    (row,) = summary.networks(summary.read(tmp_path / "docs" / "results"))
    environment = json.loads((old / runs.ENVIRONMENT).read_text())
    assert environment["command"] == "python train.py" and environment["cores"] == 2
    assert (row.epochs, row.mean("Pinv")) == (7, 0.2) and len(
        list((tmp_path / "docs" / "results").iterdir())
    ) == 1


def test_a_run_without_epochs_or_curve_is_no_crash(tmp_path):
    folder = add_run(tmp_path, network("cnn_00", epochs=0), 0.5)
    (folder / runs.HISTORY).unlink()
    results_page.render_results(tmp_path)
    assert "| 0 | 0.0 min |" in (tmp_path / "results.md").read_text()


def test_what_a_killed_publication_left_is_no_run(tmp_path):
    left = add_run(tmp_path, network("cnn_00"), 0.1)
    partial = left.with_name(f".partial-{'0' * 32}-{left.name}")
    left.rename(partial)
    assert summary.read(tmp_path / "results") == []
    new = add_run(tmp_path / "new", network("cnn_00"), 0.2)
    results_page.add_run(tmp_path, new)
    assert list((tmp_path / "results").iterdir()) == [left]


def test_an_incomplete_run_is_named(tmp_path):
    folder = add_run(tmp_path, network("cnn_00"), 0.5)
    (folder / runs.ENVIRONMENT).unlink()
    with pytest.raises(UsageError, match=f"Incomplete run: {folder} .*environment.json"):
        results_page.render_results(tmp_path)


def test_a_run_that_went_on_elsewhere_says_so(tmp_path):
    folder = add_run(tmp_path, network("cnn_00"), 0.5)
    environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    earlier = environment | {"processor": "older", "commit": "a" * 40, "modified": False}
    environment |= {"commit": "b" * 40, "modified": False}
    environment |= {"earlier": [earlier, {**environment, "commit": None}, dict(environment), earlier]}
    (folder / runs.ENVIRONMENT).write_text(json.dumps(environment))
    row = report.command_row(summary.read(tmp_path / "results")[0])
    older, newer = (f"{name}, 2 cores; TensorFlow 2" for name in ("older", "cpu"))
    assert row["device"] == f"{older}, then {newer}, then {older}, then {newer}"
    first, last = f"`{'a' * 12}`", f"`{'b' * 12}`"
    assert row["commit"] == f"{first}, then -, then {last}, then {first}, then {last}"


def test_no_runs_are_named(tmp_path):
    with pytest.raises(UsageError, match="No runs"):
        results_page.render_results(tmp_path)


def test_the_article_speaks_for_its_own_network_protocol_and_dataset_only():
    config = article_run()
    assert report.article_figures(config, ROTATE_34, "mnist")["Pinv"] == 0.04065
    assert not report.article_figures(run_config(), ROTATE_34, "mnist")
    assert not report.article_figures(config, ROTATE_34, "./mnist.npz")
    assert not report.article_figures(config, ROTATE_34.replace((0, 1)), "mnist")
    narrower = RunConfig("cnn", "cnn_bn_00", models.get_model("cnn").Config(filters=(4,)))
    assert not report.article_figures(narrower, ROTATE_34, "mnist")


def test_device_says_that_a_run_is_not_bitwise_repeatable(tmp_path):
    for seed, onednn in enumerate((False, True)):
        add_run(tmp_path, network("cnn_00", seed), 0.2, onednn=onednn)
    devices = [report.command_row(result)["device"] for result in summary.read(tmp_path / "results")]
    assert devices == ["cpu, 2 cores; TensorFlow 2", "cpu, 2 cores; TensorFlow 2 with oneDNN"]


def test_versions_and_commit_are_told_where_a_run_knows_them(tmp_path):
    folder = add_run(tmp_path, network("cnn_00"), 0.2)
    (old,) = summary.read(tmp_path / "results")
    assert (report.command_row(old)["other versions"], report.command_row(old)["commit"]) == ("-", "-")
    results_page.render_results(tmp_path)
    assert "| commit |" not in (tmp_path / "results.md").read_text()
    environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    for modified, shown in ((False, "`0123456789ab`"), (True, "`0123456789ab`, modified")):
        known = {
            "python": "3.11.7",
            "keras": "3.15.1",
            "numpy": "2.4",
            "tfinv": "0.1.0",
            "commit": "0123456789abcdef" * 2,
        }
        (folder / runs.ENVIRONMENT).write_text(json.dumps(environment | known | {"modified": modified}))
        row = report.command_row(old)
        assert row["other versions"] == "python 3.11.7, keras 3.15.1, numpy 2.4, tfinv 0.1.0"
        assert row["commit"] == shown


def test_a_run_that_is_published_already_stays_whole(tmp_path):
    folder = add_run(tmp_path, network("cnn_00"), 0.5)
    (folder / runs.MODEL).write_text("weights")
    results_page.add_run(tmp_path, folder)
    assert (folder / runs.MODEL).read_text() == "weights"
