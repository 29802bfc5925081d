"""The Python programs of Markdown pages.

python docs/ext/pages.py PAGE    # run a page's blocks in order, in the current folder
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

# A block of text right after a program is what the program prints.
_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", re.M | re.S)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A program of a page, the number of its first line, and what it has to print: None where the page is silent."""

    line: int
    code: str
    output: str | None


def blocks(page: Path) -> list[Block]:
    """Return the Python programs of a page."""
    text = page.read_text()
    return [Block(text.count("\n", 0, m.start(1)) + 1, m[1], m[2]) for m in _BLOCK.finditer(text)]


def imported(programs: list[Block]) -> set[str]:
    """Return the names of the packages that the programs import, and of fastopt's modules that they use."""
    found = set()
    for block in programs:
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
        found |= {f"fastopt.{name}" for name in re.findall(r"\bfo\.(\w+)", block.code)}
    return found | {name.partition(".")[0] for name in found}


def run(page: Path) -> None:
    """Run a page's programs in one namespace.

    Raises
    ------
    AssertionError
        A program prints something else than the page says.
    """
    namespace: dict[str, object] = {"__name__": "page"}
    for line, code, output in blocks(page):
        printed = io.StringIO()
        # Empty lines first, so that a traceback has the page's line numbers.
        program = compile("\n" * (line - 1) + code, str(page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(program, namespace)
        got = printed.getvalue()
        if output is not None and not doctest.OutputChecker().check_output(output, got, _FLAGS):
            raise AssertionError(f"{page}:{line} prints\n{got}where the page says\n{output}")


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
