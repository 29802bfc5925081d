"""Compile and run tests/native/check.cpp with the flags of an instruction set level."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]


def run_check(part: str, isa: str, folder: Path) -> None:
    """Fail with the program's output if `part` of the checks does not hold at level `isa`."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    level = [f"-march=x86-64-{isa}"] if platform.machine() in ("x86_64", "AMD64") else []
    program = folder / "check"
    defines = [f"-DFASTOPT_ISA={isa}", f"-I{HERE.parents[1] / 'csrc'}"]
    subprocess.run([compiler, *FLAGS, *level, *defines, HERE / "check.cpp", "-o", program], check=True)
    done = subprocess.run([program, part], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
