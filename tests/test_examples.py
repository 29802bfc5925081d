"""Every program in examples/ runs as it stands; each checks its own result."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
NEEDS = {
    "autograd_gradients": ["autograd"],
    "jax_gradients": ["jax"],
    "resume": ["sklearn"],
    "schedules": ["matplotlib"],
    "torch_model": ["torch"],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    for module in NEEDS.get(path.stem, []):
        pytest.importorskip(module)
    arguments = [tmp_path / "s.png"] if path.stem == "schedules" else []
    done = subprocess.run(
        [sys.executable, "-W", "error", path, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""
