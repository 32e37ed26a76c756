"""The compiled library behind the fused ops of a Keras backend: whether there is one, and what it is.

Environment: TFINV_DISABLE_FUSED=1 for the reference without a word, TFINV_REQUIRE_FUSED=1 for an error where
"auto" would fall back on the reference, TFINV_REBUILD=1 to compile again; custom_ops/build.py knows the rest.
"""

import ctypes
import importlib
import importlib.util
import os
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import keras

# Keras backend -> the module with its fused functions: `load() -> BuildInfo`, `dynamic_routing` and
# `em_routing`. The other backends run the reference.
MODULES = {"tensorflow": "tfinv.ops.fused", "jax": "tfinv.ops.fused_jax"}


class LibraryError(RuntimeError):
    """There is no library; the message says why and what to do."""


class UnwantedError(LibraryError):
    """There is no library, and none is missed: the backend has none, or it is switched off."""


@dataclass(frozen=True)
class BuildInfo:
    """What the fused routing ops of this process are.

    Attributes:
        available: Whether they can be used.
        reason: Why not, if not; else why there are no GPU kernels although they are wanted.
        failed: Whether they should be available: the backend has them, and they are not switched off.
        binding: What they are compiled for: "tensorflow" or "jax"; empty for other Keras backends.
        library: Path of the shared library.
        isa: Instruction set that the CPU kernels run on: "baseline", "avx2" or "avx512".
        isas: Instruction sets compiled.
        cuda: Version of nvcc; empty without GPU kernels.
        cuda_architectures: What the GPU kernels are compiled for, as "90".
        framework: Version of TensorFlow or JAX compiled for.
        compiler: First line of what the C++ compiler says about its version.
    """

    available: bool
    reason: str = ""
    failed: bool = False
    binding: str = ""
    library: str = ""
    isa: str = ""
    isas: tuple[str, ...] = ()
    cuda: str = ""
    cuda_architectures: tuple[str, ...] = ()
    framework: str = ""
    compiler: str = ""


@cache
def build_module() -> ModuleType:
    """Loads custom_ops/build.py by its path: inside the installed package, or beside it in a checkout.

    Raises:
        LibraryError: If the sources are not there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "custom_ops", package.parent / "custom_ops"):
        path = folder / "build.py"
        if path.is_file():
            spec = importlib.util.spec_from_file_location("tfinv_custom_ops_build", path)
            if spec is None or spec.loader is None:
                continue
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up there
            spec.loader.exec_module(module)
            return module
    raise LibraryError(f"The sources of the fused ops (custom_ops) are not installed with {package}.")


def library(binding: str, force: bool = False) -> Path:
    """Returns the library of a binding, compiled on the first use.

    Args:
        binding: "tensorflow" or "jax".
        force: Whether to compile even if there is one.

    Raises:
        LibraryError: If there is none and none can be compiled.
    """
    build = build_module()
    try:
        return build.build(binding, force)
    except build.BuildError as error:
        raise LibraryError(str(error)) from error


def describe(binding: str, path: Path) -> BuildInfo:
    """Returns what a loaded library is."""
    build = build_module()
    facts = build.facts_of(path)
    isa = ctypes.CDLL(str(path)).tfinv_cpu_isa
    isa.restype = ctypes.c_char_p
    return BuildInfo(
        available=True,
        reason=build.cuda_failure(path),
        binding=binding,
        library=str(path),
        isa=isa().decode(),
        isas=tuple(facts["isas"]),
        cuda=facts["cuda"],
        cuda_architectures=tuple(facts["cuda_architectures"]),
        framework=facts["framework"],
        compiler=facts["compiler"],
    )


@cache
def build_info() -> BuildInfo:
    """Tells what the fused routing ops of this process are, or why there are none; decided once.

    Compiles them if they never were.
    """
    try:
        return fused_module().load()
    except LibraryError as error:
        return BuildInfo(False, str(error), failed=not isinstance(error, UnwantedError))


@cache  # AutoGraph leaves a cached function alone, and cannot convert an import
def fused_module() -> ModuleType:
    """Returns the module with the fused functions of the Keras backend; loads no library.

    Raises:
        LibraryError: If the backend has none, what it needs is not installed, or it is switched off.
    """
    backend = keras.backend.backend()
    if backend not in MODULES:
        raise UnwantedError(f"Keras runs on {backend}; the fused ops are for {' and '.join(MODULES)}.")
    if _is_set("TFINV_DISABLE_FUSED"):
        raise UnwantedError("TFINV_DISABLE_FUSED is set.")
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError as error:
        raise LibraryError(f"{MODULES[backend]} cannot be imported: {error}") from error


def is_required() -> bool:
    """Returns whether "auto" must not fall back on the reference where the fused ops fail."""
    return _is_set("TFINV_REQUIRE_FUSED")


def build_command(binding: str | None = None) -> str:
    """Returns the command line that compiles a library and shows why it cannot; empty without sources."""
    try:
        return shlex.join([sys.executable, str(build_module().__file__), binding or keras.backend.backend()])
    except LibraryError:
        return ""


def _is_set(variable: str) -> bool:
    """Returns whether an environment variable is set to anything but 0."""
    return os.environ.get(variable, "0") not in ("", "0")
