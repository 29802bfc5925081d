"""Activations as modules."""

from __future__ import annotations

from typing import Any, ClassVar

from fastopt import functional
from fastopt.nn.module import Module


class Activation(Module):
    """An elementwise activation: its kernel, and the attributes that are the kernel's parameters."""

    kernel: str
    parameters_of_kernel: ClassVar[tuple[str, ...]] = ()
    inplace = False

    @property
    def params(self) -> tuple[float, ...]:
        """The kernel's parameters as they are now."""
        return tuple([getattr(self, name) for name in self.parameters_of_kernel])

    def forward(self, input: Any) -> Any:
        return functional.activation(self.kernel, input, self.params, self.inplace)

    def extra_repr(self) -> str:
        parts = [f"{name}={getattr(self, name)}" for name in self.parameters_of_kernel]
        return ", ".join([*parts, "inplace=True"] if self.inplace else parts)


class ReLU(Activation):
    """max(x, 0). `inplace` overwrites the input where nothing is recorded."""

    kernel = "relu"

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace


class LeakyReLU(Activation):
    """x where positive, else ``negative_slope * x``."""

    kernel = "leaky_relu"
    parameters_of_kernel = ("negative_slope",)

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        self.negative_slope = negative_slope
        self.inplace = inplace


class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    kernel = "sigmoid"


class Tanh(Activation):
    """The hyperbolic tangent."""

    kernel = "tanh"


class GELU(Activation):
    """x * Phi(x), exact or with `approximate="tanh"`."""

    def __init__(self, approximate: str = "none") -> None:
        self.kernel = functional.gelu_name(approximate)
        self.approximate = approximate

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class SiLU(Activation):
    """x * sigmoid(x)."""

    kernel = "silu"

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace


class ELU(Activation):
    """x where positive, else ``alpha * (exp(x) - 1)``."""

    kernel = "elu"
    parameters_of_kernel = ("alpha",)

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha = alpha
        self.inplace = inplace


class Softplus(Activation):
    """log(1 + exp(beta * x)) / beta, and x itself where ``beta * x > threshold``."""

    kernel = "softplus"
    parameters_of_kernel = ("beta", "threshold")

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta = beta
        self.threshold = threshold


#: What `Sequential` may compute together with the Linear before it; not subclasses, whose forward is theirs.
FUSABLE = frozenset({ReLU, LeakyReLU, Sigmoid, Tanh, GELU, SiLU, ELU, Softplus})


class Softmax(Module):
    """exp(x) over its sum along `dim`."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, input: Any) -> Any:
        return functional.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Module):
    """The logarithm of `Softmax`."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, input: Any) -> Any:
        return functional.log_softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
