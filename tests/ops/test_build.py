"""How the library of the fused ops comes about: cache, locks, compilers, CUDA; and what happens without it.

Compiles a small stand-in for the sources, with the real custom_ops/build.py, for a stand-in for TensorFlow.
"""

import ctypes
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.backend import BACKEND, tensor
from tests.conftest import ROOT
from tfinv import ops
from tfinv.errors import UsageError
from tfinv.ops import _library, reference, routing

SCRIPT = ROOT / "custom_ops" / "build.py"
FRAMEWORK = """
import os
__version__ = os.environ.get("FAKE_VERSION", "9.1")
class sysconfig:
    get_compile_flags = staticmethod(lambda: ["-I" + os.path.dirname(__file__), "-DFRAMEWORK=1"])
    get_link_flags = staticmethod(lambda: ["-L" + os.path.dirname(__file__), "-lm"])
"""
SOURCES = {
    "info.cc": 'extern "C" const char* tfinv_cpu_isa() { return "baseline"; }',
    "core/routing.h": "#define ANSWER 42",
    "core/cpu_isa.cpp": "namespace TFINV_ISA { int lanes() { return 1; } }",
    "core/dispatch.cpp": '#include "routing.h"\nnamespace baseline { int lanes(); }\n'
    "int answer() { return ANSWER * baseline::lanes(); }",
    "tensorflow/ops.cc": 'int answer();\nextern "C" int question() { return FRAMEWORK * answer(); }',
}
# Says what it is asked to do and passes it on to the real compiler; `>>` writes a line at once.
COMPILER = """#!/bin/sh
echo "$@" >> {log}
exec {real} "$@"
"""
NVCC = """#!/bin/sh
case "$*" in
*--version*) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
*--dryrun*) echo "#$ TOP={top}"; echo "#$ ptxas -arch=sm_90 x"; echo "#$ ptxas -arch=sm_120 x" ;;
*) for last; do case "$last" in *.cu) source=$last ;; esac; done
   echo "$@" >> {log}
   {compile} ;;
esac
"""


class Tree:
    """A copy of build.py beside small sources, its cache, and the compilers it is given."""

    def __init__(self, folder):
        self.folder, self.cache, self.log = folder / "custom_ops", folder / "cache", folder / "log"
        for name, text in SOURCES.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        shutil.copy(SCRIPT, self.folder)
        (folder / "framework").mkdir()
        (folder / "framework" / "tensorflow.py").write_text(FRAMEWORK)
        compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
        if compiler is None:
            pytest.skip("no C++ compiler")
        self.environment = os.environ | {
            "PYTHONPATH": str(folder / "framework"),
            "TFINV_CACHE": str(self.cache),
            "TFINV_CUDA": "0",
            "TFINV_REBUILD": "0",
            "CXX": str(self.script("compiler", COMPILER, log=self.log, real=compiler)),
        }
        self.compiler = compiler

    def script(self, name, text, **values):
        path = self.folder.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**values))
        path.chmod(0o755)
        return path

    def start(self, *arguments, **environment):
        return subprocess.Popen(
            [sys.executable, self.folder / "build.py", *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def build(self, *arguments, **environment):
        """Returns the path that build.py prints."""
        process = self.start(*arguments, **environment)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        return output.strip()

    def failure(self, **environment):
        """Returns what build.py says when it fails."""
        process = self.start(**environment)
        output, errors = process.communicate()
        assert process.returncode == 1 and not output
        return errors

    def compiled(self):
        """The objects compiled so far, by name."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [re.search(r"-o \S*/(\S+)\.o$", line)[1] for line in lines if " -c " in line]

    def linked(self):
        """How many libraries were linked so far."""
        return self.log.read_text().count("-shared") if self.log.exists() else 0


@pytest.fixture(name="tree")
def tree_fixture(tmp_path):
    return Tree(tmp_path)


def facts(library):
    return json.loads(Path(library).with_suffix(".json").read_text())


def load_build():
    spec = importlib.util.spec_from_file_location("build_of_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_library_is_built_once(tree):
    library = tree.build()
    assert ctypes.CDLL(library).question() == 42
    assert tree.build("tensorflow") == library and tree.linked() == 1
    assert os.path.dirname(library) == str(tree.cache / "custom_ops")
    found = facts(library)
    assert found["framework"] == "9.1" and found["binding"] == "tensorflow" and found["cuda"] == ""
    assert "baseline" in found["isas"] and found["compiler"]
    assert tree.build("--force") == library and tree.linked() == 2
    assert ctypes.CDLL(library).question() == 42


def test_processes_that_start_together_build_once(tree):
    processes = [tree.start() for _ in range(4)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert len({output for output, _ in outputs}) == 1
    assert tree.linked() == 1
    assert sum("Building" in errors for _, errors in outputs) == 1
    assert ctypes.CDLL(outputs[0][0].strip()).question() == 42


def test_what_makes_another_library(tree):
    first = tree.build()
    assert tree.build(FAKE_VERSION="9.2") != first
    assert facts(tree.build(FAKE_VERSION="9.2"))["framework"] == "9.2"
    (tree.folder / "core" / "routing.h").write_text("#define ANSWER 43")
    changed = tree.build()
    assert changed != first and ctypes.CDLL(changed).question() == 43
    (tree.folder / "core" / "routing.h").write_text(SOURCES["core/routing.h"])
    assert tree.build() == first
    # Another folder of the same headers does not.
    shutil.copytree(tree.folder.parent / "framework", tree.folder.parent / "elsewhere")
    assert tree.build(PYTHONPATH=str(tree.folder.parent / "elsewhere")) == first
    assert tree.linked() == 3


def test_flags_and_compiler_make_another_library():
    build = load_build()
    facts = {"compiler": "g++ 12"}
    key = build._key(facts, build.Framework("tensorflow", "9.1", ("-I/a", "-DX=1"), ("-L/a", "-la")))
    assert key == build._key(facts, build.Framework("tensorflow", "9.1", ("-I/b", "-DX=1"), ("-L/b", "-la")))
    assert key != build._key(facts, build.Framework("tensorflow", "9.1", ("-I/a", "-DX=2"), ("-L/a", "-la")))
    framework = build.Framework("tensorflow", "9.1", ("-I/a", "-DX=1"), ("-L/a", "-la"))
    assert key != build._key({"compiler": "g++ 13"}, framework)
    build.COMPILE_FLAGS = [*build.COMPILE_FLAGS, "-O1"]
    assert key != build._key(facts, framework)


def test_rebuild_compiles_again_and_once(tree):
    library = tree.build()
    inode = os.stat(library).st_ino
    assert tree.build(TFINV_REBUILD="1") == library
    assert os.stat(library).st_ino != inode and tree.linked() == 2
    twice = "import sys; sys.path.insert(0, sys.argv[1]); import build; build.build('tensorflow')"
    twice += "; build.build('tensorflow'); import os; assert 'TFINV_REBUILD' not in os.environ"
    command = [sys.executable, "-c", twice, tree.folder]
    subprocess.run(command, env=tree.environment | {"TFINV_REBUILD": "1"}, check=True, capture_output=True)
    assert tree.linked() == 3


def test_objects_of_the_core_serve_every_framework(tree):
    tree.build()
    everything = tree.compiled()
    assert {"info", "ops", "dispatch", "cpu_baseline"} <= set(everything)
    second = tree.build(FAKE_VERSION="9.2")
    assert sorted(tree.compiled()[len(everything) :]) == ["info", "ops"]
    assert ctypes.CDLL(second).question() == 42
    so_far = len(tree.compiled())
    (tree.folder / "core" / "routing.h").write_text("#define ANSWER 43")
    assert ctypes.CDLL(tree.build()).question() == 43
    assert sorted(tree.compiled()[so_far:]) == sorted(everything)
    so_far = len(tree.compiled())
    tree.build("--force")
    assert sorted(tree.compiled()[so_far:]) == sorted(everything)


def test_an_output_folder(tree, tmp_path):
    library = tree.build("--output", str(tmp_path / "here"))
    assert library == str(tmp_path / "here" / "tensorflow.so") and ctypes.CDLL(library).question() == 42
    assert not tree.cache.exists()


def test_a_library_of_the_installation_is_used_while_it_fits(tree):
    installed = tree.build("--output", str(tree.folder / "lib"))
    assert tree.build() == installed and tree.linked() == 1
    assert tree.build(CXX="/nonexistent/g++") == installed
    assert tree.build(FAKE_VERSION="9.2") != installed


def test_without_a_compiler(tree):
    message = tree.failure(CXX="/nonexistent/g++")
    assert re.search(r"No C\+\+ compiler found \(/nonexistent/g\+\+\)", message)
    # What was compiled before still serves.
    library = tree.build()
    assert tree.build(CXX="/nonexistent/g++") == library
    assert "No C++ compiler" in tree.failure(CXX="/nonexistent/g++", FAKE_VERSION="9.2")
    assert "No C++ compiler" in tree.failure(CXX='"/nonexistent/g++', FAKE_VERSION="9.2")


def test_a_gcc_that_is_too_old_is_passed_over(tree, monkeypatch):
    build = load_build()
    monkeypatch.setenv("PATH", str(tree.folder.parent / "bin"))
    monkeypatch.setenv("CXX", "")

    def add(name, version):
        return (str(tree.script(f"bin/{name}", '#!/bin/sh\necho "{says}"', says=version)),)

    old = add("g++", "g++ (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0")
    remedy = r"Install g\+\+ 12 or newer, or clang\+\+ 14 or newer, or set CXX\.$"
    with pytest.raises(build.BuildError, match=rf"\(g\+\+ 11 is too old, c\+\+, .*clang\+\+\)\. {remedy}"):
        build.find_compiler()
    clang = add("clang++", "Ubuntu clang version 14.0.0-1ubuntu1.1")
    assert build.find_compiler() == (clang, "Ubuntu clang version 14.0.0-1ubuntu1.1")
    newer = add("g++-12", "g++-12 (Ubuntu 12.3.0-1ubuntu1~22.04) 12.3.0")
    assert build.find_compiler()[0] == newer
    monkeypatch.setenv("CXX", *old)
    with pytest.raises(build.BuildError, match=rf"/g\+\+ 11 is too old\)\. {remedy}"):
        build.find_compiler()


def test_without_the_framework(tree):
    (tree.folder.parent / "framework" / "tensorflow.py").write_text("raise ImportError('broken')")
    assert "tensorflow cannot be imported: broken" in tree.failure()


@pytest.mark.parametrize("binding", ["tensorflow", "jax"])
def test_folders_beside_the_script_do_not_pass_for_the_framework(binding):
    command = [sys.executable, "-S", str(SCRIPT), binding]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert f"{binding} cannot be imported: No module named '{binding}'" in finished.stderr


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tree):
    source = tree.folder / "core" / "dispatch.cpp"
    source.write_text("int answer() { return unknown_name; }")
    message = tree.failure()
    assert re.search(r"dispatch\.cpp:1.*error.*unknown_name", message)
    log = Path(re.search(r"All it said is in (\S+)", message)[1]).read_text()
    assert "unknown_name" in log and "dispatch.o" in log
    assert not list(tree.cache.rglob("*.so"))
    source.write_text(SOURCES["core/dispatch.cpp"])
    assert ctypes.CDLL(tree.build()).question() == 42


def test_an_unwritable_cache_is_named(tree):
    (tree.folder.parent / "file").write_text("")
    message = tree.failure(TFINV_CACHE=str(tree.folder.parent / "file"))
    assert re.search(r"Cannot write \S+/file/custom_ops: .*Set TFINV_CACHE", message)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tfinv.data needs TensorFlow")
def test_cache_lies_beside_the_datasets(monkeypatch, tmp_path):
    from tfinv.data import fetch

    for folder in (str(tmp_path), ""):
        monkeypatch.setenv("TFINV_CACHE", folder)
        assert load_build().cache_folder().parent == fetch.cache_path("mnist").parents[1]


def test_without_a_home_the_cache_is_of_this_user_alone(monkeypatch, tmp_path):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TFINV_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    build = load_build()
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = build.cache_folder().parent
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert build.cache_folder().parent == folder
    other = os.getuid() + 1
    (tmp_path / f"tfinv-{other}").mkdir()
    monkeypatch.setattr(build.os, "getuid", lambda: other)
    with pytest.raises(build.BuildError, match=r"another user's\. Set TFINV_CACHE"):
        build.cache_folder()


def test_a_relative_cache_is_one_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFINV_CACHE", "cache")
    assert load_build().cache_folder() == tmp_path / "cache" / "custom_ops"


# CUDA


@pytest.fixture(name="cuda")
def cuda_fixture(tree):
    """A stand-in for nvcc, which compiles with the C++ compiler, and its library of the CUDA runtime."""
    top = tree.folder.parent / "cuda"
    (top / "lib64").mkdir(parents=True)
    runtime = top / "runtime.cc"
    runtime.write_text('extern "C" int cudaLaunch() { return 5; }')
    subprocess.run([tree.compiler, "-fPIC", "-c", runtime, "-o", top / "runtime.o"], check=True)
    subprocess.run(["ar", "rcs", top / "lib64" / "libcudart_static.a", top / "runtime.o"], check=True)
    compile_as_cpp = f'{tree.compiler} -x c++ -fPIC -c "$source" -o "$last"'
    tree.script("cuda/bin/nvcc", NVCC, top=top, log=tree.log, compile=compile_as_cpp)
    (tree.folder / "core" / "kernel.cu").write_text(
        'extern "C" int cudaLaunch();\nextern "C" int on_gpu() { return cudaLaunch(); }'
    )
    # What tells of a GPU.
    path = os.pathsep.join([str(tree.script("gpu/nvidia-smi", "#!/bin/sh").parent), os.environ["PATH"]])
    tree.environment |= {"TFINV_CUDA": "", "CUDA_HOME": str(top), "PATH": path}
    return top


def test_cuda_is_compiled_and_linked_in(tree, cuda):
    library = tree.build()
    found = facts(library)
    assert found["cuda"] == "13.0.88" and found["cuda_architectures"] == ["90", "120"]
    assert ctypes.CDLL(library).on_gpu() == 5
    table = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    assert "on_gpu" in table and "cudaLaunch" not in table
    lines = tree.log.read_text().splitlines()
    (compiling,) = (line for line in lines if "kernel.cu" in line and "-ccbin" in line)
    assert "-arch=all-major" in compiling and "-DTFINV_WITH_CUDA" in compiling
    assert any("-DTFINV_WITH_CUDA" in line and "ops.cc" in line for line in lines)
    (linking,) = (line for line in lines if "-shared" in line)
    # The runtime before the framework, which may have a stub of it, and baseline code before any other.
    assert linking.index("kernel.cu.o") < linking.index("-lcudart_static") < linking.index("-lm")
    assert all(linking.index("cpu_baseline.o") <= at.start() for at in re.finditer(r"cpu_\w+\.o", linking))
    without = tree.build(TFINV_CUDA="0")
    assert without != library and facts(without)["cuda"] == ""
    assert not hasattr(ctypes.CDLL(without), "on_gpu")
    assert tree.build(CXX="/nonexistent/g++", TFINV_CUDA="1") == library


def test_a_compiler_of_several_words(tree, cuda):
    launcher = tree.script("launcher", '#!/bin/sh\necho "launched $@" >> {log}\nexec "$@"', log=tree.log)
    compiler = tree.environment["CXX"]
    library = tree.build(CXX=f"{launcher} {compiler}")
    log = tree.log.read_text()
    assert f"launched {compiler} -std=c++17" in log and f"-ccbin {compiler} " in log
    assert tree.build() == library and tree.linked() == 2  # logged by both of them
    flagged = tree.build(CXX=f"{compiler} -DFLAG=1")
    assert flagged != library and facts(flagged)["compiler"].endswith(" -DFLAG=1")
    assert "-DFLAG=1 -shared" in tree.log.read_text()


def test_without_nvcc_there_is_a_library_for_the_cpu(tree, cuda, monkeypatch):
    (cuda / "bin" / "nvcc").unlink()
    path = os.pathsep.join(
        folder
        for folder in os.environ["PATH"].split(os.pathsep)
        if not os.path.exists(os.path.join(folder, "nvcc"))
    )
    environment = {"PATH": path, "CUDA_HOME": "", "CUDA_PATH": ""}
    assert "no nvcc works" in tree.failure(TFINV_CUDA="1", **environment)
    library = tree.build(**environment)
    assert facts(library)["cuda"] == ""
    monkeypatch.setenv("PATH", tree.environment["PATH"])  # with a GPU
    monkeypatch.delenv("TFINV_CUDA", raising=False)
    assert "no nvcc works" in _library.describe("tensorflow", Path(library)).reason
    monkeypatch.setenv("TFINV_CUDA", "0")
    assert _library.describe("tensorflow", Path(library)).reason == ""
    for lacking in ({}, {"CXX": "/nonexistent/g++"}):
        tree.failure(TFINV_CUDA="1", **environment | lacking)


def test_without_a_gpu_nvcc_is_asked_for_by_name(tree, cuda):
    folders = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if not os.path.exists(f"{folder}/nvidia-smi"))
    assert facts(tree.build(PATH=path))["cuda"] == ""
    assert facts(tree.build(PATH=path, TFINV_CUDA="1"))["cuda"] == "13.0.88"


def test_a_failing_nvcc_costs_only_the_gpu(tree, cuda):
    nvcc = cuda / "bin" / "nvcc"
    working = nvcc.read_text()
    tree.script("cuda/bin/nvcc", NVCC, top=cuda, log=tree.log, compile="echo 'error: no GPU for you'; exit 1")
    assert "error: no GPU for you" in tree.failure(TFINV_CUDA="1")
    library = tree.build()
    found = facts(library)
    assert found["cuda"] == "" and "no GPU for you" in found["cuda_failure"]
    # Not tried again by each process, but told by each; and tried again where it must work.
    count = tree.linked()
    process = tree.start()
    output, errors = process.communicate()
    told = re.compile(r"No GPU kernels \(TFINV_CUDA=1 tries again\): .*error: no GPU for you.*\.log")
    assert output.strip() == library and told.fullmatch(errors.strip()) and tree.linked() == count
    assert told.fullmatch(_library.describe("tensorflow", Path(library)).reason)
    assert "error: no GPU for you" in tree.failure(TFINV_CUDA="1")
    nvcc.write_text(working)
    assert tree.build(TFINV_CUDA="1") == tree.build() == library and tree.linked() == count + 1
    assert facts(library)["cuda"] == "13.0.88"
    assert _library.describe("tensorflow", Path(library)).reason == ""


# What the routing does without a library


@pytest.fixture(name="routed")
def routed_fixture(monkeypatch, tmp_path):
    """A function that routes as a process does at first where nothing is compiled and nothing compiles."""
    monkeypatch.setenv("TFINV_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    for name in ("TFINV_REQUIRE_FUSED", "TFINV_DISABLE_FUSED", "TFINV_REBUILD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_library.build_module(), "INSTALLED", tmp_path / "lib")
    if BACKEND in _library.MODULES:
        monkeypatch.setattr(_library.fused_module(), "_loaded", [])
    random = np.random.default_rng(0)
    poses, weights = tensor(random.normal(size=(3, 7, 4))), tensor(random.normal(size=(7, 5, 4, 6)))

    def call(implementation="auto"):
        routed = ops.dynamic_routing(poses, weights, implementation=implementation)
        expected = reference.dynamic_routing(poses, weights)
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(routed), keras.ops.convert_to_numpy(expected)
        )

    forget()
    yield call
    forget()


def forget():
    routing.resolve_implementation.cache_clear()
    _library.build_info.cache_clear()
    _library.fused_module.cache_clear()


needs_binding = pytest.mark.skipif(BACKEND not in _library.MODULES, reason="no fused ops for this backend")


@needs_binding
def test_without_a_library_auto_warns_once_and_routes(routed, caplog):
    with caplog.at_level(logging.INFO, logger="tfinv"):
        for _ in range(3):
            routed()
        assert ops.resolve_implementation("auto") == "reference"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(r"reference.*No C\+\+ compiler found.*TFINV_DISABLE_FUSED=1", record.message)
    info = ops.build_info()
    assert not info.available and info.failed and "No C++ compiler found" in info.reason


@needs_binding
def test_without_a_library_fused_is_refused_with_the_command(routed):
    with pytest.raises(UsageError, match=r"fused.*No C\+\+ compiler.*Build it with: (\S+)") as caught:
        routed("fused")
    command = re.search(r"Build it with: (.*build\.py \w+)\.", str(caught.value))[1].split()
    assert command == [sys.executable, str(SCRIPT), BACKEND]
    routed("reference")


@needs_binding
def test_without_a_library_a_required_one_is_missed(routed, monkeypatch):
    monkeypatch.setenv("TFINV_REQUIRE_FUSED", "1")
    with pytest.raises(UsageError, match=r"TFINV_REQUIRE_FUSED: No C\+\+ compiler found"):
        routed()
    routed("reference")


def test_switched_off_it_is_not_even_looked_for(routed, monkeypatch, caplog):
    monkeypatch.setenv("TFINV_DISABLE_FUSED", "1")
    monkeypatch.setenv("TFINV_REQUIRE_FUSED", "1")
    monkeypatch.setattr(_library, "library", lambda *arguments: pytest.fail("looked for a library"))
    with caplog.at_level(logging.INFO, logger="tfinv"):
        routed()
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    with pytest.raises(UsageError, match="implementation='fused'"):
        routed("fused")
    assert not ops.build_info().available and not ops.build_info().failed


def test_torch_runs_the_reference_without_a_word(routed, monkeypatch, caplog):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    monkeypatch.setenv("TFINV_REQUIRE_FUSED", "1")
    with caplog.at_level(logging.WARNING, logger="tfinv"):
        assert ops.resolve_implementation("auto") == "reference"
    assert not caplog.records and "torch" in ops.build_info().reason


@needs_binding
def test_without_the_sources_the_reason_says_so(routed, monkeypatch):
    def absent():
        raise _library.LibraryError("not installed")

    monkeypatch.setattr(_library, "build_module", absent)
    routed()
    assert "not installed" in ops.build_info().reason
