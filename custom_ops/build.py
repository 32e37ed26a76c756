"""Compiles the fused routing ops for TensorFlow or JAX, from the sources beside this file.

    python custom_ops/build.py [tensorflow|jax] [--force] [--output DIR]

Prints the path of the library. Standard library only: setup.py and tfinv.ops load this file by its path.
Environment: CXX, CUDA_HOME, TFINV_CACHE (where libraries are kept), TFINV_CUDA (0: never, 1: must work; else
where nvidia-smi and nvcc are), TFINV_REBUILD (1: compile again, once). On 2 cores a minute, with CUDA 3; less
for another framework or another version of it, as the core's objects are kept.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
BINDINGS = ("tensorflow", "jax")
COMPILERS = ("g++", "c++", "g++-12", "g++-13", "g++-14", "clang++")
OLDEST_GCC = 12  # the first that knows __builtin_shufflevector
# Where an installed package holds the libraries compiled at installation.
INSTALLED = HERE / "lib"
SOURCE_SUFFIXES = {".h", ".inc", ".cc", ".cpp", ".cu", ".cuh"}

COMPILE_FLAGS = (
    "-std=c++17 -O3 -fPIC -DNDEBUG -fno-math-errno -fno-trapping-math -ffp-contract=fast".split()  # noqa: SIM905
)
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"],
}
CUDA_COMPILE_FLAGS = (
    "-std=c++17 -O3 -DNDEBUG -DTFINV_WITH_CUDA -arch=all-major --threads=0 -Xcompiler -fPIC".split()  # noqa: SIM905
)
_HOW_TO_NVCC = "Set CUDA_HOME or install the extra cuda-build."
# Before TensorFlow's own flags: its framework library exports a stub of the CUDA runtime, which would be
# bound instead, and the library could then not be loaded where TensorFlow is built without CUDA.
CUDA_LINK_FLAGS = "-lcudart_static -ldl -lrt -lpthread -Wl,--exclude-libs,libcudart_static.a".split()  # noqa: SIM905


class BuildError(RuntimeError):
    """The library cannot be compiled; the message says why and what to do."""


@dataclass(frozen=True)
class Framework:
    """What a framework asks of a library that it can load."""

    binding: str
    version: str
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]


@dataclass(frozen=True)
class Cuda:
    """An nvcc that works, its version, the folder of its libraries and what -arch=all-major means to it."""

    nvcc: str
    version: str
    libraries: Path
    architectures: tuple[str, ...]


@dataclass(frozen=True)
class Toolchain:
    """The compilers found on this machine.

    Attributes:
        compiler: The words that call the C++ compiler, as ("ccache", "g++").
        flags: What CXX asks of it besides.
        version: First line of what it says about its version, and the flags.
        cuda: None for a library without GPU kernels.
    """

    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    version: str
    cuda: Cuda | None


def build(binding: str, force: bool = False, output: Path | None = None) -> Path:
    """Returns the library of a binding; compiles it if there is none for this framework, source and compiler.

    Processes that call it at the same time compile once.

    Args:
        binding: "tensorflow" or "jax"; the framework must be importable.
        force: Whether to compile even if there is a library.
        output: Folder to compile into; None for tfinv's cache, where libraries are looked for.

    Returns:
        Path of the shared library; the file beside it that ends in .json tells how it was made.

    Raises:
        BuildError: If there is no library and none can be compiled.
    """
    if binding not in BINDINGS:
        raise ValueError(
            f"Invalid value for argument binding. Expected one of {BINDINGS}. Received: binding={binding}"
        )
    # Taken out of the environment, or every process that this one starts would compile again.
    force = force or os.environ.pop("TFINV_REBUILD", "0") not in ("", "0")
    framework = framework_facts(binding)
    facts = {
        "binding": binding,
        "framework": framework.version,
        "sources": source_hash(binding),
        "platform": f"{platform.system()}-{platform.machine()}",
    }
    try:
        toolchain = find_toolchain()
    except BuildError:
        found = None if force else _made_before(facts, None)
        if found is None:
            raise
        return found
    facts |= {
        "compiler": toolchain.version,
        "cuda": toolchain.cuda.version if toolchain.cuda else "",
        "cuda_architectures": list(toolchain.cuda.architectures) if toolchain.cuda else [],
    }
    folder = output or cache_folder()
    library = folder / (
        f"{binding}.so" if output else f"{binding}-{framework.version}-{_key(facts, framework)}.so"
    )
    if not (force or output):
        if _serves(library):
            if failure := cuda_failure(library):
                _say(failure)
            return library
        if (found := _made_before(facts, facts["cuda"], (INSTALLED,))) is not None:
            return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(library.with_suffix(".lock")):
            if force or output or not _serves(library):  # another process may have made it meanwhile
                objects = None if output else folder / "objects"
                _compile(library, framework, toolchain, facts, objects, force)
    except OSError as error:
        raise BuildError(f"Cannot write {folder}: {error}. Set TFINV_CACHE to a writable folder.") from error
    return library


def cache_folder() -> Path:
    """Returns where compiled libraries are kept: tfinv's cache, in which tfinv.data keeps datasets."""
    root = os.environ.get("TFINV_CACHE") or "~/.cache/tfinv"
    try:
        return Path(root).expanduser().absolute() / "custom_ops"
    except RuntimeError:  # no home folder, as in some containers
        return _temporary_folder() / "custom_ops"


def _temporary_folder() -> Path:
    """Returns a folder of this user's own: a library that another one left there would be loaded."""
    folder = Path(tempfile.gettempdir()) / f"tfinv-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat().st_uid
    except OSError as error:
        raise BuildError(f"Cannot write {folder}: {error}. Set TFINV_CACHE to a writable folder.") from error
    if owner != os.getuid():
        raise BuildError(f"{folder} is another user's. Set TFINV_CACHE to a folder of yours.")
    return folder


def facts_of(library: Path) -> dict:
    """Returns how a library was made: binding, framework, compiler, cuda_architectures ..."""
    return json.loads(library.with_suffix(".json").read_text())


def cuda_failure(library: Path) -> str:
    """Returns in one line why a library has no GPU kernels although they are wanted; else empty."""
    facts = facts_of(library)
    if failure := facts.get("cuda_failure"):
        return " ".join(f"No GPU kernels (TFINV_CUDA=1 tries again): {failure}".split())
    if _wants_cuda() and not facts["cuda"]:
        return f"No GPU kernels: no nvcc works. {_HOW_TO_NVCC}"
    return ""


def framework_facts(binding: str) -> Framework:
    """Asks the framework for its version and flags; imports it."""
    try:
        if binding == "jax":
            import jax
            import jaxlib

            version = f"{jax.__version__}-jaxlib{jaxlib.__version__}"
            return Framework(binding, version, (f"-I{jax.ffi.include_dir()}",), ())
        import tensorflow as tf
    except ImportError as error:
        raise BuildError(f"{binding} cannot be imported: {error}") from error
    except AttributeError as error:
        raise BuildError(f"{binding} is too old: {error}") from error
    flags = tuple(tf.sysconfig.get_compile_flags()), tuple(tf.sysconfig.get_link_flags())
    return Framework(binding, tf.__version__, *flags)


def find_toolchain() -> Toolchain:
    """Finds a C++ compiler and, where TFINV_CUDA or a GPU asks for it, an nvcc.

    Raises:
        BuildError: If there is no compiler, or no nvcc although TFINV_CUDA=1.
    """
    if os.name != "posix":
        raise BuildError(f"The fused ops are built on Linux and macOS only, not on {platform.system()}.")
    compiler, version = find_compiler()
    cuda = find_cuda() if _wants_cuda() else None
    if _must_have_cuda() and cuda is None:
        raise BuildError(f"TFINV_CUDA=1, but no nvcc works. {_HOW_TO_NVCC}")
    end = next((at for at, word in enumerate(compiler) if word.startswith("-")), len(compiler))
    flags = compiler[end:]
    return Toolchain(compiler[:end], flags, " ".join([version, *flags]), cuda)


def find_compiler() -> tuple[tuple[str, ...], str]:
    """Returns the command of a C++ compiler, of CXX if that is set, and the first line about its version.

    Raises:
        BuildError: If there is none, or only a g++ that is too old.
    """
    tried = []
    for name in [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS:
        tried.append(name)
        words = [name]
        if not shutil.which(name):
            with contextlib.suppress(ValueError):  # a quotation mark without its other
                words = shlex.split(name)
        if words and (path := shutil.which(words[0])):
            version = _output([path, *words[1:], "--version"]).partition("\n")[0]
            # g++ says "g++ (Debian 12.2.0-14) 12.2.0", and clang++ "clang version 14.0.6".
            gcc = re.search(r"\) (\d+)\.", version)
            if gcc is None or int(gcc[1]) >= OLDEST_GCC:
                return (path, *words[1:]), version
            tried[-1] += f" {gcc[1]} is too old"
    raise BuildError(
        f"No C++ compiler found ({', '.join(tried)}). "
        f"Install g++ {OLDEST_GCC} or newer, or clang++ 14 or newer, or set CXX."
    )


def find_cuda() -> Cuda | None:
    """Finds nvcc: CUDA_HOME, the path, then the wheels of the extra cuda-build; None if none works."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    wheels = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"), reverse=True)
    candidates = [*(Path(home, "bin", "nvcc") for home in homes), shutil.which("nvcc"), *wheels]
    for nvcc in map(str, filter(None, candidates)):
        try:
            plan = _output([nvcc, "--dryrun", "-arch=all-major", "-x", "cu", "-c", os.devnull])
            release = re.search(r"V(\d[\d.]*)", _output([nvcc, "--version"]))
        except BuildError:
            continue
        top = re.search(r"^#\$ TOP=(.*)$", plan, re.MULTILINE)
        if not (top and release):
            continue
        for name in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib"):
            libraries = Path(top[1].strip(), name)
            if (libraries / "libcudart_static.a").is_file():
                architectures = sorted(set(re.findall(r"sm_(\d+)", plan)), key=int)
                return Cuda(nvcc, release[1], libraries, tuple(architectures))
    return None


def source_files(binding: str) -> list[Path]:
    """Returns every file that a library of the binding is made of."""
    return sorted([*_sources_in("core"), *_sources_in(binding), HERE / "info.cc"])


def _sources_in(folder: str) -> list[Path]:
    return sorted(path for path in (HERE / folder).glob("*") if path.suffix in SOURCE_SUFFIXES)


def source_hash(binding: str) -> str:
    """Returns a hash over the names and contents of the sources of a binding."""
    return _hash_of(source_files(binding))


def _hash_of(paths: list[Path]) -> str:
    state = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        state.update(f"{path.relative_to(HERE)} {len(content)}\n".encode() + content)
    return state.hexdigest()


def compile_steps(framework: Framework, toolchain: Toolchain) -> list[tuple[str, str, list[str]]]:
    """Returns (source, object, command without the two) for each object, in the order of linking."""
    isas = ["baseline"]
    if platform.machine().lower() in ("x86_64", "amd64"):
        isas = list(ISA_FLAGS)
    present = [f"-DTFINV_WITH_{isa.upper()}" for isa in isas[1:]]
    binding_flags = [*framework.compile_flags, *(["-DTFINV_WITH_CUDA"] if toolchain.cuda else [])]
    includes = [f"-I{HERE}", f"-I{HERE / 'core'}"]
    plain = [*toolchain.compiler, *toolchain.flags, *COMPILE_FLAGS, *includes]
    steps = [("info.cc", "info.o", plain)]
    for source in sorted((HERE / framework.binding).glob("*.cc")):
        steps.append((f"{framework.binding}/{source.name}", f"{source.stem}.o", [*plain, *binding_flags]))
    for source in sorted((HERE / "core").glob("*.cpp")):
        if source.name != "cpu_isa.cpp":
            steps.append((f"core/{source.name}", f"{source.stem}.o", [*plain, *present]))
    # Baseline first: where two objects hold the same inline function of the C++ library, the linker keeps
    # the first one, and that must run on any processor.
    for isa in isas:
        steps.append(("core/cpu_isa.cpp", f"cpu_{isa}.o", [*plain, *ISA_FLAGS[isa], f"-DTFINV_ISA={isa}"]))
    if toolchain.cuda:
        # nvcc calls a compiler of one word, and so none of what CXX puts around it.
        nvcc = [toolchain.cuda.nvcc, "-ccbin", toolchain.compiler[-1], *CUDA_COMPILE_FLAGS, *includes]
        for source in sorted((HERE / "core").glob("*.cu")):
            steps.append((f"core/{source.name}", f"{source.stem}.cu.o", nvcc))
    return steps


def link_flags(framework: Framework, toolchain: Toolchain) -> list[str]:
    """Returns what follows the objects on the command line of the linker."""
    cuda = [f"-L{toolchain.cuda.libraries}", *CUDA_LINK_FLAGS] if toolchain.cuda else []
    system = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else ["-lpthread"]
    return [*cuda, *framework.link_flags, *system]


def _kept_objects(steps: list[tuple[str, str, list[str]]], toolchain: Toolchain) -> dict[str, str]:
    """Returns the names under which objects are kept that no framework has a part in: those of the core."""
    core = _hash_of(_sources_in("core"))
    versions = [toolchain.version, toolchain.cuda.version if toolchain.cuda else ""]
    kept = {}
    for source, name, start in steps:
        if source.startswith("core/"):
            words = [word for word in start if not word.startswith("-I")]
            key = json.dumps([core, versions if source.endswith(".cu") else versions[:1], source, words])
            kept[name] = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{name}"
    return kept


def _compile(
    library: Path,
    framework: Framework,
    toolchain: Toolchain,
    facts: dict,
    objects: Path | None = None,
    afresh: bool = False,
) -> None:
    """Compiles and links into a scratch folder, then puts the library in its place.

    The core's objects are kept in the folder `objects`, and taken from there unless all is made `afresh`.
    """
    with_cuda = f" and CUDA {toolchain.cuda.version}" if toolchain.cuda else ""
    what = f"{facts['binding']} {framework.version}{with_cuda}"
    about = "3 minutes" if toolchain.cuda else "a minute"
    _say(f"Building tfinv's fused routing ops for {what}, once, about {about} ...")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tfinv-build-") as scratch:
        try:
            made = _compile_in(Path(scratch), library, framework, toolchain, objects, afresh)
        except BuildError as error:
            if not toolchain.cuda or _must_have_cuda():
                raise
            _say(f"Going on without CUDA: {error}")
            toolchain = replace(toolchain, cuda=None)
            facts = facts | {"cuda": "", "cuda_architectures": [], "cuda_failure": str(error)}
            made = _compile_in(Path(scratch), library, framework, toolchain, objects, False)
        seconds = time.monotonic() - started
        isas = [name[4:-2] for _, name, _ in compile_steps(framework, toolchain) if name.startswith("cpu_")]
        facts = facts | {"isas": isas, "seconds": round(seconds, 1)}
        _put(library.with_suffix(".json"), json.dumps(facts, indent=2).encode())
        _put(library, made.read_bytes())  # last: whoever sees the library finds the facts, too
    _say(f"Built {library} in {seconds:.0f} s.")


def _cores() -> int:
    """Returns how many this process may use: each compiler takes some hundred MiB."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile_in(
    scratch: Path,
    library: Path,
    framework: Framework,
    toolchain: Toolchain,
    objects: Path | None,
    afresh: bool,
) -> Path:
    steps = compile_steps(framework, toolchain)
    kept = {} if objects is None else _kept_objects(steps, toolchain)
    made_before = {name for name, file in kept.items() if not afresh and (objects / file).is_file()}
    # The slow ones first, so that none is left alone at the end.
    commands = {
        name: [*start, "-c", str(HERE / source), "-o", str(scratch / name)]
        for source, name, start in sorted(steps, key=lambda step: not step[0].endswith(".cu"))
        if name not in made_before
    }
    with ThreadPoolExecutor(_cores()) as pool:
        results = dict(zip(commands, pool.map(_run, commands.values()), strict=True))
    log = [f"$ {shlex.join(commands[name])}\n{text}" for name, (_, text) in results.items()]
    failed = [text for code, text in results.values() if code]
    for name, (code, _) in results.items():
        if name in kept and not code:
            objects.mkdir(exist_ok=True)
            _put(objects / kept[name], (scratch / name).read_bytes())
    made = scratch / library.name
    if not failed:
        parts = [str(objects / kept[name] if name in made_before else scratch / name) for _, name, _ in steps]
        flags = link_flags(framework, toolchain)
        linking = [*toolchain.compiler, *toolchain.flags, "-shared", "-o", str(made), *parts, *flags]
        code, text = _run(linking)
        log.append(f"$ {shlex.join(linking)}\n{text}")
        failed = [text] if code else []
    if failed:
        log_file = library.with_suffix(".log")
        log_file.write_text("\n".join(log))
        lines = [line.strip() for text in failed for line in text.splitlines()]
        errors = [line for line in lines if re.search(r"error|undefined reference", line)] or lines
        raise BuildError("The compiler failed: " + "\n".join(errors[:3]) + f"\nAll it said is in {log_file}")
    return made


def _run(arguments: list[str]) -> tuple[int, str]:
    try:
        finished = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return 1, f"error: {error}"
    return finished.returncode, finished.stdout.decode(errors="replace")


def _output(arguments: list[str]) -> str:
    code, text = _run(arguments)
    if code:
        raise BuildError(f"{shlex.join(arguments)} failed: {text.strip()[:300]}")
    return text


def _key(facts: dict, framework: Framework) -> str:
    # Without the folders of headers and libraries: one library serves all environments of that version.
    flags = [*framework.compile_flags, *framework.link_flags]
    flags = [flag for flag in flags if flag[:2] not in ("-I", "-L")]
    parts = [facts, flags, COMPILE_FLAGS, ISA_FLAGS, CUDA_COMPILE_FLAGS, CUDA_LINK_FLAGS]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _wants_cuda() -> bool:
    """Returns whether TFINV_CUDA, or without it a GPU, asks for GPU kernels."""
    return (os.environ.get("TFINV_CUDA") or ("" if shutil.which("nvidia-smi") else "0")) != "0"


def _must_have_cuda() -> bool:
    return os.environ.get("TFINV_CUDA") == "1"


def _serves(library: Path) -> bool:
    """Returns whether a library is there, and has GPU kernels if it must."""
    with contextlib.suppress(OSError, ValueError):
        return library.is_file() and (bool(facts_of(library).get("cuda")) or not _must_have_cuda())
    return False


def _made_before(facts: dict, cuda: str | None, folders: tuple[Path, ...] = ()) -> Path | None:
    """Returns a library of these sources for this framework, whatever compiled it; None if none serves."""
    wanted = ("binding", "framework", "sources", "platform")
    found = []
    for folder in folders or (INSTALLED, cache_folder()):
        for library in folder.glob(f"{facts['binding']}*.so"):
            with contextlib.suppress(OSError, ValueError):
                made = facts_of(library)
                fits = all(made.get(name) == facts[name] for name in wanted)
                if fits and cuda in (None, made.get("cuda")) and _serves(library):
                    found.append(library)
    return max(found, key=lambda library: library.stat().st_mtime, default=None)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Waiting for another process that builds tfinv's fused routing ops ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks on this file system: at worst the work is done twice, as files are replaced whole
        yield


def _put(path: Path, content: bytes) -> None:
    """Replaces a file atomically."""
    partial = path.with_name(f".partial-{uuid.uuid4().hex}-{path.name}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> int:
    """Runs the command line; returns its exit code."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("binding", nargs="?", choices=BINDINGS, default="tensorflow")
    parser.add_argument("--force", action="store_true", help="compile even if there is a library")
    parser.add_argument("--output", type=Path, help="folder to compile into, instead of tfinv's cache")
    arguments = parser.parse_args()
    try:
        print(build(arguments.binding, arguments.force, arguments.output))
    except BuildError as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    # Folders beside this file are called as the frameworks are: they would pass for what is not installed.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    sys.exit(main())
