"""The registry finds public modules by file, imports only what is asked for, and lists what it knows."""

import sys

import pytest

from tfinv import registry
from tfinv.errors import UsageError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two public modules, one of which cannot be imported, and a private one."""
    folder = tmp_path / "entries_for_test"
    folder.mkdir()
    files = {"__init__": "", "zebra": "VALUE = 1", "ant": "raise RuntimeError('imported')", "_base": ""}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_names_are_sorted_public_and_not_imported(package):
    assert registry.names(package.name) == ["ant", "zebra"]
    assert not [name for name in sys.modules if name.startswith(f"{package.name}.")]


def test_a_new_file_is_a_new_entry(package):
    (package / "mole.py").write_text("VALUE = 2", encoding="utf-8")
    assert registry.names(package.name) == ["ant", "mole", "zebra"]
    assert registry.find(package.name, "mole", "animal").VALUE == 2


def test_find_imports_that_module_alone(package):
    assert registry.find(package.name, "zebra", "animal").VALUE == 1
    assert f"{package.name}.ant" not in sys.modules


@pytest.mark.parametrize("name", ["cat", "_base", "__init__", "", "zebra.py"])
def test_unknown_and_private_names_list_the_known_ones(package, name):
    with pytest.raises(UsageError, match=r"Unknown animal\. Expected one of ant, zebra\.") as caught:
        registry.find(package.name, name, "animal")
    assert str(caught.value).endswith(f"animal={name}")


def test_an_error_inside_an_entry_is_not_hidden(package):
    with pytest.raises(RuntimeError, match="imported"):
        registry.find(package.name, "ant", "animal")
