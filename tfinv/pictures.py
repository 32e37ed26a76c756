"""Grids of pictures: images below each other, a column a parameter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfinv.data import Protocol, Split, render, seen_in_training
from tfinv.data.transforms import get_transform
from tfinv.evaluation import call_model
from tfinv.figures import COLOURS


@dataclass(frozen=True)
class Strip:
    """A row of a grid of pictures.

    Attributes:
        images: Images [H, W, C] in the protocol's pixel range, one of each parameter.
        seen: Of each whether its parameter was shown in training.
        name: What stands to the left of the row.
        captions: What stands below each picture; nothing if empty.
    """

    images: Sequence[np.ndarray] | np.ndarray
    seen: Sequence[bool] | np.ndarray
    name: str = ""
    captions: Sequence[str] = ()


def picture_grid(strips: Sequence[Strip], parameters: np.ndarray, protocol: Protocol, heading: str) -> Figure:
    """Draws strips below each other, with the parameters [M, *PARAMETER_SHAPE] above their columns."""
    margin = 0.9 if any(strip.name for strip in strips) else 0.3
    size = (0.78 * len(parameters) + margin, 0.86 * len(strips) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(strips), len(parameters), squeeze=False)
    for cells, strip in zip(grid, strips, strict=True):
        for axes, image, seen in zip(cells, strip.images, strip.seen, strict=True):
            picture(axes, image, protocol, bool(seen))
        for axes, caption in zip(cells, strip.captions, strict=False):
            axes.set_xlabel(caption, fontsize=8, labelpad=1)
        cells[0].set_ylabel(strip.name, fontsize=8)
    for axes, parameter in zip(grid[0], parameters, strict=True):
        axes.set_title(f"{np.ravel(parameter)[0]:g}", fontsize=8, pad=2)
    figure.suptitle(heading, fontsize=9)
    return figure


def picture(axes: Axes, image: np.ndarray, protocol: Protocol, seen: bool) -> None:
    """Draws an image [H, W, C] in the protocol's pixel range, framed in orange if not `seen` in training."""
    black, white = protocol.pixel_range
    if image.shape[-1] == 3:  # grey images alone are scaled by imshow
        image = np.clip((image - black) / (white - black), 0, 1)
    axes.imshow(image.squeeze(), cmap="gray", vmin=black, vmax=white)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#333333" if seen else COLOURS[0], linewidth=1 if seen else 2)


def reconstructions(model: Any, split: Split, protocol: Protocol, parameters: np.ndarray) -> Figure:
    """Draws inputs above and the decoder's outputs below, for one image of each restricted class.

    Args:
        model: A model with the output "reconstruction".
        split: Test images.
        protocol: Gives the transformation and the training range.
        parameters: [M, *PARAMETER_SHAPE], one column each.
    """
    seen = seen_in_training(protocol, parameters, restricted=True)
    strips = []
    for label in np.unique(split.labels[split.restricted]):
        image = split.images[np.flatnonzero(split.labels == label)[:1]]
        inputs = render(
            protocol, tf.constant(np.repeat(image, len(parameters), axis=0)), tf.constant(parameters)
        )
        outputs = call_model(model, inputs)
        taken = [f"“{split.class_names[place]}”" for place in np.argmax(outputs["scores"], axis=-1)]
        strips.append(Strip(np.asarray(inputs), seen, "input"))
        strips.append(Strip(np.asarray(outputs["reconstruction"]), seen, "decoded", taken))
    unit = get_transform(protocol.transformation).UNIT
    heading = (
        f"Reconstructions by {protocol.transformation} [{unit}]; framed in orange: never seen in training; "
        "in quotes: recognised as"
    )
    return picture_grid(strips, parameters, protocol, heading)
