"""Every network of the article's table, in its order, and ours."""

import dataclasses
from typing import Any

from tfinv import models
from tfinv.suites._experiment import Experiment, cnn, little

_FIGURES = ("reconstructions.png", "taken_for.png")
_FEW_PASSES = {"repeats": 5, "curve_images": 1000}
_EFFICIENT = {"epochs": 5, "batch_size": 100, "learning_rate": 2e-3, "decay_rate": 0.6, **_FEW_PASSES}
_CAPSNET = {"epochs": 10, "decay_rate": 0.65, "precision": "mixed_bfloat16", **_FEW_PASSES}
_EM = {"epochs": 12, "learning_rate": 2e-2, "decay_rate": 0.7, **_FEW_PASSES}
_GIVEN = "Given the transformation"


def _pool(preset: str, **changes: Any) -> Experiment:
    # Convolutions of stride 1 and up to 100 million weights: an epoch costs ten of the others'.
    # The rate of the others is too high for a dense layer of 100,000 inputs.
    # After 4 epochs training loss still falls, by a quarter an epoch where there are three convolutions.
    budget = {
        "epochs": 4,
        "learning_rate": 2e-4,
        "decay_rate": 0.5,
        "decay_steps": None,
        "precision": "mixed_bfloat16",
        **_FEW_PASSES,
        **changes,
    }
    # And 100 million weights, which take longer to store than a smoke run takes otherwise.
    narrow = dataclasses.replace(models.get_preset("cnn", preset).model, dense_units=32)
    return Experiment("cnn", preset, "CNN with pooling of stride 1", budget, smoke={"model": narrow})


def _imagined(how: str, seeds: tuple[int, ...] = (0, 1, 2), **changes: Any) -> Experiment:
    changes = {"imagination": how, **changes}
    return cnn(
        "cnn_bn_00",
        "Imagination",
        changes=changes,
        smoke=little(changes),
        seeds=seeds,
        pictures=("taken_for.png",),
    )


ROWS = (
    cnn("cnn_00", "CNN"),
    cnn("cnn_01", "CNN"),
    cnn("cnn_02", "CNN"),
    cnn("cnn_dropout_00", "CNN with dropout"),
    cnn("cnn_dropout_01", "CNN with dropout"),
    cnn("cnn_bn_00", "CNN with batch normalisation", pictures=("taken_for.png",)),
    cnn("cnn_bn_01", "CNN with batch normalisation"),
    cnn("cnn_bn_02", "CNN with batch normalisation"),
    _pool("cnn_pool_00"),
    _pool("cnn_pool_01", epochs=6, decay_rate=0.6),
    _pool("cnn_pool_02", epochs=8, decay_rate=0.65),
    Experiment("capsnet", "article", "Capsules", _CAPSNET, pictures=_FIGURES),
    Experiment("em_capsnet", "article", "Capsules", _EM, seeds=(0, 1, 2, 3, 4), pictures=_FIGURES),
    Experiment("efficient_capsnet", "efficient_capsnet", "Capsules", _EFFICIENT, pictures=_FIGURES),
    Experiment("stn_cnn", "stn_cnn", _GIVEN),
    Experiment("group_cnn", "group_cnn_c4", _GIVEN),
    Experiment("group_cnn", "group_cnn_c8", _GIVEN),
    _imagined("operators"),
    _imagined("address", (0,)),
    _imagined("address", (0,), learned_from="moments"),
    _imagined("true"),
)
