"""The native products and linear layers over device arrays, called as they are: values against the CPU's, refusals.

"host" runs them over host memory, where cuBLASLt is a stand-in of plain loops.
"""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastopt import _core, _device
from gpu_tools import assert_as_accurate as assert_as_accurate_as_float32
from gpu_tools import assert_same_bits, cp, drawn, kind

__all__ = ["cp", "kind"]

M, N, K = 33, 40, 65
PARAMS: dict[str, tuple[float, ...]] = {
    "": (),
    "relu": (),
    "gelu": (),
    "gelu_tanh": (),
    "tanh": (),
    "elu": (0.5,),
}


@pytest.fixture(scope="module")
def native(cp: Any) -> Any:
    return importlib.import_module("fastopt._cuda")


def assert_as_accurate(device: Any, host: np.ndarray, exact: np.ndarray, what: str = "") -> None:
    """As the CPU is; in float64, where nothing is more exact, within rounding errors of its sums of up to 65 terms."""
    if host.dtype != np.float64:
        assert_as_accurate_as_float32(device, host, exact, what)
        return
    error = np.abs(device.get() - host).max(initial=0.0)
    assert error <= 64 * 2.0**-52 * max(1.0, np.abs(host).max(initial=0.0)), what


def stream(cp: Any) -> int:
    return int(cp.cuda.get_current_stream().ptr)


def same_layout(cp: Any, a: np.ndarray) -> Any:
    """`a` on the device, by columns where it lies so."""
    return cp.asarray(a) if a.flags.c_contiguous else cp.asarray(np.ascontiguousarray(a.T)).T


class Layer:
    """The arrays of a layer on the host, in a dtype and exactly."""

    def __init__(self, dtype: str, x_by_columns: bool = False, w_by_columns: bool = False) -> None:
        order = {False: "C", True: "F"}
        self.x = np.asarray(drawn((M, K), dtype, 1), order=order[x_by_columns])
        self.w = np.asarray(drawn((N, K), dtype, 2), order=order[w_by_columns])
        self.b, self.residual, self.dy = drawn(N, dtype, 3), drawn((M, N), dtype, 4), drawn((M, N), dtype, 5)
        self.dtype = self.x.dtype

    def wide(self) -> Layer:
        """The same numbers in float64, or in float32 where they have half the bits of that."""
        copy = object.__new__(Layer)
        for name, a in vars(self).items():
            setattr(copy, name, a.astype(np.float64) if isinstance(a, np.ndarray) else np.dtype(np.float64))
        return copy


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.full(shape, np.nan, dtype)


def forward(layer: Layer, name: str, p: float, scale: float, precision: Any = False) -> dict[str, np.ndarray]:
    out = {part: empty((M, N), layer.dtype) for part in ("z", "y", "out")}
    arrays = (layer.x, layer.w, layer.b, name, PARAMS[name], p, 5, 7, layer.residual, scale)
    _core.linear(*arrays, out["z"], out["y"], out["out"], precision)
    return out


def forward_on_device(
    native: Any, cp: Any, layer: Layer, name: str, p: float, scale: float, precision: Any = None
) -> dict[str, Any]:
    out = {part: cp.asarray(empty((M, N), layer.dtype)) for part in ("z", "y", "out")}
    x, w = same_layout(cp, layer.x), same_layout(cp, layer.w)
    b, residual = cp.asarray(layer.b), cp.asarray(layer.residual)
    arrays = (x, w, b, name, PARAMS[name], p, 5, 7, residual, scale)
    native.linear(*arrays, out["z"], out["y"], out["out"], precision, stream(cp))
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PARAMS)
def test_linear(native: Any, cp: Any, name: str, dtype: str) -> None:
    for (x_by_columns, w_by_columns), p in itertools.product(
        itertools.product([False, True], repeat=2), [0.0, 0.25, 1.0]
    ):
        layer = Layer(dtype, x_by_columns, w_by_columns)
        exact, host = forward(layer.wide(), name, p, 0.5), forward(layer, name, p, 0.5)
        ours = forward_on_device(native, cp, layer, name, p, 0.5)
        for part in exact:
            assert_as_accurate(ours[part], host[part], exact[part], part)
        if p == 1.0:
            assert_same_bits(ours["out"], layer.residual)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", PARAMS)
def test_linear_of_half_precision(native: Any, cp: Any, name: str, dtype: str) -> None:
    layer = Layer(dtype)
    exact = forward(layer.wide(), name, 0.25, 0.5)
    ours = forward_on_device(native, cp, layer, name, 0.25, 0.5)
    for part in exact:
        rounded = exact[part].astype(layer.dtype)
        product = np.abs(exact["z"]).max() * 2.0 ** (-8 if dtype == "bfloat16" else -11)
        error = np.abs(ours[part].get().astype(np.float64) - exact[part]).max()
        # The product is rounded before the rest follows, as by any library that does one thing after another.
        assert error <= 2 * (np.abs(rounded.astype(np.float64) - exact[part]).max() + product), part


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 10), ("bf16", 7), ("f16", 10)])
def test_precision(native: Any, cp: Any, precision: str, bits: int) -> None:
    layer = Layer("float32")
    exact = forward(layer.wide(), "gelu", 0.0, 0.5)
    ours = forward_on_device(native, cp, layer, "gelu", 0.0, 0.5, precision)
    error = np.abs(ours["z"].get() - exact["z"]).max()
    terms = np.abs(layer.x).astype(np.float64) @ np.abs(layer.w).T.astype(np.float64)
    assert 0 < error <= 2.0**-bits * terms.max()


def backward_arrays(layer: Layer, name: str) -> tuple[np.ndarray, np.ndarray]:
    z, y = empty((M, N), layer.dtype), empty((M, N), layer.dtype)
    _core.linear(
        layer.x,
        layer.w,
        layer.b,
        name,
        PARAMS[name],
        0.0,
        0,
        0,
        None,
        1.0,
        z,
        y,
        empty((M, N), layer.dtype),
        False,
    )
    return z, y


def backward(
    layer: Layer, z: np.ndarray, y: np.ndarray, name: str, p: float, add: bool
) -> dict[str, np.ndarray]:
    grads = {"dz": empty((M, N), layer.dtype), "dx": empty((M, K), layer.dtype)}
    grads |= {"dw": np.ones((N, K), layer.dtype), "db": np.ones(N, layer.dtype)}
    _core.linear_backward(
        layer.dy, layer.x, layer.w, name, PARAMS[name], z, y, p, 5, 7, 0.5, *grads.values(), add, False
    )
    return grads


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PARAMS)
def test_linear_backward(native: Any, cp: Any, name: str, dtype: str) -> None:
    layer = Layer(dtype)
    z, y = backward_arrays(layer, name)
    for p, add, by_columns in itertools.product([0.0, 0.25, 1.0], [False, True], [False, True]):
        exact = backward(layer.wide(), z.astype(np.float64), y.astype(np.float64), name, p, add)
        host = backward(layer, z, y, name, p, add)
        ours = {part: cp.asarray(np.ones_like(a)) for part, a in host.items()}
        if by_columns:
            ours |= {part: cp.asarray(np.ones_like(host[part].T)).T for part in ("dx", "dw")}
        arrays = [cp.asarray(a) for a in (layer.dy, layer.x, layer.w)]
        kept = (cp.asarray(z), cp.asarray(y))
        native.linear_backward(
            *arrays, name, PARAMS[name], *kept, p, 5, 7, 0.5, *ours.values(), add, None, stream(cp)
        )
        for part in exact:
            assert_as_accurate(ours[part], host[part], exact[part], part)


def test_linear_backward_of_parts(native: Any, cp: Any) -> None:
    layer = Layer("float32")
    dy, x, w = (cp.asarray(a) for a in (layer.dy, layer.x, layer.w))
    db, dz = cp.asarray(np.ones(N, np.float32)), None
    rest = (0.0, 0, 0, 1.0)
    native.linear_backward(
        dy, None, None, "", (), None, None, *rest, dz, None, None, db, False, None, stream(cp)
    )
    assert_as_accurate(db, layer.dy.sum(0), layer.dy.astype(np.float64).sum(0), "db")
    dx = cp.asarray(empty((M, K), np.float32))
    native.linear_backward(
        dy, None, w, "", (), None, None, *rest, dz, dx, None, None, False, None, stream(cp)
    )
    wide = layer.wide()
    assert_as_accurate(dx, layer.dy @ layer.w, wide.dy @ wide.w, "dx")
    before = cp.asarray(layer.dy)
    native.linear_backward(
        before,
        None,
        None,
        "relu",
        (),
        None,
        cp.asarray(layer.residual),
        *rest,
        before,
        None,
        None,
        None,
        False,
        None,
        stream(cp),
    )
    assert_same_bits(before, np.where(layer.residual > 0, layer.dy, np.float32(0)))
    del x


@pytest.mark.parametrize("name", ["", "relu", "gelu_tanh"])
def test_linear_dx(native: Any, cp: Any, name: str) -> None:
    layer = Layer("float32")
    wide, kept = layer.wide(), drawn((M, K), "float32", 9)

    def run(function: Any, arrays: list[Any], out: Any, *last: Any) -> Any:
        dy, w, x = arrays
        function(dy, w, name, PARAMS[name], x, x, 0.25, 3, 4, out, *last)
        return out

    exact = run(_core.linear_dx, [wide.dy, wide.w, kept.astype(np.float64)], empty((M, K), np.float64), False)
    host = run(_core.linear_dx, [layer.dy, layer.w, kept], empty((M, K), np.float32), False)
    device = [cp.asarray(a) for a in (layer.dy, layer.w, kept)]
    ours = run(native.linear_dx, device, cp.asarray(empty((M, K), np.float32)), None, stream(cp))
    assert_as_accurate(ours, host, exact, "dx")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matmul(native: Any, cp: Any, dtype: str) -> None:
    for lead, beta in itertools.product([(), (3,), (2, 2)], [0.0, 2.0]):
        x, y, before = (
            drawn((*lead, 7, 12), dtype, 1),
            drawn((*lead, 12, 5), dtype, 2),
            drawn((*lead, 7, 5), dtype, 3),
        )
        exact = x.astype(np.float64) @ y.astype(np.float64) + beta * before.astype(np.float64)
        ours = cp.asarray(before)
        native.matmul(cp.asarray(x), cp.asarray(y), ours, None, stream(cp), beta)
        assert_as_accurate(ours, (x @ y + x.dtype.type(beta) * before), exact)
    x, y = drawn((7, 12), dtype, 1), drawn((5, 12), dtype, 2)
    turned = cp.asarray(empty((5, 7), dtype)).T
    native.matmul(cp.asarray(x), cp.asarray(y).T, turned, None, stream(cp))
    assert_as_accurate(turned, x @ y.T, x.astype(np.float64) @ y.T.astype(np.float64))


def test_refusals(native: Any, cp: Any) -> None:
    x, w = cp.asarray(drawn((4, 6), "float32", 1)), cp.asarray(drawn((5, 6), "float32", 2))
    out = cp.asarray(np.ones((4, 5), np.float32))

    def linear(*, x: Any = x, w: Any = w, out: Any = out, bias: Any = None, precision: Any = None) -> None:
        native.linear(x, w, bias, "relu", (), 0.0, 0, 0, None, 1.0, None, None, out, precision, stream(cp))

    def refused(error: type[Exception], message: str, **arguments: Any) -> None:
        with pytest.raises(error) as raised:
            linear(**arguments)
        assert str(raised.value) == message
        assert (out.get() == 1).all()

    wide = cp.asarray(drawn((4, 6), "float64", 1))
    refused(TypeError, "linear: weight is float32, input is float64", x=wide)
    refused(ValueError, "linear: input has shape (4, 5), weight has shape (5, 6)", x=x[:, :5])
    refused(ValueError, "linear: bias has shape (4,), expected (5,)", bias=out[:, 0].copy())
    refused(ValueError, "linear: out has shape (3, 5), expected (4, 5)", out=out[:3])
    refused(
        ValueError,
        "linear: input has no rows or columns of adjacent elements; pass a copy",
        x=cp.asarray(drawn((4, 12), "float32", 1))[:, ::2],
    )
    refused(
        ValueError,
        "linear: out has no rows of adjacent elements",
        out=cp.asarray(np.ones((5, 4), np.float32)).T,
    )
    refused(ValueError, "linear: precision is 'fp8', expected one of ieee, tf32, bf16, f16", precision="fp8")
    square = cp.asarray(np.ones((6, 6), np.float32))
    refused(
        ValueError,
        "linear: out overlaps weight in memory; pass a copy",
        x=x[:4],
        w=square[:6],
        out=square[:4],
    )
    with pytest.raises(ValueError, match="linear: input is float64, a product in bfloat16 takes float32"):
        linear(
            x=wide,
            w=cp.asarray(drawn((5, 6), "float64", 2)),
            out=cp.asarray(np.ones((4, 5))),
            precision="bf16",
        )
    with pytest.raises(TypeError, match="expected an array on a CUDA device"):
        linear(x=np.ones((4, 6), np.float32))


def test_where_cublaslt_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name / "nvidia" for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
        monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(importlib.import_module("sys").modules, "nvidia", raising=False)
    assert _device.cublaslt_path() is None
    for file in ("cublas/lib/libcublasLt.so.12", "cu13/lib/libcublasLt.so.13"):
        path = folders[0] / file
        path.parent.mkdir(parents=True)
        path.touch()
        assert _device.cublaslt_path() == str(path)
