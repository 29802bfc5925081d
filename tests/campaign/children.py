"""Programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the tests on Python's path."""
    path = os.pathsep.join([str(_TESTS), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **variables}


def start(code: str, *arguments: Any, **variables: str) -> subprocess.Popen[str]:
    """Start a program; its output can be read."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    )


def run(code: str, *arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, of which ten minutes are enough."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(**variables),
        timeout=600,
    )
