"""The article's tables and figures: every network of it has its row, and ours stands beside its own."""

import pytest

from tests.test_generation_report import add_run as add_generator
from tests.test_report import add_run, network, table
from tfinv import article, models, results_page, summary
from tfinv.results import Provenance, read_csv, to_frame, write_csv


def test_every_network_of_the_article_has_a_row_and_ours_is_the_longest_trained(tmp_path):
    add_run(tmp_path, network("cnn_00", 0, epochs=15), 0.5)
    add_run(tmp_path, network("cnn_00", 1, epochs=30), 0.4)
    add_run(tmp_path, network("cnn_00", imagination="true"), 0.9)  # not the article's any more
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    rows = table(text, "### Convolutional networks") + table(text, "### Capsule networks")
    measured = {
        f"{name}_{preset}"
        if name == "em_capsnet" and preset != "article"
        else preset.replace("article", name)
        for name in models.available()
        if models.task_of(name) == "recognition"
        for preset, values in models.get_model(name).PRESETS.items()
        if values.article
    }
    assert {row["network"] for row in rows} == measured and len(rows) == len(measured) == 13
    first = rows[0]
    assert first["network"] == "cnn_00" and first["Pinv (article)"] == "0.0031"
    assert first["Pinv (ours)"] == "0.4000" and first["budget"].startswith("30 epochs")
    assert rows[1]["Pinv (ours)"] == rows[1]["seeds"] == "-", "nothing is made up for what was not run"


def test_errors_are_those_of_the_authors_file():
    """As docs of the reference have them: of digits 3, 4 and 9, by the angle."""
    authors = {
        0: ".055 .045 .038",
        -65: ".054 .068 .051",
        -79: ".053 .090 .059",
        -115: ".053 .109 .068",
        -165: ".053 .110 .074",
    }
    expected = {
        angle: dict(zip("349", map(float, text.split()), strict=True)) for angle, text in authors.items()
    }
    assert expected == article._ERRORS


def add_curve(docs, value, grid, **options):
    """A generator with the same error of 3, 4 and 9 at each angle of a grid."""
    folder = add_generator(docs, "autoencoder", 0.1, **options)
    origin = Provenance(folder.name, "autoencoder", "mnist", "rotate-49", 0, "")
    rows = [
        origin.row("mse", value + int(digit) / 1000, digit, angle, True) for digit in "349" for angle in grid
    ]
    tests = read_csv(folder / "invariance.csv")
    write_csv(folder / "invariance.csv", to_frame([*tests[tests.metric != "mse"].to_dict("records"), *rows]))


def test_errors_stand_beside_the_articles_at_the_nearest_angle_mean_over_seeds(tmp_path):
    fine = [-165.6, -115.2, -79.2, -64.8, 0.0]
    for seed, value in enumerate((0.1, 0.3)):
        add_curve(tmp_path, value, fine, seed=seed)
    add_curve(tmp_path, 0.5, [-135.0, -90.0, -45.0, 0.0], preset="article")
    results_page.render_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    authors, coarse, ours = table(text, "### Error against the angle")
    assert authors["-115°"] == "0.053 / 0.109 / 0.068" and list(authors)[1:] == [
        *("0°", "-65°", "-79°", "-115°", "-165°")
    ]
    assert {ours[angle] for angle in list(ours)[1:]} == {"0.2030 / 0.2040 / 0.2090"}
    assert coarse["0°"] == "0.5030 / 0.5040 / 0.5090" and coarse["-65°"] == "-", "no angle near enough"
    assert text.count(f"({article.FIGURE})") == 1 and (tmp_path / article.FIGURE).is_file()


@pytest.mark.parametrize("picture", ["panel.png", "errors.png"])
def test_pictures_name_the_runs_that_have_them(tmp_path, picture):
    add_generator(tmp_path, "autoencoder", 0.1, pictures=[picture])
    add_generator(tmp_path, "hypernet", 0.1, preset="address", pictures=["panel.png"])
    text = results_page.text(summary.read(tmp_path / "results"))
    rows = {row["the article shows"]: row.get("ours, below", "-") for row in table(text, "### Pictures")}
    name = "autoencoder_quick-mnist-rotate-49-s0"
    shown = "digits turned by autoencoders, expected beside rendered"
    if picture == "errors.png":
        shown = "the error of each digit against the angle"
    assert {what for what, ours in rows.items() if ours != "-"} == {shown}
    assert rows[shown] == f"[`{name}`](#{name})"
    results_page.render_results(tmp_path)
    written = (tmp_path / "results.html").read_text()
    assert f'<h3 id="{name}">' in written and f'href="#{name}"' in written


def test_a_report_without_mnist_has_nothing_of_the_article(tmp_path):
    add_run(tmp_path, network("cnn_00", dataset="fashion_mnist"), 0.5)
    text = results_page.text(summary.read(tmp_path / "results"))
    assert "article's figures beside" not in text and "## rotate-34 on fashion_mnist" in text
