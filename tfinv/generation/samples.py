"""Images of nothing: latents drawn from the prior of a generator, rendered at chosen parameters."""

from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tfinv.data import Protocol
from tfinv.data.transforms import get_transform
from tfinv.pictures import Strip, picture_grid


def prior_samples(
    model: keras.Model,
    protocol: Protocol,
    parameters: np.ndarray,
    count: int,
    seed: int,
    prior: tuple[float, float] = (-1.0, 1.0),
) -> np.ndarray:
    """Renders latents that no image was encoded to.

    Args:
        model: Generator with the layer "decoder" from {"latent" [N, L], "code"} to images.
        protocol: Gives the transformation.
        parameters: [M, *PARAMETER_SHAPE].
        count: Latents.
        seed: Seed of the latents.
        prior: Range of the uniform prior.

    Returns:
        Images [count, M, H', W', C] in the protocol's pixel range; each row is one latent.
    """
    decoder: Any = model.get_layer("decoder")
    size = decoder.input["latent"].shape[1]
    drawn = np.random.default_rng(seed).uniform(*prior, (count, size)).astype(np.float32)
    latents = keras.ops.convert_to_tensor(drawn)
    codes = get_transform(protocol.transformation).code(keras.ops.convert_to_tensor(parameters))
    columns = [
        keras.ops.convert_to_numpy(decoder({"latent": latents, "code": codes[index : index + 1]}))
        for index in range(len(parameters))
    ]
    return np.stack(columns, axis=1)


def samples_figure(images: np.ndarray, protocol: Protocol, parameters: np.ndarray) -> Figure:
    """Draws what `prior_samples` returned: a row a latent, a column a parameter."""
    unit = get_transform(protocol.transformation).UNIT
    heading = f"Latents drawn from the prior, by {protocol.transformation} [{unit}]"
    strips = [Strip(row, [True] * len(parameters)) for row in images]
    return picture_grid(strips, parameters, protocol, heading)
