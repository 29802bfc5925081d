"""Guards of the house: what the compiler made of the kernels, who imports whom, what is registered."""

from __future__ import annotations

import ast
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fastopt import _core

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "fastopt"
CPU_SOURCES = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
PHILOX = ROOT / "csrc" / "formulas" / "philox.hpp"
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
X86_LEVELS = ["v2", "v3", "v4"]

#: What an object of csrc/cpu may call: no libm, no C++ runtime.
ALLOWED_CALLS = {"memcpy", "memset", "memmove"}


def _cmake_list(name: str, file: str = "isa.cmake") -> list[str]:
    match = re.search(rf"set\({name} ([^)]*)\)", (ROOT / "cmake" / file).read_text())
    assert match, f"cmake/{file} has no {name}"
    return match.group(1).split()


@pytest.fixture(scope="module", params=X86_LEVELS)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, tuple[Path, str]]]:
    """Compile csrc/cpu for one level with the build's own flags: {file: (object, vectoriser's report)}."""
    gxx = shutil.which("g++")
    if gxx is None or platform.machine() != "x86_64":
        pytest.skip("needs g++ on x86-64")
    if (
        "Free Software Foundation"
        not in subprocess.run([gxx, "--version"], capture_output=True, text=True).stdout
    ):
        pytest.skip("g++ is not GCC: its vectoriser's report has another form")
    level = request.param
    folder = tmp_path_factory.mktemp(level)
    flags = [*_cmake_list("FASTOPT_CPU_FLAGS"), *_cmake_list(f"FASTOPT_FLAGS_{level}")]
    jobs = {}
    for source in CPU_SOURCES:
        command = [gxx, "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", *flags]
        command += [f"-DFASTOPT_ISA={level}", f"-I{ROOT / 'csrc'}", "-fopt-info-vec-optimized-missed"]
        command += ["-c", str(source), "-o", str(folder / f"{source.stem}.o")]
        jobs[source.name] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    results = {}
    for name, job in jobs.items():
        report = job.communicate()[1]
        assert job.returncode == 0, report
        results[name] = (folder / Path(name).with_suffix(".o"), report)
    return level, results


#: Code that is there at one level only, by the condition it stands under.
ONE_LEVEL = {"#if defined(FO_BF16_PAIRS)": "v4"}


def _marked_loops(path: Path, level: str) -> list[tuple[str, int]]:
    """The loops that a mark promises to be vectorised at a level: (mark, line of the loop)."""
    lines = path.read_text().splitlines()
    found = []
    left_out = False
    for number, text in enumerate(lines, start=1):
        left_out = text != "#endif" and (left_out or ONE_LEVEL.get(text, level) != level)
        if left_out:
            continue
        code = text.partition("//")[0].strip()
        mark = re.search(r"FO_(?:INDEPENDENT|LANES)\b", code)
        if mark is None or code.startswith("#define"):
            continue
        assert code == mark.group(), f"{path.name}:{number}: {mark.group()} shares its line"
        assert lines[number].lstrip().startswith("for ("), f"{path.name}:{number}: no loop follows"
        found.append((mark.group(), number + 1))
    return found


def _reported(reports: str, path: Path, what: str) -> Counter[int]:
    return Counter(int(line) for line in re.findall(rf"/{path.name}:(\d+):\d+: {what}", reports))


def test_every_driver_loop_vectorises(compiled: tuple[str, dict[str, tuple[Path, str]]]) -> None:
    level, results = compiled
    reports = "\n".join(report for _, report in results.values())
    seen: Counter[str] = Counter()
    for path in [*CPU_SOURCES, *sorted((ROOT / "csrc" / "cpu").glob("*.hpp")), PHILOX]:
        done = _reported(reports, path, "optimized: loop vectorized")
        missed = _reported(reports, path, "missed: couldn't vectorize loop")
        marked = _marked_loops(path, level)
        if path == PHILOX:  # host and device code, which has no marks
            lines = path.read_text().splitlines()
            marked = [("plain", lines.index("  for (int64_t j = 0; j < blocks; ++j) {") + 1)]
        for mark, line in marked:
            seen[mark] += 1
            where = f"{path.name}:{line}"
            if mark == "FO_LANES":
                # The report names the first line of a longer body, and now and then the loop around too.
                hits, misses = (count[line] + count[line + 1] for count in (done, missed))
                assert hits > misses, f"{where}: vectorised {hits} times, not vectorised {misses} times"
                continue
            assert line in done, f"{where}: the loop is not vectorised"
            assert line not in missed, f"{where}: not vectorised for some formula"
    assert all(seen[mark] for mark in ("FO_INDEPENDENT", "FO_LANES", "plain"))


def _symbols(obj: Path) -> list[tuple[str, str]]:
    out = subprocess.run(["nm", "-C", str(obj)], capture_output=True, text=True, check=True).stdout
    found = [re.match(r"\s*(?:[0-9a-f]+)?\s+(\w) (.*)", line) for line in out.splitlines()]
    return [(m.group(1), m.group(2)) for m in found if m]


def test_objects_keep_to_their_namespace_and_call_no_libm(
    compiled: tuple[str, dict[str, tuple[Path, str]]],
) -> None:
    level, results = compiled
    home = f"fastopt::{level}::"
    for name, (obj, _) in results.items():
        for kind, symbol in _symbols(obj):
            if kind in "WVuTDBR":
                assert home in symbol, f"{name} at {level} exports {kind} {symbol} outside {home}"
            if kind == "U":
                assert symbol in ALLOWED_CALLS or home in symbol or symbol == "_GLOBAL_OFFSET_TABLE_", (
                    f"{name} at {level} calls {symbol}"
                )


def test_import_loads_only_what_every_program_needs() -> None:
    """Readers of files, checkpoints, peers and NumPy's random numbers cost import time: they come when asked for."""
    late = {"gzip", "hashlib", "json", "ml_dtypes", "numpy.random", "pathlib", "scipy", "torch", "zipfile"}
    late |= {f"fastopt.{name}" for name in ("checkpoint", "compat", "data", "program", "_cuda")}
    code = f"import sys, numpy; before = set(sys.modules); import fastopt; print(*({late} & set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    ("module", "entries"),
    [
        ("_core", {"PyInit__core", "fastopt_get_num_threads", "fastopt_set_num_threads"}),
        ("_cuda", {"PyInit__cuda"}),
    ],
)
def test_a_module_exports_its_entry_points_alone(module: str, entries: set[str]) -> None:
    """Anything else could be taken for, or replaced by, another library's symbol of the same name."""
    nm = shutil.which("nm")
    path = next(Path(str(_core.__file__)).parent.glob(f"{module}.*.so"), None)
    if nm is None or platform.system() != "Linux" or path is None:
        pytest.skip(f"needs nm on Linux, and {module} in this build")
    out = subprocess.run([nm, "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True)
    strong = {line.split()[-1] for line in out.stdout.splitlines() if line.split()[-2] in "TDBR"}
    assert strong == entries


def test_the_cuda_module_needs_no_library_of_nvidia() -> None:
    ldd = shutil.which("ldd")
    path = next(Path(str(_core.__file__)).parent.glob("_cuda.*.so"), None)
    if ldd is None or path is None:
        pytest.skip("needs ldd, and _cuda in this build")
    out = subprocess.run([ldd, str(path)], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[0].partition(".")[0] for line in out.splitlines()}
    assert not {name for name in needed if name.startswith(("libcu", "libnv"))}, out


def test_formulas_and_plan_compile_as_device_code(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    command = [nvcc, "-std=c++20", "-arch=sm_90", "-fmad=false", "-Werror=all-warnings", "-DFASTOPT_ISA=cuda"]
    command += [f"-I{ROOT / 'csrc'}", "-c", str(ROOT / "tests" / "native" / "formulas.cu")]
    done = subprocess.run([*command, "-o", str(tmp_path / "formulas.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda source: source.stem)
def test_cuda_kernels_compile_and_keep_their_values_in_registers(source: Path, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    flags = _cmake_list("FASTOPT_CUDA_FLAGS", "cuda.cmake")
    command = [nvcc, "-std=c++20", "-arch=sm_90a", *flags, "-Werror=all-warnings", "-Xptxas", "-v"]
    command += ["-DFASTOPT_ISA=cuda", f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    entries = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores", report, re.S)
    assert entries or "__global__" not in source.read_text(), "ptxas has reported no kernel"
    spilling = {name: int(stores) for name, stores in entries if int(stores)}
    assert not spilling


def test_every_cuda_source_is_built() -> None:
    listed = _cmake_list("FASTOPT_CUDA_SOURCES", "cuda.cmake")
    assert listed == [str(path.relative_to(ROOT)) for path in CUDA_SOURCES]


#: Floors of the package: a module imports only from floors below its own, or from its own package.
FLOORS = [
    {"_torch_array"},
    {"_core", "_device"},
    {"_arrays", "_dtypes", "_formulas", "_threads", "_wording", "_drawing"},
    {"_device_ops"},
    {"_ops", "_random", "_device_products"},
    {"_products", "_tape"},
    {"_rules"},
    {"_methods", "_numeric"},
    {"tensor", "optim"},
    {"_device_linear", "compat", "interop"},
    {"torch"},
    {"creation", "_linear", "_losses", "_batch_norm"},
    {"operations", "functional", "_minimize"},
    {"nn"},
    {"_files", "_safetensors", "plot", "info"},
    {"data", "checkpoint", "monitor", "_reading", "_device_program"},
    {"_dataset", "_stepping"},
    {"program"},
    {"distributed"},
    {"_train", "_bench", "sklearn"},
    {"_compare"},
    {"_cli"},
    {"cli"},
    {"__main__", "__init__"},
]


def _floor(module: str) -> int:
    part = module.split(".")[0]
    for height, floor in enumerate(FLOORS):
        if part in floor:
            return height
    raise AssertionError(f"module fastopt.{module} has no floor in FLOORS")


def _imports(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "fastopt":
                names = [f"fastopt.{alias.name}" for alias in node.names]
            found += [(name, node.lineno) for name in names]
    return found


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=_module_name)
def test_imports_run_one_way(path: Path) -> None:
    module = _module_name(path)
    own = module.split(".")[0]
    for name, line in _imports(ast.parse(path.read_text())):
        if not name.startswith("fastopt."):
            continue
        target = name.removeprefix("fastopt.")
        if target.split(".")[0] != own:
            assert _floor(target) < _floor(module), (
                f"{path.name}:{line} imports {name}, which is not below it"
            )


OPTIONAL = {
    "torch",
    "jax",
    "optax",
    "ml_dtypes",
    "safetensors",
    "tqdm",
    "scipy",
    "sklearn",
    "matplotlib",
    "threadpoolctl",
    "mpi4py",
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=_module_name)
def test_only_optional_extras_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text())
    inside = [
        item
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for item in _imports(node)
    ]
    for name, line in inside:
        assert name.split(".")[0] in OPTIONAL, f"{path.name}:{line} imports {name} inside a function"
    at_top = {name.split(".")[0] for name, _ in _imports(tree)} - {name.split(".")[0] for name, _ in inside}
    # A module or a package with an extra's name is what it adds to that extra.
    own = {path.stem, path.relative_to(PACKAGE).parts[0]}
    assert not at_top & OPTIONAL - own, f"{path.name} needs an optional extra to import"


def test_every_rule_file_is_registered() -> None:
    registry = (ROOT / "csrc" / "formulas" / "registry.hpp").read_text()
    for header in sorted((ROOT / "csrc" / "formulas" / "rules").glob("*.hpp")):
        assert f'#include "formulas/rules/{header.name}"' in registry, f"{header.name} is not in registry.hpp"


def test_the_version_stands_in_one_place() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.?pp"), ROOT / "CMakeLists.txt"]
    for path in sources:
        assert f'"{version.group(1)}"' not in path.read_text(), f"{path} repeats the version"


def test_no_source_file_is_longer_than_600_lines() -> None:
    tracked = [
        *ROOT.glob("python/**/*.py"),
        *ROOT.glob("csrc/**/*.?pp"),
        *ROOT.glob("csrc/**/*.cu*"),
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("benchmarks/**/*.py"),
    ]
    long = {str(p.relative_to(ROOT)): n for p in tracked if (n := len(p.read_text().splitlines())) > 600}
    assert not long
