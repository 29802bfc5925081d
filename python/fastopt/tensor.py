"""Tensor: an array with a gradient, recorded on the tape of `_tape`.

A Tensor wraps a NumPy array without a copy. Operations follow torch in names, dtypes and gradients; whatever
NumPy does about a division by zero or an overflow (`numpy.errstate`) it does here too.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fastopt import _ops, _rules
from fastopt._arrays import as_view
from fastopt._dtypes import DEFAULT_FLOAT, dtype_of, float64, is_floating
from fastopt._methods import Methods
from fastopt._rules import as_float
from fastopt._tape import Backward, Node, backward, mode

Array = npt.NDArray[Any]

# ------------------------------------------------------------------------------------- arrays and Tensors


def to_array(x: Any, name: str = "input") -> Array:
    """Return the ndarray behind a Tensor or any other array, and a new one for numbers and nested lists.

    Python floats become float32 and ints int64, as in torch; arrays and NumPy scalars keep their dtype.
    """
    if isinstance(x, Tensor):
        return x._data
    if isinstance(x, np.generic):
        return np.asarray(x)
    if isinstance(x, (list, tuple, int, float)):
        first: Any = x
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        a = np.array(x)
        if a.dtype.kind in "OSUcV" and not is_floating(a.dtype):
            raise TypeError(f"{name} holds {type(first).__name__}, expected real numbers")
        keep = isinstance(first, (np.ndarray, np.generic, Tensor)) or a.dtype != float64
        return a if keep else a.astype(DEFAULT_FLOAT)
    return as_view(x, name)


def wrap(data: Any, node: Node | None = None) -> Tensor:
    """Return a Tensor of `data` (an array or NumPy scalar) without the checks of the constructor."""
    t = Tensor.__new__(Tensor)
    t._data = data if data.__class__ is np.ndarray else np.asarray(data)
    t._node = node
    t._requires_grad = node is not None
    t._grad = None
    return t


def record(name: str, data: Any, inputs: tuple[Tensor | None, ...], fn: Backward) -> Tensor:
    """Return a Tensor of `data` that sends the gradients `fn` computes to `inputs`.

    `fn` returns one array for one input, else a tuple with one for each; None stands for an input without
    gradient. See `_tape.Backward` for what it may return.
    """
    return wrap(data, Node(name, tuple([None if t is None else t._node or t for t in inputs]), fn))


def needs_grad(x: Any) -> bool:
    """Whether an operation on `x` is to be recorded for its gradient."""
    return isinstance(x, Tensor) and x._requires_grad and mode.enabled


# ------------------------------------------------------------------------------------- binary operations


def _operand(v: Any) -> Any:
    if isinstance(v, Tensor):
        return v._data
    if isinstance(v, float):
        return float(v)  # a numpy.float64 too: it says no more about the dtype wanted than a Python float
    return v if isinstance(v, (np.ndarray, int)) else to_array(v, "operand")


class Binary:
    """An operation on two operands, and what makes their gradient functions from operands and result."""

    __slots__ = ("left", "name", "op", "right")

    def __init__(
        self, name: str, op: Callable[[Any, Any], Any], left: _rules.Rule, right: _rules.Rule
    ) -> None:
        self.name, self.op, self.left, self.right = name, op, left, right

    def __call__(self, x: Any, y: Any) -> Tensor:
        a0, b0 = _operand(x), _operand(y)
        a, b = _rules.meet(a0, b0)
        z = self.op(a, b)
        fx = _rules.fitted(self.left(a, b, z), a0, a, z) if needs_grad(x) else None
        fy = _rules.fitted(self.right(a, b, z), b0, b, z) if needs_grad(y) else None
        if fx is None:
            return wrap(z) if fy is None else record(self.name, z, (y,), fy)
        if fy is None:
            return record(self.name, z, (x,), fx)
        gx, gy = fx, fy  # one name, one type, for the closure
        return record(self.name, z, (x, y), lambda dy: (gx(dy), gy(dy)))


add = Binary("add", operator.add, lambda a, b, z: _rules.pass_on, lambda a, b, z: _rules.pass_on)
subtract = Binary("subtract", operator.sub, lambda a, b, z: _rules.pass_on, lambda a, b, z: operator.neg)
multiply = Binary(
    "multiply", operator.mul, lambda a, b, z: lambda dy: dy * b, lambda a, b, z: lambda dy: dy * a
)
divide = Binary(
    "divide", _rules.truediv, lambda a, b, z: lambda dy: dy / b, lambda a, b, z: lambda dy: -dy * (z / b)
)
power = Binary("power", operator.pow, _rules.pow_left, _rules.pow_right)
matmul = Binary("matmul", operator.matmul, _rules.matmul_left, _rules.matmul_right)


def _compare(op: Callable[[Any, Any], Any], x: Tensor, y: Any) -> Tensor:
    a, b = _rules.meet(x._data, _operand(y))
    return wrap(op(a, b))


# ------------------------------------------------------------------------------------------ unary helpers


def activate(x: Tensor, name: str, params: tuple[float, ...] = ()) -> Tensor:
    """Apply the activation `name` of `_ops` to `x`."""
    a = as_float(x._data)
    y = _ops.activation(name, a, params)
    if not needs_grad(x):
        return wrap(y)
    needs_x, needs_y = _ops.activation_needs(name)
    keep_x, keep_y = a if needs_x else None, y if needs_y else None
    return record(name, y, (x,), lambda dy: _ops.activation_grad(name, dy, keep_x, keep_y, params))


def _plain_index(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple([k._data if isinstance(k, Tensor) else k for k in key])
    return key._data if isinstance(key, Tensor) else key


def _check_out(name: str, out: Any) -> None:
    if out is not None:
        raise TypeError(f"{name}: out must be None, got {type(out).__name__}")


class Extreme(NamedTuple):
    """What `Tensor.max` and `Tensor.min` along a dimension return."""

    values: Tensor
    indices: Tensor


# ------------------------------------------------------------------------------------------------- Tensor


class Tensor(Methods):
    """An array with a gradient.

    Parameters
    ----------
    data : array, Tensor, number or nested list
        An array is wrapped without a copy; numbers are copied into a new float32 array (`tensor` keeps
        integers as they are).
    requires_grad : bool
        Record the operations on this Tensor, so that `backward` fills its `grad`. Floating-point only.

    Notes
    -----
    `data` is the NumPy array itself and `grad` None or a Tensor without a graph. In-place operators work
    under `no_grad` and on Tensors that are not recorded. The tape keeps the arrays that a gradient needs: do
    not write into them between the forward pass and `backward`.
    """

    __slots__ = ("__weakref__", "_data", "_grad", "_node", "_requires_grad")
    __hash__ = object.__hash__

    _data: Array
    _grad: Tensor | None
    _node: Node | None
    _requires_grad: bool

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        a = to_array(data, "data")
        self._data = as_float(a) if isinstance(data, (list, tuple, int, float)) else a
        self._node = None
        self._grad = None
        self._requires_grad = False
        self.requires_grad_(requires_grad)

    # ------------------------------------------------------------------------------------- the array

    @property
    def data(self) -> Array:
        """The array. Assigning one of the same shape writes its values into the memory that is there."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        if value is self._data:  # ``t.data -= x`` ends here, its work done
            return
        a = to_array(value, "data")
        if a.shape == self._data.shape:
            np.copyto(self._data, a, casting="same_kind")
        else:
            self._data = a

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if needs_grad(self):
            raise RuntimeError(
                "a Tensor that requires grad does not become an array by itself, its gradient would be lost: "
                "use .detach(), .numpy() or no_grad()"
            )
        if copy:
            return np.array(self._data, dtype)
        return np.asarray(self._data, dtype, copy=copy)

    def __getstate__(self) -> tuple[Array, Tensor | None, bool]:
        if self._node is not None:
            raise RuntimeError(
                "only a leaf Tensor can be copied or pickled: detach() this one, or clone() it"
            )
        return self._data, self._grad, self._requires_grad

    def __setstate__(self, state: tuple[Array, Tensor | None, bool]) -> None:
        self._data, self._grad, self._requires_grad = state
        self._node = None

    # ---------------------------------------------------------------------------------- the gradient

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Record operations on this leaf from now on, or stop doing so."""
        if requires_grad and not is_floating(self._data.dtype):
            raise TypeError(
                f"requires_grad: only a floating-point Tensor can require grad, this one is {self.dtype}"
            )
        if self._node is not None and not requires_grad:
            raise RuntimeError(
                "requires_grad: only a leaf can stop requiring grad; detach() the result instead"
            )
        self._requires_grad = bool(requires_grad)
        return self

    @property
    def grad(self) -> Tensor | None:
        """The gradient `backward` summed up, or None."""
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None and not isinstance(value, Tensor):
            value = wrap(to_array(value, "grad"))
        if value is not None and value.shape != self.shape:
            raise ValueError(f"grad: got shape {value.shape}, the Tensor has shape {self.shape}")
        self._grad = value

    def retain_grad(self) -> None:
        """Let `backward` fill `grad` of this result of a recorded operation too."""
        if self._node is not None:
            self._node.retained = weakref.ref(self)

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add the gradient of this Tensor to the `grad` of every leaf it depends on.

        Parameters
        ----------
        gradient : array, optional
            The gradient arriving at this Tensor, of its shape; 1 for a Tensor with one element.
        retain_graph : bool
            Keep the graph for another `backward`; otherwise it is freed on the way.

        Raises
        ------
        RuntimeError
            The Tensor requires no grad, has more than one element and no `gradient`, or its graph is gone.
        ValueError
            `gradient` has another shape.
        """
        if not self._requires_grad:
            raise RuntimeError("backward: the Tensor does not require grad and has no graph")
        if gradient is None:
            if self._data.size != 1:
                raise RuntimeError(f"backward: gradient is needed for a Tensor of shape {self.shape}")
            g = np.ones(self.shape, self.dtype)
        else:
            g = to_array(gradient, "gradient").astype(self.dtype, copy=False)
            if g.shape != self.shape:
                raise ValueError(f"backward: gradient has shape {g.shape}, the Tensor has shape {self.shape}")
        if self._node is None:
            self._accumulate(g, owned=False)
        else:
            backward(self._node, g, retain_graph)

    def _accumulate(self, g: Any, *, owned: bool) -> None:
        if self._grad is None:
            if not (owned and g.dtype == self._data.dtype and g.flags.c_contiguous):
                g = np.array(g, self._data.dtype, order="C")
            self._grad = wrap(g)
        else:
            total = self._grad._data
            np.add(total, g, out=total, casting="same_kind")

    def detach(self) -> Tensor:
        """Return a Tensor of the same array without graph."""
        return wrap(self._data)

    def clone(self) -> Tensor:
        """Return a copy; gradients flow through it."""
        y = self._data.copy()
        return record("clone", y, (self,), _rules.pass_on) if needs_grad(self) else wrap(y)

    def to(self, dtype: Any) -> Tensor:
        """Return the Tensor in another dtype, itself where it has that already; ``"cpu"`` is accepted too."""
        own = self._data.dtype
        wanted = dtype_of(dtype.dtype if isinstance(dtype, Tensor) else dtype)
        if wanted is None or wanted == own:
            return self
        y = self._data.astype(wanted)
        if not (needs_grad(self) and is_floating(wanted)):
            return wrap(y)
        return record("to", y, (self,), lambda dy: dy.astype(own))

    # ------------------------------------------------------------------------------------- arithmetic

    def __add__(self, other: Any) -> Tensor:
        return add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(other, self)

    def __neg__(self) -> Tensor:
        return self._result("negative", -self._data, lambda: operator.neg)

    def __iadd__(self, other: Any) -> Tensor:
        return self._update(add, np.add, other)

    def __isub__(self, other: Any) -> Tensor:
        return self._update(subtract, np.subtract, other)

    def __imul__(self, other: Any) -> Tensor:
        return self._update(multiply, np.multiply, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self._update(divide, np.true_divide, other)

    def _update(self, recorded: Binary, ufunc: np.ufunc, other: Any) -> Tensor:
        """An in-place operator: in place where nothing is recorded, else a new Tensor under the old name."""
        is_recorded = mode.enabled and (
            self._node is not None or (needs_grad(other) and not self._requires_grad)
        )
        return recorded(self, other) if is_recorded else self._write(ufunc, other)

    def _write(self, ufunc: np.ufunc, other: Any) -> Self:
        self._check_writable(other)
        ufunc(self._data, _rules.meet(self._data, _operand(other))[1], out=self._data, casting="same_kind")
        return self

    def _check_writable(self, value: Any) -> None:
        """Refuse to write into a recorded Tensor, or to write what is recorded."""
        if needs_grad(self):
            kind = (
                "a leaf Tensor that requires grad"
                if self._node is None
                else "the result of a recorded operation"
            )
            raise RuntimeError(f"{kind} cannot be changed in place: do it under no_grad(), or on .data")
        if needs_grad(value):
            raise RuntimeError("a Tensor that requires grad cannot be written into another: detach() it")

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return NotImplemented if other is None else _compare(operator.eq, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return NotImplemented if other is None else _compare(operator.ne, self, other)

    def __lt__(self, other: Any) -> Tensor:
        return _compare(operator.lt, self, other)

    def __le__(self, other: Any) -> Tensor:
        return _compare(operator.le, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _compare(operator.gt, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _compare(operator.ge, self, other)

    def __invert__(self) -> Tensor:
        return wrap(~self._data)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy's functions: recorded where the tape has such an operation, else done on the arrays."""
        known = _UFUNCS.get(ufunc.__name__)
        if known is not None and method == "__call__" and not kwargs:
            first, *rest = inputs
            return known(first if isinstance(first, Tensor) else wrap(to_array(first)), *rest)
        if any(needs_grad(x) for x in inputs):
            raise RuntimeError(
                f"numpy.{ufunc.__name__} of a Tensor that requires grad is not recorded: detach() it"
            )
        kwargs = {k: tuple([_operand(x) for x in v]) if k == "out" else v for k, v in kwargs.items()}
        return getattr(ufunc, method)(*[_operand(x) for x in inputs], **kwargs)

    # ------------------------------------------------------------------------------------- functions

    def _result(self, name: str, data: Any, make: Callable[[], Backward]) -> Tensor:
        """The result of an operation on this Tensor alone; `make` makes its gradient function if needed."""
        return record(name, data, (self,), make()) if needs_grad(self) else wrap(data)

    def abs(self) -> Tensor:
        """The absolute value; its gradient at 0 is 0."""
        x = self._data
        return self._result("abs", np.abs(x), lambda: lambda dy: dy * np.sign(x))

    __abs__ = abs

    def exp(self) -> Tensor:
        y = np.exp(as_float(self._data))
        return self._result("exp", y, lambda: lambda dy: dy * y)

    def log(self) -> Tensor:
        """The natural logarithm."""
        x = as_float(self._data)
        return self._result("log", np.log(x), lambda: lambda dy: dy / x)

    def sqrt(self) -> Tensor:
        y = np.sqrt(as_float(self._data))
        return self._result("sqrt", y, lambda: lambda dy: dy / (2 * y))

    def clamp(self, min: float | None = None, max: float | None = None) -> Tensor:
        """Limit the elements to [min, max]; no gradient passes outside."""
        x = self._data
        y = np.clip(x, min, max)
        return self._result("clamp", y, lambda: lambda dy: dy * (x == y))

    def relu(self) -> Tensor:
        return activate(self, "relu")

    def sigmoid(self) -> Tensor:
        return activate(self, "sigmoid")

    def tanh(self) -> Tensor:
        return activate(self, "tanh")

    # ------------------------------------------------------------------------------------ reductions

    def sum(
        self,
        dim: _rules.Dim = None,
        keepdim: bool = False,
        *,
        axis: _rules.Dim = None,
        dtype: Any = None,
        out: None = None,
    ) -> Tensor:
        """The sum of all elements, or along `dim` (`axis` is the same). `out` is NumPy's and must be None."""
        _check_out("sum", out)
        axis = dim if axis is None else axis
        x = self._data if dtype is None else self._data.astype(dtype)
        y = x.sum(axis=axis, keepdims=keepdim)
        own = self._data.dtype
        return self._result(
            "sum", y, lambda: lambda dy: _rules.spread(dy, x.shape, axis, keepdim).astype(own, copy=False)
        )

    def mean(
        self,
        dim: _rules.Dim = None,
        keepdim: bool = False,
        *,
        axis: _rules.Dim = None,
        dtype: Any = None,
        out: None = None,
    ) -> Tensor:
        """The mean of all elements, or along `dim` (`axis` is the same); float32 for integers and bools."""
        _check_out("mean", out)
        axis = dim if axis is None else axis
        x = as_float(self._data) if dtype is None else self._data.astype(dtype)
        y = np.asarray(x.mean(axis=axis, keepdims=keepdim))
        n = x.size / y.size if y.size else 1
        own = self._data.dtype
        return self._result(
            "mean",
            y,
            lambda: lambda dy: _rules.spread(dy / n, x.shape, axis, keepdim).astype(own, copy=False),
        )

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The largest element, or along `dim` the pair (values, indices)."""
        return self._extreme("max", dim, keepdim)

    def min(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The smallest element, or along `dim` the pair (values, indices)."""
        return self._extreme("min", dim, keepdim)

    def _extreme(self, name: str, dim: int | None, keepdim: bool) -> Tensor | Extreme:
        if dim is None:
            y, fn = _rules.extreme(name, self._data)
            return self._result(name, y, lambda: fn)
        y, indices, fn = _rules.extreme_along(name, self._data, dim, keepdim)
        return Extreme(self._result(name, y, lambda: fn), wrap(indices))

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """Where the largest element is, in the flattened Tensor or along `dim`."""
        return wrap(np.argmax(self._data, axis=dim, keepdims=keepdim))

    def argmin(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """Where the smallest element is, in the flattened Tensor or along `dim`."""
        return wrap(np.argmin(self._data, axis=dim, keepdims=keepdim))

    # ----------------------------------------------------------------------------------------- shape

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape, in the same memory where that can be; one size may be -1."""
        own = self._data.shape
        return self._result(
            "reshape", self._data.reshape(_rules.sizes(shape)), lambda: lambda dy: dy.reshape(own)
        )

    def permute(self, *dims: Any) -> Tensor:
        """The dimensions in another order."""
        axes = _rules.sizes(dims)
        back = tuple(np.argsort([axis % self.ndim for axis in axes]))
        return self._result("permute", self._data.transpose(axes), lambda: lambda dy: dy.transpose(back))

    def __getitem__(self, key: Any) -> Tensor:
        key = _plain_index(key)
        shape, dtype = self._data.shape, self._data.dtype

        def scatter(dy: Any) -> Array:
            g = np.zeros(shape, dtype)
            if _rules.picks_once(key):
                g[key] = dy
            else:
                np.add.at(g, key, dy)
            return g

        return self._result("getitem", self._data[key], lambda: scatter)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check_writable(value)
        self._data[_plain_index(key)] = _operand(value)


_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "divide": divide,
    "power": power,
    "matmul": matmul,
    "negative": Tensor.__neg__,
    "absolute": Tensor.abs,
    "square": Tensor.square,
    "exp": Tensor.exp,
    "log": Tensor.log,
    "sqrt": Tensor.sqrt,
    "tanh": Tensor.tanh,
    "equal": Tensor.__eq__,
    "not_equal": Tensor.__ne__,
    "less": Tensor.__lt__,
    "less_equal": Tensor.__le__,
    "greater": Tensor.__gt__,
    "greater_equal": Tensor.__ge__,
}
