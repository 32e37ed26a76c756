"""Imagination: training on images beyond the range of their class, by a transformation that was learned.

The transformation is learned from images of the free classes, in pairs with a known step between them or
without, and then applied to all classes. What learns is linear operators in closed form or an address field;
neither knows of what kind it is.
"""

from tfinv.imagination.address import learn_address_field
from tfinv.imagination.errors import nearer_direction, relative_errors
from tfinv.imagination.learning import FILE, LEARNED, check, check_options, learn, load_or_learn
from tfinv.imagination.operators import assemble, learn_operators
from tfinv.imagination.pairs import Steps, free_images, steps_of
from tfinv.imagination.stream import ImaginedStream, render_learned
from tfinv.imagination.unpaired import learn_address_field_unpaired, learn_operators_unpaired

__all__ = [
    "FILE",
    "LEARNED",
    "ImaginedStream",
    "Steps",
    "assemble",
    "check",
    "check_options",
    "free_images",
    "learn",
    "learn_address_field",
    "learn_address_field_unpaired",
    "learn_operators",
    "learn_operators_unpaired",
    "load_or_learn",
    "nearer_direction",
    "relative_errors",
    "render_learned",
    "steps_of",
]
