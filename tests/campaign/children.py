"""Programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
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


def run_file(definitions: str, main: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run a program whose `definitions` a spawned process can import; it says "done" at its end."""
    body = textwrap.indent(textwrap.dedent(main), "    ")
    if "done" not in main:
        body += '\n    print("done")\n'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        path.write_text(f"{textwrap.dedent(definitions)}\nif __name__ == '__main__':\n{body}")
        return subprocess.run(
            [sys.executable, str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=600,
        )


def dedented(*parts: str) -> str:
    """Parts of a program, each with an indentation of its own."""
    return "\n".join(map(textwrap.dedent, parts))
