"""The linear layer: epilogues bit for bit what the kernels one by one give, gradients, work spaces, the tape."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt.functional as F
import reference as ref
from cases import ACTIVATIONS
from fastopt import _formulas, _ops, _products, nn
from fastopt._products import NO_DROPOUT, Dropout
from fastopt._random import manual_seed
from fastopt._tape import no_grad
from fastopt.creation import tensor
from fastopt.tensor import Tensor
from gradients import check_gradients
from test_gemm import CANARY, inside, normal, read_only, spaced

ROWS = [
    pytest.param(name, params, id=f"{name}{list(params)}")
    for name in ACTIVATIONS
    for params in ACTIVATIONS[name]
]
#: Tails of tiles and of the epilogue's blocks of columns; dots along k; several blocks of k.
SHAPES = [
    (1, 1, 1),
    (3, 5, 40),
    (13, 33, 9),
    (17, 65, 20),
    (5, 300, 70),
    (30, 257, 7),
    (26, 31, 600),
    (4, 9, 0),
]
MASK = Dropout(0.3, 2**64 - 1, 2**40 + 5)


def layer(
    rng: np.random.Generator, m: int, n: int, k: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return normal(rng, (m, k), dtype), normal(rng, (n, k), dtype), normal(rng, (n,), dtype)


def nans(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.full(shape, np.nan, dtype)


# ------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize(("name", "params"), ROWS)
def test_epilogue_is_what_the_kernels_give_one_by_one(
    isa: str, dtype: np.dtype, name: str, params: tuple, rng: np.random.Generator
) -> None:
    for m, n, k in SHAPES:
        x, w, b = layer(rng, m, n, k, dtype)
        residual = normal(rng, (m, n), dtype)
        product = _products.gemm(x, w.T)
        z = product + b
        y = _ops.activation(name, z, params)
        dropped = _ops.dropout(y, *MASK)
        kept_z, kept_y = nans((m, n), dtype), nans((m, n), dtype)
        np.testing.assert_array_equal(_products.linear(x, w, b, name, params), y)
        np.testing.assert_array_equal(
            _products.linear(x, w, None, name, params), _ops.activation(name, product, params)
        )
        got = _products.linear(
            x, w, b, name, params, dropout=MASK, residual=residual, residual_scale=0.5,
            kept_input=kept_z, kept_output=kept_y,
        )  # fmt: skip
        np.testing.assert_array_equal(kept_z, z)
        np.testing.assert_array_equal(kept_y, y)
        np.testing.assert_array_equal(got, residual + dtype.type(0.5) * dropped)


@pytest.mark.parametrize(("name", "params"), ROWS)
def test_gradient_epilogue_is_what_the_kernels_give_one_by_one(
    isa: str, dtype: np.dtype, name: str, params: tuple, rng: np.random.Generator
) -> None:
    needs_x, needs_y = _formulas.activation_needs(name)
    for m, k, n in SHAPES:
        dy, w, x = normal(rng, (m, n), dtype), normal(rng, (n, k), dtype), normal(rng, (m, k), dtype)
        y = _ops.activation(name, x, params)
        kept = (x if needs_x else None, y if needs_y else None)
        product = _products.gemm(dy, w)
        want = _ops.activation_grad(name, product, *kept, params)
        np.testing.assert_array_equal(_products.linear_dx(dy, w, name, params, *kept), want)
        want = _ops.activation_grad(name, _ops.dropout(product, *MASK), *kept, params)
        np.testing.assert_array_equal(_products.linear_dx(dy, w, name, params, *kept, dropout=MASK), want)
    with pytest.raises(TypeError, match=f"{name}: the gradient needs [xy], got None"):
        _products.linear_dx(dy, w, name, params)


@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
def test_accuracy_of_a_layer(isa: str, dtype: np.dtype, name: str | None, rng: np.random.Generator) -> None:
    value = ref.ACTIVATIONS[name][0] if name else lambda a, *params: a
    params = ACTIVATIONS[name][0] if name else ()
    for m, n, k in ((5, 33, 40), (40, 65, 300)):
        x, w, b = layer(rng, m, n, k, dtype)
        w /= dtype.type(k**0.5)
        wide = [ref.wide(a) for a in (x, w, b)]
        ref.assert_accurate(
            _products.linear(x, w, b, name, params),
            value(x @ w.T + b, *params),
            value(wide[0] @ wide[1].T + wide[2], *params),
            ulps=8.0,
        )


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_dropout_alone(isa: str, dtype: np.dtype, p: float, rng: np.random.Generator) -> None:
    for m, n, k in SHAPES:
        x, w, b = layer(rng, m, n, k, dtype)
        residual, mask = normal(rng, (m, n), dtype), Dropout(p, 3, 4)
        want = _ops.dropout(_products.linear(x, w, b), *mask)
        np.testing.assert_array_equal(_products.linear(x, w, b, dropout=mask), want)
        got = _products.linear(x, w, b, dropout=mask, residual=residual, residual_scale=2.0)
        np.testing.assert_array_equal(got, residual + 2 * want)
        np.testing.assert_array_equal(
            _products.linear_dx(x, w.T, dropout=mask), _ops.dropout(_products.gemm(x, w.T), *mask)
        )
    spoilt = _products.linear(
        np.full((3, 2), np.nan, dtype), np.ones((40, 2), dtype), dropout=Dropout(1.0, 0, 0)
    )
    assert not spoilt.any()


def test_nothing_to_sum_gives_the_epilogue_of_zeros(isa: str, dtype: np.dtype) -> None:
    b = np.arange(-20, 20).astype(dtype)
    got = _products.linear(np.ones((3, 0), dtype), np.ones((40, 0), dtype), b, "relu")
    np.testing.assert_array_equal(got, np.maximum(np.tile(b, (3, 1)), 0))
    for m, n in ((0, 5), (5, 0), (0, 0)):
        assert _products.linear(np.ones((m, 3), dtype), np.ones((n, 3), dtype), np.ones(n, dtype)).shape == (
            m,
            n,
        )


def test_operands_and_results_of_any_layout(isa: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    for m, n, k in ((1, 20, 40), (13, 35, 17), (30, 66, 70)):
        x, w, b = layer(rng, m, n, k, dtype)
        residual = normal(rng, (m, n), dtype)
        want = np.tanh(ref.wide(x) @ ref.wide(w).T + b) + residual
        tolerance = {"rtol": 0, "atol": 1e-5 if dtype == np.float32 else 1e-13}
        for view in (
            inside,
            lambda a: inside(a, True),
            lambda a: spaced(a, -2, 3),
            lambda a: spaced(a.T, 3, -1).T,
        ):
            for out in (
                None, inside(nans((m, n), dtype), False, CANARY), inside(nans((m, n), dtype), True, CANARY),
                spaced(nans((m, n), dtype), -1, 1), spaced(nans((m, n), dtype), 2, 2),
            ):  # fmt: skip
                got = _products.linear(
                    view(x), view(w), b[::-1].copy()[::-1], "tanh", residual=view(residual), out=out
                )
                np.testing.assert_allclose(got, want, **tolerance)
                if out is not None:
                    assert got is out
                    stray = np.isfinite(out.base) & (out.base != CANARY)
                    assert np.count_nonzero(stray) == out.size


def test_more_axes(dtype: np.dtype, rng: np.random.Generator) -> None:
    x, w, b = normal(rng, (4, 5, 7), dtype), normal(rng, (9, 7), dtype), normal(rng, (9,), dtype)
    want = F.linear(x.reshape(20, 7), w, b, "gelu", dropout=0.5, seed=1, offset=2)
    out = np.empty((4, 5, 9), dtype)
    assert F.linear(x, w, b, "gelu", dropout=0.5, seed=1, offset=2, out=out) is out
    np.testing.assert_array_equal(out.reshape(20, 9), want)
    permuted = np.empty((9, 5, 4), dtype).T
    assert F.linear(x, w, b, "gelu", dropout=0.5, seed=1, offset=2, out=permuted) is permuted
    np.testing.assert_array_equal(permuted, out)
    dy = normal(rng, (4, 5, 9), dtype)
    dx, dw, db = F.linear_backward(dy, x, w)
    flat = F.linear_backward(dy.reshape(20, 9), x.reshape(20, 7), w)
    for got, expected in zip((dx.reshape(20, 7), dw, db), flat, strict=True):
        np.testing.assert_array_equal(got, expected)


# ------------------------------------------------------------------------------------------------ backward


@pytest.mark.parametrize(("name", "params"), [pytest.param(None, (), id="none"), *ROWS])
def test_backward_is_what_the_kernels_give_one_by_one(
    isa: str, dtype: np.dtype, name: str | None, params: tuple, rng: np.random.Generator
) -> None:
    for (m, n, k), mask, scale in itertools.product(
        SHAPES, (NO_DROPOUT, MASK, Dropout(1.0, 1, 2)), (1.0, 0.5)
    ):
        x, w, b = layer(rng, m, n, k, dtype)
        dy = normal(rng, (m, n), dtype)
        z = _products.linear(x, w, b)
        y = _ops.activation(name, z, params) if name else z
        dz = dtype.type(scale) * dy
        if mask.p:
            dz = _ops.dropout(dz, *mask)
        if name:
            dz = _ops.activation_grad(name, dz, z, y, params)
        if mask.p == 1:
            dz[...] = 0
        want = _products.gemm(dz, w), _products.gemm(dz.T, x), _ops.bias_grad(dz)
        room = nans((m, n), dtype)
        got = _products.linear_backward(
            dy, x, w, name, params, z, y, dropout=mask, residual_scale=scale, dz=room
        )
        np.testing.assert_array_equal(room, dz)
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_backward_into_work_spaces(isa: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    for m, n, k in ((1, 7, 5), (9, 33, 20), (40, 20, 65)):
        x, w, _ = layer(rng, m, n, k, dtype)
        dy, y = normal(rng, (m, n), dtype), normal(rng, (m, n), dtype)
        options: dict[str, Any] = {"activation": "tanh", "y": y, "dropout": 0.25, "seed": 7, "offset": 8}
        want = F.linear_backward(dy, x, w, **options)
        rooms = [np.ones(g.shape, dtype) for g in want]
        assert all(
            a is b for a, b in zip(F.linear_backward(dy, x, w, **options, out=rooms), rooms, strict=True)
        )
        for room, g in zip(rooms, want, strict=True):
            np.testing.assert_array_equal(room, g)
        F.linear_backward(dy, x, w, **options, out=rooms, accumulate=True)
        np.testing.assert_array_equal(rooms[0], want[0])
        np.testing.assert_array_equal(rooms[2], want[2] + want[2])
        np.testing.assert_allclose(
            rooms[1], 2 * want[1], rtol=1e-6, atol=1e-5 if dtype == np.float32 else 1e-13
        )
        views = [
            spaced(np.ones((m, k), dtype), 2, -1),
            inside(np.ones((n, k), dtype), True),
            spaced(np.ones((n, 1), dtype), 2, 1)[:, 0],
        ]
        F.linear_backward(dy, x, w, **options, out=views, accumulate=True)
        np.testing.assert_array_equal(views[0], want[0])
        np.testing.assert_array_equal(views[2], 1 + want[2])
        np.testing.assert_allclose(
            views[1], 1 + want[1], rtol=1e-6, atol=1e-5 if dtype == np.float32 else 1e-13
        )
        for needs in itertools.product((False, True), repeat=3):
            some = F.linear_backward(dy, x, w, **options, needs=needs)
            for needed, got, g in zip(needs, some, want, strict=True):
                assert (got is not None) == needed
                if needed:
                    np.testing.assert_array_equal(got, g)
        dz = dy.copy()
        np.testing.assert_array_equal(F.linear_backward(dz, x, w, **options, dz=dz)[1], want[1])
        assert not np.array_equal(dz, dy)


def test_gradients_of_everything_at_once(rng: np.random.Generator) -> None:
    x, w, b, r = (rng.standard_normal(shape) for shape in ((4, 3), (5, 3), (5,), (4, 5)))
    for name in (None, *ACTIVATIONS):
        check_gradients(
            lambda x, w, b, r, name=name: F.linear(
                x, w, b, name, dropout=0.4, seed=1, offset=2, residual=r, residual_scale=0.7
            ),
            x, w, b, r,
        )  # fmt: skip


@pytest.mark.peers
@pytest.mark.parametrize("name", [None, "relu", "gelu", "tanh"])
def test_layer_is_torchs(dtype: np.dtype, name: str | None, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, w, b = layer(rng, 20, 30, 40, dtype)
    dy = normal(rng, (20, 30), dtype)
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    z = torch.nn.functional.linear(*theirs)
    z = z if name is None else torch.tanh(z) if name == "tanh" else getattr(torch.nn.functional, name)(z)
    z.backward(torch.tensor(dy))
    ours = [tensor(a, requires_grad=True) for a in (x, w, b)]
    y = F.linear(*ours, name)
    y.backward(dy)
    tolerance = {"rtol": 0, "atol": 3e-5 if dtype == np.float32 else 1e-13}
    np.testing.assert_allclose(y.data, z.detach().numpy(), **tolerance)
    for a, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.data, t.grad.numpy(), **tolerance)


# ---------------------------------------------------------------------------------- the tape and the modules


def test_one_node_with_everything(dtype: np.dtype, rng: np.random.Generator) -> None:
    x, w, b = layer(rng, 9, 33, 20, dtype)
    r, dy = normal(rng, (9, 33), dtype), normal(rng, (9, 33), dtype)
    for name in (None, "relu", "gelu", "leaky_relu"):
        inputs = [tensor(a, requires_grad=True) for a in (x, w, b, r)]
        y = F.linear(*inputs[:3], name, dropout=0.5, seed=3, offset=4, residual=inputs[3], residual_scale=2.0)
        assert repr(y._node) == "<linear>"
        assert y._node.parents == tuple(inputs)
        want = F.linear(x, w, b, name, dropout=0.5, seed=3, offset=4, residual=r, residual_scale=2.0)
        np.testing.assert_array_equal(y.data, want)
        y.backward(dy)
        z = F.linear(x, w, b)
        by_hand = F.linear_backward(
            dy, x, w, activation=name, z=z, dropout=0.5, seed=3, offset=4, residual_scale=2.0
        )
        for t, g in zip(inputs, (*by_hand, dy), strict=True):
            np.testing.assert_array_equal(t.grad.data, g)


def test_only_what_is_needed_is_computed_and_kept(rng: np.random.Generator) -> None:
    arrays = layer(rng, 4, 5, 3, np.dtype(np.float64))
    full = [tensor(a, requires_grad=True) for a in arrays]
    F.linear(*full, "tanh").sum().backward()
    for taken in itertools.product((False, True), repeat=3):
        inputs = [tensor(a, requires_grad=t) for a, t in zip(arrays, taken, strict=True)]
        y = F.linear(*inputs, "tanh")
        assert y.requires_grad == any(taken)
        if any(taken):
            y.sum().backward()
        for t, whole, takes in zip(inputs, full, taken, strict=True):
            assert (t.grad is not None) == takes
            if takes:
                np.testing.assert_array_equal(t.grad.data, whole.grad.data)
    r = tensor(np.ones((4, 5)), requires_grad=True)
    F.linear(*arrays, "tanh", residual=r).sum().backward()
    np.testing.assert_array_equal(r.grad.data, np.ones((4, 5)))


def test_dropout_draws_the_masks_that_the_modules_would(dtype: np.dtype, rng: np.random.Generator) -> None:
    x, w, b = layer(rng, 9, 33, 20, dtype)
    manual_seed(5)
    want = [
        F.dropout(F.relu(F.linear(x, w, b)), 0.3),
        F.dropout(F.linear(x, w), 1.0),
        F.dropout(F.linear(x, w), 0.3),
    ]
    manual_seed(5)
    got = [F.linear(x, w, b, "relu", dropout=0.3), F.linear(x, w, dropout=1.0), F.linear(x, w, dropout=0.3)]
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(F.linear(x, w, dropout=0.3, seed=5, offset=2), got[2])
    np.testing.assert_array_equal(F.linear(x, w, dropout=0.3, training=False), F.linear(x, w))


def test_a_refused_layer_draws_no_mask(rng: np.random.Generator) -> None:
    x, w, b = layer(rng, 9, 33, 20, np.dtype(np.float32))
    manual_seed(0)
    want = F.linear(x, w, dropout=0.5)
    manual_seed(0)
    for arguments, options in (
        ((x, w[:, 1:]), {}), ((x, w, b[1:]), {}), ((x, w), {"out": np.empty((9, 32), np.float32)}),
        ((x, w), {"out": np.empty((9, 33))}), ((x, w), {"precision": "fp8"}), ((x, w, None, "swish"), {}),
        ((x, w), {"residual": np.ones((9, 32), np.float32)}), ((x, w, None, "relu", (1.0,)), {}),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            F.linear(*arguments, dropout=0.5, **options)
    np.testing.assert_array_equal(F.linear(x, w, dropout=0.5), want)


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.GELU, nn.Tanh])
def test_sequential_fuses_dropout_and_gives_the_same_bits(
    activation: Callable[[], nn.Module] | None, p: float, rng: np.random.Generator
) -> None:
    manual_seed(1)
    act = [activation()] if activation else []
    model = nn.Sequential(nn.Linear(33, 17), *act, nn.Dropout(p), nn.Linear(17, 5), *act, nn.Dropout(0.5))
    x = normal(rng, (9, 33), np.dtype(np.float32))

    def run(forward: Callable[[Tensor], Tensor]) -> list[bytes]:
        manual_seed(2)
        model.zero_grad()
        v = tensor(x, requires_grad=True)
        y = forward(v)
        (y * y).sum().backward()
        return [t.tobytes() for t in (y.data, v.grad.data, *(q.grad.data for q in model.parameters()))]

    def one_by_one(v: Tensor) -> Tensor:
        for module in model:
            v = module(v)
        return v

    assert run(model) == run(one_by_one)
    assert model(tensor(x, requires_grad=True))._node.name == "linear"
    model.eval()
    assert run(model) == run(one_by_one)
    model[1 + len(act)].train()  # a Dropout goes by its own mode
    assert run(model) == run(one_by_one)
    with no_grad():
        assert not model(x).requires_grad


def test_sequential_calls_what_is_not_its_own(rng: np.random.Generator) -> None:
    class Off(nn.Dropout):
        def forward(self, x: Any) -> Any:
            return 0 * super().forward(x)

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Off(0.5))
    assert not model(normal(rng, (2, 3), np.dtype(np.float32))).data.any()
    pair = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Dropout(0.5), nn.Dropout(0.0))
    manual_seed(0)
    y = pair(np.ones((2, 3), np.float32))
    manual_seed(0)
    want = F.dropout(F.dropout(pair[0](np.ones((2, 3), np.float32)), 0.5), 0.5)
    np.testing.assert_array_equal(y.data, want.data)


# ------------------------------------------------------------------------------------- precision and dtypes


def test_precision_bf16(isa: str, rng: np.random.Generator) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, w, b = layer(rng, 13, 33, 70, np.dtype(np.float32))
    dy = normal(rng, (13, 33), np.dtype(np.float32))

    def rounded(a: np.ndarray) -> np.ndarray:
        return a.astype(bfloat16).astype(np.float32)

    inputs = [tensor(a, requires_grad=True) for a in (x, w, b)]
    y = F.linear(*inputs, "tanh", precision="bf16")
    np.testing.assert_allclose(y.data, np.tanh(rounded(x) @ rounded(w).T + b), rtol=0, atol=1e-5)
    y.backward(dy)
    dz = F.tanh_grad(dy, y=y.data)
    want = rounded(dz) @ rounded(w), rounded(dz).T @ rounded(x), dz.sum(0)
    for t, g in zip(inputs, want, strict=True):
        np.testing.assert_allclose(t.grad.data, g, rtol=0, atol=2e-5)
    by_hand = F.linear_backward(dy, x, w, activation="tanh", y=y.data, precision="bf16")
    for t, g in zip(inputs, by_hand, strict=True):
        np.testing.assert_array_equal(t.grad.data, g)
    for call in (lambda p: F.linear(x, w, precision=p), lambda p: F.linear_backward(dy, x, w, precision=p)):
        with pytest.raises(ValueError, match=r"linear\w*: precision must be None or 'bf16', got 'fp8'"):
            call("fp8")
    wide = [a.astype(float) for a in (dy, x, w)]
    with pytest.raises(ValueError, match="linear: precision 'bf16' is for float32, weight is float64"):
        F.linear(*wide[1:], precision="bf16")
    with pytest.raises(ValueError, match="linear_backward: precision 'bf16' is for float32"):
        F.linear_backward(*wide, precision="bf16")


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_layers(isa: str, name: str, rng: np.random.Generator) -> None:
    half = np.dtype(np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16)
    x, w, b, r, dy = (
        rng.standard_normal(s).astype(half) for s in ((9, 20), (33, 20), (33,), (9, 33), (9, 33))
    )
    options: dict[str, Any] = {"dropout": 0.5, "seed": 1, "offset": 2, "residual_scale": 0.5}
    wide = [a.astype(np.float32) for a in (x, w, b, r, dy)]
    inputs = [tensor(a, requires_grad=True) for a in (x, w, b, r)]
    y = F.linear(*inputs[:3], "gelu", **options, residual=inputs[3])
    want = F.linear(*wide[:3], "gelu", **options, residual=wide[3])
    assert y.dtype == half
    np.testing.assert_allclose(y.data.astype(np.float32), want, rtol=2.0**-8, atol=1e-6)
    out = np.empty((9, 33), half)
    assert F.linear(x, w, b, "gelu", **options, residual=r, out=out) is out
    np.testing.assert_array_equal(out, y.data)
    y.backward(dy)
    z = F.linear(*wide[:3])
    grads = F.linear_backward(wide[4], *wide[:2], activation="gelu", z=z, **options)
    for t, g in zip(inputs, (*grads, wide[4]), strict=True):
        assert t.grad.dtype == half
        # A gradient is rounded to bfloat16 before the products, and the result after them.
        np.testing.assert_allclose(t.grad.data.astype(np.float32), g, rtol=2.0**-6, atol=0.03)
    rooms = tuple(np.ones(g.shape, half) for g in grads)
    dz = np.empty((9, 33), half)
    got = F.linear_backward(
        dy, x, w, activation="gelu", z=z.astype(half), **options, out=rooms, dz=dz, accumulate=True
    )
    assert all(a is b for a, b in zip(got, rooms, strict=True))
    np.testing.assert_allclose(rooms[2].astype(np.float32), 1 + grads[2], rtol=2.0**-6, atol=0.03)
    np.testing.assert_allclose(dz.astype(np.float32).sum(0), grads[2], rtol=2.0**-5, atol=0.03)


# ------------------------------------------------------------------------------------------------- refusals

X, W = np.ones((2, 3), np.float32), np.ones((5, 3), np.float32)
B, DY = np.ones(5, np.float32), np.ones((2, 5), np.float32)
MEMORY = np.ones(30, np.float32)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout": 1.5}, ValueError, r"dropout must be in \[0, 1\], got 1.5"),
        ({"dropout": float("nan")}, ValueError, r"dropout must be in \[0, 1\], got nan"),
        ({"dropout": 0.5, "seed": 1}, TypeError, "seed and offset go together, got seed=1 and offset=None"),
        ({"dropout": 0.5, "seed": -1, "offset": 0}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"weight": W.astype(int)}, TypeError, "weight is int64, expected float32, float64"),
        ({"weight": W.astype(np.longdouble)}, TypeError, r"weight is \S*, expected float32, float64"),
        ({"bias": B.astype(float)}, TypeError, "bias is float64, weight is float32"),
        ({"residual": DY.astype(float)}, TypeError, "residual is float64, weight is float32"),
        ({"residual": DY[:1]}, ValueError, r"residual has shape \(1, 5\), the result \(2, 5\)"),
        ({"out": DY.T}, ValueError, r"out has shape \(5, 2\), expected shape \(2, 5\)"),
        ({"out": DY.astype(float)}, TypeError, "out is float64, input is float32"),
        ({"out": read_only(DY.copy())}, ValueError, "out is read-only"),
        ({"input": tensor(X), "out": DY}, TypeError, "out is for arrays, an argument is a Tensor"),
        ({"residual": tensor(DY), "out": DY}, TypeError, "out is for arrays, an argument is a Tensor"),
        ({"residual": DY, "out": DY}, ValueError, "out overlaps residual in memory; pass a copy"),
        ({"input": MEMORY[:6].reshape(2, 3), "out": MEMORY[5:15].reshape(2, 5)}, ValueError, "out overlaps input"),
        ({"weight": MEMORY[:15].reshape(5, 3), "out": MEMORY[:10].reshape(2, 5)}, ValueError, "out overlaps weight"),
        ({"bias": MEMORY[4:9], "out": MEMORY[:10].reshape(2, 5)}, ValueError, "out overlaps bias"),
    ],
)  # fmt: skip
def test_refused_layers(options: dict, error: type[Exception], message: str) -> None:
    arguments = {"input": X, "weight": W, "bias": B, **options}
    with pytest.raises(error, match=f"^linear: {message}"):
        F.linear(arguments.pop("input"), arguments.pop("weight"), arguments.pop("bias"), **arguments)
    for a in (X, W, B, DY, MEMORY):
        assert (a == 1).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout": 0.5}, TypeError, "dropout needs the seed and offset of the mask"),
        ({"dropout": -0.5}, ValueError, r"dropout must be in \[0, 1\], got -0.5"),
        ({"x": X[:1]}, ValueError, r"dy has shape \(2, 5\), x and w give \(1, 5\)"),
        ({"x": X.astype(float)}, TypeError, "x is float64, dy is float32"),
        ({"activation": "gelu", "z": DY[:1]}, ValueError, r"z has shape \(1, 5\), expected \(2, 5\)"),
        ({"accumulate": True}, ValueError, "accumulate needs dw and db in out to add to"),
        ({"out": (None, None, B[:3])}, ValueError, r"db has shape \(3,\), expected shape \(5,\)"),
        ({"out": (X, None, None), "x": X}, ValueError, "dx overlaps x in memory"),
        ({"out": (None, W, None)}, ValueError, "dw overlaps w in memory"),
        ({"out": (DY[:, :3], None, None)}, ValueError, "dx overlaps dy in memory"),
        ({"out": (MEMORY[:6].reshape(2, 3), MEMORY[5:20].reshape(5, 3), None)}, ValueError, "dw overlaps dx"),
        ({"out": (None, None, MEMORY[:5]), "dz": MEMORY[:10].reshape(2, 5)}, ValueError, "db overlaps dz"),
        ({"out": (None, read_only(W.copy()), None)}, ValueError, "dw is read-only"),
        ({"dz": np.ones((5, 2), np.float32).T}, ValueError, "dz is not C-contiguous"),
        ({"dz": B}, ValueError, r"dz has shape \(5,\), expected \(2, 5\)"),
    ],
)  # fmt: skip
def test_refused_backward_passes(options: dict, error: type[Exception], message: str) -> None:
    arguments = {"x": X, "w": W, **options}
    with pytest.raises(error, match=f"^linear_backward: {message}"):
        F.linear_backward(DY, arguments.pop("x"), arguments.pop("w"), **arguments)
    for a in (X, W, B, DY, MEMORY):
        assert (a == 1).all()


def test_a_backward_pass_without_what_its_activation_needs() -> None:
    with pytest.raises(TypeError, match="tanh: the gradient needs y, got None"):
        F.linear_backward(DY, X, W, activation="tanh")
    with pytest.raises(TypeError, match="gelu: the gradient needs x, got None"):
        F.linear_backward(DY, X, W, activation="gelu", y=DY)
    with pytest.raises(ValueError, match="activation: name is 'swish'"):
        F.linear(X, W, activation="swish")
