"""Arrays on a GPU through the public functions: optimizers, activations, dropout, losses, layers.

Tests called "device" run on one (`pytest -m gpu`); those called "host" run the same kernels over host memory. What is
element by element has the CPU's bits; what adds up in another order is held to the reference in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
import reference as ref
from cases import ACTIVATIONS, OPTIMIZERS
from fastopt import functional as F
from gpu_tools import (
    assert_as_accurate,
    assert_same_bits,
    cp,
    drawn,
    dtypes,
    flattened,
    fused,
    kind,
    sizes,
    unaligned,
)
from optim_tools import PACKED, ROWS

__all__ = ["cp", "fused", "kind"]

FLOATS = ["float32", "float64"]
ALL = [*FLOATS, "float16", "bfloat16"]


# ---------------------------------------------------------------------------------------------- optimizers


def _problem(dtype: Any, steps: int) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    params = [drawn(n, dtype, n) for n in sizes()] + [drawn((3, 5, 7), dtype, 99)]
    return params, [[drawn(p.shape, dtype, 1000 * t + i) for i, p in enumerate(params)] for t in range(steps)]


def _both(cp: Any, name: str, options: dict[str, Any], dtype: Any, steps: int = 3) -> None:
    """Hold parameters and state on the device to the CPU's after a few steps."""
    params, grads = _problem(dtype, steps)
    host, device = [p.copy() for p in params], [cp.asarray(p) for p in params]
    on_host, on_device = (getattr(fo.optim, name)(arrays, **options) for arrays in (host, device))
    for step in grads:
        on_host.step(step)
        on_device.step([cp.asarray(g) for g in step])
    for i, (d, h) in enumerate(zip(device, host, strict=True)):
        assert_same_bits(d, h, f"{name}: parameter {i}")
    theirs = flattened(on_host.state)
    ours = flattened(on_device.state)
    assert len(ours) == len(theirs)
    for d, h in zip(ours, theirs, strict=True):
        if isinstance(h, np.ndarray):
            assert_same_bits(d, h, f"{name}: state")
        else:
            assert d == h


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_optimizer_has_the_bits_of_the_cpu(
    cp: Any, fused: None, name: str, row: int, dtype: str
) -> None:
    _both(cp, name, OPTIMIZERS[name]["options"][row], dtype)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion"])
def test_storage_of_two_bytes_has_the_bits_of_the_cpu(cp: Any, fused: None, name: str) -> None:
    for dtype in dtypes("float16", "bfloat16"):
        _both(cp, name, {"lr": 0.02}, dtype)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("rule", PACKED)
def test_packed_state_has_the_bits_of_the_cpu(cp: Any, fused: None, rule: str, state_dtype: str) -> None:
    name, options = PACKED[rule]
    for dtype in dtypes("float32", "float16", "bfloat16"):
        _both(cp, name, {**options, "ema_decay": 0.9, "state_dtype": state_dtype}, dtype)


@pytest.mark.parametrize("rounding", ["stochastic", "exact"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "LAMB"])
def test_rounding_has_the_bits_of_the_cpu(cp: Any, fused: None, name: str, rounding: str) -> None:
    for dtype in dtypes("bfloat16", "float64"):
        _both(cp, name, {"lr": 0.02, "l1": 0.01, "rounding": rounding, "state_dtype": "int8"}, dtype)


def test_shadows_on_the_device(cp: Any, fused: None) -> None:
    for dtype in dtypes("float16", "bfloat16"):
        params, grads = _problem("float32", 2)
        on_device = [cp.asarray(p) for p in params]
        shadows = [cp.asarray(np.zeros(p.shape, dtype)) for p in params]
        opt = fo.optim.AdamW(on_device, state_dtype="bfloat16")
        opt.keep_shadow(shadows)
        for g in grads:
            opt.step([cp.asarray(a) for a in g])
            for p, s in zip(on_device, shadows, strict=True):
                assert_same_bits(s, p.get().astype(dtype))


def test_packed_state_goes_from_place_to_place(cp: Any, fused: None) -> None:
    params, grads = _problem("float32", 2)
    host = fo.optim.AdamW(params, state_dtype="int8")
    host.step(grads[0])
    device = fo.optim.AdamW(on_device := [cp.asarray(p) for p in params], state_dtype="float32")
    device.load_state_dict(host.state_dict())
    host.step(grads[1])
    device.step([cp.asarray(g) for g in grads[1]])
    back = fo.optim.AdamW([p.get() for p in on_device])
    back.load_state_dict(device.state_dict())
    for ours, theirs in zip(flattened(back.state), flattened(host.state), strict=True):
        assert_same_bits(ours, theirs)


def test_arrays_that_start_anywhere_and_gradients_of_any_layout(cp: Any, fused: None) -> None:
    p, g = drawn((33, 17), "float32", 1), drawn((33, 17), "float32", 2)
    host = p.copy()
    fo.optim.Adam([host]).step([g])
    for shift in (0, 1, 2):
        for grad in (
            unaligned(cp, g, 3),
            cp.asarray(np.asfortranarray(g)),
            cp.asarray(np.repeat(g, 2, 1))[:, ::2],
        ):
            param = unaligned(cp, p, shift)
            fo.optim.Adam([param]).step([grad])
            assert_same_bits(param, host)
    for param in (cp.asarray(np.asfortranarray(p)), cp.asarray(np.repeat(p, 2, 1))[:, ::2]):
        with pytest.raises(ValueError, match=r"params\[0\] is not C-contiguous"):
            fo.optim.Adam([param])


def test_a_refused_step_changes_nothing(cp: Any) -> None:
    params = [cp.asarray(drawn(5, "float32", 1)), cp.asarray(drawn((2, 3), "float32", 2))]
    before = [p.get() for p in params]
    opt = fo.optim.Adam(params)
    good = [cp.ones(5, np.float32), cp.ones((2, 3), np.float32)]
    refused = [
        ([good[0], good[1].get()], r"grads\[1\]"),
        ([good[0], cp.ones((3, 2), np.float32)], r"grads\[1\] has shape \(3, 2\).* \(2, 3\)"),
        ([good[0].astype(np.float64), good[1]], r"grads\[0\] is float64.* float32"),
        ([good[0]], "grads"),
    ]
    for grads, message in refused:
        with pytest.raises((TypeError, ValueError), match=message):
            opt.step(grads)
        for p, b in zip(params, before, strict=True):
            np.testing.assert_array_equal(p.get(), b)
    opt.step(good)
    assert not np.array_equal(params[0].get(), before[0])


def test_parameters_on_host_and_device_do_not_mix(cp: Any) -> None:
    a = np.ones(3, np.float32)
    for params in ([a, cp.asarray(a)], [cp.asarray(a), a]):
        with pytest.raises((TypeError, ValueError), match=r"params\[1\]"):
            fo.optim.SGD(params, lr=0.1).step([np.ones(3, np.float32)] * 2)
    host = fo.optim.SGD([a], lr=0.1)
    with pytest.raises((TypeError, ValueError), match=r"grads\[0\]"):
        host.step([cp.ones(3, np.float32)])
    np.testing.assert_array_equal(a, np.ones(3))


# ------------------------------------------------------------------------- activations, dropout, softmax


def _special(dtype: Any) -> np.ndarray:
    x = drawn(777, dtype, 5)
    x[:8] = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 90.0, -90.0, 1e-6]).astype(dtype)
    return x


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("name", "params"), [(n, p) for n in ACTIVATIONS for p in ACTIVATIONS[n]])
def test_activations_have_the_bits_of_the_cpu(
    cp: Any, fused: None, name: str, params: tuple[float, ...], dtype: str
) -> None:
    (dt,) = dtypes(dtype)
    for n in [*sizes(), 0]:
        x = drawn(n, dt, n) * dt.type(3) if n else _special(dt)
        for device in (cp.asarray(x), unaligned(cp, x)):
            y = F.activation(name, device, params)
            assert type(y) is cp.ndarray
            assert_same_bits(y, F.activation(name, x, params), f"{name} {n}")
    out = cp.empty(x.shape, dt)
    assert F.activation(name, cp.asarray(x), params, out=out) is out
    assert_same_bits(out, F.activation(name, x, params))


GRADIENTS = {
    "relu": F.relu_grad,
    "leaky_relu": F.leaky_relu_grad,
    "sigmoid": F.sigmoid_grad,
    "tanh": F.tanh_grad,
    "gelu": F.gelu_grad,
    "silu": F.silu_grad,
    "elu": F.elu_grad,
    "softplus": F.softplus_grad,
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_activations_have_the_bits_of_the_cpu(
    cp: Any, fused: None, name: str, dtype: str
) -> None:
    for n in sizes():
        x, dy = drawn(n, dtype, n), drawn(n, dtype, n + 1)
        ours = GRADIENTS[name](cp.asarray(dy), cp.asarray(x))
        assert_same_bits(ours, GRADIENTS[name](dy, x), f"{name} {n}")


@pytest.mark.parametrize("dtype", ALL)
def test_dropout_has_the_mask_of_the_cpu(cp: Any, fused: None, dtype: str) -> None:
    (dt,) = dtypes(dtype)
    for n in sizes():
        x = drawn(n, dt, n)
        for p, seed, offset in ((0.5, 7, 0), (0.1, 2**63, 2**40), (1.0, 1, 1)):
            ours = F.dropout(cp.asarray(x), p, seed=seed, offset=offset)
            assert_same_bits(ours, F.dropout(x, p, seed=seed, offset=offset), f"{n} {p}")
    fo.manual_seed(5)
    host = F.dropout(x, 0.3)
    fo.manual_seed(5)
    assert_same_bits(F.dropout(cp.asarray(x), 0.3), host)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 33), (3, 1000), (2, 4097), (2, 3, 5)])
def test_softmax(cp: Any, name: str, shape: tuple[int, ...]) -> None:
    x = drawn(shape, "float32", 3) * np.float32(4)
    exact = getattr(ref, name)(x.astype(np.float64))
    assert_as_accurate(getattr(F, name)(cp.asarray(x)), getattr(F, name)(x), exact, name)


# -------------------------------------------------------------------------------------------------- losses

CLASSES = [(1, 1), (3, 2), (64, 10), (7, 33), (5, 1000), (3, 5003)]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}, {"ignore_index": 1}])
@pytest.mark.parametrize("size", CLASSES)
def test_cross_entropy(cp: Any, size: tuple[int, int], options: dict[str, Any]) -> None:
    rows, classes = size
    x = drawn(size, "float32", rows) * np.float32(3)
    target = np.random.default_rng(1).integers(0, classes, rows)
    if options.get("ignore_index") is not None:
        target[0] = 0
    value, grad = F.cross_entropy_with_grad(cp.asarray(x), cp.asarray(target), **options)
    on_host, host_grad = F.cross_entropy_with_grad(x, target, **options)
    exact, exact_grad = F.cross_entropy_with_grad(x.astype(np.float64), target, **options)
    assert type(value) is cp.ndarray
    assert_as_accurate(value, np.asarray(on_host), np.asarray(exact), "value")
    assert_as_accurate(grad, host_grad, exact_grad, "gradient")


@pytest.mark.parametrize(
    "name", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits"]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_elementwise_losses(cp: Any, fused: None, name: str, reduction: str) -> None:
    function = getattr(F, f"{name}_with_grad")
    for n in sizes():
        if n == 0:
            continue
        x, t = drawn(n, "float32", n), np.random.default_rng(n).random(n, dtype=np.float32)
        value, grad = function(cp.asarray(x), cp.asarray(t), reduction=reduction)
        on_host, host_grad = function(x, t, reduction=reduction)
        exact, _ = function(x.astype(np.float64), t.astype(np.float64), reduction=reduction)
        assert_as_accurate(value, np.asarray(on_host), np.asarray(exact), name)
        assert_same_bits(grad, host_grad, name)


# -------------------------------------------------------------------------------------------------- layers

SHAPES = [(1, 1, 1), (5, 7, 19), (64, 10, 33), (33, 65, 128)]


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "tanh"])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(cp: Any, shape: tuple[int, int, int], activation: str | None) -> None:
    m, n, k = shape
    x, w, b, dy = (
        drawn((m, k), "float32", 1),
        drawn((n, k), "float32", 2),
        drawn(n, "float32", 3),
        drawn((m, n), "float32", 4),
    )
    options: dict[str, Any] = {"activation": activation} if activation else {}
    wide = [a.astype(np.float64) for a in (x, w, b, dy)]
    exact = F.linear(*wide[:3], **options)
    assert_as_accurate(
        F.linear(*map(cp.asarray, (x, w, b)), **options), F.linear(x, w, b, **options), exact, "y"
    )
    z = F.linear(x, w, b)
    kept = {"y": F.linear(x, w, b, **options), "z": z} if activation else {}
    kept_wide = {"y": exact, "z": F.linear(*wide[:3])} if activation else {}
    on_device = {name: cp.asarray(a) for name, a in kept.items()}
    ours = F.linear_backward(cp.asarray(dy), cp.asarray(x), cp.asarray(w), **options, **on_device)
    host = F.linear_backward(dy, x, w, **options, **kept)
    reference = F.linear_backward(wide[3], wide[0], wide[1], **options, **kept_wide)
    for name, o, h, r in zip(("dx", "dw", "db"), ours, host, reference, strict=True):
        assert_as_accurate(o, h, r, name)


# ------------------------------------------------------------------------------ streams, other libraries


def test_work_goes_to_the_current_stream(cp: Any) -> None:
    x = drawn(5000, "float32", 1)
    stream = cp.cuda.Stream(non_blocking=True)
    device, param = cp.asarray(x), cp.asarray(x)
    cp.cuda.Device(0).synchronize()
    with stream:
        for _ in range(50):
            device = F.tanh(device)
        opt = fo.optim.SGD([param], lr=0.5)
        for _ in range(10):
            opt.step([device])
    stream.synchronize()
    expected, p = x, x.copy()
    for _ in range(50):
        expected = F.tanh(expected)
    host = fo.optim.SGD([p], lr=0.5)
    for _ in range(10):
        host.step([expected])
    np.testing.assert_allclose(device.get(), expected, rtol=1e-6)
    np.testing.assert_allclose(param.get(), p, rtol=1e-6)


def test_arrays_by_cuda_array_interface_and_dlpack(cp: Any, fused: None) -> None:
    x = drawn(100, "float32", 1)
    memory = cp.asarray(x)

    class Interface:
        __cuda_array_interface__ = memory.__cuda_array_interface__

    class Capsule:
        def __dlpack_device__(self) -> tuple[int, int]:
            return memory.__dlpack_device__()

        def __dlpack__(self, **options: Any) -> Any:
            return memory.__dlpack__(**options)

    for given in (Interface(), Capsule()):
        y = F.sigmoid(given)
        assert type(y) is cp.ndarray
        assert_same_bits(y, F.sigmoid(x))


@pytest.mark.peers
def test_torch_tensors(cp: Any, kind: str, fused: None) -> None:
    pytest.importorskip("torch")
    from host_gpu import torch_tensor

    p, g = drawn((33, 5), "float32", 1), drawn((33, 5), "float32", 2)
    param, grad = torch_tensor(kind, p), torch_tensor(kind, g)
    fo.optim.AdamW([param]).step([grad])
    host = p.copy()
    fo.optim.AdamW([host]).step([g])
    np.testing.assert_array_equal(param.detach().cpu().numpy(), host)
    y = F.gelu(torch_tensor(kind, p))
    assert type(y).__module__.startswith(("torch", "host_gpu"))
    np.testing.assert_array_equal(y.cpu().numpy(), F.gelu(p))


def test_arguments_on_the_host_are_named(cp: Any) -> None:
    x = drawn((3, 4), "float32", 1)
    w = drawn((2, 4), "float32", 2)
    with pytest.raises((TypeError, ValueError), match="out"):
        F.relu(cp.asarray(x), out=np.empty_like(x))
    with pytest.raises((TypeError, ValueError), match="weight"):
        F.linear(cp.asarray(x), w)
    with pytest.raises((TypeError, ValueError), match="target"):
        F.cross_entropy(cp.asarray(x), np.zeros(3, np.int64))
    with pytest.raises(TypeError, match=r"int64|floating"):
        F.linear_backward(cp.arange(4), cp.asarray(x), cp.asarray(w))


@pytest.fixture
def unread(cp: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may bring an array's elements to the host, which would wait for the device."""
    if kind == "device":
        pytest.skip("CuPy's class cannot be changed")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the elements of an array on the device were read")

    for name in ("get", "item", "tolist", "tobytes", "__bool__", "__int__", "__float__", "__iter__"):
        monkeypatch.setattr(cp.ndarray, name, refuse)
    monkeypatch.setattr(cp, "asnumpy", refuse)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5, "clip_value": 0.1, "ema_decay": 0.9}])
def test_a_step_reads_nothing_back(cp: Any, unread: None, options: dict[str, Any]) -> None:
    params = [cp.ones((3, 4), np.float32), cp.ones(7, np.float32)]
    opt = fo.optim.AdamW(params, **options)
    for _ in range(3):
        opt.step([cp.ones((3, 4), np.float32), cp.ones(7, np.float32)])


@pytest.mark.parametrize(
    "call",
    [
        lambda cp, x: F.gelu(x),
        lambda cp, x: F.dropout(x, 0.5),
        lambda cp, x: F.softmax(x, 0),
        lambda cp, x: F.linear(x, x, activation="relu"),
        lambda cp, x: F.cross_entropy_with_grad(x, cp.zeros(4, np.int64)),
        lambda cp, x: F.cross_entropy(x, cp.zeros(4, np.int64), weight=cp.ones(4, np.float32)),
        lambda cp, x: F.mse_loss(x, x, reduction="sum"),
        lambda cp, x: F.binary_cross_entropy(F.sigmoid(x), F.sigmoid(x)),
        lambda cp, x: F.l2_penalty([x], 0.1),
        lambda cp, x: fo.optim.clip_grad_norm_([x], 1.0),
    ],
    ids=[
        *("gelu", "dropout", "softmax", "linear", "cross_entropy_with_grad", "cross_entropy", "mse", "bce"),
        *("l2_penalty", "clip_grad_norm_"),
    ],
)
def test_a_function_reads_nothing_back(cp: Any, unread: None, call: Any) -> None:
    call(cp, cp.ones((4, 4), np.float32))
