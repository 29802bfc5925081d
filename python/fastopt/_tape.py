"""The tape: what a Tensor remembers of how it came to be, and the walk back along it.

A `Node` is one recorded operation. It knows the nodes (or leaf Tensors) that its gradient flows to, never the
Tensor it made, so a graph is free of reference cycles and goes as soon as its last Tensor does.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: From the gradient of an operation's result to the gradient of its input, or a tuple of them, one for each
#: parent. What it returns is the array it was given, a view, or a new array: never one that it keeps.
Backward = Callable[[Any], Any]


class Leaf(Protocol):
    """What the walk needs of a Tensor where gradients end."""

    def _accumulate(self, g: Array, *, owned: bool) -> None: ...


class GradMode(threading.local):
    """Whether operations of this thread are recorded."""

    enabled = True


mode = GradMode()

#: By the id of a leaf, what is called with it as soon as a backward pass has its whole gradient.
ready: dict[int, Callable[[Any], None]] = {}

_next_sequence = itertools.count().__next__
_sequence = operator.attrgetter("sequence")


class Node:
    """One recorded operation."""

    __slots__ = ("fn", "name", "parents", "retained", "sequence")

    def __init__(self, name: str, parents: tuple[Node | Leaf | None, ...], fn: Backward) -> None:
        self.name = name
        self.parents = parents
        self.fn: Backward | None = fn
        self.sequence = _next_sequence()
        self.retained: weakref.ref[Any] | None = None

    def __repr__(self) -> str:
        return f"<{self.name}>"


def backward(root: Node, gradient: Array, retain_graph: bool) -> None:
    """Send `gradient` from `root` to every leaf it came from.

    Raises
    ------
    RuntimeError
        A part of the graph is gone, for `backward` has been over it; no gradient was changed.
    """
    order = [root]
    seen = {root}
    for node in order:  # grows while it is walked
        if node.fn is None:
            raise RuntimeError(
                f"backward: the graph of {node.name!r} is gone after the first backward; "
                "give retain_graph=True to that one to go through it twice"
            )
        for parent in node.parents:
            if parent.__class__ is Node and parent not in seen:
                seen.add(parent)
                order.append(parent)
    # A node is made after its parents: youngest first is an order in which every gradient is complete.
    order.sort(key=_sequence, reverse=True)
    last = _last_uses(order) if ready else {}

    pending: dict[Any, Array] = {root: gradient}
    for node in order:
        dy = pending.pop(node, None)
        if dy is None:
            _call_ready(last, node)
            continue
        if node.retained is not None and (tensor := node.retained()) is not None:
            tensor._accumulate(dy, owned=False)
        fn, parents = node.fn, node.parents
        if not retain_graph:
            node.fn = None
            node.parents = ()
        assert fn is not None
        gradients = fn(dy)
        if len(parents) == 1:
            gradients = (gradients,)
        for parent, g in zip(parents, gradients, strict=True):
            if parent is None or g is None:
                continue
            if parent.__class__ is Node:
                earlier = pending.get(parent)
                pending[parent] = as_array(g if earlier is None else earlier + g)
            else:
                parent._accumulate(g, owned=g is not dy and g.base is None)  # type: ignore[union-attr]
        if last:
            _call_ready(last, node)


def _last_uses(order: list[Node]) -> dict[Node, list[Any]]:
    """The leaves that `ready` has, by the node that is the last to give them a gradient."""
    last = {id(p): (p, node) for node in order for p in node.parents if id(p) in ready}
    uses: dict[Node, list[Any]] = {}
    for leaf, node in last.values():
        uses.setdefault(node, []).append(leaf)
    return uses


def _call_ready(last: dict[Node, list[Any]], node: Node) -> None:
    for leaf in last.get(node, ()):
        if leaf.grad is not None:
            ready[id(leaf)](leaf)


def as_array(x: Any) -> Any:
    """Return a NumPy scalar as an array, anything else as it is."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum `g` over the axes that broadcasting added to, or stretched in, an array of `shape`."""
    if g.shape == shape:
        return g
    added = g.ndim - len(shape)
    axes = tuple(i for i in range(g.ndim) if i < added or (shape[i - added] == 1 and g.shape[i] != 1))
    total: Array = g.sum(axis=axes, keepdims=True)
    return total.reshape(shape)


class _SetGradMode(contextlib.ContextDecorator):
    """Context manager and decorator; one object may be entered again while it is active."""

    _enabled: bool

    def __init__(self) -> None:
        self._before: list[bool] = []

    def _recreate_cm(self) -> _SetGradMode:
        return type(self)()  # contextlib's hook: as a decorator, each call (and thread) has its own

    def __enter__(self) -> None:
        self._before.append(mode.enabled)
        mode.enabled = self._enabled

    def __exit__(self, *exception: object) -> None:
        mode.enabled = self._before.pop()


class no_grad(_SetGradMode):
    """Record nothing inside: ``with fo.no_grad(): w -= lr * w.grad``; also a decorator. Per thread."""

    _enabled = False


class enable_grad(_SetGradMode):
    """Record again inside a `no_grad`; also a decorator. Per thread."""

    _enabled = True


def is_grad_enabled() -> bool:
    """Whether operations on Tensors are recorded in this thread."""
    return mode.enabled
