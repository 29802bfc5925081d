"""Every Python program in the README, CONTRIBUTING and docs/gpu.md runs as it stands.

Those for a GPU run over host memory where there is none.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "ext"))

import host_gpu
import pages

ROOT = Path(__file__).parents[1]
PROGRAMS = [
    pytest.param(block.code, id=f"{name}-{number}")
    for name in ("README.md", "CONTRIBUTING.md", "docs/gpu.md")
    for number, block in enumerate(pages.blocks(ROOT / name))
]


@pytest.mark.parametrize("code", PROGRAMS)
def test_program_runs(code: str, tmp_path: Path) -> None:
    if "import cupy" in code and not host_gpu.has_device():
        if host_gpu.host_module() is None:
            pytest.skip("the kernels over host memory are not built")
        path = str(ROOT / "tests")
        code = f"import sys\nsys.path.insert(0, {path!r})\nimport host_gpu\nhost_gpu.install()\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_readme_states_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert 'pip install ".[demo]" && fastopt train digits' in text
    assert 'pip install ".[test]" && pytest' in text
