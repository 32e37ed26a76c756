"""What scripts/export_saved_model.py does: finds out what a model is for, checks all, then writes."""

from pathlib import Path

import keras
import tyro

from tfinv import models, ops, runs
from tfinv.config import RunConfig
from tfinv.data import Protocol, get_protocol, load_dataset
from tfinv.errors import UsageError
from tfinv.export.loading import is_generator, load_model
from tfinv.export.saved_model import check_fused, export_generator, export_saved_model
from tfinv.export.to_litert import export_litert
from tfinv.export.to_onnx import check_onnx, export_onnx
from tfinv.files import check_writable


def export_model(
    model: tyro.conf.Positional[Path],
    output: Path | None = None,
    fused: bool = False,
    onnx: Path | None = None,
    litert: Path | None = None,
    class_names: tuple[str, ...] = (),
    protocol: str | None = None,
    overwrite: bool = False,
) -> None:
    """Exports a run directory or a .keras file as a SavedModel, and as ONNX and LiteRT if asked to.

    Args:
        model: Run directory or .keras file.
        output: Folder of the SavedModel; by default RUN/export, or FILE_export beside FILE.keras.
        fused: Keep the fused routing op in the SavedModel, which then needs its library to load.
        onnx: Also write this ONNX file; needs the extra `onnx`.
        litert: Also write this LiteRT file, usually called .tflite.
        class_names: Name of each class; by default those of the run's dataset, or 0, 1, ...
        protocol: Protocol that a network that renders was trained under; by default the run's own.
        overwrite: Replace what exists.

    Raises:
        UsageError: On any bad input; found before anything is written.
        OSError: If something cannot be written.
    """
    file, config = _source(model)
    asked = output or (model / runs.EXPORT if model.is_dir() else file.with_name(f"{file.stem}_export"))
    # What every run has already is no obstacle to asking for another format.
    kept = asked.exists() and output is None and not (fused or overwrite) and bool(onnx or litert)
    saved = None if kept else asked
    _check_targets(saved, onnx, litert, overwrite)
    network = load_model(file)
    rendering = is_generator(network)
    if rendering and class_names:
        raise UsageError(f"The model renders images. Expected no --class-names. Received: {class_names}")
    if not rendering and protocol:
        raise UsageError(f"The model recognises images. Expected no --protocol. Received: {protocol}")
    chosen = _protocol(protocol, config) if rendering else None
    names = () if rendering else _class_names(network, class_names, config)
    if fused:
        check_fused(network)
    for path in filter(None, (saved, onnx, litert)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if onnx is not None:  # what may not be convertible comes first
        export_onnx(network, onnx, names, chosen)
        print(f"Written: {onnx}")
    if litert is not None:
        export_litert(network, litert, names, chosen)
        print(f"Written: {litert}")
    if saved is None:
        print(f"Kept: {asked} (--overwrite replaces it)")
        return
    if chosen:
        export_generator(network, saved, chosen, fused)
    else:
        export_saved_model(network, saved, names, fused)
    print(f"Written: {saved}")
    if fused:
        print(f"It loads by tfinv.export.load, or after the library {ops.build_info().library}")


def _source(model: Path) -> tuple[Path, RunConfig | None]:
    """Returns the .keras file of what was named, and the configuration of the run it is of."""
    directory, config = models.run_of(model.resolve())
    file = model / runs.MODEL if config and model.resolve() == directory else model
    if file.is_dir() or (file.is_file() and file.suffix != ".keras"):
        raise UsageError(f"Expected a run directory or a .keras file. Received: {model}")
    return file, config


def _check_targets(saved: Path | None, onnx: Path | None, litert: Path | None, overwrite: bool) -> None:
    """Raises UsageError if one of the paths must not or cannot be written."""
    if onnx is not None:
        check_onnx()
    for path in filter(None, (saved, onnx, litert)):
        if path.exists() and not overwrite:
            raise UsageError(f"It exists: {path}. Use --overwrite or another path.")
        check_writable(path.parent)
    if saved is not None and saved.exists() and not (saved / "saved_model.pb").is_file():
        raise UsageError(f"Not a SavedModel, so it is left alone: {saved}")
    for path in filter(None, (onnx, litert)):
        if path.is_dir():
            raise UsageError(f"Expected the name of a file. Received the folder: {path}")


def _protocol(name: str | None, config: RunConfig | None) -> Protocol:
    if name is None and config is None:
        raise UsageError("The model renders images. Name the protocol it was trained under by --protocol.")
    if name and config and name != config.protocol:
        raise UsageError(
            f"The model was trained under protocol {config.protocol}. Received: --protocol {name}"
        )
    return get_protocol(name or config.protocol)  # type: ignore[union-attr]


def _class_names(network: keras.Model, given: tuple[str, ...], config: RunConfig | None) -> tuple[str, ...]:
    outputs = network.output if isinstance(network.output, dict) else {"scores": network.output}
    scores = outputs.get("scores")
    if scores is None or isinstance(scores, (list, tuple)) or len(scores.shape) != 2:
        raise UsageError(f'The model has no output "scores" [N, classes]. Received: {", ".join(outputs)}')
    names = given
    if not names and config is not None:
        protocol = get_protocol(config.protocol).replace(config.restricted_classes, config.excluded_classes)
        names = tuple(map(str, protocol.kept_classes(load_dataset(config.dataset))))
    names = names or tuple(map(str, range(scores.shape[1])))
    if len(names) != scores.shape[1]:
        raise UsageError(
            f"Expected a name for each of the {scores.shape[1]} classes (--class-names). "
            f"Received: {', '.join(names)}"
        )
    return names
