"""Runs the scripts of tests/ranks under mpiexec."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt

RANKS = Path(__file__).parent / "ranks"
MPIEXEC = shutil.which(
    "mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
)

#: For tests that start ranks.
needs_mpi = [
    pytest.mark.mpi,
    pytest.mark.skipif(
        MPIEXEC is None or importlib.util.find_spec("mpi4py") is None, reason="no mpi4py or no mpiexec"
    ),
]


#: Runs a command and stays, so that the launcher does not notice how the command ends.
UNNOTICED = ("sh", "-c", '"$@"; sleep 60', "sh")


def run_ranks(
    n: int, *command: object, under: tuple[str, ...] = (), timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a script of tests/ranks, or with ``"-m"`` a module, on n ranks; n of 0 is without mpiexec."""
    first, *rest = map(str, command)
    what = ["-m", *rest] if first == "-m" else [str(RANKS / first), *rest]
    launcher = [str(MPIEXEC), "-n", str(n), *under] if n else []
    package = str(Path(fastopt.__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error",
    }
    return subprocess.run(
        [*launcher, sys.executable, *what],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def must_run(n: int, *command: object) -> str:
    """Run ranks that have to succeed; return what they print."""
    done = run_ranks(n, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
