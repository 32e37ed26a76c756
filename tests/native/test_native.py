"""The C++ core without a framework: parity, extremes, threads and random problems, under the sanitizers.

Compiles the core and the programs beside this file with g++ and runs them for each instruction set of this
machine. Without a compiler the tests are skipped; `TFINV_REQUIRE_FUSED=1` turns that into a failure.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT

CORE = ROOT / "custom_ops" / "core"
HERE = Path(__file__).parent
pytestmark = pytest.mark.slow
# Instruction set, best last: the features it needs, as Linux and as g++ call them.
FEATURES: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    FEATURES["avx2"] = ["avx2", "fma"]
    FEATURES["avx512"] = ["avx512f", "avx512dq", "avx512vl", "avx512bw", "fma"]
CPU_INFO = Path("/proc/cpuinfo")
MACHINE = set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
SUPPORTED = [isa for isa, needed in FEATURES.items() if MACHINE.issuperset(needed)]
# Two builds of the core. The thread sanitizer needs one instruction set: the threads are the same in all.
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
COMPILED = {"address": SUPPORTED, "thread": ["baseline"]}
FUZZ_PROBLEMS = 300


def compile_flags(sanitizers: str = "", isa: str = "") -> list[str]:
    """The flags of every compilation here; `isa` is for the source that is compiled once for each."""
    flags = ["-std=c++17", "-O1", "-g1", "-pthread", f"-I{CORE}", f"-I{HERE}"]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    if sanitizers:
        flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    if isa:
        flags += [f"-DTFINV_ISA={isa}", *(f"-m{feature}" for feature in FEATURES[isa])]
    return flags


def compilations() -> dict[str, tuple[Path, list[str]]]:
    """Object file: its source and flags, the slowest first.

    The tests themselves are compiled without sanitizers, so that the reference is fast and one object serves
    both builds; the fuzzer, which shares their headers, has them checked.
    """
    objects = {}
    for build, sanitizers in SANITIZERS.items():
        chosen = [f"-DTFINV_WITH_{isa.upper()}" for isa in COMPILED[build] if isa != "baseline"]
        for isa in reversed(COMPILED[build]):
            objects[f"{build}-{isa}.o"] = (CORE / "cpu_isa.cpp", compile_flags(sanitizers, isa))
        for source in sorted(set(CORE.glob("*.cpp")) - {CORE / "cpu_isa.cpp"}):
            objects[f"{build}-{source.stem}.o"] = (source, compile_flags(sanitizers) + chosen)
    objects["fuzz_cpu.o"] = (HERE / "fuzz_cpu.cpp", compile_flags("address"))
    objects["test_cpu.o"] = (HERE / "test_cpu.cpp", compile_flags())
    return objects


def run(command, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "TFINV_ISA"}
    return subprocess.run(
        [str(part) for part in command],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Folder of test_cpu-address, fuzz_cpu-address and test_cpu-thread."""
    if shutil.which("g++") is None:
        message = "No C++ compiler: g++ is not on the PATH."
        if os.environ.get("TFINV_REQUIRE_FUSED") == "1":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("native")
    objects = compilations()

    def compile_one(target):
        source, flags = objects[target]
        return run(["g++", *flags, "-c", source, "-o", folder / target])

    def link(program, build):
        # The core first: of a template that both contain, the linker takes the sanitized one.
        core = [folder / name for name in objects if name.startswith(f"{build}-")]
        target = folder / f"{program}-{build}"
        return run(["g++", *compile_flags(SANITIZERS[build]), *core, folder / f"{program}.o", "-o", target])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        finished = list(pool.map(compile_one, objects))
    if not any(result.returncode for result in finished):
        finished += [link("test_cpu", "address"), link("fuzz_cpu", "address"), link("test_cpu", "thread")]
    complaints = [result.stderr for result in finished if result.returncode]
    if complaints:
        pytest.fail("\n".join(complaints)[:8000])
    return folder


@pytest.fixture(params=list(FEATURES))
def isa(request):
    if request.param not in SUPPORTED:
        pytest.skip(f"this machine has no {request.param}")
    return request.param


def expect_passed(result, isa: str) -> None:
    assert result.returncode == 0, f"{result.args}\n{(result.stdout + result.stderr)[-6000:]}"
    assert f"device={isa} " in result.stdout and "failures=0" in result.stdout, result.stdout[-2000:]


def test_core_equals_the_reference(programs, isa):
    expect_passed(run([programs / "test_cpu-address"], TFINV_ISA=isa), isa)


def test_random_problems(programs, isa):
    seed = 1 + 1_000_000 * list(FEATURES).index(isa)
    expect_passed(run([programs / "fuzz_cpu-address", seed, FUZZ_PROBLEMS], TFINV_ISA=isa), isa)


def test_threads_do_not_race(programs):
    expect_passed(run([programs / "test_cpu-thread", "threads"]), "baseline")


def test_best_instruction_set_is_chosen_and_an_unknown_name_ignored(programs):
    expect_passed(run([programs / "test_cpu-address", "golden"]), SUPPORTED[-1])
    expect_passed(run([programs / "test_cpu-address", "golden"], TFINV_ISA="nonsense"), SUPPORTED[-1])


def test_the_programs_can_fail(programs):
    result = run([programs / "test_cpu-address", "no_such_test"])
    assert result.returncode == 1 and "FAILED: no test is named no_such_test" in result.stdout
    assert run([programs / "fuzz_cpu-address"]).returncode == 2
