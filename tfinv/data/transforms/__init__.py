"""Transformations, one module each; training and evaluation call the same functions.

A transformation module defines:

    PARAMETER_SHAPE    shape of one parameter: () for a scalar, (2,) for a pair
    PERIOD             after how much the transformation repeats itself; None if it does not
    UNIT               unit of the parameter for labels, such as "degrees"
    SWEEP              what its grid varies, for labels
    apply(images, parameters, fill_value=0.0, margin=0)    images [N, H, W, C], on each side of which `margin`
                       pixels are put first, by parameters [N, *PARAMETER_SHAPE]
    sample(uniforms, low, high)    uniforms in [0, 1) [N, *PARAMETER_SHAPE] to parameters from low to high,
                       which are each image's own [N], the same for all components
    grid(step)         parameters of an evaluation sweep [M, *PARAMETER_SHAPE], 0 (the identity) included
    contains(parameters, low, high)    which parameters [M, *PARAMETER_SHAPE] are within the range [M]; an
                       array for an array, a tensor for a tensor
    CODE_SIZE          numbers of a code
    code(parameters)   what a generator sees of parameters [N, *PARAMETER_SHAPE]: [N, CODE_SIZE], about -1..1
    comparable(parameters)    which parameters [M, *PARAMETER_SHAPE] blur an image as most do [M]; errors at
                       the others are not averaged with theirs
"""

from types import ModuleType

from tfinv import registry


def available() -> list[str]:
    """Returns the names of all transformations."""
    return registry.names(__name__)


def get_transform(name: str) -> ModuleType:
    """Returns the transformation module `name`; raises UsageError that lists the known ones."""
    return registry.find(__name__, name, "transformation")
