"""Every optimizer on arrays of CuPy and torch: steps, state and what else there is to call, as on the host.

Rules have the host's bits, for the kernels are the same. What computes with whole arrays by the library of the array is
held to float64.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cases import OPTIMIZERS
from fastopt import optim
from fastopt.optim.matrix import MatrixOptimizer
from gpu_tools import There, assert_same_bits, cp, drawn, dtypes, fused, kind, there

__all__ = ["cp", "fused", "kind", "there"]

pytestmark = pytest.mark.usefixtures("fused")

SHAPES = [(5, 3), (7, 11), (33,)]
STEPS = 5
#: L-BFGS takes closures and has tests of its own in test_gpu_minimize.py.
NAMES = [name for name in OPTIMIZERS if name != "LBFGS"]
MATRIX = [name for name in NAMES if issubclass(getattr(optim, name), MatrixOptimizer)]
ROWS = [(name, row) for name in NAMES for row in range(len(OPTIMIZERS[name]["options"]))]

Put = Callable[[np.ndarray], Any]


def shapes_of(name: str) -> list[tuple[int, ...]]:
    """Of parameters that an optimizer takes; of SOAP those whose products along each axis have full rank."""
    return {
        "Muon": [(5, 3), (3, 5), (4, 3, 2), (1, 7), (0, 3)],
        "Adafactor": [(5, 3), (4, 3, 2), (7,), (), (0, 3)],
        "SOAP": [(5, 5), (4, 3, 2), (1,), (), (0, 3)],
    }.get(name, SHAPES)


def parameters(name: str, dtype: Any) -> list[np.ndarray]:
    return [drawn(shape, dtype, k) for k, shape in enumerate(shapes_of(name))]


def gradients(name: str, put: Put, t: int, dtype: Any) -> list[Any]:
    """Of step t; one parameter has none in step 2."""
    grads: list[Any] = []
    for k, shape in enumerate(shapes_of(name)):
        g = np.asarray(drawn(shape, np.float64, 50 + k) + drawn(shape, np.float64, 100 * t + k + 99), dtype)
        if name == "SparseAdam":
            indices = np.random.default_rng(t + k).integers(0, shape[0], min(shape[0], 4))
            indices = np.unique(indices)[np.random.default_rng(k).permutation(len(np.unique(indices)))]
            grads.append((put(indices), put(g[: len(indices)])))
        else:
            grads.append(put(g))
    if t == 2:
        grads[1] = None
    return grads


def run(
    name: str, options: dict[str, Any], put: Put, dtype: Any, steps: int = STEPS
) -> tuple[Any, list[Any]]:
    params = [put(p) for p in parameters(name, dtype)]
    opt = getattr(optim, name)(params, **options)
    for t in range(steps):
        assert opt.step(gradients(name, put, t, dtype)) is None
    return opt, params


def assert_near(name: str, ours: np.ndarray, host: np.ndarray, exact: np.ndarray, what: str) -> None:
    """Rules have the host's bits; others an error of at most twice the host's and a few ulp."""
    if name not in MATRIX:
        assert_same_bits(ours, host, what)
        return
    assert (ours.dtype, ours.shape) == (host.dtype, host.shape), what
    wide, plain = np.asarray(ours, np.float64), np.asarray(host, np.float64)
    eps = 2.0**-8 if host.dtype.name == "bfloat16" else float(np.finfo(host.dtype).eps)
    error = np.abs(wide - exact).max(initial=0.0)
    allowed = 2 * np.abs(plain - exact).max(initial=0.0) + 16 * eps * np.abs(exact).max(initial=0.0)
    assert error <= allowed, f"{what}: error {error:.3g} > {allowed:.3g}"


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_steps_are_those_of_the_host(there: There, name: str, row: int) -> None:
    options = OPTIMIZERS[name]["options"][row]
    # Bases of SOAP turn with rounding, and Adafactor's eps is the dtype's: float64 tells what is meant.
    dtype = np.dtype(np.float64 if name == "SOAP" else np.float32)
    host, expected = run(name, options, np.copy, dtype)
    device, params = run(name, options, there.put, dtype)
    if name == "Adafactor" and options.get("eps", (None,))[0] is None:
        options = {**options, "eps": (float(np.finfo(dtype).eps), 1e-3)}
    _, exact = run(name, options, np.copy, np.float64)
    for i, (a, b, c) in enumerate(zip(params, expected, exact, strict=True)):
        if name == "SOAP":
            np.testing.assert_allclose(there.take(a), b, rtol=1e-8, atol=1e-10)
        else:
            assert_near(name, there.take(a), b, c, f"parameter {i}")
    assert device.state.keys() == host.state.keys()
    for i, entry in host.state.items():
        assert device.state[i].keys() == entry.keys()
        for key, value in entry.items():
            ours = device.state[i][key]
            if np.ndim(value) == 0 and not (there.owns(ours) and ours.ndim == 0):
                assert float(ours) == float(value)
            elif name in MATRIX:
                assert there.take(ours).shape == value.shape
            else:
                assert_same_bits(there.take(ours), value, key)


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_to_the_host_and_back(there: There, name: str) -> None:
    """A state dictionary is of the library's arrays, and every place goes on from it alike."""
    options = {"lr": 0.01} | ({"accumulate": 2} if name not in [*MATRIX, "SparseAdam", "Prodigy"] else {})
    device, params = run(name, options, there.put, np.float32, 3)
    saved = device.state_dict()
    heirs = []
    for put in (np.copy, there.put):
        copies = [put(there.take(p)) for p in params]
        heir = getattr(optim, name)(copies, **{**options, "lr": 0.5})
        # CuPy and torch refuse to become arrays of the host unasked: load_state_dict asks.
        heir.load_state_dict(saved)
        assert heir.param_groups[0]["lr"] == 0.01
        heirs.append((heir, copies, put))
    clone = pickle.loads(pickle.dumps(device)) if there.name == "cupy" else copy.deepcopy(device)
    clones = [p for group in clone.param_groups for p in group["params"]]
    for opt, _, put in [(device, params, there.put), *heirs, (clone, clones, there.put)]:
        for t in (3, 4):
            opt.step(gradients(name, put, t, np.float32))
    for i, p in enumerate(params):
        assert_same_bits(there.take(heirs[1][1][i]), there.take(p), "loaded")
        assert_same_bits(there.take(clones[i]), there.take(p), "copied")
        np.testing.assert_allclose(there.take(p), heirs[0][1][i], rtol=1e-3, atol=1e-4)
        if name not in MATRIX:
            assert_same_bits(there.take(p), heirs[0][1][i], "on the host")
    back = getattr(optim, name)([there.put(p) for p in heirs[0][1]], **options)
    back.load_state_dict(heirs[0][0].state_dict())
    for entry in back.state.values():
        assert all(there.owns(a) for a in entry.values() if np.ndim(a))


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matrices_of_two_bytes(there: There, name: str, dtype: str) -> None:
    (narrow,) = dtypes(dtype)
    options = {"lr": 0.02} | ({"eps": (2.0**-8, 1e-3)} if name == "Adafactor" else {})
    device, params = run(name, options, there.put, narrow, 3)
    _, host = run(name, options, np.copy, narrow, 3)
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for p, h in zip(params, host, strict=True):
        wide = h.astype(np.float64)
        assert np.abs(there.take(p).astype(np.float64) - wide).max(initial=0) <= 2 * eps * np.abs(wide).max(
            initial=0
        )
    for entry in device.state.values():
        assert {there.take(a).dtype.name for key, a in entry.items() if key != "step"} == {"float32"}


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_gradient_changes_nothing(there: There, name: str) -> None:
    opt, params = run(name, {}, there.put, np.float32, 1)
    before = [there.take(p) for p in params]
    good = gradients(name, there.put, 1, np.float32)
    on_host = gradients(name, np.copy, 1, np.float32)
    with pytest.raises(
        TypeError, match=r"step: grads\[1\].* is on the host, params\[1\] is on a CUDA device"
    ):
        opt.step([good[0], on_host[1], *good[2:]])
    for p, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(there.take(p), b)
    host = getattr(optim, name)([b.copy() for b in before])
    with pytest.raises(
        TypeError, match=r"step: grads\[1\].* is on a CUDA device, params\[1\] is on the host"
    ):
        host.step([on_host[0], good[1], *on_host[2:]])


@pytest.mark.parametrize("name", MATRIX)
def test_a_step_of_matrices_reads_nothing_back(
    there: There, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What brings elements to the host would wait for the device."""
    if kind == "device":
        pytest.skip("the library's class cannot be changed")
    opt, _ = run(name, {}, there.put, np.float32, 2)
    grads = gradients(name, there.put, 3, np.float32)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the elements of an array on the device were read")

    methods = ("item", "tolist", "__bool__", "__int__", "__float__", "__array__")
    for method in (*methods, "get" if there.name == "cupy" else "cpu"):
        monkeypatch.setattr(type(grads[0]), method, refuse)
    opt.step(grads)


# ----------------------------------------------------------------------------------- settings and methods


def _trained(opt: Any, put: Put, steps: int = 3) -> Any:
    for t in range(steps):
        opt.step(gradients("", put, t, np.float32))
    return opt


def _groups(params: list[Any], put: Put) -> Any:
    named = {"hidden.weight": params[0], "head.weight": params[1], "hidden.bias": params[2]}
    opt = optim.AdamW(named, lr=0.1, no_decay=("bias",), weight_decay=0.5)
    grads = gradients("", put, 0, np.float32)
    opt.step(dict(zip(named, grads, strict=True)))
    opt.param_groups[1]["lr"] = 0.3
    opt.add_param_group({"params": [put(np.ones(3, np.float32))], "lr": 0.2, "no_decay": None})
    opt.step([dict(zip(named, grads, strict=True)), [put(np.ones(3, np.float32))]])
    return opt


def _averages(params: list[Any], put: Put) -> Any:
    opt = _trained(optim.Adam(params, lr=0.1, ema_decay=0.6), put)
    with opt.swap_ema():
        kept = [put(np.zeros(p.shape, np.float32)) for p in params]
        for k, p in zip(kept, params, strict=True):
            k[...] = p
    return opt, kept


def _weight_average(params: list[Any], put: Put) -> Any:
    average, opt = optim.WeightAverage(params, 0.7), optim.SGD(params, lr=0.1)
    for t in range(3):
        opt.step(gradients("", put, t, np.float32))
        average.update()
    saved = average.state_dict()
    average.update()
    average.load_state_dict(saved)
    with average.swap():
        return [copy.deepcopy(p) for p in params], saved["averages"]


def _schedule_free(params: list[Any], put: Put) -> Any:
    opt = _trained(optim.AdamWScheduleFree(params, lr=0.1, warmup_steps=2), put)
    opt.eval()
    evaluated = [copy.deepcopy(p) for p in params]
    opt.train()
    return _trained(opt, put), evaluated


def _sophia(params: list[Any], put: Put) -> Any:
    opt = optim.Sophia(params, lr=0.1)
    opt.update_hessian([put(np.full(shape, 0.5, np.float32)) for shape in SHAPES])
    return _trained(opt, put)


def _sam(params: list[Any], put: Put) -> Any:
    opt = optim.Lookahead(optim.SAM(optim.SGD(params, lr=0.1), 0.3), k=2)
    grads = iter(range(100))
    for _ in range(3):
        opt.step(lambda: (0.0, gradients("", put, next(grads), np.float32)))
    return opt


def _closure(params: list[Any], put: Put) -> Any:
    opt = optim.LAMB(params, lr=0.1, max_norm=1.0)
    assert opt.step(lambda: (2.5, gradients("", put, 0, np.float32))) == 2.5
    return opt


def _clipped(params: list[Any], put: Put) -> Any:
    grads = gradients("", put, 0, np.float32)
    held = [SimpleNamespace(grad=g) for g in grads]  # as Tensors and torch's parameters hold theirs
    norms = [optim.clip_grad_norm_(held, 0.5), optim.clip_grad_norm_(held, 0.4, 3.0)]
    optim.clip_grad_value_(held, 0.01)
    return grads, [float(x) for x in (*norms, optim.get_total_norm(grads, np.inf))]


def _shadows(params: list[Any], put: Put) -> Any:
    (narrow,) = dtypes("bfloat16")
    shadows = [put(np.zeros(shape, narrow)) for shape in SHAPES]
    opt = optim.AdamW(params, lr=0.1)
    opt.keep_shadow(shadows)
    return _trained(opt, put), shadows


def _routed(params: list[Any], put: Put) -> Any:
    """In float64: what Muon computes is no kernel's."""
    names = ["hidden.weight", "head.weight", "hidden.bias"]
    wide = [put(drawn(shape, np.float64, k)) for k, shape in enumerate(SHAPES)]
    opt = optim.Muon(dict(zip(names, wide, strict=True)), lr=0.1, adamw={"lr": 0.2, "state_dtype": "int8"})
    for t in range(3):
        opt.step(dict(zip(names, gradients("", put, t, np.float64), strict=True)))
    heir = optim.Muon(dict(zip(names, map(copy.deepcopy, wide), strict=True)), adamw={})
    heir.load_state_dict(opt.state_dict())
    heir.step(dict(zip(names, gradients("", put, 3, np.float64), strict=True)))
    return heir


USES: dict[str, Callable[[list[Any], Put], Any]] = {
    "groups": _groups,
    "averages": _averages,
    "weight average": _weight_average,
    "schedule-free": _schedule_free,
    "sophia": _sophia,
    "sam in lookahead": _sam,
    "closure": _closure,
    "clipping functions": _clipped,
    "shadows": _shadows,
    "muon with adamw": _routed,
}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {"state_dtype": "int8"}),
    ("AdamW", {"state_dtype": "bfloat16"}),
    ("LAMB", {"state_dtype": "bfloat16", "max_norm": 0.5, "clip_value": 0.1}),
    ("SGD", {"momentum": 0.9, "adaptive_clip": 0.05}),
    ("SGD", {"max_norm": 0.5, "clip_scope": "group"}),
    ("SGD", {"max_norm": 0.5, "clip_scope": "parameter"}),
    ("SGD", {"max_norm": 0.5, "norm_type": 1.0}),
    ("Adam", {"max_norm": 0.5, "norm_type": np.inf}),
    ("Adam", {"accumulate": 2, "accumulate_reduction": "sum"}),
    ("Ftrl", {"l1_regularization_strength": 0.1, "max_norm": 0.5}),
    ("Prodigy", {"d0": 0.1, "max_norm": 0.5}),
    ("SGDScheduleFree", {"lr": 0.1, "ema_decay": 0.9}),
    ("LARS", {"lr": 0.1, "l1": 0.01}),
    ("NovoGrad", {"weight_decay": 0.1}),
]


def leaves(x: Any, there: There) -> list[Any]:
    """The arrays and numbers of what a use returns, on the host."""
    if isinstance(x, optim.Optimizer | optim.Lookahead):
        state = x.state_dict()
        return leaves(
            [state["state"], state.get("lookahead", {}), [g["params"] for g in x.param_groups]], there
        )
    if isinstance(x, dict):
        return [leaf for key in sorted(x, key=str) for leaf in leaves(x[key], there)]
    if isinstance(x, list | tuple):
        return [leaf for part in x for leaf in leaves(part, there)]
    return [there.take(x) if there.owns(x) else x]


def assert_alike(there: There, use: Callable[[list[Any], Put], Any], exact: bool) -> None:
    start = [drawn(shape, np.float32, k) for k, shape in enumerate(SHAPES)]
    host, device = [p.copy() for p in start], [there.put(p) for p in start]
    expected = leaves([use(host, np.copy), host], there)
    got = leaves([use(device, there.put), device], there)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        if exact and isinstance(b, np.ndarray):
            assert_same_bits(a, b)
        elif isinstance(b, np.ndarray | float):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use", USES)
def test_uses(there: There, use: str) -> None:
    sums = ("sam in lookahead", "closure", "clipping functions", "muon with adamw")
    assert_alike(there, USES[use], exact=use not in sums)


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=lambda x: str(x))
def test_settings(there: There, name: str, settings: dict[str, Any]) -> None:
    def use(params: list[Any], put: Put) -> Any:
        return _trained(getattr(optim, name)(params, **settings), put)

    assert_alike(there, use, exact=not {"max_norm", "adaptive_clip"} & settings.keys())


# -------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_of_equal_indices_are_summed(there: There, dtype: str) -> None:
    """Runs of every length around the powers of two; sums of other orders are held to float64."""
    (narrow,) = dtypes(dtype)
    counts = [1, 2, 3, 4, 5, 7, 8, 9, 31]
    order = np.random.default_rng(1).permutation(sum(counts))
    indices = np.repeat(np.arange(len(counts)) * 2, counts)[order]
    for shape in ((18,), (18, 3), (18, 2, 3)):
        start, rows = drawn(shape, narrow, 1), drawn((len(indices), *shape[1:]), narrow, 2)
        host, device, exact = start.copy(), there.put(start), start.astype(np.float64)
        opts = [optim.SparseAdam([p], lr=0.5, betas=(0.5, 0.9), eps=1.0) for p in (host, device, exact)]
        for _ in range(2):
            opts[0].step([(indices, rows)])
            opts[1].step([(there.put(indices.astype(np.int32)), there.put(rows))])
            opts[2].step([(indices, rows.astype(np.float64))])
        ours = there.take(device).astype(np.float64)
        eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[dtype]
        allowed = 2 * np.abs(host.astype(np.float64) - exact).max() + 4 * eps * np.abs(exact).max()
        assert np.abs(ours - exact).max() <= allowed
        np.testing.assert_array_equal(ours[1::2], start[1::2].astype(np.float64))
        assert_same_bits(there.take(device)[:3], host[:3])  # runs of one and two have one order


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.array([0, 3, 1]), r"step: grads\[0\]\[0\] has the index 3, params\[0\] has 3 rows"),
        (np.array([1, -1, 0]), r"step: grads\[0\]\[0\] has the index -1, params\[0\] has 3 rows"),
        (np.array([[0, 1, 2]]), r"step: grads\[0\]\[0\] has shape \(1, 3\), expected one dimension"),
        (np.array([0, 1]), r"step: grads\[0\]\[1\] has shape \(3, 2\), expected \(2, 2\)"),
    ],
)
def test_rows_that_are_refused(there: There, indices: np.ndarray, message: str) -> None:
    p = there.put(np.ones((3, 2), np.float32))
    opt = optim.SparseAdam([p, there.put(np.ones(2, np.float32))])
    good = (there.put(np.array([0])), there.put(np.ones(1, np.float32)))
    with pytest.raises(ValueError, match=message):
        opt.step([(there.put(indices), there.put(np.ones((3, 2), np.float32))), good])
    np.testing.assert_array_equal(there.take(p), 1)
    assert not opt.state
    opt.step([(there.put(np.zeros(0, np.int64)), there.put(np.ones((0, 2), np.float32))), good])
    assert [int(entry["step"]) for entry in opt.state.values()] == [1, 1]
    np.testing.assert_array_equal(there.take(p), 1)


# ------------------------------------------------------------------------------------------------- groups


def test_a_refused_group_leaves_no_trace() -> None:
    """Of Muon, which finds a group's shapes after it was added."""
    a, b, c = np.ones((2, 3)), np.ones(3), np.ones((3, 2))
    opt, twin = optim.Muon([a]), optim.Muon([{"params": [a.copy()]}, {"params": [c.copy()]}])
    with pytest.raises(ValueError, match=r"has shape \(3,\)"):
        opt.add_param_group({"params": [b]})
    opt.add_param_group({"params": [c]})
    grads = [np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2)]
    opt.step(list(grads))
    twin.step([[grads[0]], [grads[1]]])
    for ours, theirs in zip(opt.param_groups, twin.param_groups, strict=True):
        np.testing.assert_array_equal(ours["params"][0], theirs["params"][0])
