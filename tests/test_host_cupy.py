"""The stand-in for CuPy itself: what it computes, what it refuses, and that its lists are those of a real CuPy."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import pickle
import subprocess
import sys

import numpy as np
import pytest

import host_cupy as cp
from host_cupy import lists

X = np.arange(-6, 6, dtype=np.float32).reshape(3, 4)


def same(ours: object, expected: np.ndarray) -> None:
    assert type(ours) is cp.ndarray
    got = ours.get()
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(got, expected)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in under CuPy's name for one test."""
    for name in ("cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    cp.install()


# -------------------------------------------------------------------------------------------- the array


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_it_is_no_numpy_array_and_does_not_become_one(installed: None) -> None:
    import cupy

    x = cupy.asarray(X)
    assert type(x).__module__ == "cupy"
    assert not isinstance(x, np.ndarray)
    for convert in (np.asarray, np.array, np.ascontiguousarray, lambda x: np.asarray(x, np.float64)):
        with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
            convert(x)
    with pytest.raises(TypeError):
        memoryview(x)
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)
    same(pickle.loads(pickle.dumps(x)), X)


def test_properties() -> None:
    x = cp.asarray(X)
    assert (x.shape, x.dtype, x.ndim, x.size) == ((3, 4), np.float32, 2, 12)
    assert (x.itemsize, x.nbytes, x.strides) == (4, 48, (16, 4))
    assert (x.device.id, x.data.ptr) == (0, x._a.ctypes.data)
    assert x.flags.c_contiguous
    assert not x.flags.f_contiguous
    assert x.T.flags.f_contiguous
    assert x.flags["OWNDATA"]
    assert not x.T.flags.owndata
    assert not hasattr(x.flags, "writeable")
    assert not hasattr(x.flags, "aligned")
    with pytest.raises(KeyError, match="WRITEABLE is not defined"):
        x.flags["WRITEABLE"]


def test_cuda_array_interface() -> None:
    x = cp.asarray(X)
    given = x.__cuda_array_interface__
    assert given == {
        "shape": (3, 4), "typestr": "<f4", "descr": [("", "<f4")], "stream": 1, "version": 3, "strides": None,
        "data": (x.data.ptr, False),
    }  # fmt: skip
    assert x.T.__cuda_array_interface__["strides"] == (4, 16)
    assert cp.zeros((0, 3)).__cuda_array_interface__["data"] == (0, False)
    with cp.cuda.Stream() as stream:
        assert x.__cuda_array_interface__["stream"] == stream.ptr != 0

    class Other:
        __cuda_array_interface__ = x[1:, ::2].__cuda_array_interface__

    view = cp.asarray(Other())
    same(view, X[1:, ::2])
    view[...] = 7
    same(x[1:, ::2], np.full((2, 2), 7, np.float32))


def test_memory_is_shared_by_views_and_by_no_copy() -> None:
    host = X.copy()
    x = cp.asarray(host)
    x[0, 0] = 99
    assert host[0, 0] == -6
    for view in (x.T, x[1], x[0, 0], x.reshape(4, 3), x.ravel(), x.view(np.int32), x[None], x.squeeze()):
        assert cp.may_share_memory(view, x)
    for made in (
        x.copy(),
        copy.copy(x),
        copy.deepcopy(x),
        x.astype(np.float32),
        x + 0,
        x[[0, 1]],
        x.flatten(),
    ):
        assert not cp.may_share_memory(made, x)
    assert x.astype(np.float32, copy=False) is x
    assert cp.asarray(x) is x
    assert cp.ascontiguousarray(x) is x
    x[0, 0][...] = 5
    assert x[0, 0].item() == 5


def test_host_and_back() -> None:
    x = cp.asarray(X.T)
    same(x, X.T)
    for order, flag in (("C", "C_CONTIGUOUS"), ("F", "F_CONTIGUOUS"), ("A", "F_CONTIGUOUS")):
        assert x.get(order=order).flags[flag]
    out = np.empty_like(X.T)
    assert x.get(out=out) is out
    np.testing.assert_array_equal(out, X.T)
    np.testing.assert_array_equal(cp.asnumpy(x), X.T)
    np.testing.assert_array_equal(cp.asnumpy([1, 2]), [1, 2])
    y = cp.empty((3, 4), np.float32)
    assert np.isnan(y.get()).all()  # no test gets by with zeros
    y.set(X)
    same(y, X)
    with pytest.raises(TypeError, match="float64 array cannot be set to float32 array"):
        y.set(X.astype(np.float64))
    with pytest.raises(ValueError, match="Shape mismatch"):
        y.set(X.T)
    with pytest.raises(RuntimeError, match="non-contiguous"):
        y[:, ::2].set(X[:, ::2])
    assert x.tolist() == X.T.tolist()
    assert cp.asarray(3.5).item() == 3.5
    with pytest.raises(ValueError, match="array of size 1"):
        x.item()


def test_numbers_of_one_element() -> None:
    x = cp.asarray(np.float32(2.5))
    assert (float(x), int(x), bool(x), complex(x), f"{x:.2f}") == (2.5, 2, True, 2.5, "2.50")
    with pytest.raises(ValueError, match="ambiguous"):
        bool(cp.ones(2))
    with pytest.raises(TypeError, match="0-d array"):
        iter(x)
    with pytest.raises(TypeError, match="unsized"):
        len(x)
    assert [row.tolist() for row in cp.asarray(X)] == X.tolist()
    assert len(cp.asarray(X)) == 3


# --------------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize(
    "name", ["sum", "prod", "max", "min", "mean", "std", "var", "argmax", "argmin", "any", "all"]
)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_reductions_return_arrays(name: str, axis: int | None) -> None:
    expected = np.asarray(getattr(X, name)(axis=axis))
    same(getattr(cp.asarray(X), name)(axis), expected)
    same(getattr(cp, name)(cp.asarray(X), axis=axis), expected)
    same(getattr(np, name)(cp.asarray(X), axis=axis), expected)
    out = cp.empty(expected.shape, expected.dtype)
    assert getattr(cp.asarray(X), name)(axis, out=out) is out
    same(out, expected)


def test_reductions_refuse_what_cupy_does_not_have() -> None:
    for name in ("sum", "max", "mean"):
        with pytest.raises(TypeError, match="where"):
            getattr(np, name)(cp.asarray(X), where=cp.asarray(X > 0))
        with pytest.raises(TypeError, match="where"):
            getattr(cp.asarray(X), name)(where=cp.asarray(X > 0))


@pytest.mark.parametrize(
    "name", ["add", "subtract", "multiply", "true_divide", "power", "maximum", "less", "equal"]
)
def test_ufuncs_promote_as_numpy_does(name: str) -> None:
    ufunc, x = getattr(np, name), cp.asarray(X)
    with np.errstate(all="ignore"):
        for other in (2, 2.5, True, np.float32(3), np.float64(3), np.int8(3)):
            same(ufunc(x, other), ufunc(X, other))
            same(getattr(cp, name)(other, x), ufunc(other, X))
        same(ufunc(x, x[0]), ufunc(X, X[0]))
        same(ufunc(x, cp.asarray(np.float64(2))), ufunc(X, np.asarray(np.float64(2))))
    out = cp.empty(X.shape, ufunc(X, 1).dtype)
    assert ufunc(x, x, out=out) is out
    for args in ((x, X), (X, x), (x, np.asarray(X[0, 0]))):
        if name in ("less", "equal") and args[1].ndim == 0:
            continue
        with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy\.ndarray'>"):
            ufunc(*args)


def test_operators() -> None:
    x = cp.asarray(X)
    same(1 - x, 1 - X)
    same(x**2 + np.float32(1), X**2 + np.float32(1))
    same(x @ x.T, X @ X.T)
    same((x > 0) & ~(x == 3), (X > 0) & ~(X == 3))
    same(-abs(x) // 2 % 3, -abs(X) // 2 % 3)
    y = x.copy()
    y += 1
    y *= x
    same(y, (X + 1) * X)
    for host in (X, [1, 2, 3, 4]):
        with pytest.raises(TypeError):
            x + host
        with pytest.raises(TypeError):
            host * x
    with pytest.raises(TypeError):
        y += X
    with pytest.raises(TypeError, match="same_kind"):
        cp.arange(3).__iadd__(0.5)
    assert not (x == None).any()  # noqa: E711
    assert (x != None).all()  # noqa: E711


def test_ufuncs_have_the_keywords_and_methods_of_cupy() -> None:
    x = cp.asarray(X)
    with pytest.raises(TypeError, match="Wrong arguments"):
        np.add(x, 1, where=x > 0)
    same(np.add.reduce(x), X.sum(0))
    with pytest.raises(NotImplementedError, match=r"maximum\.reduce"):
        np.maximum.reduce(x)
    target = cp.zeros(3, np.float32)
    np.add.at(target, cp.asarray([0, 2, 2]), 1.0)
    same(target, np.array([1, 0, 2], np.float32))
    with pytest.raises(TypeError):  # a tuple of indices is no array to it
        np.add.at(cp.zeros((2, 2)), (cp.asarray([0]), cp.asarray([1])), 1.0)
    with pytest.raises(TypeError, match="only supports"):
        np.add.at(cp.zeros(3, np.int64), cp.asarray([0]), 1)
    with pytest.raises(TypeError):
        np.spacing(x)


def test_arithmetic_gives_no_warnings() -> None:
    zero = cp.zeros(2, np.float32)
    assert np.isnan((zero / zero).get()).all()
    assert np.isneginf(np.log(zero).get()).all()
    assert np.isnan(cp.zeros(0).mean().get())
    assert cp.full(1, 3e38, np.float32).astype(np.float16).item() == np.inf


def test_functions_of_numpy() -> None:
    x = cp.asarray(X)
    same(np.where(x > 0, x, 0.0), np.where(X > 0, X, 0.0))
    same(np.concatenate([x, x], axis=1), np.concatenate([X, X], axis=1))
    same(np.moveaxis(x, 0, 1), X.T)
    same(np.broadcast_to(x[0], (2, 4)), np.broadcast_to(X[0], (2, 4)))
    same(np.zeros_like(x), np.zeros_like(X))
    same(np.split(x, np.array([1, 3]), axis=1)[1], X[:, 1:3])
    same(
        np.take_along_axis(x, cp.asarray([[1], [0], [2]]), 1),
        np.take_along_axis(X, np.array([[1], [0], [2]]), 1),
    )
    same(np.linalg.norm(x), np.asarray(np.linalg.norm(X)))
    same(np.array_equal(x, x), np.asarray(True))
    same(np.count_nonzero(x), np.asarray(11))
    assert (np.shape(x), np.ndim(x), np.size(x)) == ((3, 4), 2, 12)
    q, r = np.linalg.qr(x)
    np.testing.assert_allclose((q @ r).get(), X, atol=1e-5)
    with pytest.raises(TypeError, match="Unsupported type"):
        np.concatenate([x, X])
    for function in (np.spacing, np.i0, np.linalg.cond):
        with pytest.raises(TypeError):
            function(x)


def test_copyto() -> None:
    x = cp.zeros((2, 3), np.float32)
    cp.copyto(x, cp.asarray([1.0, 2.0, 3.0], np.float32))
    np.copyto(x, 5, where=x > 2)
    same(x, np.array([[1, 2, 5]] * 2, np.float32))
    cp.copyto(x, np.float32(4))
    cp.copyto(x, np.array([4.0], np.float32))
    same(x, np.full((2, 3), 4, np.float32))
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for copyto"):
        cp.copyto(x, X[:2, :3])
    with pytest.raises(TypeError, match="Cannot cast"):
        cp.copyto(cp.zeros(2, np.int32), cp.zeros(2))


def test_indexing() -> None:
    x = cp.asarray(X)
    for key in (
        1,
        -1,
        (1, 2),
        (slice(None), 1),
        (..., 0),
        None,
        [0, 2],
        ([0, 1], [2, 3]),
        (slice(1, 3), [0, 3]),
    ):
        same(x[key], np.asarray(X[key]))
    same(x[x > 0], X[X > 0])
    same(x[np.array([0, 2])], X[[0, 2]])
    same(x[cp.asarray([0, 1, 2]), cp.asarray([3, 2, 1])], X[[0, 1, 2], [3, 2, 1]])
    same(x[[3, 4]], X[[0, 1]])  # beyond the end, no error
    with pytest.raises(IndexError):
        x[3]
    with pytest.raises(IndexError):
        x[1, 2, 3]


def test_assignment() -> None:
    x, expected = cp.asarray(X), X.copy()
    for key, value in ((0, 1.5), ((1, 2), np.float64(7)), ((slice(None), 0), cp.arange(3)), ([0, 2], 3)):
        x[key] = value
        expected[key] = value.get() if isinstance(value, cp.ndarray) else value
    x[x > 6] = 0
    expected[expected > 6] = 0
    same(x, expected)
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
        x[0] = X[0]
    with pytest.raises(ValueError, match="non-scalar"):
        x[...] = X
    same(x, expected)


# ------------------------------------------------------------------------------------ creation, dtypes


def test_creation() -> None:
    same(cp.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]]))
    same(cp.array([cp.asarray(1.0), cp.asarray(2.0)]), np.array([1.0, 2.0]))
    same(cp.arange(2, 8, 3, dtype=np.int32), np.arange(2, 8, 3, dtype=np.int32))
    same(cp.full((2,), 3.0, cp.float16), np.full((2,), 3.0, np.float16))
    same(cp.ones((2, 1), cp.bool_), np.ones((2, 1), np.bool_))
    same(cp.eye(2, dtype=cp.float32), np.eye(2, dtype=np.float32))
    assert cp.zeros((2, 3), order="F").flags.f_contiguous
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        cp.asarray(X, copy=False)
    for refused in (np.array(["a"]), np.array([object()])):
        with pytest.raises(ValueError, match="Unsupported dtype"):
            cp.asarray(refused)
    with pytest.raises(TypeError):
        cp.zeros(2, device="cuda")


def test_bfloat16() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = cp.asarray(X.astype(bfloat16))
    same(x.astype(np.float32), X)
    same(x + x, (X + X).astype(bfloat16))
    assert cp.empty(3, bfloat16).dtype == bfloat16


# -------------------------------------------------------------------------------------- DLPack, streams


def test_dlpack() -> None:
    x = cp.asarray(X)
    assert x.__dlpack_device__() == (2, 0)
    y = cp.from_dlpack(x)
    y[0, 0] = 42
    assert x[0, 0].item() == 42
    same(cp.from_dlpack(x.T), x.get().T)
    with pytest.raises((BufferError, RuntimeError, ValueError)):
        np.from_dlpack(x)
    on_host = np.from_dlpack(x, device="cpu")
    on_host = on_host if on_host.flags.writeable else on_host.copy()
    on_host[0, 0] = 1
    assert x[0, 0].item() == 42
    with pytest.raises(TypeError, match="CPU arrays cannot be directly imported"):
        cp.from_dlpack(X)
    with pytest.raises(ValueError, match="valid stream"):
        x.__dlpack__(stream=-3)
    with pytest.raises(BufferError):
        x.__dlpack__(copy=True)


def test_streams_and_devices() -> None:
    cuda = cp.cuda
    assert cuda.is_available()
    assert cuda.runtime.getDeviceCount() == 1
    assert (cuda.Device().id, int(cuda.Device(0))) == (0, 0)
    with pytest.raises(cuda.runtime.CUDARuntimeError, match="invalid device"):
        cuda.Device(1)
    assert cuda.get_current_stream().ptr == 0
    stream, other = cuda.Stream(non_blocking=True), cuda.Stream()
    assert stream.ptr != other.ptr
    with cuda.Device(0), stream:
        assert cuda.get_current_stream() == stream
        with other:
            assert cuda.get_current_stream() == other
        assert cuda.get_current_stream() == cuda.ExternalStream(stream.ptr)
        stream.wait_event(other.record())
        stream.synchronize()
    assert cuda.get_current_stream() == cuda.Stream.null
    try:
        stream.use()
        assert cuda.get_current_stream() == stream
    finally:
        cuda.Stream.null.use()


# ---------------------------------------------------------------------------------------- the real CuPy

_LISTS = """
import inspect, json, sys
import cupy, numpy
def taken(name):
    return list(inspect.signature(getattr(cupy, name)).parameters)
def is_ufunc(name):
    return type(getattr(cupy, name, None)).__name__ in ("ufunc", "_GUFunc")
print(json.dumps({
    "ufuncs": [n for n in sys.argv[1].split() if not is_ufunc(n)],
    "functions": [n for n in sys.argv[2].split() if getattr(cupy, n, None) in (None, getattr(numpy, n))],
    "taken": {n: taken(n) for n in sys.argv[3].split()},
    "methods": [n for n in dir(cupy.ndarray)],
}))
"""


def test_the_lists_are_those_of_a_real_cupy() -> None:
    import json

    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    names = [" ".join(sorted(group)) for group in (lists.UFUNCS, lists.FUNCTIONS, lists.REFUSED)]
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LISTS, *names], capture_output=True, text=True, check=True
    )
    real = json.loads(answer.stdout)
    assert real["ufuncs"] == []
    # Of result types and the like CuPy has NumPy's own functions; they see no elements.
    assert set(real["functions"]) <= {"result_type", "can_cast", "broadcast_shapes", "min_scalar_type"}
    for name, taken in real["taken"].items():
        assert not lists.REFUSED[name] & set(taken), name
    public = [name for name, _ in inspect.getmembers(cp.ndarray) if not name.startswith("_")]
    assert set(public) - {"plain_key", "of_interface"} <= set(real["methods"])
