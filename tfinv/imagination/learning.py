"""Learns the transformation that a run asks for, or loads what the run learned before."""

import logging
import time
from pathlib import Path

import keras
import tensorflow as tf

import tfinv.layers  # noqa: F401  registers the layers that a file may contain
from tfinv.config import ImaginationConfig
from tfinv.data import Protocol, Split
from tfinv.errors import UsageError, reason_of
from tfinv.files import replacing
from tfinv.imagination.address import learn_address_field
from tfinv.imagination.operators import assemble, learn_operators
from tfinv.imagination.pairs import free_images, steps_of
from tfinv.imagination.unpaired import check_unpaired, learn_address_field_unpaired, learn_operators_unpaired

FILE = "imagination.keras"
LEARNED = ("operators", "address")
_LOG = logging.getLogger(__name__)


def check(protocol: Protocol, split: Split, config: ImaginationConfig, seed: int) -> None:
    """Raises UsageError if `learn` could not start."""
    if config.imagination in LEARNED:
        steps_of(protocol, config)
        free_images(split, config, seed)
        if config.learned_from == "moments":
            check_unpaired(protocol, split, config)


def check_options(config: ImaginationConfig) -> None:
    """Raises UsageError if options are given that mean nothing for what imagines.

    For command lines: rows of a suite give the same options to all that imagine, and to what does not.
    """
    kind, unused = f"imagination={config.imagination}", vars(config).keys() - {"imagination"}
    if config.imagination in LEARNED:
        kind += f", learned_from={config.learned_from}"
        unused = {"ridge"} if config.learned_from == "moments" else {"moment_components", "moment_passes"}
        unused |= {"address_steps"} if config.imagination == "operators" else set()
    default = vars(ImaginationConfig())
    changed = {key: value for key, value in vars(config).items() if value != default[key]}
    given = [f"{key}={value}" for key, value in changed.items() if key in unused]
    if given:
        raise UsageError(
            f"Options without effect. Expected none of them with {kind}. Received: {', '.join(given)}"
        )


def learn(protocol: Protocol, split: Split, config: ImaginationConfig, seed: int) -> keras.Model:
    """Learns a transformation from images of the free classes of a training part, paired or not.

    Args:
        protocol: Says which classes are free, and the range.
        split: Training images.
        config: What to learn, and how.
        seed: Seed.

    Returns:
        A model from images [N, H, W, C] above black and steps [G, *PARAMETER_SHAPE] to images; see
        `render_learned`.

    Raises:
        UsageError: If nothing is to be learned, or the classes or the protocol do not allow it.
    """
    if config.imagination not in LEARNED:
        raise UsageError(
            f"Nothing to learn. Expected imagination to be one of {', '.join(LEARNED)}. "
            f"Received: imagination={config.imagination}"
        )
    begin = time.monotonic()
    unpaired = config.learned_from == "moments"
    layers: list = (learn_operators_unpaired if unpaired else learn_operators)(protocol, split, config, seed)
    if config.imagination == "address":
        learn_field = learn_address_field_unpaired if unpaired else learn_address_field
        layers = [learn_field(protocol, split, config, layers, seed)]
    model = assemble(protocol, split.images.shape[1:], layers)
    size = sum(weight.numpy().nbytes for weight in model.weights) / 2**20
    _LOG.info(
        "Learned the transformation (%s, %.0f MiB) in %.0f s.",
        config.imagination,
        size,
        time.monotonic() - begin,
    )
    return model


def load_or_learn(
    protocol: Protocol, split: Split, config: ImaginationConfig, seed: int, directory: Path
) -> keras.Model | None:
    """Like `learn`, but once for a run directory, so that a resumed run imagines bitwise the same.

    Args:
        protocol: Says which classes are free, and the range.
        split: Training images.
        config: What to learn, and how.
        seed: Seed.
        directory: The run directory; what is learned is written there, as `FILE`.

    Returns:
        The model that `learn` returns, or the one learned before; None if nothing is to be learned.

    Raises:
        UsageError: If what was learned before cannot be read, or as `learn` does.
    """
    if config.imagination not in LEARNED:
        return None
    path = directory / FILE
    if not path.is_file():
        model = learn(protocol, split, config, seed)
        with replacing(path) as partial:
            model.save(partial)
        return model
    try:
        with tf.device("CPU:0"):  # where the input pipeline runs
            return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise UsageError(
            f"Damaged file: {path} ({reason_of(error)}). Start again with --overwrite."
        ) from None
