"""Evaluation: right classes and ranges, right numbers, the same for every kind of model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfinv import evaluation, models, training
from tfinv.data import PROTOCOLS, Dataset
from tfinv.data.protocol import Evaluation, Protocol, Range
from tfinv.errors import UsageError
from tfinv.evaluation import accuracy_curve, evaluate_invariance
from tfinv.export import export_saved_model, is_generator, load_model
from tfinv.results import COLUMNS, Provenance, read_csv, to_frame, write_csv

ROTATE_34 = PROTOCOLS["rotate-34"]
KEPT = np.array([0, 1, 2, 3, 4, 5, 7, 8])


def coded(count=60):
    """Images whose centre, which every rotation leaves in place, tells the class; odd size."""
    labels = np.arange(count) % 10
    images = np.zeros((count, 9, 9, 1), np.uint8)
    images[:, 3:6, 3:6, 0] = (labels * 25)[:, None, None]
    return Dataset("coded", images, labels, images, labels)


def oracle(images):
    """Reads the class from the centre; numpy only."""
    label = np.rint(np.asarray(images)[:, 4, 4, 0] * 255 / 25).astype(int)
    return np.eye(8)[np.searchsorted(KEPT, label)]


def constant(index, classes=8):
    return lambda images: np.eye(classes)[np.full(len(images), index)]


def values(rows):
    return rows.set_index("metric").value.to_dict()


@pytest.fixture
def network():
    keras.utils.set_random_seed(1)
    return models.build("cnn", (12, 12, 1), 8, preset="quick", filters=(4, 8), dense_units=16)


# Numbers


def test_perfect_classifier_is_always_right():
    rows = values(evaluate_invariance(oracle, ROTATE_34, repeats=3, data=coded()))
    assert rows == {
        "repeats": 3,
        **dict.fromkeys(("Ptest", "Pin", "Pout", "Pinv"), 1.0),
        **dict.fromkeys(("Ptest_variance", "Pin_variance", "Pout_variance", "Pinv_variance"), 0.0),
    }
    curve = accuracy_curve(oracle, ROTATE_34, step=30, data=coded())
    assert set(curve[curve.metric == "accuracy"].value) == {1.0}
    own = curve[curve.metric == "taken_for:" + curve.label]
    assert len(own) == 2 * 12 and set(own.value) == {1.0}


@pytest.mark.parametrize("index, label", [(0, "0"), (3, "3"), (6, "7")])
def test_constant_classifier_gets_the_share_of_its_class(digits, index, label):
    rows = values(evaluate_invariance(constant(index), ROTATE_34, repeats=2, data=digits))
    assert rows["Ptest"] == 1 / 8
    assert [rows[name] for name in ("Pin", "Pout", "Pinv")] == [0.5 * (index == 3)] * 3
    curve = accuracy_curve(constant(index), ROTATE_34, step=90, data=digits)
    accuracy = curve[curve.metric == "accuracy"].groupby("label").value
    assert (
        accuracy.min().to_dict()
        == accuracy.max().to_dict()
        == {str(name): float(str(name) == label) for name in KEPT}
    )
    shares = curve[curve.metric.str.startswith("taken_for:")]
    assert set(shares[shares.value == 1.0].metric) == {f"taken_for:{label}"}


def test_mean_and_variance_are_those_of_the_passes(digits):
    passes = {}

    def by_chance(images):
        scores = np.eye(8)[np.random.default_rng(len(record)).integers(0, 8, len(images))]
        record.append(scores)
        return scores

    record = []
    rows = values(evaluate_invariance(by_chance, ROTATE_34, repeats=6, data=digits))
    labels = np.searchsorted(KEPT, digits.y_test[np.isin(digits.y_test, KEPT)])
    for number, scores in enumerate(record[1:]):  # the first call only looks at the shape
        truth = labels if number % 4 == 0 else labels[np.isin(labels, (3, 4))]
        passes.setdefault(number % 4, []).append(np.mean(scores.argmax(axis=1) == truth))
    for index, name in enumerate(("Ptest", "Pin", "Pout", "Pinv")):
        assert len(passes[index]) == 6
        assert rows[name] == pytest.approx(np.mean(passes[index]))
        assert rows[f"{name}_variance"] == pytest.approx(np.var(passes[index], ddof=1))
    assert rows["Ptest_variance"] > 0
    single = values(evaluate_invariance(by_chance, ROTATE_34, repeats=1, data=digits))
    assert np.isnan(single["Ptest_variance"])


# Ranges


def test_every_test_draws_from_its_range(digits, monkeypatch):
    drawn = []

    def spy(protocol, images, parameters):
        if len(images) > 1:
            drawn.append(np.asarray(parameters))
        return real(protocol, images, parameters)

    real = evaluation.render
    monkeypatch.setattr(evaluation, "render", spy)
    evaluate_invariance(constant(0), ROTATE_34, repeats=30, data=digits)
    kept = digits.y_test[np.isin(digits.y_test, KEPT)]
    restricted = np.isin(kept, (3, 4))
    first = np.stack(drawn[0::4])  # Ptest: [repeats, N]
    assert first.shape == (30, 48) and np.abs(first[:, restricted]).max() <= 45
    assert first[:, ~restricted].min() < 20 and first[:, ~restricted].max() > 340
    for offset, (low, high) in enumerate([(-45, 45), (45, 315), (135, 225)], start=1):
        angles = np.stack(drawn[offset::4])
        assert angles.shape == (30, 12), "Pin, Pout and Pinv are about the restricted classes alone"
        assert angles.min() >= low and angles.max() <= high
        assert np.ptp(angles) > 0.95 * (high - low)
    flat = np.round(np.concatenate([np.ravel(angles) for angles in drawn]), 3)
    assert len(np.unique(flat)) > 0.95 * len(flat), "parameters must be fresh in every pass"


def test_seed_makes_the_numbers(network, digits):
    def rows(seed):
        return evaluate_invariance(network, ROTATE_34, repeats=3, seed=seed, data=digits)

    assert rows(1).equals(rows(1)) and not rows(1).equals(rows(2))


@pytest.mark.parametrize(
    ("restricted", "inside"),
    [
        (Range(-45, 45), [-45, 0, 45]),
        (Range(135, 225), [-180, -135, 135]),
        (Range(0, 90), [0, 45, 90]),
        (Range(300, 420), [-45, 0, 45]),
    ],
)
def test_curve_knows_what_was_seen(restricted, inside):
    protocol = Protocol("own", "rotation", Range(0, 360), (3,), restricted, (6, 9))
    curve = accuracy_curve(oracle, protocol, step=45, data=coded())
    assert sorted(curve.parameter.unique()) == list(range(-180, 180, 45))
    flags = curve[curve.in_training_range]
    assert sorted(flags[flags.label == "3"].parameter.unique()) == inside
    assert curve[curve.label != "3"].in_training_range.all()


def test_curve_counts_what_images_are_taken_for(network, digits):
    curve = accuracy_curve(network, ROTATE_34, step=60, data=digits)
    shares = curve[curve.metric.str.startswith("taken_for:")]
    assert set(shares.label) == {"3", "4"}
    assert shares.groupby(["label", "parameter"]).value.sum().tolist() == pytest.approx([1.0] * 12)
    assert shares.groupby(["label", "parameter"]).size().unique().tolist() == [8]
    own = shares[shares.metric == "taken_for:" + shares.label].value.tolist()
    accuracy = curve[(curve.metric == "accuracy") & curve.label.isin(["3", "4"])].value.tolist()
    assert own == accuracy


# Kinds of models


def test_every_kind_of_model_gives_the_same_rows(network, digits, tmp_path):
    training.save_model(network, tmp_path / "model.keras")
    export_saved_model(network, tmp_path / "export", tuple(map(str, KEPT)))
    network.export(tmp_path / "plain", verbose=False)  # an export by Keras itself
    scores = keras.Model(network.input, network.output["scores"])
    keras.Sequential([keras.Input(network.input.shape[1:]), scores]).save(tmp_path / "sequential.keras")
    assert not is_generator(load_model(tmp_path / "sequential.keras"))
    kinds = {
        "model": network,
        "function": lambda images: network(np.asarray(images))["scores"].numpy(),
        "list": lambda images: network(images)["scores"].numpy().tolist(),
        "file": tmp_path / "model.keras",
        "sequential file": tmp_path / "sequential.keras",
        "export": str(tmp_path / "export"),
        "plain": tmp_path / "plain",
    }
    tables = {
        name: (
            evaluate_invariance(model, "rotate-34", repeats=2, data=digits),
            accuracy_curve(model, "rotate-34", step=90, data=digits),
        )
        for name, model in kinds.items()
    }
    assert tables["model"][0].value.nunique() > 3, "nothing to compare"
    for name, (tests, curve) in tables.items():
        assert tests.equals(tables["model"][0]), name
        assert curve.equals(tables["model"][1]), name


def test_user_made_protocol_over_shifts(digits):
    tests = {"Pnear": Evaluation("", "restricted"), "Pfar": Evaluation("", "restricted", Range(4, 6))}
    protocol = Protocol("mine", "shift", Range(-4, 5), (2,), Range(0, 1), (), tests)
    rows = evaluate_invariance(constant(2, 10), protocol, repeats=1, data=digits)
    assert values(rows)["Pnear"] == values(rows)["Pfar"] == 1.0
    curve = accuracy_curve(constant(2, 10), protocol, step=4, data=digits)
    assert curve[(curve.label == "2") & curve.in_training_range].parameter.unique().tolist() == [0.0]


def test_no_images_of_restricted_classes_is_not_a_crash(digits):
    rows = values(evaluate_invariance(constant(0), ROTATE_34, repeats=1, data=digits, limit=3))
    assert rows["Ptest"] == pytest.approx(1 / 3) and np.isnan(rows["Pin"])
    free = ROTATE_34.replace(restricted_classes=())
    assert np.isnan(values(evaluate_invariance(constant(0), free, repeats=1, data=digits))["Pinv"])
    assert set(accuracy_curve(constant(0), free, step=90, data=digits).metric) == {"accuracy"}


# Tables


def test_rows_are_tidy(digits, tmp_path):
    provenance = Provenance("run-7", "cnn", "digits", "rotate-34", 7, "reference")
    assert (
        *("run_id", "model", "dataset", "protocol", "seed", "implementation"),
        *("metric", "label", "parameter", "in_training_range", "value"),
    ) == COLUMNS
    for rows in (
        evaluate_invariance(constant(1), ROTATE_34, 1, data=digits, provenance=provenance),
        accuracy_curve(constant(1), ROTATE_34, 90, data=digits, provenance=provenance),
    ):
        assert tuple(rows.columns) == COLUMNS
        first = rows.iloc[0]
        assert (first.run_id, first.model, first.seed, first.implementation) == (
            "run-7",
            "cnn",
            7,
            "reference",
        )
        write_csv(tmp_path / "rows.csv", rows)
        again = read_csv(tmp_path / "rows.csv")
        assert tuple(again.columns) == COLUMNS and again.value.equals(rows.value)
        assert again.in_training_range.equals(rows.in_training_range)
        assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    assert to_frame([]).empty and tuple(to_frame([]).columns) == COLUMNS


def test_bad_tables_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"No results at .*rows\.csv"):
        read_csv(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("metric,value\nPtest,1\n")
    with pytest.raises(UsageError, match=r"rows\.csv lacks run_id, model"):
        read_csv(tmp_path / "rows.csv")


# Bad models


class Refusing(keras.layers.Layer):
    """Takes no images, only their shape."""

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, images):
        raise ValueError("Expected sunshine")


def test_the_reason_is_the_layers_own_not_what_keras_wraps_it_in(digits):
    images = keras.Input((12, 12, 1))
    scores = keras.layers.Dense(8)(keras.layers.Flatten()(Refusing()(images)))
    refuse(keras.Model(images, scores), digits, r"shape \(1, 12, 12, 1\): Expected sunshine$")


def refuse(model, data, message):
    for function in (evaluate_invariance, accuracy_curve):
        with pytest.raises(UsageError, match=message) as caught:
            function(model, ROTATE_34, data=data)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_wrong_number_of_classes_is_named(digits):
    refuse(constant(0, 10), digits, r"Expected \[N, 8\].*0, 1, 2, 3, 4, 5, 7, 8.*Received.*\(1, 10\)")
    refuse(lambda images: np.zeros(len(images)), digits, r"Received: scores\.shape=\(1,\)")
    refuse(lambda images: {"a": 0, "b": 1}, digits, r'no output "scores"\. Received: a, b')


def test_wrong_image_shape_is_named(network, tmp_path):
    other = coded()
    training.save_model(network, tmp_path / "model.keras")
    export_saved_model(network, tmp_path / "export", tuple(map(str, KEPT)))
    for model in (network, tmp_path / "model.keras", tmp_path / "export"):
        refuse(model, other, r"does not accept images of shape \(1, 9, 9, 1\)")
    refuse(tmp_path / "export", other, r"Expected shape \(None, 12, 12, 1\)")


def test_bad_paths_are_named(digits, tmp_path):
    refuse(tmp_path / "nothing.keras", digits, r"No model at .*nothing\.keras")
    (tmp_path / "damaged.keras").write_bytes(b"garbage")
    refuse(tmp_path / "damaged.keras", digits, r"Cannot read a model from .*damaged\.keras")
    (tmp_path / "images.npz").write_bytes(b"garbage")
    refuse(tmp_path / "images.npz", digits, r"images\.npz\. Expected a .keras file or a SavedModel folder\.$")
    (tmp_path / "empty").mkdir()
    refuse(str(tmp_path / "empty"), digits, r"Cannot read a model from .*empty")
    tf.saved_model.save(tf.Module(), str(tmp_path / "unsigned"))
    refuse(tmp_path / "unsigned", digits, r"Cannot read a model from .*unsigned: .*signature")


def test_classes_that_do_not_fit_are_named(digits):
    protocol = ROTATE_34.replace(restricted_classes=(11,))
    with pytest.raises(UsageError, match=r"Received: 11"):
        evaluate_invariance(oracle, protocol, data=digits)
    with pytest.raises(UsageError, match=r"repeats=0"):
        evaluate_invariance(oracle, ROTATE_34, repeats=0, data=digits)
    with pytest.raises(UsageError, match="rotate-49 has no tests of recognition"):
        evaluate_invariance(oracle, "rotate-49", data=digits)
    with pytest.raises(UsageError, match=r"step=-5"):
        accuracy_curve(oracle, ROTATE_34, step=-5, data=digits)
