"""The one function of formats that have no more: all that a model computes of numbers."""

import keras

from tfinv.data import Protocol
from tfinv.errors import UsageError
from tfinv.export.classifier import classifier_endpoint
from tfinv.export.endpoint import Endpoint
from tfinv.export.generator import generator_endpoint
from tfinv.export.loading import is_generator
from tfinv.export.portable import portable


def single_endpoint(model: keras.Model, protocol: Protocol | None = None) -> tuple[keras.Model, Endpoint]:
    """Returns a portable copy of a model and the function that runs it, by its kind.

    Args:
        model: Network that recognises or renders images.
        protocol: What a generator was trained under.

    Raises:
        UsageError: If the protocol of a generator is missing or another.
    """
    copy = portable(model)
    if not is_generator(copy):
        return copy, classifier_endpoint(copy)
    if protocol is None:
        raise UsageError("A network that renders needs the protocol it was trained under.")
    return copy, generator_endpoint(copy, protocol)
