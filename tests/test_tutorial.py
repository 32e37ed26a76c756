"""docs/reuse_layers.md, run block by block as a reader would, in an empty folder."""

import os
import re
import sys

import keras
import matplotlib.image
import numpy as np
import pytest

from tests.conftest import ROOT
from tfinv.data import load_dataset, transforms
from tfinv.errors import UsageError

PAGE = ROOT / "docs" / "reuse_layers.md"
BLOCK = re.compile(r"(?:<!-- file: (?P<path>\S+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


pytestmark = pytest.mark.slow


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Follows the page; returns what a reader has at its end."""
    try:
        load_dataset("fashion_mnist")
    except UsageError as error:
        if "TFINV_REQUIRE_DATA" in os.environ:
            raise
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transforms, "__path__", list(transforms.__path__))
    monkeypatch.delitem(sys.modules, "tfinv.data.transforms.shear", raising=False)
    page, has = PAGE.read_text(), {"__name__": "tutorial"}
    for block in BLOCK.finditer(page):
        if block["path"]:
            (tmp_path / block["path"]).parent.mkdir(exist_ok=True)
            (tmp_path / block["path"]).write_text(block["code"])
        else:  # an error names the line of the page
            lines = "\n" * page.count("\n", 0, block.start("code"))
            exec(compile(lines + block["code"], str(PAGE), "exec"), has)
    yield has
    keras.backend.clear_session()


def test_reader_of_the_tutorial_gets_what_it_says(reader, tmp_path, capsys):
    assert reader["accuracy"] > 0.7
    assert np.mean(reader["found"]["class_index"].numpy() == reader["clothes"].y_test[:3]) > 0.5
    assert matplotlib.image.imread(tmp_path / "shear.png").std() > 0.05

    accuracies = reader["accuracies"]
    for trousers_or_dress in "1", "3":
        assert accuracies[trousers_or_dress][0.0] > 0.8
        assert accuracies[trousers_or_dress][[-1.0, 1.0]].max() < 0.1, "the finding that the page tells"
    others = accuracies[["0", "2", "4", "5"]]
    assert others.loc[[-1.0, 1.0]].mean().mean() > 0.4

    shear = transforms.get_transform("shear")
    names = {name for name in vars(shear) if name.isupper() or callable(getattr(shear, name))}
    assert required_names() <= names
    ramp = np.arange(5.0, dtype=np.float32)[np.newaxis, :, np.newaxis, np.newaxis] * np.ones(
        (1, 1, 5, 1), np.float32
    )
    corner = np.zeros((1, 5, 5, 1), np.float32)
    corner[0, 0, 2, 0] = 1.0
    np.testing.assert_array_equal(shear.apply(ramp, np.zeros(1)), ramp)
    moved = shear.apply(corner, np.ones(1)).numpy()
    assert np.argwhere(moved[0, :, :, 0]).tolist() == [[0, 4]], "the top moves right by 2, half of 4"


def required_names():
    """What the package's docstring lists."""
    return set(re.findall(r"^    ([A-Za-z_]+)(?=\(| {2})", transforms.__doc__, re.MULTILINE))
