"""Optimizers of whole arrays: Muon with its way to AdamW, Adafactor and SOAP."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import OPTIMIZERS
from fastopt import nn, optim
from fastopt.optim.matrix import MatrixOptimizer
from gpu_tools import cp, kind
from optim_tools import assert_close, refuse, ulp
from reference_matrix import run_matrix

__all__ = ["cp", "kind"]

NAMES = [name for name in OPTIMIZERS if issubclass(getattr(optim, name), MatrixOptimizer)]
ROWS = [(name, row) for name in NAMES for row in range(len(OPTIMIZERS[name]["options"]))]
MATRICES = [(6, 4), (4, 6), (5, 5), (1, 7), (9, 1), (33, 20), (4, 3, 2), (6, 2, 3, 2), (0, 3)]
OTHERS = [(7,), (12,), (1,)]
# Their products along each axis have full rank: vectors of a null space are any.
FULL_RANK = [(5, 5), (8, 8), (1, 1), (4, 3, 2), (9, 3, 4), (6, 2, 3, 2), (0, 3), (1,), ()]
STEPS = 24


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return {"Muon": MATRICES, "Adafactor": [*MATRICES, *OTHERS, ()], "SOAP": FULL_RANK}[name]


def problem(name: str, dtype: Any, seed: int = 3) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    rng = np.random.default_rng(seed)
    shapes = shapes_of(name)
    params = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    drift = [np.asarray(0.5 * rng.standard_normal(s)) for s in shapes]
    steps = [[np.asarray(d + rng.standard_normal(d.shape), dtype) for d in drift] for _ in range(STEPS)]
    return params, steps


def stepped(name: str, params: list[np.ndarray], grads: list[Any], options: Any) -> Any:
    opt = getattr(optim, name)(params, **options)
    for g in grads:
        assert opt.step(g) is None
    return opt


def wide(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_matches_the_reference(name: str, row: int) -> None:
    options = OPTIMIZERS[name]["options"][row]
    start, grads = problem(name, np.float64)
    params = [p.copy() for p in start]
    stepped(name, params, grads, options)
    filled = [i for i, p in enumerate(start) if p.size]
    exact, _ = run_matrix(
        name, [start[i] for i in filled], [[g[i] for i in filled] for g in grads], clean(options)
    )
    for i, want in zip(filled, exact, strict=True):
        np.testing.assert_allclose(params[i], want, rtol=1e-8, atol=1e-10, err_msg=str(start[i].shape))


def clean(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "foreach"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("name", "row"), [(n, r) for n, r in ROWS if n != "SOAP"])
def test_narrow_dtypes_are_as_near_as_plain_numpy(name: str, row: int, dtype: str) -> None:
    """SOAP's bases turn with rounding where eigenvalues are close, so it is compared in float64 alone."""
    pytest.importorskip("ml_dtypes")
    options = OPTIMIZERS[name]["options"][row]
    kind = (
        fo.optim.params.as_view(np.zeros(1, np.float32), "x").dtype if dtype == "float32" else dtype_of(dtype)
    )
    start, grads = problem(name, kind)
    filled = [i for i, p in enumerate(start) if p.size]
    start, grads = [start[i] for i in filled], [[g[i] for i in filled] for g in grads[:6]]
    params = [p.copy() for p in start]
    opt = stepped(name, params, grads, options)
    eps = {"finfo": np.float32} if name == "Adafactor" else {}
    if name == "Adafactor" and dtype != "float32" and options.get("eps", (None,))[0] is None:
        eps = {"eps": ({"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype], 1e-3)}
    exact = rounded_run(name, start, grads, {**clean(options), **eps}, np.float64)
    plain = rounded_run(name, start, grads, {**clean(options), **eps}, np.float32)
    assert all(p.dtype == kind for p in params)
    assert_close(params, exact, plain, kind, "params")
    for entry in opt.state.values():
        assert {a.dtype.name for a in entry.values()} == {"float32"}
    assert ulp(kind) > 0


def rounded_run(name: str, start: Any, grads: Any, options: Any, compute: Any) -> list[np.ndarray]:
    """The reference computed in one dtype, rounded to the parameters' own after each step."""
    dtype = start[0].dtype
    ps: list[Any] = list(start)
    states: Any = [{} for _ in ps]
    from reference_matrix import DEFAULTS, UPDATES

    o = {**DEFAULTS[name], **options}
    for t, gs in enumerate(grads, 1):
        ps = [
            UPDATES[name](p.astype(compute), g.astype(compute), s, t, o).astype(dtype)
            for p, g, s in zip(ps, gs, states, strict=True)
        ]
    return ps


def dtype_of(name: str) -> Any:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_float32_is_near_float64(name: str, row: int) -> None:
    options = OPTIMIZERS[name]["options"][row]
    start, grads = problem(name, np.float32)
    ours, exact = [p.copy() for p in start], wide(start)
    stepped(name, ours, grads[:8], options)
    eps = {"eps": (float(np.finfo(np.float32).eps), 1e-3)} if name == "Adafactor" and not options else {}
    stepped(name, exact, [wide(g) for g in grads[:8]], {**options, **eps})
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 if name == "SOAP" else 1e-4)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_layout_changes_no_value(name: str, row: int) -> None:
    """Parameters in Fortran's order and with gaps, given as a dict."""
    options = OPTIMIZERS[name]["options"][row]
    start, grads = problem(name, np.float64)
    plain = [p.copy() for p in start]
    stepped(name, plain, grads[:4], options)
    start, plain = ([p for p in ps if p.ndim] for ps in (start, plain))
    spread = [np.zeros((*p.shape[:-1], 2 * p.shape[-1])) for p in start]
    views = {str(i): a[..., ::2] if i % 2 else np.asfortranarray(start[i]) for i, a in enumerate(spread)}
    for i, p in enumerate(start):
        views[str(i)][...] = p
    opt = getattr(optim, name)(views, **options)
    for g in grads[:4]:
        opt.step({str(i): np.asfortranarray(x) for i, x in enumerate(g[: len(start)])})
    for i, p in enumerate(plain):
        np.testing.assert_allclose(views[str(i)], p, rtol=1e-9, atol=1e-12)
    assert all(not a[..., 1::2].any() for a in spread)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_state_goes_on_where_it_was(name: str, row: int) -> None:
    options = OPTIMIZERS[name]["options"][row]
    start, grads = problem(name, np.float64)
    first = [p.copy() for p in start]
    opt = stepped(name, first, grads[:5], options)
    copies = [p.copy() for p in first]
    other = getattr(optim, name)(copies, lr=5.0)
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["lr"] == opt.param_groups[0]["lr"]
    unpickled = pickle.loads(pickle.dumps(opt))
    for g in grads[5:9]:
        opt.step(g)
        other.step(g)
        unpickled.step(g)
    for a, b, c in zip(first, copies, unpickled.param_groups[0]["params"], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    for i, entry in opt.state.items():
        assert entry.keys() == other.state[i].keys()


@pytest.mark.parametrize("name", NAMES)
def test_bad_state_is_refused(name: str) -> None:
    p = np.ones((3, 2))
    opt = stepped(name, [p], [[np.ones((3, 2))]] * 2, {})
    good = opt.state_dict()
    array = next(key for key in good["state"][0] if key != "step")
    lacking, misshapen = copy.deepcopy(good), copy.deepcopy(good)
    del lacking["state"][0][array]
    misshapen["state"][0][array] = np.zeros((7, 7))
    refuse(opt, lambda: opt.load_state_dict(misshapen), r"has shape \(7, 7\), expected")
    if name != "Muon":  # which has no other entry that would miss it
        refuse(opt, lambda: opt.load_state_dict(lacking), f"state\\[0\\] has no '{array}'")
        negative = copy.deepcopy(good)
        negative["state"][0]["step"] = -1
        refuse(opt, lambda: opt.load_state_dict(negative), r"'step'\] must be in \[0, inf\), got -1")


@pytest.mark.parametrize("name", NAMES)
def test_missing_gradients_and_refusals(name: str) -> None:
    start, grads = problem(name, np.float64)
    start, grads = start[:3], [g[:3] for g in grads]
    given = [[g if (t + i) % 3 else None for i, g in enumerate(gs)] for t, gs in enumerate(grads[:9])]
    params = [p.copy() for p in start]
    opt = stepped(name, params, given, {})
    exact, _ = run_matrix(name, start, given, {})
    for a, b in zip(params, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    wrong = [*grads[0][:2], np.zeros((2, 2))]
    refuse(opt, lambda: opt.step(wrong), r"step: grads\[2\] has shape \(2, 2\), params\[2\] has shape")
    opt.param_groups[0]["lr"] = -1.0
    refuse(opt, lambda: opt.step(grads[0]), r"lr must be in \[0, inf\), got -1.0")
    opt.param_groups[0]["lr"] = 0.1
    assert opt.step(lambda: (3.5, grads[0])) == 3.5


@pytest.mark.parametrize("name", NAMES)
def test_trains_a_compiled_model(name: str) -> None:
    fo.manual_seed(3)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 5)).astype(np.float32)
    y = (x @ rng.standard_normal((5, 3))).argmax(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    extra: dict[str, Any] = {"adamw": {"lr": 1e-2}} if name == "Muon" else {}
    opt = getattr(optim, name)(model.named_parameters(), lr=0.02, **extra)
    step = fo.compile(model, nn.CrossEntropyLoss(), opt)
    losses = [step(x, y) for _ in range(120)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_cupy_arrays_go_the_same_way(name: str, cp: Any) -> None:
    start, grads = problem(name, np.float32)
    start, grads = start[:3], [g[:3] for g in grads[:4]]
    host, device = [p.copy() for p in start], [cp.asarray(p) for p in start]
    ours = stepped(name, host, grads, {})
    theirs = stepped(name, device, [[cp.asarray(x) for x in g] for g in grads], {})
    for a, b in zip(host, device, strict=True):
        np.testing.assert_allclose(b.get(), a, rtol=1e-4, atol=1e-5)
    for i, entry in theirs.state.items():
        assert all(isinstance(a, cp.ndarray) for key, a in entry.items() if key != "step")
        assert entry.keys() == ours.state[i].keys()
    theirs.load_state_dict(ours.state_dict())
    theirs.step([cp.asarray(x) for x in grads[0]])
    ours.step(grads[0])
    for a, b in zip(host, device, strict=True):
        np.testing.assert_allclose(b.get(), a, rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------------------------------- torch


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", range(len(OPTIMIZERS["Adafactor"]["options"])))
def test_adafactor_is_torchs(row: int, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    options = OPTIMIZERS["Adafactor"]["options"][row]
    start, grads = problem("Adafactor", dtype)
    start, grads = start[:8] + start[9:], [g[:8] + g[9:] for g in grads]
    params = [p.copy() for p in start]
    theirs = [torch.tensor(p, requires_grad=True) for p in start]
    twin = torch.optim.Adafactor(theirs, **options)
    ours = optim.Adafactor(params, **options)
    for gs in grads:
        ours.step(gs)
        for p, g in zip(theirs, gs, strict=True):
            p.grad = torch.tensor(g)
        twin.step()
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    for i, (a, b) in enumerate(zip(params, theirs, strict=True)):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=tolerance, atol=tolerance)
        state = twin.state[b]
        for key, value in ours.state[i].items():
            np.testing.assert_allclose(value, state[key].numpy(), rtol=tolerance, atol=tolerance)
    assert ours.defaults == {k: v for k, v in twin.defaults.items() if k != "foreach"}


@pytest.mark.peers
@pytest.mark.parametrize("row", range(len(OPTIMIZERS["Muon"]["options"])))
def test_muon_is_torchs_but_for_its_bfloat16(row: int) -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    options = OPTIMIZERS["Muon"]["options"][row]
    start, grads = problem("Muon", "float32")
    start, grads = start[:6], [g[:6] for g in grads]
    params = [p.copy() for p in start]
    theirs = [torch.tensor(p, requires_grad=True) for p in start]
    twin, ours = torch.optim.Muon(theirs, **options), optim.Muon(params, **options)
    for t, gs in enumerate(grads[:3], 1):
        ours.step(gs)
        for p, g in zip(theirs, gs, strict=True):
            p.grad = torch.tensor(g)
        twin.step()
        for i, (a, b) in enumerate(zip(params, theirs, strict=True)):
            moved = np.abs(b.detach().numpy() - start[i]).max()
            np.testing.assert_allclose(a, b.detach().numpy(), atol=0.03 * moved * t)
            np.testing.assert_allclose(
                ours.state[i]["momentum_buffer"],
                twin.state[b]["momentum_buffer"].numpy(),
                rtol=1e-5,
                atol=1e-6,
            )
    assert ours.defaults == twin.defaults
    again = optim.Muon([p.copy() for p in start])
    again.load_state_dict(
        {
            "state": {
                i: {"momentum_buffer": twin.state[b]["momentum_buffer"].numpy()} for i, b in enumerate(theirs)
            },
            "param_groups": twin.state_dict()["param_groups"],
        }
    )
    again.step(grads[3])


# ---------------------------------------------------------------------------------------------------- Muon


def test_muon_makes_singular_values_one() -> None:
    """With coefficients that converge, which the default ones do not."""
    rng = np.random.default_rng(1)
    for shape in [(5, 9), (9, 5), (4, 4)]:
        p, g = np.zeros(shape), rng.standard_normal(shape)
        optim.Muon([p], lr=1.0, weight_decay=0.0, ns_steps=40, ns_coefficients=(1.875, -1.25, 0.375)).step(
            [g]
        )
        u, _, v = np.linalg.svd(g, full_matrices=False)
        np.testing.assert_allclose(p, -(u @ v) * max(1.0, shape[0] / shape[1]) ** 0.5, atol=1e-10)


def test_muon_sends_what_is_no_hidden_matrix_to_adamw() -> None:
    rng = np.random.default_rng(2)
    shapes = {"embed": {"weight": (7, 4)}, "hidden": {"w": (4, 5), "b": (5,)}, "head": {"weight": (5, 3)}}
    params = {k: {n: rng.standard_normal(s) for n, s in v.items()} for k, v in shapes.items()}
    apart = copy.deepcopy(params)
    grads = [
        {k: {n: rng.standard_normal(s) for n, s in v.items()} for k, v in shapes.items()} for _ in range(4)
    ]
    opt = optim.Muon(params, lr=0.02, adamw={"lr": 3e-3, "betas": (0.8, 0.9), "weight_decay": 0.05})
    assert [g["param_names"] for g in opt.param_groups] == [
        ["hidden.w"],
        ["embed.weight", "hidden.b", "head.weight"],
    ]
    muon = optim.Muon([apart["hidden"]["w"]], lr=0.02)
    rest = [apart["embed"]["weight"], apart["hidden"]["b"], apart["head"]["weight"]]
    adamw = optim.AdamW(rest, lr=3e-3, betas=(0.8, 0.9), weight_decay=0.05)
    for t, g in enumerate(grads):
        for group in opt.param_groups:  # as a schedule does
            group["lr"] *= 0.9
        muon.param_groups[0]["lr"] *= 0.9
        adamw.param_groups[0]["lr"] *= 0.9
        opt.step(
            g if t % 2 else [g["embed"]["weight"], g["hidden"]["w"], g["hidden"]["b"], g["head"]["weight"]]
        )
        muon.step([g["hidden"]["w"]])
        adamw.step([g["embed"]["weight"], g["hidden"]["b"], g["head"]["weight"]])
    for k, v in params.items():
        for n, p in v.items():
            np.testing.assert_array_equal(p, apart[k][n])
    assert opt.state[0].keys() == {"momentum_buffer"}
    assert opt.state[1].keys() == {"step", "exp_avg", "exp_avg_sq"}

    other = copy.deepcopy(params)
    again = optim.Muon(other, adamw={})
    again.load_state_dict(opt.state_dict())
    unpickled = pickle.loads(pickle.dumps(opt))
    for o in (opt, again, unpickled):
        o.param_groups[1]["lr"] = 0.5  # the group that a schedule sees is AdamW's own
        o.step(grads[0])
    arrays = [p for group in unpickled.param_groups for p in group["params"]]
    ours = [p for group in opt.param_groups for p in group["params"]]
    for a, b, c in zip(
        ours, arrays, [p for group in again.param_groups for p in group["params"]], strict=True
    ):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    bad = opt.state_dict()
    bad["state"][2]["exp_avg"] = np.zeros(9)
    refuse(opt, lambda: opt.load_state_dict(bad), r"exp_avg.*has shape \(9,\)")


def test_muon_takes_another_route_and_groups() -> None:
    a, b, c = np.ones((2, 3)), np.ones((3, 2)), np.ones(4)
    opt = optim.Muon([a, b, c], adamw={}, route=lambda name, p: name is None and p.shape != (3, 2))
    assert [len(group["params"]) for group in opt.param_groups] == [1, 2]
    opt.step([np.ones((2, 3)), np.ones((3, 2)), None])
    np.testing.assert_array_equal(c, 1)
    assert a[0, 0] != 1 != b[0, 0]

    groups = optim.Muon([{"params": [a]}, {"params": [c], "use_muon": False, "lr": 0.5}], lr=0.02)
    groups.add_param_group({"params": {"b": b}, "use_muon": False, "amsgrad": True})
    assert groups.param_groups[1]["lr"] == 0.5
    assert groups.param_groups[2]["lr"] == 1e-3
    assert "momentum" not in groups.param_groups[2]
    groups.step([[np.ones((2, 3))], [np.ones(4)], {"b": np.ones((3, 2))}])
    np.testing.assert_allclose(c, 1 * (1 - 0.5e-2) - 0.5, rtol=1e-6)
    assert "max_exp_avg_sq" in groups.state[2]
    groups.load_state_dict(groups.state_dict())


def test_muon_refuses_what_it_cannot_route() -> None:
    w, b = np.ones((2, 3)), np.ones(3)
    with pytest.raises(
        ValueError, match=r"Muon: params\['b'\] has shape \(3,\), Muon takes two dimensions or more"
    ):
        optim.Muon({"w": w, "b": b})
    with pytest.raises(ValueError, match="route is given without adamw"):
        optim.Muon([w], route=lambda name, p: False)
    with pytest.raises(ValueError, match="adamw is for params without groups"):
        optim.Muon([{"params": [w]}], adamw={})
    with pytest.raises(TypeError, match="momentum"):
        optim.Muon([w, b], adamw={"momentum": 0.9})
    with pytest.raises(ValueError, match=r"AdamW: beta1 must be in \[0, 1\), got 2"):
        optim.Muon([w, b], adamw={"betas": (2, 0.9)})
    opt = optim.Muon([w])
    refuse(opt, lambda: opt.add_param_group({"params": [b]}), r"has shape \(3,\)")
    other = np.ones((3, 2))
    for no_decay in (["a"], ["b"]):
        group = {"params": {"a": b, "b": other}, "no_decay": no_decay}
        refuse(opt, lambda group=group: opt.add_param_group(group), r"params\[1\]\['a'\] has shape \(3,\)")
        with pytest.raises(ValueError, match=r"params\['a'\] has shape \(3,\)"):
            optim.Muon([group])
    assert len(opt.param_groups) == 1
    opt.step([np.ones((2, 3))])


def test_soaps_first_gradient_moves_nothing() -> None:
    p = np.ones((3, 2))
    opt = optim.SOAP([p])
    opt.step([np.arange(6.0).reshape(3, 2)])
    np.testing.assert_array_equal(p, 1)
    assert opt.state[0]["step"] == 0
    opt.step([np.arange(6.0).reshape(3, 2)])
    assert opt.state[0]["step"] == 1
    assert (p != 1).any()
