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

from fastopt import _ops, _products, _rules
from fastopt._arrays import as_view, assign
from fastopt._device import as_data, moved, wanted_device
from fastopt._dtypes import DEFAULT_FLOAT, dtype_of, float64, is_floating
from fastopt._formulas import activation_needs
from fastopt._methods import Methods
from fastopt._numeric import Numeric
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
    if type(x) is np.ndarray and x.dtype.kind == "f":
        return x
    if isinstance(x, np.generic):
        x = np.asarray(x)
    if isinstance(x, (list, tuple, range, int, float)):
        first: Any = x
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        try:
            a = np.array(x)
        except ValueError as error:  # lists of unequal length
            raise ValueError(f"{name}: {error}") from error
        if a.dtype == float64 and not isinstance(first, (np.ndarray, np.generic, Tensor)):
            return a.astype(DEFAULT_FLOAT)
    else:
        a = as_view(x, name)
    if a.dtype.kind not in "biuf" and not is_floating(a.dtype):
        raise TypeError(f"{name} is {a.dtype}, expected real numbers")
    return a


def to_out(x: Any, name: str = "out") -> Array | None:
    """Return the ndarray to write a result into, sharing the memory of the array or Tensor `x`."""
    return x if x is None else x._data if isinstance(x, Tensor) else as_view(x, name)


def wrap(data: Any, node: Node | None = None) -> Tensor:
    """Return a Tensor of `data` (an array or NumPy scalar) without the checks of the constructor."""
    t = Tensor.__new__(Tensor)
    t._data = data if data.__class__ is np.ndarray else as_data(data)
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
    return v if isinstance(v, (np.ndarray, int)) else as_data(to_array(v, "operand"))


class Binary:
    """An operation on two operands, and what makes their gradient functions from operands and result."""

    def __init__(
        self, name: str, op: Callable[[Any, Any], Any], left: _rules.Rule, right: _rules.Rule, doc: str = ""
    ) -> None:
        self.name, self.op, self.left, self.right = name, op, left, right
        self.__doc__ = doc or None

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
matmul = Binary(
    "matmul",
    _products.matmul,
    _rules.matmul_left,
    _rules.matmul_right,
    "The product ``x @ y`` of two Tensors or arrays by numpy.matmul's rules: vectors, matrices and stacks of them.",
)


def _compare(op: Callable[[Any, Any], Any], x: Tensor, y: Any) -> Tensor:
    a, b = _rules.meet(x._data, _operand(y))
    return wrap(op(a, b))


def _unrecorded(op: Callable[[Any, Any], Any], x: Tensor, y: Any) -> Tensor:
    """What `_compare` does, for operations whose result would hide that a gradient is lost."""
    if needs_grad(x) or needs_grad(y):
        raise RuntimeError(f"{op.__name__} of a Tensor that requires grad is not recorded: detach() it")
    return _compare(op, x, y)


# ------------------------------------------------------------------------------------------ unary helpers


def activate(x: Tensor, name: str, params: tuple[float, ...] = ()) -> Tensor:
    """Apply the activation `name` of `_ops` to `x`."""
    a = as_float(x._data)
    y = _ops.activation(name, a, params)
    if not needs_grad(x):
        return wrap(y)
    needs_x, needs_y = activation_needs(name)
    keep_x, keep_y = a if needs_x else None, y if needs_y else None
    return record(name, y, (x,), lambda dy: _ops.activation_grad(name, dy, keep_x, keep_y, params))


def _plain_index(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple([k._data if isinstance(k, Tensor) else k for k in key])
    return key._data if isinstance(key, Tensor) else key


class Extreme(NamedTuple):
    """What `Tensor.max` and `Tensor.min` along a dimension return."""

    values: Tensor
    indices: Tensor


# ------------------------------------------------------------------------------------------------- Tensor


class Tensor(Numeric, Methods):
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
    `data` is the array itself, CuPy's on a GPU, and `grad` None or a Tensor without a graph. In-place
    operators work under `no_grad` and on Tensors that are not recorded. The tape keeps the arrays that a
    gradient needs: do not write into them between the forward pass and `backward`.
    """

    __slots__ = ("__weakref__", "_data", "_grad", "_node", "_requires_grad")
    __hash__ = object.__hash__

    _data: Array
    _grad: Tensor | None
    _node: Node | None
    _requires_grad: bool

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        a = to_array(data, "data")
        self._data = as_float(a) if isinstance(data, (list, tuple, int, float)) else as_data(a)
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
            assign(self._data, a)
        else:
            self._data = as_data(a)

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
        if not isinstance(requires_grad, (bool, np.bool_)):
            raise TypeError(f"requires_grad: expected True or False, got {requires_grad!r}")
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
            g = np.ones_like(self._data)
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
                g = g.astype(self._data.dtype, order="C")
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
        """Return the Tensor in another dtype or on another device (``"cpu"``, ``"cuda"``), itself where it is so."""
        place = wanted_device(dtype)
        if place is not None:
            y, here = moved(self._data, place), self.device
            return self if y is self._data else self._result("to", y, lambda: lambda dy: moved(dy, here))
        own = self._data.dtype
        wanted = dtype_of(dtype.dtype if isinstance(dtype, Tensor) else dtype)
        if wanted == own:
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

    def __and__(self, other: Any) -> Tensor:
        return _unrecorded(operator.and_, self, other)

    def __or__(self, other: Any) -> Tensor:
        return _unrecorded(operator.or_, self, other)

    def __xor__(self, other: Any) -> Tensor:
        return _unrecorded(operator.xor, self, other)

    def __mod__(self, other: Any) -> Tensor:
        return _unrecorded(operator.mod, self, other)

    def __floordiv__(self, other: Any) -> Tensor:
        return _unrecorded(operator.floordiv, self, other)

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

    def relu(self) -> Tensor:
        return activate(self, "relu")

    def sigmoid(self) -> Tensor:
        return activate(self, "sigmoid")

    def tanh(self) -> Tensor:
        return activate(self, "tanh")

    def softmax(self, dim: int = -1) -> Tensor:
        """exp(x) over its sum along `dim`, computed without overflow."""
        y = _ops.softmax(as_float(self._data), dim)
        return self._result("softmax", y, lambda: lambda dy: _ops.softmax_grad(dy, y, dim))

    def log_softmax(self, dim: int = -1) -> Tensor:
        """The logarithm of `softmax`, computed without overflow."""
        y = _ops.log_softmax(as_float(self._data), dim)
        return self._result("log_softmax", y, lambda: lambda dy: _ops.log_softmax_grad(dy, y, dim))

    # ------------------------------------------------------------------------------------ reductions

    def max(self, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None) -> Any:
        """The largest element, or along `dim` the pair (values, indices)."""
        return self._extreme("max", dim if axis is None else axis, keepdim)

    def min(self, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None) -> Any:
        """The smallest element, or along `dim` the pair (values, indices)."""
        return self._extreme("min", dim if axis is None else axis, keepdim)

    def _extreme(self, name: str, dim: int | None, keepdim: bool) -> Tensor | Extreme:
        if dim is None:
            y, fn = _rules.extreme(name, self._data)
            return self._result(name, y, lambda: fn)
        if not isinstance(dim, (int, np.integer)):
            raise TypeError(f"{name}: dim must be an int, got {type(dim).__name__}; {name}imum compares two")
        y, indices, fn = _rules.extreme_along(name, self._data, dim, keepdim)
        return Extreme(self._result(name, y, lambda: fn), wrap(indices))

    def argmax(self, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None) -> Tensor:
        """Where the largest element is, in the flattened Tensor or along `dim`."""
        return wrap(np.argmax(self._data, axis=dim if axis is None else axis, keepdims=keepdim))

    def argmin(self, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None) -> Tensor:
        """Where the smallest element is, in the flattened Tensor or along `dim`."""
        return wrap(np.argmin(self._data, axis=dim if axis is None else axis, keepdims=keepdim))

    def any(self, dim: _rules.Dim = None, keepdim: bool = False) -> Tensor:
        """Whether an element is not 0, of all or along `dim`."""
        return wrap(self._data.any(axis=dim, keepdims=keepdim))

    def all(self, dim: _rules.Dim = None, keepdim: bool = False) -> Tensor:
        """Whether no element is 0, of all or along `dim`."""
        return wrap(self._data.all(axis=dim, keepdims=keepdim))

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

        part = self._data[key]
        if isinstance(part, np.generic):  # of one element too a view, that writing reaches this Tensor
            part = self._data[(*key, ...) if isinstance(key, tuple) else (key, ...)]
        return self._result("getitem", part, lambda: lambda dy: _rules.scatter(dy, key, shape, dtype))

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
    "sin": Tensor.sin,
    "cos": Tensor.cos,
    "tanh": Tensor.tanh,
    "bitwise_and": Tensor.__and__,
    "bitwise_or": Tensor.__or__,
    "bitwise_xor": Tensor.__xor__,
    "remainder": Tensor.__mod__,
    "floor_divide": Tensor.__floordiv__,
    "equal": Tensor.__eq__,
    "not_equal": Tensor.__ne__,
    "less": Tensor.__lt__,
    "less_equal": Tensor.__le__,
    "greater": Tensor.__gt__,
    "greater_equal": Tensor.__ge__,
}
