"""Configurations: their JSON form and the values they refuse."""

import dataclasses
import functools
import json

import pytest

from tfinv import models, runs
from tfinv.config import EvaluationConfig, ImaginationConfig, RunConfig, TrainingConfig, from_dict, to_json
from tfinv.data.protocol import Evaluation
from tfinv.errors import UsageError


def run_config(name="cnn", preset="quick", **values) -> RunConfig:
    chosen = models.get_preset(name, preset)
    return RunConfig(name, preset, chosen.model, chosen.training, chosen.evaluation, **values)


def round_trip(config: RunConfig) -> RunConfig:
    return from_dict(RunConfig[models.get_model(config.model_name).Config], json.loads(to_json(config)))


# JSON


@pytest.mark.parametrize(
    ("name", "preset", "digest"),
    [
        ("cnn", "quick", "24cd9746"),
        ("cnn", "cnn_bn_00", "54c9f122"),
        ("capsnet", "article", "c66997da"),
        ("efficient_capsnet", "efficient_capsnet", "9d39d611"),
    ],
)
def test_later_options_change_no_digest_of_earlier_runs(name, preset, digest):
    config = run_config(name, preset)
    assert runs.digest(config) == digest
    values = json.loads(to_json(config))
    assert not {"optimizer", "images_per_code"} & set(values["training"]) and "imagining" not in values
    for change in ({"optimizer": "rmsprop"}, {"images_per_code": 2}):
        changed = runs.replace(config, batch_size=128, **change)
        assert runs.digest(changed) != digest and round_trip(changed) == changed


def test_default_run_is_that_of_the_preset_under_the_protocol_of_its_task():
    assert models.default_run("cnn", "quick") == run_config()
    assert models.default_run("autoencoder", "article").run_id == "autoencoder-mnist-rotate-49-s0"


def test_groups_fill_batches():
    with pytest.raises(UsageError, match=r"divisor of batch_size=128. Received: images_per_code=24"):
        TrainingConfig(images_per_code=24)


@pytest.mark.parametrize("name", models.available())
def test_every_preset_survives_json(name):
    for preset in models.get_model(name).PRESETS:
        config = run_config(name, preset)
        again = round_trip(config)
        assert again == config and type(again.model) is type(config.model)
        assert type(again.training) is TrainingConfig and type(again.evaluation) is EvaluationConfig


@pytest.mark.parametrize("classes", [None, (), (1,), (3, 4, 5)])
def test_tuples_and_none_survive_json(classes):
    config = run_config(restricted_classes=classes, excluded_classes=classes, limit=None if classes else 7)
    again = round_trip(config)
    assert again == config
    assert again.restricted_classes == classes and isinstance(again.model.filters, tuple)


def test_defaults_fill_what_is_left_out():
    config = from_dict(TrainingConfig, {"epochs": 3})
    assert config == dataclasses.replace(TrainingConfig(), epochs=3)
    assert from_dict(TrainingConfig, {}) == TrainingConfig()


def test_json_is_for_people():
    text = to_json(TrainingConfig())
    assert text.endswith("}\n") and '\n  "epochs": 10,' in text


@pytest.mark.parametrize("place", ["", "model", "training", "evaluation"])
def test_unknown_keys_are_named(place):
    values = json.loads(to_json(run_config()))
    (values[place] if place else values)["spam"] = 1
    with pytest.raises(UsageError, match=r"Expected some of .*Received: spam") as caught:
        from_dict(RunConfig[models.get_model("cnn").Config], values)
    assert "\n" not in str(caught.value)


def test_missing_keys_are_named():
    values = json.loads(to_json(run_config()))
    del values["preset"]
    with pytest.raises(UsageError, match=r"Incomplete RunConfig.*'preset'"):
        from_dict(RunConfig[models.get_model("cnn").Config], values)


def test_values_are_checked_on_the_way_back():
    with pytest.raises(UsageError, match=r"epochs=-2"):
        from_dict(TrainingConfig, {"epochs": -2})


# Bad values


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (TrainingConfig, "optimizer", "adamw"),
        (TrainingConfig, "precision", "float16"),
        (ImaginationConfig, "imagination", "operator"),  # which trained on the true transformation
        (ImaginationConfig, "learned_from", "moment"),
        (functools.partial(Evaluation, "of all"), "classes", "Restricted"),
    ],
)
def test_bad_choice_is_named_with_the_good_ones(cls, key, value):
    with pytest.raises(
        UsageError, match=f"Invalid value for {key}. Expected one of .*Received: {key}={value}"
    ):
        cls(**{key: value})


def test_bad_choice_of_a_network_is_named():
    run = models.default_run("hypernet", "address")
    with pytest.raises(UsageError, match=r"variant. Expected one of basic, .*Received: variant=matrix"):
        dataclasses.replace(run, model=dataclasses.replace(run.model, variant="matrix"))


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (TrainingConfig, "epochs", -1),
        (TrainingConfig, "batch_size", 0),
        (TrainingConfig, "learning_rate", -1e-3),
        (TrainingConfig, "learning_rate", float("nan")),
        (TrainingConfig, "learning_rate", float("inf")),
        (TrainingConfig, "decay_rate", 1.5),
        (TrainingConfig, "decay_rate", float("nan")),
        (TrainingConfig, "decay_steps", 0),
        (TrainingConfig, "beta_1", 1.0),
        (TrainingConfig, "validation_fraction", 1.0),
        (TrainingConfig, "validation_fraction", -0.1),
        (TrainingConfig, "validation_fraction", float("nan")),
        (EvaluationConfig, "repeats", 0),
        (EvaluationConfig, "grid_step", 0.0),
        (EvaluationConfig, "grid_step", float("nan")),
        (EvaluationConfig, "grid_step", float("inf")),
        (EvaluationConfig, "curve_images", 0),
        (RunConfig, "seed", -1),
        (RunConfig, "seed", 2**31),
        (RunConfig, "limit", 0),
    ],
)
def test_bad_value_is_named_with_its_bounds(cls, key, value):
    required = {"model_name": "cnn", "preset": "quick", "model": None} if cls is RunConfig else {}
    with pytest.raises(
        UsageError, match=f"Invalid value for {key}. Expected at .*Received: {key}="
    ) as caught:
        cls(**required, **{key: value})
    assert str(caught.value).endswith(f"{key}={value}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"batch_size": 1}, {"decay_steps": 1}, {"validation_fraction": 0.9}]
)
def test_the_bounds_themselves_are_allowed(values):
    assert dataclasses.asdict(TrainingConfig(**values)).items() >= values.items()


# Names


@pytest.mark.parametrize(
    ("name", "preset", "dataset", "run_id"),
    [
        ("cnn", "quick", "mnist", "cnn_quick-mnist-rotate-34-s5"),
        ("cnn", "cnn_bn_00", "mnist", "cnn_bn_00-mnist-rotate-34-s5"),
        ("capsnet", "article", "fashion_mnist", "capsnet-fashion_mnist-rotate-34-s5"),
        ("capsnet", "quick", "some/where/my.set.npz", "capsnet_quick-my.set-rotate-34-s5"),
        ("cnn", "quick", "data/v1.2", "cnn_quick-v1.2-rotate-34-s5"),
        ("cnn", "quick", "data/mine/dataset.json", "cnn_quick-mine-rotate-34-s5"),
    ],
)
def test_run_id_says_what_was_run(name, preset, dataset, run_id):
    assert run_config(name, preset, dataset=dataset, seed=5).run_id == run_id
