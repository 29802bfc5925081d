"""How each library computes what we compare: one module a library, one function a task.

A function takes the inputs as NumPy arrays and returns {provider: call}, one for each way in which the library
can do it; the fastest of them is what we are compared with. Calls return their results. Results have room of
their own, made beforehand wherever the library lets a caller give it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

NAMES = ("torch", "jax", "sklearn", "thinc", "bitsandbytes", "numpy")


def load(names: Iterable[str] = NAMES, threads: int | None = None) -> dict[str, Any]:
    """Return the modules of those libraries that are installed; the others are named in a line each."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.import_module(f"peers.with_{name}")
            if threads is not None:
                found[name].set_threads(threads)
        except ImportError as error:
            print(f"{name}: left out, {error}", flush=True)
    return found


def gather(peers: Mapping[str, Any], task: str, *inputs: Any) -> dict[str, Callable[[], Any]]:
    """Return our calls and those of every library that has the task."""
    ours = importlib.import_module("peers.with_fastopt")
    calls: dict[str, Callable[[], Any]] = {}
    for module in (ours, *peers.values()):
        if hasattr(module, task):
            calls |= getattr(module, task)(*inputs)
    return calls
