"""What the site is made of besides its pages, written under docs/generated before Sphinx reads anything."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import GenericAlias, ModuleType
from typing import Any

import gallery
import pages
from fastopt.tensor import Binary

DOCS = Path(__file__).parents[1]
BENCHMARKS = DOCS.parent / "benchmarks"

#: The public modules and how the reference calls them.
MODULES = {
    "fastopt": "Tensors and the training step",
    "fastopt.program": "What compile returns",
    "fastopt.nn": "Layers, activations and losses",
    "fastopt.nn.init": "Initial weights",
    "fastopt.optim": "Optimizers",
    "fastopt.optim.lr_scheduler": "Schedules",
    "fastopt.functional": "Functions of arrays",
    "fastopt.data": "Data",
    "fastopt.checkpoint": "Checkpoints",
    "fastopt.sklearn": "Perceptrons for scikit-learn",
    "fastopt.torch": "Optimizers for torch",
    "fastopt.compat.keras": "Keras' optimizers",
    "fastopt.compat.optax": "optax' optimizers",
    "fastopt.compat.sklearn": "scikit-learn's optimizers",
    "fastopt.compat.tensorflow": "TensorFlow 1's optimizers",
    "fastopt.compat.thinc": "thinc's optimizers",
    "fastopt.distributed": "Several processes and machines",
    "fastopt.interop": "State to and from other libraries",
    "fastopt.plot": "Pictures",
    "fastopt.monitor": "Norms by layer",
    "fastopt.info": "What this build is",
}


def mark_parameters(app: Any, what: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """Keep an object's parameters from being taken for functions of the same name: write *data* for `data`."""
    if not callable(it):
        return
    with contextlib.suppress(ValueError, TypeError):
        words = "|".join(inspect.signature(it).parameters) or "$."  # none: what nothing matches
        lines[:] = [re.sub(rf"(?<![`:\w])`({words})`(?![`_])", r"*\1*", line) for line in lines]


def missing(*modules: str) -> list[str]:
    """Return those of some modules that cannot be imported."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def public(module: ModuleType) -> list[str]:
    """Return a module's public names: those of `__all__`, or what it defines."""
    own = (
        name
        for name, it in vars(module).items()
        if not name.startswith("_") and getattr(it, "__module__", None) == module.__name__
    )
    return list(getattr(module, "__all__", None) or own)


#: Which part of a module's page a name is on, by the module that defines it.
PARTS = {
    "tensor": "Tensors",
    "creation": "Making tensors",
    "operations": "Operations",
    "functional": "Activations",
    "program": "The compiled training step",
    "_minimize.front": "Minimising a function",
    "nn.module": "Modules",
    "nn.layers": "Layers",
    "nn.activations": "Activations",
    "nn.losses": "Losses",
    "optim.base": "What all optimizers share",
    "optim.rule": "What all optimizers share",
}
#: Names that are documented besides the public ones: bases and settings that docstrings refer to.
BESIDES = {
    "fastopt": ["minimize", "minimize_method"],
    "fastopt.optim": ["rule.RuleOptimizer", "rule.Common"],
}


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n\n"


def _part(module: ModuleType, name: str) -> str:
    if module.__name__ == "fastopt.optim" and name in gallery.optimizers():
        return "Optimizers"
    it = _get(module, name)
    if isinstance(it, Binary):
        return "Operations"
    where = getattr(it, "__module__", "").removeprefix("fastopt.")
    return PARTS.get(where, "Other")


def _get(module: ModuleType, name: str) -> Any:
    it: Any = module
    for part in name.split("."):
        it = getattr(it, part)
    return it


def listed(module: ModuleType) -> dict[str, list[str]]:
    """Return the names on a module's page, by part. What is no class or function has no page of its own."""
    names = [*public(module), *BESIDES.get(module.__name__, ())]
    if module.__name__ == "fastopt.program":  # `compile` is fastopt.compile
        names = ["CompiledStep", "Progress"]
    if module.__name__ == "fastopt.torch":  # the others are classes of fastopt.optim
        names = ["TorchOptimizer"]
    found: dict[str, list[str]] = {}
    for name in names:
        it = _get(module, name)
        if name == "GradScaler" and module.__name__ == "fastopt":
            continue  # it is fastopt.optim's
        if callable(it) and not isinstance(it, GenericAlias):
            found.setdefault(_part(module, name), []).append(name)
    order = ["Optimizers", *PARTS.values(), "Other"]
    return dict(sorted(found.items(), key=lambda part: order.index(part[0])))


def module_page(name: str) -> str:
    """Return the reference of a module as reStructuredText."""
    from sphinx.ext.autodoc.mock import mock

    with mock(missing("torch")):  # fastopt.torch needs its classes
        module = importlib.import_module(name)
    text = _title(f"{MODULES[name]}: {name}", "=") + f".. automodule:: {name}\n   :no-members:\n\n"
    parts = listed(module)
    for part, names in parts.items():
        text += _title(part, "-") if len(parts) > 1 else ""
        text += f".. currentmodule:: {name}\n\n.. autosummary::\n   :toctree: objects\n\n"
        text += "".join(f"   {it}\n" for it in names) + "\n"
    return text


def reference() -> dict[str, str]:
    """Return the pages of the reference by file name."""
    index = (
        _title("Reference", "=") + ".. toctree::\n   :maxdepth: 1\n\n" + "".join(f"   {m}\n" for m in MODULES)
    )
    return {"index.rst": index, **{f"{name}.rst": module_page(name) for name in MODULES}}


def commands() -> str:
    """Return what `fastopt --help` and each command's help say, as Markdown."""
    from fastopt.cli import main

    text = ""
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "84"
    try:
        for words in ([], ["train"], ["compare"], ["predict"], ["bench"], ["info"]):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                main([*words, "--help"])
            text += f"## {' '.join(['fastopt', *words])}\n\n```\n{out.getvalue().strip()}\n```\n\n"
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return text


def performance(folder: Path) -> str:
    """Draw the committed results under `folder`, and return benchmarks/README.md with its tables made from them."""
    sys.path.insert(0, str(BENCHMARKS))
    import plot

    (folder / "performance").mkdir(parents=True, exist_ok=True)
    plot.PICTURES = folder / "performance"
    plot.draw_all()
    text = plot.with_tables((BENCHMARKS / "README.md").read_text())
    text = text[text.index("## How it is measured") :]
    text = re.sub(r"\]\(results/(\w+\.png)\)", r"](generated/performance/\1)", text)
    return text.replace("](results/", "](../benchmarks/results/")


def pages_with_pictures() -> Iterator[Path]:
    """Find the pages that show pictures which their own programs draw."""
    for page in sorted(DOCS.glob("*.md")):
        if f"generated/{page.stem}/" in page.read_text() and pages.blocks(page):
            yield page


def _update(path: Path, text: str) -> None:
    """Write a file unless it is so already: Sphinx reads again what has been written."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write(folder: Path) -> None:
    """Write everything under `folder`."""
    for name, text in reference().items():
        _update(folder / "api" / name, text)
    _update(folder / "commands.md", commands())
    _update(folder / "performance.md", performance(folder))
    _update(folder / "gallery.rst", gallery.write(folder))
    for page in pages_with_pictures():
        (folder / page.stem).mkdir(exist_ok=True)
        subprocess.run([sys.executable, pages.__file__, page], cwd=folder / page.stem, check=True)
