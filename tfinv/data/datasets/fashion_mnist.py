"""Fashion-MNIST: 70,000 pictures of clothes, 28x28 grey. Xiao, Rasul and Vollgraf, 2017."""

from tfinv.data import fetch, sources
from tfinv.data.dataset import Dataset

SPEC = fetch.Spec(
    name="fashion_mnist",
    checksums={
        "x_train": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "y_train": "9018921c3c673c538a1fc5bad174d6f9",
        "x_test": "8181f5470baa50b63fa0f6fddb340f0a",
        "y_test": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    sources=(
        sources.keras_cache("fashion-mnist"),
        sources.folder("Debian's package dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist"),
        sources.keras_download("fashion_mnist"),
    ),
    remedy="run `apt-get install dataset-fashion-mnist` (Debian, Ubuntu)",
    licence="Zalando SE; MIT",
)


def load() -> Dataset:
    """Returns Fashion-MNIST: 60,000 training and 10,000 test images [N, 28, 28, 1], labels 0..9.

    Raises:
        UsageError: If no source has it; the message lists what was tried.
    """
    return fetch.load(SPEC)
