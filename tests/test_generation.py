"""Errors of generators: right numbers in the right rows, the same for every kind of model; figures; a run."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from matplotlib.image import imread

from tfinv import cli, experiment, generation, models, runs, training
from tfinv.config import EvaluationConfig
from tfinv.data import PROTOCOLS, Dataset, render, select
from tfinv.data.transforms import rotation
from tfinv.errors import UsageError
from tfinv.export import export_generator, is_generator, load_model
from tfinv.generation import Renderer, evaluate_generation
from tfinv.layers import RepeatCodes
from tfinv.results import Provenance, to_frame

ROTATE, UNSEEN = PROTOCOLS["rotate-49"], PROTOCOLS["shift-unseen"]
SIZES = dict(encoder_filters=(4, 8), decoder_filters=(8, 4), dense_units=16, latent_size=4)


@pytest.fixture
def network():
    keras.utils.set_random_seed(1)
    return models.build_generator("autoencoder", (12, 12, 1), (12, 12, 1), 2, **SIZES)


def angles(codes):
    return np.degrees(np.arctan2(codes[:, 1], codes[:, 0])).astype(np.float32)


def perfect(images, codes):
    """Knows rotation."""
    return rotation.apply(images, tf.repeat(angles(codes), len(images)), fill_value=-1.0)


def worse_beyond(images, codes):
    """Adds 0.1 beyond +-45 degrees, 0.2 beyond +-135, and something else where it must not count."""
    angle = np.abs(angles(codes)[0])
    sharp = min(angle % 90, 90 - angle % 90) <= 2.01
    return perfect(images, codes) + (7.0 if sharp else 0.1 * (angle > 45.5) + 0.1 * (angle > 135.5) + 0.05)


def only(rows, metric):
    return rows[rows.metric == metric].set_index("label").value.to_dict()


# Numbers


def test_upright_asks_for_the_image_that_was_turned(digits):
    protocol = PROTOCOLS["upright-49"]
    turned = []

    def unmoved(images):
        turned.append(images)
        return images

    rows = evaluate_generation(unmoved, protocol, 90.0, digits)
    errors = rows[rows.metric == "mse"].groupby("parameter").value.mean()
    assert errors[0.0] == 0 and errors[90.0] > 0.05, "what stays turned is wrong but at 0 degrees"
    raw = tf.constant(digits.x_test)
    angle = tf.repeat(-180.0, len(raw))
    np.testing.assert_allclose(turned[1][: len(raw)], render(ROTATE, raw, angle), atol=1e-6)
    figure = generation.panel(
        unmoved, select(protocol, digits, "test"), protocol, rotation.grid(90.0), images=1
    )
    assert figure.axes[0].get_ylabel().endswith("given")
    upper, lower = (figure.axes[row * 4].images[0].get_array() for row in (0, 1))
    np.testing.assert_array_equal(upper, lower)


def test_perfect_model_has_no_error(digits):
    rows = evaluate_generation(perfect, ROTATE, 30.0, digits)
    assert rows[rows.metric == "mse"].value.max() < 1e-10
    assert len(rows[rows.metric == "mse"]) == 10 * 12


def test_errors_are_averaged_inside_and_outside_and_sharp_angles_are_left_out(digits):
    # Of 72 angles, 19 are inside and 53 outside; without 0, +-90 and -180 it is 18 and 50, 16 beyond +-135.
    rows = evaluate_generation(worse_beyond, ROTATE, 5.0, digits)
    outside = (34 * 0.15**2 + 16 * 0.25**2) / 50
    assert only(rows, "outside_mse") == pytest.approx({"4": outside, "9": outside}, rel=1e-3)
    inside = only(rows, "inside_mse")
    assert set(inside) == set("0123456789")
    assert [inside["4"], inside["9"]] == pytest.approx([0.05**2] * 2, rel=1e-3)
    everywhere = (18 * 0.05**2 + 34 * 0.15**2 + 16 * 0.25**2) / 68
    assert inside["3"] == pytest.approx(everywhere, rel=1e-3)
    ratios = only(rows, "outside_inside_ratio")
    assert ratios == pytest.approx({name: outside / 0.05**2 for name in "49"}, rel=1e-3)
    assert not (rows.metric == "held_out_mse").any()


def test_rows_say_what_was_seen(digits):
    rows = evaluate_generation(perfect, ROTATE, 45.0, digits)
    curve = rows[rows.metric == "mse"]
    seen = {name: part.parameter[part.in_training_range].tolist() for name, part in curve.groupby("label")}
    assert seen["4"] == seen["9"] == [-45.0, 0.0, 45.0]
    assert seen["0"] == list(np.arange(-180.0, 180.0, 45.0))


def test_held_out_region_counts_for_itself(digits):
    def black(images, codes):
        """Renders nothing; the error is that of the strokes, and the same wherever all of them are shown."""
        return tf.fill((len(images), 52, 52, 1), -1.0)

    rows = evaluate_generation(black, UNSEEN, None, digits)
    curve = rows[rows.metric == "mse"]
    strokes = render(UNSEEN, tf.constant(digits.x_test), tf.zeros((60, 2))) + 1.0
    expected = np.mean(np.square(strokes), axis=(1, 2, 3))
    for label in range(10):
        mean = expected[digits.y_test == label].mean()
        for metric in ("inside_mse", "held_out_mse"):
            assert only(rows, metric)[str(label)] == pytest.approx(mean, rel=1e-4)
    for name, part in curve.groupby("label"):
        seen = part.parameter[part.in_training_range].tolist()
        assert seen == list(range(-5, 5)) if name in "49" else seen == list(range(-20, 10))
    assert set(only(rows, "outside_inside_ratio")) == {"4", "9"}


def test_held_out_region_is_not_outside():
    grid = np.repeat(np.arange(-20, 20, dtype=np.float32)[:, None], 2, axis=1)
    values = np.where(grid[:, 0] >= 10, 100.0, np.where(np.abs(grid[:, 0] + 0.5) < 5, 1.0, 3.0))
    provenance = Provenance("", "", "", "", 0, "")
    rows = [
        provenance.row("mse", value, "4", place, -5 <= place < 5)
        for place, value in zip(grid[:, 0], values, strict=True)
    ]
    summary = generation.summarise(to_frame(rows), UNSEEN, grid, provenance)
    assert dict(zip(summary.metric, summary.value, strict=True)) == {
        "inside_mse": 1.0,
        "outside_mse": 3.0,
        "outside_inside_ratio": 3.0,
        "held_out_mse": 100.0,
    }


@pytest.mark.parametrize(
    "inside, outside, ratio", [(0.0, 0.0, 1.0), (1e-13, 1e-9, 1.0), (1e-9, 5.126e-5, 10.0)]
)
def test_ratio_counts_no_rounding(inside, outside, ratio):
    grid = np.arange(-180, 180, 15, dtype=np.float32)
    seen = np.abs(grid) <= 45
    provenance = Provenance("", "", "", "", 0, "")
    values = zip(grid, np.where(seen, inside, outside), seen, strict=True)
    rows = [provenance.row("mse", value, "4", angle, bool(within)) for angle, value, within in values]
    summary = generation.summarise(to_frame(rows), ROTATE, grid, provenance)
    assert only(summary, "outside_inside_ratio") == pytest.approx({"4": ratio}, rel=1e-3)


# Kinds of model


def test_encoder_runs_once_and_changes_nothing(network, digits, monkeypatch):
    rows = evaluate_generation(network, ROTATE, 60.0, digits)
    whole = evaluate_generation(
        lambda images, codes: network({"image": images, "code": codes}), ROTATE, 60.0, digits
    )
    np.testing.assert_allclose(rows.value, whole.value, rtol=1e-4)
    calls = []
    call = Renderer.features
    monkeypatch.setattr(Renderer, "features", lambda self, images: calls.append(1) or call(self, images))
    evaluate_generation(network, ROTATE, 60.0, digits)
    assert len(calls) == 2, "one batch, and the check before"
    assert Renderer(network, ROTATE).features(tf.constant(digits.x_test)).shape == (60, 4)


def test_file_and_export_agree_with_the_model(network, digits, tmp_path):
    expected = evaluate_generation(network, ROTATE, 60.0, digits)
    network.save(tmp_path / "model.keras")
    export_generator(network, tmp_path / "export", ROTATE)
    for path in (tmp_path / "model.keras", tmp_path / "export"):
        assert is_generator(load_model(path))
        found = evaluate_generation(path, ROTATE, 60.0, digits)
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-4)
    images, codes = np.zeros((6, 12, 12, 1), np.float32), np.ones((2, 2), np.float32)
    shared = load_model(tmp_path / "export").signatures["generate"](
        image=tf.constant(images), code=tf.constant(codes)
    )
    assert shared["image"].shape == (6, 12, 12, 1)


def test_models_that_do_not_fit_are_named(network, digits):
    with pytest.raises(UsageError, match=r"another size.*\(1, 52, 52, 1\).*\(1, 12, 12, 1\)"):
        evaluate_generation(network, UNSEEN, 10.0, digits)
    with pytest.raises(UsageError, match=r"does not render images of shape \(1, 9, 9, 1\)"):
        other = Dataset(
            "other", digits.x_train[:, :9, :9], digits.y_train, digits.x_test[:, :9, :9], digits.y_test
        )
        evaluate_generation(network, ROTATE, 60.0, other)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan")])
def test_steps_that_are_none_are_named(network, digits, step):
    with pytest.raises(UsageError, match=f"step. Expected more than 0. Received: {step}"):
        evaluate_generation(network, ROTATE, step, digits)


def test_decoder_without_a_code_is_rendered_as_a_whole(digits):
    """Where the encoder saw the code already."""
    images, codes = keras.Input((12, 12, 1), name="image"), keras.Input((2,), name="code")
    flat = keras.layers.Flatten()(images)
    latents = keras.layers.Dense(3)(keras.layers.Concatenate()([flat, RepeatCodes()([codes, flat])]))
    encoder = keras.Model([images, codes], latents, name="encoder")
    latent = keras.Input((3,))
    drawn = keras.layers.Reshape((12, 12, 1))(keras.layers.Dense(144, "tanh")(latent))
    decoder = keras.Model(latent, drawn, name="decoder")
    model = keras.Model({"image": images, "code": codes}, {"image": decoder(encoder([images, codes]))})
    rows = evaluate_generation(model, ROTATE, 90.0, digits)
    assert np.isfinite(rows.value[rows.metric == "mse"]).all()


def test_few_images_and_points_are_no_crash(network, digits):
    rows = evaluate_generation(network, ROTATE, 180.0, digits, limit=3)
    assert set(rows.label) == {"0", "1", "2"} and rows.value[rows.metric == "inside_mse"].isna().all()
    generation.error_table(rows, ROTATE, "few")
    generation.error_against_parameter(rows, ROTATE)


# Pictures


@pytest.mark.parametrize("name", ["rotate-49", "shift-unseen"])
def test_figure_shades_what_was_shown(digits, name):
    protocol = PROTOCOLS[name]
    shape = protocol.output_shape((12, 12, 1))
    rows = evaluate_generation(lambda images, _: tf.zeros((len(images), *shape)), protocol, None, digits)
    axes = generation.error_against_parameter(rows, protocol).axes[0]
    assert len(axes.lines) == 10
    spans = {span.get_label(): (span.get_x(), span.get_x() + span.get_width()) for span in axes.patches}
    expected = {"training range of 4 and 9": (-45.0, 45.0) if name == "rotate-49" else (-5.5, 4.5)}
    if name == "shift-unseen":
        expected["never shown of any class"] = (9.5, 19.5)
    assert spans.keys() == expected.keys()
    for label, edges in expected.items():
        assert spans[label] == pytest.approx(edges, abs=1e-4)


def test_panel_and_animation(network, digits, tmp_path):
    test = select(ROTATE, digits, "test")
    figure = generation.panel(network, test, ROTATE, rotation.grid(90.0), images=1)
    assert len(figure.axes) == 3 * 2 * 4  # a 4, a 9 and a free one, expected and rendered
    framed = [axes.spines["left"].get_linewidth() > 1 for axes in figure.axes]
    assert framed == [True, True, False, True] * 4 + [False] * 8
    shown = figure.axes[0].images[0].get_array()
    image = test.images[test.labels == 4][:1]
    np.testing.assert_allclose(
        shown, render(ROTATE, tf.constant(image), tf.constant([-180.0]))[0, ..., 0], atol=1e-6
    )
    path = tmp_path / "figures" / "animation.gif"
    generation.save_animation(network, test, ROTATE, rotation.grid(60.0), path)
    from PIL import Image

    with Image.open(path) as animation:
        assert animation.n_frames == 6 and animation.info["loop"] == 0
        assert 5000 <= 6 * animation.info["duration"] <= 7000
    assert [entry.name for entry in path.parent.iterdir()] == ["animation.gif"]


# A run


@pytest.fixture
def trained(digits_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "make_deterministic", keras.utils.set_random_seed)
    arguments = ["--dataset", digits_npz, "--output", tmp_path, "--epochs", 1, "--batch-size", 16]
    arguments += ["--encoder-filters", 4, 8, "--decoder-filters", 8, 4, "--dense-units", 16]
    arguments += ["--protocol", "shift-unseen", "--grid-step", 10]
    cli.train("autoencoder", "quick", "Trains.", list(map(str, arguments)))
    return tmp_path / "autoencoder_quick-digits-shift-unseen-s0"


def test_run_from_the_command_line_and_its_evaluation(trained, digits_npz, tmp_path, capsys):
    assert {path.name for path in trained.iterdir()} >= {
        *("config.json", "history.csv", "invariance.csv", "model.keras", "best.keras", "export", "figures")
    }
    assert {path.name for path in (trained / "figures").iterdir()} == {
        *("errors.png", "panel.png", "animation.gif", "training.png")
    }
    assert imread(trained / "figures" / "errors.png").shape[0] > 300
    stored = pd.read_csv(trained / runs.INVARIANCE, dtype={"label": str})
    assert set(stored.run_id) == {trained.name} and set(stored.protocol) == {"shift-unseen"}
    for model in (trained / runs.MODEL, trained / runs.EXPORT):
        table = experiment.evaluate(model, settings=EvaluationConfig(grid_step=10))
        np.testing.assert_allclose(table.value, stored.value, rtol=1e-4)
        for column in ("run_id", "model", "metric", "label"):
            assert table[column].tolist() == stored[column].tolist()
    output = tmp_path / "again"
    cli.evaluate("Evaluates.", [str(trained), "--output", str(output), "--grid-step", "10"])
    again = pd.read_csv(output / runs.INVARIANCE, dtype={"label": str})
    np.testing.assert_allclose(again.value, stored.value, rtol=1e-4)
    assert (output / "figures" / "panel.png").is_file()
    rows = experiment.evaluate(trained)
    assert len(rows[rows.metric == "mse"]) == 10 * 40, "the protocol's own step"
    assert "outside / inside" in capsys.readouterr().out
    for protocol in ("rotate-34", "rotate-49"):
        with pytest.raises(SystemExit):
            cli.evaluate("Evaluates.", [str(trained), "--protocol", protocol])
        assert ("for generation" if protocol == "rotate-34" else "another size") in capsys.readouterr().err


def test_compensation_from_the_command_line(digits_npz, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "make_deterministic", keras.utils.set_random_seed)
    arguments = ["--dataset", digits_npz, "--output", tmp_path, "--epochs", 1, "--batch-size", 16]
    arguments += ["--preset", "compensation", "--filters", 4, 4, "--grid-step", 60, "--limit", 40]
    cli.train("hypernet", "quick", "Trains.", list(map(str, arguments)))
    directory = tmp_path / "hypernet_compensation-digits-upright-49-s0"
    stored = pd.read_csv(directory / runs.INVARIANCE)
    table = experiment.evaluate(directory / runs.EXPORT, settings=EvaluationConfig(grid_step=60), limit=40)
    np.testing.assert_allclose(table.value, stored.value, rtol=1e-4)
    for given, message in (
        (
            ["autoencoder", "--protocol", "upright-49"],
            "of images alone. Received: one with the inputs image, code",
        ),
        (
            ["hypernet", "--preset", "compensation", "--protocol", "rotate-49"],
            "that takes a code. Received: one with the inputs image",
        ),
        (["hypernet", "--preset", "compensation", "--images-per-code", "2"], "Expected images_per_code=1"),
    ):
        with pytest.raises(SystemExit):
            cli.train(
                given[0],
                "quick",
                "Trains.",
                [*given[1:], "--dataset", str(digits_npz), "--output", str(tmp_path)],
            )
        assert message in capsys.readouterr().err
