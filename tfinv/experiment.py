"""A whole run: data, training, evaluation, figures, export; and the evaluation of any saved model."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
import tyro
from rich.console import Console
from rich.table import Table

from tfinv import (
    evaluation,
    export,
    figures,
    generation,
    imagination,
    models,
    ops,
    pictures,
    report,
    results,
    runs,
    training,
)
from tfinv.config import DEFAULT_PROTOCOLS, EvaluationConfig, RunConfig, Task, check_range
from tfinv.data import Dataset, Protocol, Split, get_protocol, load_dataset, select
from tfinv.data.transforms import get_transform
from tfinv.distributed import ALONE, Team
from tfinv.errors import UsageError
from tfinv.files import check_writable
from tfinv.results import Provenance

# Inside and outside a +-45 degree range alike; columns of the reconstruction figure.
_RECONSTRUCTION_COLUMNS = 12
_DEFAULT_SETTINGS = EvaluationConfig(grid_step=None)
# Latents drawn from a prior.
_SAMPLES = 6
# Frames of the animation, about.
_FRAMES = 36
# Points of a sweep that a smoke run keeps: every ninth.
_SMOKE_STEPS = 9


def run(
    config: RunConfig, output: Path, overwrite: bool = False, resume: bool = False, team: Team = ALONE
) -> Path:
    """Trains, evaluates, draws and exports one model.

    Args:
        config: The run.
        output: Folder of run directories.
        overwrite: Delete an earlier run of that name.
        resume: Go on with an earlier run of that name.
        team: The replicas that train it. Workers other than the chief write nothing.

    Returns:
        The run directory.

    Raises:
        UsageError: On any bad input, found before anything is written or deleted; and if training itself
            fails, as `training.train` says: finished epochs stay.
        OSError: If something cannot be written; what was finished stays, for `resume`.
    """
    protocol = report.protocol_of(config)
    dataset = load_dataset(config.dataset)
    test = select(protocol, dataset, "test", limit=config.limit)
    train = select(protocol, dataset, "train", config.training.validation_fraction, config.limit)
    if not len(train):
        raise UsageError(f"No training images are left of {dataset.name} under protocol {protocol.name}.")
    _check_classes(train, config)
    _implementation(config)  # refuses one that is absent
    training.check(config, protocol, dataset.image_shape, len(test.class_names))
    training.check_team(config, protocol, dataset, team)
    imagination.check(protocol, train, config.imagining, config.seed)
    directory = output / config.run_id
    if not team.chief:
        training.train(config, protocol, dataset, directory, team)
        return directory
    check_writable(output)
    with runs.locked(directory):
        runs.prepare(directory, config, overwrite, resume, models.extendable(config.model_name))
        _run(config, protocol, dataset, test, directory, team)
    return directory


def _check_classes(train: Split, config: RunConfig) -> None:
    """Raises UsageError if a class has no training image; says so if that is because of a limit."""
    shown = set(np.unique(train.labels).tolist())
    absent = [name for number, name in enumerate(train.class_names) if number not in shown]
    if absent and config.limit is None:
        raise UsageError(
            f"No training image of class {', '.join(absent)}. Those held out are the last of the training "
            f"images, here {config.training.validation_fraction:g} of them: shuffle images that are sorted "
            "by class, or leave the class out by --excluded-classes."
        )
    if absent:
        Console(stderr=True).print(
            f"None of the first {config.limit} images is of class {', '.join(absent)}."
        )


def _run(
    config: RunConfig, protocol: Protocol, dataset: Dataset, test: Split, directory: Path, team: Team
) -> None:
    console = Console()
    accelerators = [device.name for device in tf.config.list_physical_devices("GPU")]
    runs.write_environment(directory, accelerators, sys.argv, team.describe())
    console.print(f"Run {config.run_id}: {config.training.epochs} epochs, results in {directory}")
    model = training.train(config, protocol, dataset, directory, team)
    provenance = Provenance(
        config.run_id,
        config.label,
        dataset.name,
        protocol.name,
        config.seed,
        _implementation(config),
    )
    rows = _evaluate(model, protocol, dataset, config.evaluation, config.seed, config.limit, provenance)
    results.write_csv(directory / runs.INVARIANCE, rows)
    step = config.evaluation.grid_step or protocol.grid_step
    _draw(rows, protocol, directory / runs.FIGURES, step, model, test)
    rendering = protocol.task == "generation"
    prior = getattr(models.get_model(config.model_name), "PRIOR", None)
    if prior is not None:
        columns = _spread(protocol, step, _RECONSTRUCTION_COLUMNS)
        images = generation.prior_samples(model, protocol, columns, _SAMPLES, config.seed, prior)
        figure = generation.samples_figure(images, protocol, columns)
        figures.save(figure, directory / runs.FIGURES / "samples.png")
    if (directory / runs.HISTORY).is_file():
        history = pd.read_csv(directory / runs.HISTORY)
        figures.save(figures.training_curves(history), directory / runs.FIGURES / "training.png")
    if rendering:
        export.export_generator(model, directory / runs.EXPORT, protocol)
    else:
        export.export_saved_model(model, directory / runs.EXPORT, test.class_names)
    console.print(_table(rows, protocol, config, config.dataset, config.run_id))
    written = [
        path.relative_to(directory)
        for folder in (".", runs.FIGURES)
        for path in (directory / folder).iterdir()
    ]
    console.print(f"In {directory}: {', '.join(sorted(map(str, written)))}")


def evaluate(
    model: tyro.conf.Positional[Path],
    protocol: str | None = None,
    dataset: str | None = None,
    settings: EvaluationConfig = _DEFAULT_SETTINGS,
    seed: int | None = None,
    limit: int | None = None,
    restricted_classes: tuple[int, ...] | None = None,
    excluded_classes: tuple[int, ...] | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Evaluates a run directory, a .keras file or a SavedModel folder.

    What is not given comes from the config.json of the run directory the model is in, if there is
    one, and else is "rotate-34", or "rotate-49" for a network that renders, on "mnist".

    Args:
        model: Run directory, .keras file or SavedModel folder.
        protocol: Name of the protocol; by default the run's own, or that of the network's task.
        dataset: Name of the dataset or path of an .npz; by default the run's own, or mnist.
        settings: How thoroughly.
        seed: Seed of the random parameters; by default that of the run.
        limit: Use at most that many test images; all by default.
        restricted_classes: Classes tested outside their range; by default the run's or protocol's own.
        excluded_classes: Classes left out; by default the run's or protocol's own.
        output: Folder for invariance.csv and figures/; if not given, nothing is written and the accuracy
            curve of a classifier is not measured.
        overwrite: Replace an earlier evaluation in the output folder.

    Returns:
        Tidy rows.

    Raises:
        UsageError: On any bad input; found before anything is written.
    """
    check_range("seed", seed or 0, low=0, high=2**31 - 1)
    check_range("limit", 1 if limit is None else limit, low=1)
    directory, stored = models.run_of(model.resolve())
    if model.resolve() == directory:
        model = model / runs.MODEL
    if output is not None and (output / runs.INVARIANCE).exists() and not overwrite:
        raise UsageError(f"Results exist: {output / runs.INVARIANCE}. Use --overwrite or another --output.")
    named = protocol or (stored.protocol if stored else None)
    chosen = get_protocol(named) if named else None  # a wrong name is found before anything is loaded
    if output is not None:
        check_writable(output)
    loaded = export.load_model(model)
    task: Task = "generation" if export.is_generator(loaded) else "recognition"
    chosen = chosen or get_protocol(DEFAULT_PROTOCOLS[task])
    if chosen.task != task:
        raise UsageError(
            f"The model is for {task}. Expected a protocol for that. "
            f"Received: protocol={chosen.name}, for {chosen.task}"
        )
    if stored:
        chosen = chosen.replace(stored.restricted_classes, stored.excluded_classes)
    chosen = chosen.replace(restricted_classes, excluded_classes)
    dataset = dataset or (stored.dataset if stored else "mnist")
    data = load_dataset(dataset)
    name = directory.name if stored else model.stem
    label = stored.label if stored else model.stem
    if model.name == runs.BEST_MODEL:
        name, label = f"{name} (best epoch)", f"{label} (best epoch)"
    own_seed = stored.seed if stored else 0
    seed = own_seed if seed is None else seed
    implementation = _implementation(stored, exported=model.is_dir())
    if model.is_dir() and export.fused_ops(model):
        implementation = "fused"
    provenance = Provenance(name, label, data.name, chosen.name, own_seed, implementation)
    if output is None and task == "recognition":
        rows = evaluation.evaluate_invariance(loaded, chosen, settings.repeats, seed, data, limit, provenance)
    else:
        rows = _evaluate(loaded, chosen, data, settings, seed, limit, provenance)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        results.write_csv(output / runs.INVARIANCE, rows)
        test = select(chosen, data, "test", limit=limit) if task == "generation" else None
        step = settings.grid_step or chosen.grid_step
        _draw(rows, chosen, output / runs.FIGURES, step, loaded, test)
    Console().print(_table(rows, chosen, stored, dataset, name))
    return rows


def smoke(config: RunConfig) -> RunConfig:
    """Returns a run of under a minute that goes through every stage."""
    step = _SMOKE_STEPS * get_protocol(config.protocol).grid_step
    small = runs.replace(config, epochs=1, validation_fraction=0.0, repeats=1, grid_step=step, limit=600)
    return dataclasses.replace(small, preset="smoke")


def _evaluate(
    model,
    protocol: Protocol,
    dataset: Dataset,
    settings: EvaluationConfig,
    seed: int,
    limit: int | None,
    provenance: Provenance,
) -> pd.DataFrame:
    repeats, step = settings.repeats, settings.grid_step or protocol.grid_step
    curve_limit = min(filter(None, (limit, settings.curve_images)), default=None)
    if protocol.task == "generation":
        return generation.evaluate_generation(model, protocol, step, dataset, curve_limit, provenance)
    tests = evaluation.evaluate_invariance(model, protocol, repeats, seed, dataset, limit, provenance)
    curve = evaluation.accuracy_curve(model, protocol, step, dataset, curve_limit, provenance)
    return pd.concat([tests, curve], ignore_index=True)


def _draw(
    rows: pd.DataFrame, protocol: Protocol, folder: Path, step: float, model=None, test: Split | None = None
) -> None:
    """Draws a run's figures; those of a sweep show points of the one that was measured."""
    if protocol.task == "generation" and test is not None:
        _draw_generation(rows, protocol, folder, step, model, test)
        return
    figures.save(figures.accuracy_against_parameter(rows, protocol), folder / "accuracy.png")
    if rows.metric.str.startswith("taken_for:").any():
        figures.save(figures.taken_for(rows, protocol), folder / "taken_for.png")
    if model is not None and test is not None and "reconstruction" in model.output and test.restricted.any():
        parameters = _spread(protocol, 1.0, _RECONSTRUCTION_COLUMNS)
        figure = pictures.reconstructions(model, test, protocol, parameters)
        figures.save(figure, folder / "reconstructions.png")


def _draw_generation(
    rows: pd.DataFrame, protocol: Protocol, folder: Path, step: float, model, test: Split
) -> None:
    figures.save(generation.error_against_parameter(rows, protocol), folder / "errors.png")
    columns = _spread(protocol, step, _RECONSTRUCTION_COLUMNS)
    figures.save(generation.panel(model, test, protocol, columns), folder / "panel.png")
    if test.restricted.any():
        frames = _spread(protocol, step, _FRAMES)
        generation.save_animation(model, test, protocol, frames, folder / "animation.gif")


def _spread(protocol: Protocol, step: float, count: int) -> np.ndarray:
    """Returns about `count` points, evenly spread, of the sweep with that step."""
    grid = get_transform(protocol.transformation).grid(step)
    return grid[np.unique(np.linspace(0, len(grid), count, endpoint=False).astype(int))]


def _table(
    rows: pd.DataFrame, protocol: Protocol, config: RunConfig | None, dataset: str, title: str
) -> Table:
    """Returns the results for the terminal; beside the article's for a network of the article."""
    if protocol.task == "generation":
        return generation.error_table(rows, protocol, title)
    article = report.article_figures(config, protocol, dataset) if config else {}
    return report.invariance_table(rows, protocol, article, title)


def _implementation(config: RunConfig | None, exported: bool = False) -> str:
    """Returns what the routing of a network runs on, an export on the reference; empty if it has none."""
    asked = getattr(config.model, "implementation", None) if config else None
    return ops.resolve_implementation("reference" if exported else asked) if asked else ""
