"""The benchmarks of a device and `gpu_check.sh`, as far as a machine without one can run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt
import host_gpu

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"

#: Where this process has fastopt from: an installed one, or the source tree.
PACKAGES = str(Path(fastopt.__file__).parents[1])


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PACKAGES, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["optim", "losses", "train", "linear"])
def test_every_benchmark_runs_dry(name: str) -> None:
    """Over host memory, at tiny sizes: the same calls, and results compared with torch's."""
    pytest.importorskip("torch")
    if host_gpu.host_module() is None:
        pytest.skip("the kernels over host memory are not built")
    done = run(sys.executable, "benchmarks/cuda/run_cuda.py", name, "--dry", "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LEFT OUT" not in done.stdout
    table = done.stdout[done.stdout.index("\nwhat ") :].strip().splitlines()
    assert len(table) > 1
    for line in table[1:]:
        assert "torch-" in line, line
        assert " - " not in line.split("torch-")[0], line  # ours was measured


@pytest.mark.peers
def test_kernels_are_listed_dry() -> None:
    pytest.importorskip("torch")
    if host_gpu.host_module() is None:
        pytest.skip("the kernels over host memory are not built")
    done = run(sys.executable, "benchmarks/cuda/kernels.py", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fastopt" in done.stdout


@pytest.mark.peers
def test_mnist_runs_over_noise(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script = str(BENCHMARKS / "cuda" / "mnist_epochs.py")
    sizes = ("--images", "640", "128", "--epochs", "1", "--device", "cpu")
    done = run(sys.executable, script, "--data", "none", *sizes, "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (tmp_path / "cuda_mnist.csv").read_text().splitlines()
    assert rows[0].startswith("op,provider,mode,dtype,size,p50")
    assert [row.split(",")[1] for row in rows[1:]] == ["fastopt", "torch-eager"]


def test_gpu_check_refuses_an_unknown_stage_and_stops_where_nothing_is_built(tmp_path: Path) -> None:
    script = str(BENCHMARKS / "gpu_check.sh")
    done = run("bash", script, "builds")
    assert done.returncode == 2
    assert "no stage builds; there are" in done.stderr
    environment = f"OUT={tmp_path} GPU_CHECK_SECONDS=0"
    done = run("bash", "-c", f"{environment} bash {script} tests bench")
    assert done.returncode == 1
    assert done.stdout.strip().splitlines()[-2].split()[:2] == ["tests", "left"]
    assert (tmp_path / "gpu_check.log").exists()
