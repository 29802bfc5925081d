"""The gallery of optimizers: what each class's docstring says, and its path on a surface of two numbers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastopt as fo

Point = NDArray[np.float64]

START = (-1.5, 2.0)
MINIMUM = (1.0, 1.0)
STEPS = 100


def valley(p: Point) -> tuple[float, Point]:
    """A curved valley, Rosenbrock's with 5 in place of 100: value and gradient."""
    x, y = p
    across = y - x * x
    return (1 - x) ** 2 + 5 * across**2, np.array([-2 * (1 - x) - 20 * x * across, 10 * across])


class Entry(NamedTuple):
    """The texts of a class's docstring that the gallery shows, as reStructuredText."""

    summary: str
    formula: str
    notes: str
    references: str


def optimizers() -> list[str]:
    """Return the names of the classes of `fastopt.optim` that update parameters."""
    found = {name: getattr(fo.optim, name) for name in fo.optim.__all__}
    return [
        name
        for name, it in found.items()
        if inspect.isclass(it) and hasattr(it, "step") and it not in (fo.optim.Optimizer, fo.optim.GradScaler)
    ]


def entry(name: str) -> Entry:
    """Read a class's docstring.

    Raises
    ------
    ValueError
        It lacks a formula, a section Notes that says when to use the class, or the section References.
    """
    doc = inspect.getdoc(getattr(fo.optim, name)) or ""
    first, *rest = re.split(r"^(\w[\w ]*)\n-+\n", doc, flags=re.M)
    sections = dict(zip(rest[::2], map(str.strip, rest[1::2]), strict=True))
    summary, _, formula = first.strip().partition("\n\n")
    if "math::" not in formula and ":math:" not in formula:
        raise ValueError(f"fastopt.optim.{name}: the docstring has no formula")
    for section in ("Notes", "References"):
        if not sections.get(section):
            raise ValueError(f"fastopt.optim.{name}: the docstring has no section {section}")
    if not sections["Notes"].startswith("When to use: "):
        raise ValueError(f"fastopt.optim.{name}: the section Notes does not begin with 'When to use: '")
    return Entry(summary, formula, sections["Notes"], sections["References"])


#: Settings for the picture: chosen so that the path shows what the rule is like. A class without a line has none.
SETTINGS: dict[str, dict[str, Any]] = {
    "ADOPT": {"lr": 0.15},
    "ASGD": {"lr": 0.04, "t0": 0.0},
    "AdEMAMix": {"lr": 0.05, "alpha": 2.0, "weight_decay": 0.0},
    "AdaBelief": {"lr": 0.1},
    "Adadelta": {"lr": 15.0},
    "Adafactor": {"lr": 0.3, "weight_decay": 0.0},
    "Adagrad": {"lr": 0.4},
    "Adam": {"lr": 0.1},
    "AdamW": {"lr": 0.1, "weight_decay": 0.3},
    "AdamWScheduleFree": {"lr": 0.15},
    "Adamax": {"lr": 0.15},
    "Adan": {"lr": 0.08},
    "Ftrl": {"lr": 0.4},
    "LAMB": {"lr": 0.05, "weight_decay": 0.0},
    "LARS": {"lr": 0.05, "momentum": 0.9, "trust_coefficient": 0.15, "skip_1d": False},
    "LBFGS": {"line_search_fn": "strong_wolfe", "max_iter": 1, "max_eval": 25},
    "Lion": {"lr": 0.04},
    "Lookahead": {"k": 5, "alpha": 0.5},
    "Muon": {"lr": 0.05, "weight_decay": 0.0},
    "NAdam": {"lr": 0.08},
    "NovoGrad": {"lr": 0.05},
    "Prodigy": {"lr": 0.1, "d0": 0.1, "weight_decay": 0.0},
    "RAdam": {"lr": 0.04, "betas": (0.9, 0.9)},
    "RMSprop": {"lr": 0.04},
    "Rprop": {"lr": 0.02},
    "SAM": {"rho": 0.15},
    "SGD": {"lr": 0.01, "momentum": 0.9},
    "SGDScheduleFree": {"lr": 0.06},
    "SOAP": {"lr": 0.06, "weight_decay": 0.0, "precondition_frequency": 1},
    "Sophia": {"lr": 0.08, "rho": 1.0, "weight_decay": 0.0},
    "SparseAdam": {"lr": 0.1},
    "Yogi": {"lr": 0.15},
}


def path(name: str) -> Point:
    """Return the points (n, 2) that an optimizer of `fastopt.optim` goes through on `valley`."""
    p = np.array(START)
    if name == "Muon":
        p = p.reshape(1, 2)  # the smallest matrix with two elements
    opt, step = _prepare(name, p)
    points = [p.ravel().copy()]
    for count in range(STEPS):
        step(count)
        if hasattr(opt, "eval"):  # schedule-free: the average is what is evaluated
            opt.eval()
        at = opt.state[0]["ax"] if name == "ASGD" else p
        points.append(np.array(at).ravel())
        if hasattr(opt, "train"):
            opt.train()
    return np.array(points)


def _prepare(name: str, p: Point) -> tuple[Any, Callable[[int], Any]]:
    """Make an optimizer of `p`, and the function that takes its step of a number."""

    def gradient() -> Point:
        return valley(p.ravel())[1].reshape(p.shape)

    def closure() -> tuple[float, list[Point]]:
        return valley(p.ravel())[0], [gradient()]

    settings = SETTINGS[name]
    if name in ("SAM", "Lookahead"):
        inner = fo.optim.SGD([p], lr=0.015) if name == "SAM" else fo.optim.SGD([p], lr=0.01, momentum=0.9)
        opt = getattr(fo.optim, name)(inner, **settings)
    else:
        opt = getattr(fo.optim, name)([p], **settings)
    if name in ("SAM", "LBFGS"):
        return opt, lambda _: opt.step(closure)
    if name == "SparseAdam":  # one row in turn has a gradient
        return opt, lambda count: opt.step([(np.array([count % 2]), gradient()[[count % 2]])])
    if name == "Sophia":

        def step(count: int) -> None:
            if count % 10 == 0:
                x, y = p
                opt.update_hessian([np.abs([2 + 60 * x * x - 20 * y, 10.0])])
            opt.step([gradient()])

        return opt, step
    return opt, lambda _: opt.step([gradient()])


def draw(name: str, file: Path) -> None:
    """Draw an optimizer's path beside that of gradient descent."""
    plain = np.array(START)
    descent = fo.optim.SGD([plain], lr=0.02)
    points = [plain.copy()]
    for _ in range(STEPS):
        descent.step([valley(plain)[1]])
        points.append(plain.copy())
    paths = {name: path(name), "SGD, no momentum": np.array(points)}
    figure = fo.plot.plot_path(valley, paths, minimum=MINIMUM, xlim=(-2.1, 2.1), ylim=(-1.0, 3.0))
    figure.set_size_inches(6.4, 3.6)
    figure.savefig(file, dpi=100)


def _section(name: str) -> str:
    """Return a class's entry as reStructuredText."""
    it = entry(name)
    when = it.notes.removeprefix("When to use: ")
    when = when[0].upper() + when[1:]
    return f"""\
.. _gallery-{name}:

{name}
{"-" * len(name)}

{it.summary}

.. image:: generated/gallery/{name}.png
   :alt: Path of {name} on the valley, beside gradient descent

{it.formula}

**When to use.** {when}

**Paper.** {it.references}

**Settings of the picture.** {", ".join(f"``{key}={value!r}``" for key, value in SETTINGS[name].items())}.
Arguments and methods: :class:`fastopt.optim.{name}`.
"""


def write(folder: Path) -> str:
    """Draw every optimizer's picture under `folder`, and return the entries as reStructuredText."""
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    names = sorted(optimizers(), key=str.lower)
    for name in names:
        draw(name, folder / "gallery" / f"{name}.png")
    return ".. currentmodule:: fastopt.optim\n\n" + "\n".join(map(_section, names))
