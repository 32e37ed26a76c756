"""The zoo in saved_models/reference: small trained models, each a run directory with a model card.

model.keras, config.json, environment.json, history.csv, invariance.csv   of the run, the weights packed
README.md                                                                  the card
"""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tfinv import models, registry, report, runs, summary
from tfinv.config import RunConfig
from tfinv.data import datasets
from tfinv.errors import UsageError
from tfinv.files import remove_partial, replacing

MODEL_BYTES = 6_000_000
ZOO_BYTES = 25_000_000
_LIMITS = {
    "recognition": (
        "It puts any image into one of its classes, also one of none; its probabilities are not calibrated.",
    ),
    "generation": (
        "The figures are squared errors of pixels from -1 to 1, which say little of how a picture looks.",
    ),
}
# The same in every file, so that the same weights make the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def add(run: Path, zoo: Path, overwrite: bool = False) -> Path:
    """Adds a finished run to the zoo.

    Args:
        run: Run directory.
        zoo: Folder of the zoo.
        overwrite: Replace the model of that name.

    Returns:
        Its folder.

    Raises:
        UsageError: If the run is not finished, the model or the zoo would be too large, or one of that name
            is there.
        OSError: If it cannot be written.
    """
    missing = [name for name in (*runs.TABLES, runs.MODEL) if not (run / name).is_file()]
    if missing:
        raise UsageError(f"Not a finished run: {run} lacks {', '.join(missing)}.")
    config = models.read_run_config(run)
    target = zoo / config.run_id
    if target.exists() and not overwrite:
        raise UsageError(f"A model of that name exists: {target}. Use --overwrite to replace it.")
    remove_partial(zoo, target.name)
    with replacing(target) as folder:
        folder.mkdir(parents=True)
        for name in runs.TABLES:
            shutil.copyfile(run / name, folder / name)
        _pack(run / runs.MODEL, folder / runs.MODEL)
        (folder / "README.md").write_text("\n".join(card(folder, config)))
        _check_sizes(folder, zoo, target)
    return target


def _pack(source: Path, target: Path) -> None:
    """Copies a .keras file, compressed: it is a zip archive that Keras leaves as large as its weights."""
    with (
        zipfile.ZipFile(source) as parts,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed,
    ):
        for name in sorted(parts.namelist()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, parts.read(name))


def _check_sizes(folder: Path, zoo: Path, target: Path) -> None:
    size = (folder / runs.MODEL).stat().st_size
    if size > MODEL_BYTES:
        raise UsageError(
            f"The model is too large for the zoo. Expected at most {MODEL_BYTES / 1e6:g} MB. "
            f"Received: {size / 1e6:.1f} MB"
        )
    others = [path for path in zoo.glob(f"*/{runs.MODEL}") if path.parent not in (target, folder)]
    total = size + sum(path.stat().st_size for path in others)
    if total > ZOO_BYTES:
        raise UsageError(
            f"The zoo would be too large. Expected at most {ZOO_BYTES / 1e6:g} MB. "
            f"Received: {total / 1e6:.1f} MB with this model"
        )


def card(folder: Path, config: RunConfig) -> Iterator[str]:
    """Yields the lines of a model card.

    Args:
        folder: The run directory.
        config: Its configuration.
    """
    (network,) = summary.networks([summary.result(folder, config)])
    protocol = report.protocol_of(config)
    module = models.get_model(config.model_name)
    yield f"# {config.run_id}\n"
    yield f"{(module.__doc__ or '').strip().splitlines()[0]}\n"
    restricted = " and ".join(map(str, protocol.restricted_classes)) or "none"
    yield f"- **Task**: {protocol.task} under the protocol `{protocol.name}`: {protocol.transformation}"
    yield f"  {_range(protocol.free)}, but {_range(protocol.restricted)} for the classes {restricted}."
    black, white = protocol.pixel_range
    pixels = f"images [N, H, W, C] in {black:g}..{white:g}"
    yield f"- **Data**: {config.dataset}, {pixels}. {_licence(config.dataset)}"
    made = report.command_row(network.results[0])
    yield f"- **Training**: {summary.budget(config)}; seed {config.seed}; {made['training']},"
    yield f"  {made['device']}. Command: {made['command']}"
    yield "- **Load**: `import tfinv.layers`, then `keras.models.load_model` of `model.keras`; or"
    yield f"  `python scripts/evaluate.py saved_models/reference/{config.run_id}`.\n"
    yield "## Figures\n"
    row = report.network_row(network)
    shown = [name for name in row if row[name] != "-" and name not in ("network", "seeds", "budget")]
    yield f"| {' | '.join(shown)} |"
    yield f"| {' | '.join('---' for _ in shown)} |"
    yield f"| {' | '.join(row[name] for name in shown)} |\n"
    yield "One training: its spread over seeds is unknown. The project's README says what the tests are, and"
    yield "`invariance.csv` has every class at every parameter.\n"
    yield "## Limits\n"
    yield f"It was trained on the centred images of {config.dataset} and measured on nothing else, to show"
    yield "what a network carries over from some classes to others."
    yield from _LIMITS[protocol.task]
    yield ""


def _range(limits) -> str:
    return f"{limits.low:g} to {limits.high:g}"


def _licence(dataset: str) -> str:
    if dataset not in datasets.available():
        return "The user's own."
    spec = getattr(registry.find(datasets.__name__, dataset, "dataset"), "SPEC", None)
    return f"{spec.licence}." if spec else "Its licence is not stated."
