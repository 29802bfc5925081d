"""Layers with parameters or state, and the containers."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastopt import functional
from fastopt._dtypes import DEFAULT_FLOAT
from fastopt.nn import init
from fastopt.nn.activations import FUSABLE
from fastopt.nn.module import Module, Parameter


class Linear(Module):
    """``x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
        Input of shape (..., in_features) gives (..., out_features).
    bias : bool
        Whether there is one.
    dtype : dtype, optional
        float32 unless said otherwise. Inputs of another dtype are converted to it.

    Attributes
    ----------
    weight : Parameter, shape (out_features, in_features)
    bias : Parameter, shape (out_features,), or None
        Both start uniform in ±1 / sqrt(in_features), as torch's.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: npt.DTypeLike | None = None
    ) -> None:
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if operator.index(value) < 0:
                raise ValueError(f"Linear: {name} must be at least 0, got {value}")
        self.in_features = in_features
        self.out_features = out_features
        wanted = np.dtype(dtype or DEFAULT_FLOAT)
        self.weight = Parameter(np.empty((out_features, in_features), wanted))
        self.bias = Parameter(np.empty(out_features, wanted)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        if self.weight.numel():
            init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Any) -> Any:
        return functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class Dropout(Module):
    """Set elements to 0 with probability `p` while training, and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p must be in [0, 1], got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Any) -> Any:
        return functional.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Flatten(Module):
    """Join the dimensions from `start_dim` to `end_dim`, both included, to one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Any) -> Any:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Module):
    """Return the input. Arguments are accepted and ignored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def forward(self, input: Any) -> Any:
        return input


class _Container(Module):
    """Modules in an order, reached by index, slice or name."""

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int | slice) -> Any:
        children = list(self.named_children())
        if isinstance(index, slice):
            part = type(self).__new__(type(self))
            part.training = self.training
            for position, (name, module) in enumerate(children[index]):
                part.register_module(str(position) if name.isdigit() else name, module)
            return part
        return children[self._position(index)][1]

    def __setitem__(self, index: int, module: Module) -> None:
        name = list(self.named_children())[self._position(index)][0]
        self.register_module(name, module)

    def _position(self, index: int) -> int:
        try:
            return range(len(self))[operator.index(index)]
        except IndexError:
            raise IndexError(
                f"{type(self).__name__}: index {index} is out of range for {len(self)} modules"
            ) from None

    def append(self, module: Module) -> Self:
        """Add a module at the end."""
        self.register_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end."""
        for module in modules:
            self.append(module)
        return self


class ModuleList(_Container):
    """A list of modules whose parameters are found."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)


class Sequential(_Container):
    """Modules called one after the other.

    Parameters
    ----------
    *args : Module, or one mapping of names to modules

    Notes
    -----
    A `Linear` that an activation, a `Dropout` or both follow is computed together with them in one pass. Result,
    gradients and masks are the same, bit by bit; in bfloat16 and float16 they are rounded once rather than
    after each module.
    """

    def __init__(self, *args: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Mapping):
            for name, module in args[0].items():
                self.register_module(name, module)
        else:
            self.extend(args)

    def forward(self, input: Any) -> Any:
        x = input
        rest = self.children()
        module = next(rest, None)
        while module is not None:
            after = next(rest, None)
            if type(module) is not Linear:
                x = module(x)
                module = after
                continue
            activation, dropout = None, None
            if type(after) in FUSABLE:
                activation, after = after, next(rest, None)
            if type(after) is Dropout:
                dropout, after = after, next(rest, None)
            x = _fused(x, module, activation, dropout)
            module = after
        return x


def _fused(x: Any, layer: Linear, activation: Any, dropout: Any) -> Any:
    """What the three modules would compute one after the other; the last two may be None."""
    kernel, params = (None, ()) if activation is None else (activation.kernel, activation.params)
    p = dropout.p if dropout is not None and dropout.training else 0.0
    return functional.linear(x, layer.weight, layer.bias, kernel, params, dropout=p)
