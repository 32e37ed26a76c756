"""An animation of the whole sweep: expected images beside rendered ones."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfinv.data import Protocol, Split, seen_in_training
from tfinv.data.transforms import get_transform
from tfinv.files import replacing
from tfinv.generation.errors import Renderer
from tfinv.generation.figures import beside_name, beside_rendered, examples
from tfinv.pictures import picture


def save_animation(
    model: Any, split: Split, protocol: Protocol, parameters: np.ndarray, path: Path, seconds: float = 6.0
) -> None:
    """Writes a GIF of one image of each restricted class, expected beside rendered.

    Args:
        model: As for `Renderer`.
        split: Test images, some of a restricted class.
        protocol: Gives the transformation and the ranges.
        parameters: [M, *PARAMETER_SHAPE], one frame each.
        path: Where to write.
        seconds: Duration of one round, about.
    """
    transform, renderer = get_transform(protocol.transformation), Renderer(model, protocol)
    seen = seen_in_training(protocol, parameters, restricted=True)
    names = beside_name(protocol), "rendered"
    places = [place for place in examples(split, 1) if split.restricted[place]]
    figure = Figure(figsize=(2.4, 1.15 * len(places) + 0.4))
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(places),
        2,
        squeeze=False,
        gridspec_kw={"wspace": 0.08, "hspace": 0.08, "top": 0.86, "bottom": 0.02},
    )
    writer = PillowWriter(fps=max(round(len(parameters) / seconds), 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, writer.saving(figure, str(partial), dpi=80):
        for parameter, inside in zip(parameters, seen, strict=True):
            for axes, place in zip(grid, places, strict=True):
                pictures = beside_rendered(renderer, split.images[place], parameter)
                for cell, image, name in zip(axes, pictures, names, strict=True):
                    cell.clear()
                    picture(cell, image, protocol, bool(inside))
                    if cell in grid[0]:
                        cell.set_title(name, fontsize=8, pad=3)
            what = f"{np.ravel(parameter)[0]:g} {transform.UNIT}{'' if inside else ', never shown'}"
            figure.suptitle(what, fontsize=8, y=0.99)
            writer.grab_frame()
