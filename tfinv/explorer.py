"""Puts into the page docs/explorer what it does not carry: networks, curves, test images, onnxruntime-web.

built/explorer.json   networks with their curves, and images to pick
built/NAME.onnx       a network of the zoo
built/ort*            three files of onnxruntime-web, by npm
"""

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tfinv import models, report, runs, summary
from tfinv.config import RunConfig
from tfinv.data import load_dataset
from tfinv.data.dataset import Dataset
from tfinv.errors import UsageError
from tfinv.export import load_model
from tfinv.export.to_onnx import check_onnx, export_onnx
from tfinv.files import replacing
from tfinv.summary import Network, Result

BUILT = "built"
CONTENT = "explorer.json"
PACKAGE = "onnxruntime-web"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_NPM_SECONDS = 300.0
_PICKS = 3
_IMAGINING = (
    "It also trained on what it never saw: digits turned by a rotation that was learned from the other ones."
)
_FIRST = 3  # the digit that the page begins with


def build(page: Path, zoo: Path) -> Path:
    """Fills the folder `built` of the page; replaces an earlier one when complete.

    Args:
        page: Folder with index.html and package.json.
        zoo: Folder of run directories; those trained on rotations of MNIST are shown.

    Returns:
        The folder.

    Raises:
        UsageError: If the page or its networks are missing, or npm or tf2onnx.
        OSError: If something cannot be written.
    """
    if not (page / "package.json").is_file():
        raise UsageError(f"Not the page: {page} lacks package.json.")
    shown = [network for network in summary.networks(summary.read(zoo)) if _turns(network.results[0])]
    shown.sort(key=lambda network: report.protocol_of(network.config).task != "recognition")
    if not shown:
        raise UsageError(f"No networks trained on rotated MNIST in {zoo}.")
    check_onnx()
    dataset = load_dataset("mnist")
    with replacing(page / BUILT) as folder:
        folder.mkdir()
        _fetch_runtime(page, folder)
        content = {
            "first": _FIRST,
            "images": _images(dataset),
            "networks": [_network(network, folder, dataset) for network in shown],
        }
        (folder / CONTENT).write_text(json.dumps(content))
    return page / BUILT


def _turns(result: Result) -> bool:
    """Tells whether the page can show a network: it turns upright images, and compares."""
    protocol = report.protocol_of(result.config)
    return (
        (result.folder / runs.MODEL).is_file()
        and (result.config.dataset, protocol.transformation) == ("mnist", "rotation")
        and not protocol.upright
    )


def _network(network: Network, folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Writes a network's ONNX file and returns what the page knows of it."""
    result, config = network.results[0], network.config
    protocol = report.protocol_of(config)
    generating, (black, white) = protocol.task == "generation", protocol.pixel_range
    classes = tuple(map(str, protocol.kept_classes(dataset)))
    file = f"{config.run_id}.onnx"
    model = load_model(result.folder / runs.MODEL)
    export_onnx(model, folder / file, () if generating else classes, protocol if generating else None)
    reconstructs = isinstance(model.output, dict) and "reconstruction" in model.output
    return {
        "name": config.run_id,
        "title": network.name,
        "what": _what(config),
        "about": f"{_figures(network, generating)}. {summary.budget(config)}, seed {config.seed}.",
        "file": file,
        "task": protocol.task,
        "scale": (white - black) ** 2,  # of squared errors; the page's pixels are 0 to 1
        "classes": classes,
        "restricted": protocol.restricted_classes,
        "range": (protocol.restricted.low, protocol.restricted.high),
        "curves": _curves(result, "mse" if generating else "accuracy"),
        "picture": "Rendered" if generating else "Reconstructed" if reconstructs else None,
    }


def _curves(result: Result, metric: str) -> dict[str, list[tuple[float, float]]]:
    """(angle, value) of each class, by angle."""
    rows = result.rows[result.rows.metric == metric]
    rows = rows.assign(angle=rows.parameter.astype(float)).sort_values("angle")
    return {
        str(label): list(zip(found.angle.tolist(), found.value.tolist(), strict=True))
        for label, found in rows.groupby("label")
    }


def _what(config: RunConfig) -> str:
    """What a network is, in a sentence, and what sets its training apart."""
    what = (models.get_model(config.model_name).__doc__ or "").strip().splitlines()[0]
    return what if config.imagining.imagination == "none" else f"{what} {_IMAGINING}"


def _figures(network: Network, generating: bool) -> str:
    """The tests that the page speaks of."""
    row = report.network_row(network)
    if not generating:
        restricted = " and ".join(map(str, report.protocol_of(network.config).restricted_classes))
        tests = (("Ptest", "all test images"), ("Pinv", f"{restricted} about upside down"))
        return ", ".join(f"{name} {row[name]} ({what})" for name, what in tests if name in row)
    ratio = " outside / inside"
    ratios = (f"{row[name]} for {name.removesuffix(ratio)}" for name in row if name.endswith(ratio))
    return f"Error outside the range by that inside: {', '.join(ratios)}"


def _images(dataset: Dataset) -> list[dict[str, Any]]:
    """The first test images of each class, values 0 to 255."""
    places = [np.flatnonzero(dataset.y_test == label) for label in dataset.classes]
    return [
        {"label": label, "pixels": dataset.x_test[found[rank]].ravel().tolist()}
        for rank in range(_PICKS)
        for label, found in zip(dataset.classes, places, strict=True)
    ]


def _fetch_runtime(page: Path, folder: Path) -> None:
    """Takes three files from the npm package, in the versions that package.json allows."""
    versions = json.loads((page / "package.json").read_text())["dependencies"][PACKAGE]
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(f"npm, which brings {PACKAGE}, is not on the PATH.")
    with tempfile.TemporaryDirectory() as temp:
        # npm pack takes the newest version of a range; its archive needs no other package.
        command = [npm, "pack", f"{PACKAGE}@{versions}", "--ignore-scripts", "--loglevel=error"]
        try:
            ended = subprocess.run(command, cwd=temp, capture_output=True, text=True, timeout=_NPM_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"npm cannot bring {PACKAGE}: {error}") from error
        archives = sorted(Path(temp).glob("*.tgz"))
        if ended.returncode != 0 or not archives:
            reason = (ended.stderr.strip().splitlines() or ["no archive"])[0]
            raise UsageError(f"npm cannot bring {PACKAGE}@{versions}: {reason}")
        with tarfile.open(archives[-1]) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.name not in RUNTIME or path.parent.name != "dist":
                    continue
                if source := archive.extractfile(member):
                    (folder / path.name).write_bytes(source.read())
    missing = [name for name in RUNTIME if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{PACKAGE}@{versions} lacks {', '.join(missing)}; name another in package.json.")
