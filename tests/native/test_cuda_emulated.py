"""The CUDA kernels on the host: parity with the reference, divided work, extremes, barriers, memory errors.

Compiles the kernels with g++ and the emulator beside this file, with and without sanitizers, and runs them on
small problems. Without a compiler the tests are skipped; `TFINV_REQUIRE_FUSED=1` turns that into a failure.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT

CORE = ROOT / "custom_ops" / "core"
HERE = Path(__file__).parent
pytestmark = pytest.mark.slow
FLAGS = ["-std=c++17", "-O1", "-g1", "-Wall", "-Werror", "-fno-strict-aliasing"]
# The pragmas are for nvcc. The state of the first step is not read, but g++ does not see it.
FLAGS += ["-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# The tests of the program that a sanitizer adds something to, on every so many of the problems.
SANITIZED = {"parity": "4", "divided_work": "3"}


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The program, without and with sanitizers."""
    if shutil.which("g++") is None:
        message = "No C++ compiler: g++ is not on the PATH."
        if os.environ.get("TFINV_REQUIRE_FUSED") == "1":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("cuda_emulated")

    def build(name, flags):
        source = HERE / "test_cuda_emulated.cpp"
        return run("g++", *FLAGS, *flags, f"-I{CORE}", f"-I{HERE}", source, "-o", folder / name)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(build, ("plain", "sanitized"), ([], SANITIZERS)))
    complaints = [result.stderr for result in done if result.returncode != 0]
    if complaints:
        pytest.fail("\n".join(complaints)[:8000])
    return folder / "plain", folder / "sanitized"


def expect_passed(result, compared: bool) -> None:
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    assert "device=emulator" in result.stdout and "failures=0" in result.stdout
    assert ("compared=0 " not in result.stdout) == compared, result.stdout[-2000:]


@pytest.mark.parametrize("name", ["parity", "divided_work", "extremes", "long_sums"])
def test_kernels_equal_the_reference(programs, name):
    expect_passed(run(programs[0], name), compared=True)


@pytest.mark.parametrize("name", ["orders", "not_a_number", "missing_barrier", "refusals"])
def test_threads_and_limits(programs, name):
    expect_passed(run(programs[0], name), compared=False)


@pytest.mark.parametrize("name", list(SANITIZED))
def test_kernels_touch_no_memory_but_their_own(programs, name):
    expect_passed(run(programs[1], name, SANITIZED[name]), compared=True)


def test_the_program_fails_when_it_should(programs):
    result = run(programs[0], "no_such_test")
    assert result.returncode == 1 and "FAILED: no test is named no_such_test" in result.stdout
