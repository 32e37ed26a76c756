"""What imagination depends on: the quick network, one thing changed at a time."""

from typing import Any

from tfinv.suites._experiment import Experiment, little

# One operator a pixel, the end of the range included; a point of the curve a pixel, as the protocol says.
_SHIFTS = {"protocol": "shift-34", "operator_steps": 14, "grid_step": None}


def _ablated(family: str, how: str = "operators", suffix: str = "", **changes: Any) -> Experiment:
    changes = {"imagination": how, **changes}
    return Experiment("cnn", "quick", family, smoke=little(changes), changes=changes, suffix=suffix)


ROWS = (
    _ablated("Quick network", "none"),
    _ablated("Quick network", "operators"),
    _ablated("Quick network", "address"),
    _ablated("Quick network", "true"),
    _ablated("Without pairs", learned_from="moments"),
    _ablated("Without pairs", "address", learned_from="moments"),
    *(_ablated("Free classes", operator_classes=count) for count in (1, 2, 3, 4, 5)),
    *(_ablated("Operators", operator_steps=count) for count in (8, 12, 18, 36)),
    *(_ablated("Share of imagined images", imagined_share=share) for share in (0.25, 0.5, 0.75)),
    _ablated("Who is imagined, from where", imagined_classes="restricted"),
    _ablated("Who is imagined, from where", imagined_from="range"),
    *(
        _ablated("Fashion-MNIST", how, "-fashion_mnist", dataset="fashion_mnist", excluded_classes=())
        for how in ("none", "operators", "address", "true")
    ),
    *(_ablated("Shifts", how, "-shift", **_SHIFTS) for how in ("none", "operators", "address", "true")),
)
