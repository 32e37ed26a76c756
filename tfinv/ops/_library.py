"""The compiled library behind the fused ops of a Keras backend: whether there is one, and what it is."""

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

# Keras backend -> what the C++ core is compiled for; the others run the reference.
BINDINGS = ("tensorflow", "jax")


class LibraryError(RuntimeError):
    """There is no library; the message says why and what to do."""


@dataclass(frozen=True)
class BuildInfo:
    """What the fused routing ops of this process are.

    Attributes:
        available: Whether they can be used.
        reason: Why not, if not.
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
    facts = build_module().facts_of(path)
    isa = ctypes.CDLL(str(path)).tfinv_cpu_isa
    isa.restype = ctypes.c_char_p
    return BuildInfo(
        available=True,
        binding=binding,
        library=str(path),
        isa=isa().decode(),
        isas=tuple(facts["isas"]),
        cuda=facts["cuda"],
        cuda_architectures=tuple(facts["cuda_architectures"]),
        framework=facts["framework"],
        compiler=facts["compiler"],
    )


def is_set(variable: str) -> bool:
    """Returns whether an environment variable is set to anything but 0."""
    return os.environ.get(variable, "0") not in ("", "0")
