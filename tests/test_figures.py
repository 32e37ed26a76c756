"""Figures from small made-up tables: what is in them, and that no global state is involved."""

import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.conftest import ROOT
from tfinv import figures, pictures
from tfinv.data import PROTOCOLS, select
from tfinv.data.protocol import Protocol, Range
from tfinv.data.transforms import rotation
from tfinv.results import Provenance, to_frame

ROTATE_34 = PROTOCOLS["rotate-34"]
NAMES = ("0", "1", "3", "4")
SHIFTED = Protocol("shifted", "shift", Range(-9, 9), (3, 4), Range(-5, 5))


def curve(parameters=range(-180, 180, 45)):
    """Rows as of an evaluation: restricted classes fall off outside +-45."""
    provenance, rows = Provenance("run-1", "cnn", "digits", "rotate-34", 0, ""), []
    for parameter in parameters:
        for name in NAMES:
            seen = name in "01" or abs(parameter) <= 45
            common = {"label": name, "parameter": parameter, "in_training_range": seen}
            rows.append(provenance.row("accuracy", 0.9 if seen else 0.1, **common))
            if name in "34":
                rows += [provenance.row(f"taken_for:{other}", 0.25, **common) for other in NAMES]
    rows.append(provenance.row("Ptest", 0.5))
    return to_frame(rows)


def saved(figure, path):
    figures.save(figure, path)
    picture = imread(path)
    assert picture.shape[0] > 150 and picture.shape[1] > 300 and np.ptp(picture[..., :3]) > 0.5
    return picture


def spans(axes):
    """Left and right edges of the shaded ranges."""
    return sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches)


def test_accuracy_against_angle(tmp_path):
    figure = figures.accuracy_against_parameter(curve(), ROTATE_34)
    saved(figure, tmp_path / "new" / "accuracy.png")
    (axes,) = figure.axes
    assert axes.get_xlim() == (-180, 180) and axes.get_ylim() == (-0.02, 1.02)
    assert spans(axes) == [(-45, 45)]
    assert axes.get_xlabel() == "rotation [degrees]" and "accuracy" in axes.get_ylabel()
    assert "run-1" in axes.get_title()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label for label in labels if label.startswith("class")] == ["class 3", "class 4"]
    assert any("training range" in label for label in labels) and any("other" in label for label in labels)
    lines = {line.get_label(): line for line in axes.lines}
    shown = dict(zip(*lines["class 3"].get_data(), strict=True))
    # -180 and 180 degrees are the same; drawing both would be right too.
    assert {angle: shown[angle] for angle in range(-180, 180, 45)} == {
        angle: 0.9 if abs(angle) <= 45 else 0.1 for angle in range(-180, 180, 45)
    }
    styles = {(lines[name].get_color(), lines[name].get_marker()) for name in ("class 3", "class 4")}
    assert len({color for color, _ in styles}) == len({marker for _, marker in styles}) == 2


@pytest.mark.parametrize(
    ("restricted", "expected"), [(Range(135, 225), [(-225, -135), (135, 225)]), (Range(-45, 45), [(-45, 45)])]
)
def test_shaded_range_wraps_around(restricted, expected):
    protocol = Protocol("own", "rotation", Range(0, 360), (3, 4), restricted)
    (axes,) = figures.accuracy_against_parameter(curve(), protocol).axes
    visible = [span for span in spans(axes) if span[1] > -180 and span[0] < 180]
    assert visible == expected and axes.get_xlim() == (-180, 180)


def test_accuracy_against_shift_and_without_restricted_classes(tmp_path):
    figure = figures.accuracy_against_parameter(curve(range(-8, 9, 4)), SHIFTED)
    saved(figure, tmp_path / "shift.png")
    # Of whole shifts from -5 to 4, each is in the middle of its step.
    assert figure.axes[0].get_xlabel() == "shift [pixels]" and spans(figure.axes[0]) == [(-5.5, 4.5)]
    left, right = figure.axes[0].get_xlim()
    assert left <= -8 and right >= 8
    free = ROTATE_34.replace(restricted_classes=())
    saved(figures.accuracy_against_parameter(curve(), free), tmp_path / "free.png")


def shifted_curve(by):
    """The same table with every accuracy lower."""
    rows = curve()
    rows.loc[rows.metric == "accuracy", "value"] -= by
    return rows


def test_comparison_has_a_panel_a_family_and_every_network_in_it(tmp_path):
    curves = {f"net_{index:02}": [shifted_curve(index / 200)] for index in range(16)}
    curves["net_00"] = [shifted_curve(0.0), shifted_curve(0.05), shifted_curve(0.1)]
    families = {name: f"family {index // 4}" for index, name in enumerate(curves)}
    figure = figures.comparison(curves, ROTATE_34, families)
    saved(figure, tmp_path / "comparison.png")
    panels = [axes for axes in figure.axes if axes.lines]
    legends = [axes.get_legend() for axes in panels]
    assert [legend.get_title().get_text() for legend in legends] == [f"family {index}" for index in range(4)]
    shown = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert [name for names in shown for name in names] == list(curves)
    for index, (axes, names) in enumerate(zip(panels, shown, strict=True)):
        # Of the panel's own networks, whose curves lie lower one by one; net_00 has three seeds.
        (free,) = (line for line in axes.lines if line.get_linestyle() == "--")
        lower = (
            [0.0, 0.05, 0.1, 1 / 200, 2 / 200, 3 / 200]
            if index == 0
            else np.arange(4 * index, 4 * index + 4) / 200
        )
        rows = curve()
        rows = rows[(rows.metric == "accuracy") & ~rows.label.isin(["3", "4"])]
        expected = rows.groupby("parameter").value.mean() - np.mean(lower)
        np.testing.assert_allclose(free.get_ydata(), expected)
        assert spans(axes)[0] == (-45, 45) and axes.get_xlim() == (-180, 180)
        lines = {line.get_label(): line for line in axes.lines}
        assert len({lines[name].get_color() for name in names}) == 4
    # Three seeds: their mean, in a band from the lowest to the highest.
    line = next(line for line in panels[0].lines if line.get_label() == "net_00")
    np.testing.assert_allclose(dict(zip(*line.get_data(), strict=True))[0], 0.85)
    band = panels[0].collections[0].get_paths()[0].vertices
    at_zero = band[band[:, 0] == 0, 1]
    np.testing.assert_allclose([at_zero.min(), at_zero.max()], [0.8, 0.9])


def test_comparison_of_one_network(tmp_path):
    figure = figures.comparison({"net": [curve()]}, ROTATE_34, {"net": "only"})
    saved(figure, tmp_path / "comparison.png")
    assert len(figure.axes) == 1 and figure.axes[0].get_xlabel() == "rotation [degrees]"
    assert not any("other panels" in text.get_text() for text in figure.legends[0].get_texts())


def test_taken_for(tmp_path):
    figure = figures.taken_for(curve(), ROTATE_34)
    saved(figure, tmp_path / "taken_for.png")
    panels = figure.axes[:2]
    assert [axes.get_ylabel() for axes in panels] == ["class 3 taken for", "class 4 taken for"]
    for axes in panels:
        assert [text.get_text() for text in axes.get_yticklabels()] == list(NAMES)
        assert {line.get_xdata()[0] for line in axes.lines} == {-45, 45}
    assert "degrees" in panels[1].get_xlabel()


@pytest.mark.parametrize(
    "columns", [["loss", "accuracy"], ["loss", "scores_loss", "scores_accuracy", "val_loss"], ["loss"]]
)
def test_training_curves(tmp_path, columns):
    history = pd.DataFrame(
        {"run_id": "run-1", "epoch": [1, 2, 3], **{name: [3.0, 2.0, 1.0] for name in columns}}
    )
    figure = figures.training_curves(history)
    saved(figure, tmp_path / "training.png")
    for axes, key in zip(figure.axes, ("loss", "accuracy")[: len(columns)], strict=True):
        expected = [name.replace("_", " ") for name in columns if name.endswith(key)]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == expected
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel() == key
    assert "run-1" in figure.get_suptitle()


def test_reconstructions(tmp_path, digits):
    def model(images):
        return {"scores": np.eye(8)[np.full(len(images), 3)], "reconstruction": 1.0 - np.asarray(images)}

    split = select(ROTATE_34, digits, "test")
    grid = rotation.grid(90.0)
    figure = pictures.reconstructions(model, split, ROTATE_34, grid)
    saved(figure, tmp_path / "reconstructions.png")
    axes = np.array(figure.axes).reshape(4, len(grid))  # input and decoded of 3, the same of 4
    assert [panel.get_title() for panel in axes[0]] == ["-180", "-90", "0", "90"]
    assert {panel.get_xlabel() for panel in axes[1]} == {"“3”"}
    upright = axes[0, 2].images[0].get_array()
    np.testing.assert_allclose(upright, split.images[split.labels == 3][0].squeeze() / 255, atol=1e-6)
    np.testing.assert_allclose(axes[1, 2].images[0].get_array(), 1 - upright, atol=1e-6)
    frames = [panel.spines["left"].get_edgecolor() for panel in axes[0]]
    assert frames[0] == frames[1] == frames[3] != frames[2], "angles never seen must stand out"


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_are_drawn_alike_from_black_to_white(channels):
    values = np.array([[-1.0, -0.5], [0.5, 2.0]], np.float32)
    figure = Figure(figsize=(0.2, 0.2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    pictures.picture(axes, np.repeat(values[..., None], channels, -1), PROTOCOLS["rotate-49"], seen=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[5::10, 5::10, :3]
    np.testing.assert_allclose(drawn, np.repeat([[[0], [64]], [[191], [255]]], 3, -1), atol=1)


def test_no_state_of_pyplot():
    """Keras imports it; tfinv must not use it: figures would pile up, and fail where there is no screen."""
    sources = [path for path in (ROOT / "tfinv").rglob("*.py") if "pyplot" in path.read_text()]
    assert sources == []
    figures.accuracy_against_parameter(curve(), ROTATE_34)
    assert matplotlib.pyplot.get_fignums() == []
