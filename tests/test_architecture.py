"""Imports point one way, files stay small, and installing adds one package."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From low to high; a module may import what stands on a lower line, or on its own one.
LAYERS = (
    (
        *(
            "tfinv",
            "tfinv.errors",
            "tfinv.files",
            "tfinv.registry",
            "tfinv.config",
            "tfinv.results",
            "tfinv.runs",
        ),
        *("tfinv.intervals", "tfinv.page"),
    ),
    ("tfinv.data",),
    ("tfinv.ops",),
    ("tfinv.layers",),
    ("tfinv.adversarial", "tfinv.losses", "tfinv.models", "tfinv.replicas"),
    ("tfinv.distributed",),
    ("tfinv.imagination",),
    ("tfinv.checkpoint", "tfinv.training"),
    ("tfinv.export",),
    ("tfinv.evaluation",),
    ("tfinv.figures", "tfinv.pictures", "tfinv.generation", "tfinv.imagination_report"),
    ("tfinv.suites", "tfinv.summary", "tfinv.report", "tfinv.article", "tfinv.results_page"),
    ("tfinv.reference", "tfinv.explorer"),
    ("tfinv.experiment",),
    ("tfinv.catalogue", "tfinv.worker"),
    ("tfinv.engines",),
    ("tfinv.sweep", "tfinv.reproduce"),
    ("tfinv.cli", "tfinv.serving"),
    ("scripts",),
)
# What an engineer takes alone: any Keras backend, no data.
PORTABLE = ("tfinv.ops", "tfinv.layers", "tfinv.losses", "tfinv.models")
# The fused op is TensorFlow's by nature; it is imported on demand.
TENSORFLOW_ONLY = re.compile(r"tfinv\.ops\.(fused|_fused)\w*")
SOURCES = sorted((ROOT / "tfinv").rglob("*.py")) + sorted((ROOT / "scripts").glob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, package: str) -> set[str]:
    """Every module that a source text imports, wherever in the text."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from tfinv import data` imports tfinv.data; `from tfinv.data import load` tfinv.data.
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "tfinv" else {module}
    return found


def rank(module: str) -> int | None:
    """Line of LAYERS that a module belongs to."""
    for index, names in enumerate(LAYERS):
        for name in names:
            if module == name or (name != "tfinv" and module.startswith(f"{name}.")):
                return index
    return None


def upward_edges(module: str, source: str, package: str) -> list[str]:
    return [
        f"{module} -> {other}"
        for other in sorted(imports_of(source, package))
        if other.split(".")[0] in ("tfinv", "scripts")
        and (rank(other) if rank(other) is not None else len(LAYERS)) > (rank(module) or 0)
    ]


def package_of(path: Path) -> str:
    name = module_name(path)
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    assert rank(module_name(path)) is not None, "give the new module a place in LAYERS"
    assert upward_edges(module_name(path), path.read_text(), package_of(path)) == []


def test_the_check_itself_finds_upward_edges():
    for module, source in (
        ("tfinv.data.protocol", "from tfinv.ops import squash"),
        ("tfinv.data.protocol", "def f():\n    import tfinv.models.cnn"),
        ("tfinv.data.protocol", "from tfinv import errors, evaluation"),
        ("tfinv.data.protocol", "from ..training import train"),
        ("tfinv.evaluation", "from tfinv import somewhere_new"),
    ):
        assert len(upward_edges(module, source, "tfinv.data")) == 1, source
    assert upward_edges("tfinv.training", "from tfinv.data import Dataset\nimport keras, ast", "tfinv") == []


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if module_name(path).startswith(PORTABLE)], ids=module_name
)
def test_portable_parts_need_neither_tensorflow_nor_data(path):
    if TENSORFLOW_ONLY.fullmatch(module_name(path)):
        pytest.skip("the fused op")
    imported = imports_of(path.read_text(), package_of(path))
    assert not [name for name in imported if name.split(".")[0] == "tensorflow"]
    assert not [name for name in imported if name.startswith("tfinv.data")]


def test_native_core_knows_no_framework():
    includes = re.compile(r'#\s*include\s*[<"]\s*(tensorflow|xla|jax|jaxlib|torch|absl|third_party)\b')
    core = ROOT / "custom_ops" / "core"
    sources = [
        path for path in core.rglob("*") if path.suffix in {".h", ".cc", ".cpp", ".cu", ".cuh", ".inc"}
    ]
    assert [str(path) for path in sources if includes.search(path.read_text())] == []
    assert includes.search('#include "tensorflow/core/framework/op.h"') and not includes.search(
        "#include <array>"
    )


# Files


def test_no_file_is_long():
    native = [
        path
        for path in (ROOT / "custom_ops").rglob("*")
        if path.suffix in {".h", ".cc", ".cpp", ".cu", ".cuh", ".inc"}
    ]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in [*SOURCES, *native]
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_parse_and_call(path):
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 40
    assert "python scripts/" in ast.get_docstring(tree), "say how it is called"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_assert_and_nothing_without_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert path.name not in {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert ast.get_docstring(tree)


def test_installing_adds_the_one_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert patterns and all(pattern.split(".")[0].rstrip("*") == "tfinv" for pattern in patterns)
