"""State of optimizers: averages, state dictionaries (torch's too), resuming, pickles."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from cases import OPTIMIZERS
from fastopt import optim
from optim_tools import (
    PEER_ROWS,
    ROWS,
    RULES,
    TORCH_LACKS,
    TorchTwin,
    make,
    problem,
    refuse,
    to_numpy,
    to_torch,
)


def assert_near(ours, theirs, share):
    """Within a share of the largest magnitude: torch rounds some of its numbers to float32."""
    largest = np.max(np.abs(theirs), initial=0.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * largest)


def test_swap_ema():
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)[::2]
    opt = optim.SGD([{"params": [p]}, {"params": [q], "ema_decay": None}], lr=1.0, ema_decay=0.5)
    opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
    opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
    with opt.swap_ema():
        np.testing.assert_array_equal(p, 0.5 * (0.5 * 1 + 0.5 * 0) + 0.5 * -1)
        np.testing.assert_array_equal(q, -1)
        with pytest.raises(RuntimeError, match="inside swap_ema"):
            opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
        with pytest.raises(RuntimeError, match="swapped in already"), opt.swap_ema():
            pass
    np.testing.assert_array_equal(p, -1)
    with pytest.raises(KeyError), opt.swap_ema():
        raise KeyError
    np.testing.assert_array_equal(p, -1)
    opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
    with pytest.raises(RuntimeError, match="SGD keeps no averages"), optim.SGD([p]).swap_ema():
        pass


def test_average_starts_from_the_weights_of_the_first_step():
    p = np.zeros(2)
    opt = optim.SGD([p], lr=0.0, ema_decay=0.9)
    p[:] = 5.0  # a checkpoint loaded after the optimizer was made
    opt.step([np.ones(2)])
    np.testing.assert_array_equal(opt.state[0]["ema"], 5.0)


# --------------------------------------------------------------------------------------- state dictionaries


@pytest.mark.peers
@pytest.mark.parametrize(("name", "row"), PEER_ROWS)
def test_state_dict_exchange_with_torch(name, row):
    torch = pytest.importorskip("torch")
    options = OPTIMIZERS[name]["options"][row]
    options = {k: v for k, v in options.items() if k not in TORCH_LACKS}
    start, grads = problem("float64")
    start, grads = start[:6], [g[:6] for g in grads]
    twin = TorchTwin(torch, name, start, options)
    params = [p.copy() for p in start]
    opt = make(name, params, options)
    for g in grads[:5]:
        opt.step(g)
        twin.step(g)

    ours, theirs = opt.state_dict(), to_numpy(torch, twin.opt.state_dict())
    assert ours["state"].keys() == theirs["state"].keys()
    for i, entry in theirs["state"].items():
        assert {k for k, v in entry.items() if v is not None} == ours["state"][i].keys()
        for key, value in ours["state"][i].items():
            assert_near(value, entry[key], 1e-6)
            assert value.shape == np.shape(entry[key])
    torch_keys = theirs["param_groups"][0].keys() - {"foreach", "capturable", "differentiable", "fused"}
    assert torch_keys <= ours["param_groups"][0].keys()

    # Each goes on from the other's state.
    heir = [p.copy() for p in twin.arrays()]
    opt2 = make(name, heir)
    opt2.load_state_dict(theirs)
    twin2 = TorchTwin(torch, name, params, options)
    twin2.opt.load_state_dict(to_torch(torch, ours))
    for g in grads[5:10]:
        for o in (opt, twin, opt2, twin2):
            o.step(g)
    for results in (twin.arrays(), heir, twin2.arrays()):
        for a, b in zip(params, results, strict=True):
            assert_near(b, a, 2e-6)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_resume_is_bit_identical(name, row):
    options = OPTIMIZERS[name]["options"][row]
    start, grads = problem("float32")
    start, grads = start[:9], [g[:9] for g in grads[:8]]
    whole = [p.copy() for p in start]
    opt = make(name, whole, options)
    for g in grads:
        opt.step(g)
    half = [p.copy() for p in start]
    opt1 = make(name, half, options)
    for g in grads[:4]:
        opt1.step(g)
    saved = pickle.loads(pickle.dumps(opt1.state_dict()))
    opt2 = make(name, half, {"max_norm": options.get("max_norm")})
    opt2.load_state_dict(saved)
    for g in grads[4:]:
        opt2.step(g)
    assert all(np.array_equal(a, b) for a, b in zip(whole, half, strict=True))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_go_their_own_way(name, how):
    start, grads = problem("float32")
    model = {"w": start[9].copy(), "b": start[3].copy()}
    opt = make(name, model, {"ema_decay": 0.9})
    pair = [{"w": g[9], "b": g[3]} for g in grads[:4]]
    opt.step(pair[0])
    if how == "pickle":
        model2, opt2 = pickle.loads(pickle.dumps((model, opt)))
    else:
        model2, opt2 = copy.deepcopy((model, opt))
    for g in pair[1:]:
        opt.step(g)
    assert not np.array_equal(model2["w"], model["w"])
    for g in pair[1:]:
        opt2.step(g)
    for key in model:
        np.testing.assert_array_equal(model2[key], model[key])
    assert repr(opt) == repr(opt2)


def test_state_dict_is_a_copy_and_loads_in_place():
    p = np.ones(3)
    opt = optim.Adam([p])
    opt.step([np.ones(3)])
    saved = opt.state_dict()
    live = opt.state[0]["exp_avg"]
    opt.step([np.ones(3)])
    np.testing.assert_allclose(saved["state"][0]["exp_avg"], 0.1)
    opt.load_state_dict(saved)
    assert opt.state[0]["exp_avg"] is live
    np.testing.assert_allclose(live, 0.1)
    assert opt.state[0]["step"] == 1
    saved["state"][0]["exp_avg"][:] = 7
    np.testing.assert_allclose(live, 0.1)
    group = opt.param_groups[0]
    saved["param_groups"][0]["lr"] = 0.7
    opt.load_state_dict(saved)
    assert opt.param_groups[0] is group
    assert group["lr"] == 0.7


def test_state_dict_that_does_not_fit():
    opt = optim.Adam([np.ones(3), np.ones(2)])
    opt.step([np.ones(3), np.ones(2)])
    good = opt.state_dict()

    def changed(**how):
        return {**copy.deepcopy(good), **how}

    def with_state(i, **how):
        sd = copy.deepcopy(good)
        sd["state"][i].update(how)
        return sd

    group = good["param_groups"][0]
    lost = copy.deepcopy(good)
    del lost["state"][1]["exp_avg_sq"]
    for sd, message in [
        ({"state": {}}, r"expected a dict with 'state' and 'param_groups'"),
        (changed(state={"0": good["state"][0]}), r"state has '0', which no group lists"),
        (changed(param_groups=[]), r"state_dict has 0 parameter groups, the optimizer has 1"),
        (
            changed(param_groups=[{**group, "params": [0]}]),
            r"param_groups\[0\] has 1 parameters, the optimizer's has 2",
        ),
        (
            changed(param_groups=[{**group, "lr": -1.0}]),
            r"Adam: lr must be in \[0, inf\), got -1.0 in param_groups\[0\]",
        ),
        (
            with_state(1, exp_avg=np.ones(3)),
            r"state\[1\]\['exp_avg'\] has shape \(3,\), params\[1\] has shape \(2,\)",
        ),
        (
            with_state(0, exp_avg=np.array(["a", "b", "c"])),
            r"state\[0\]\['exp_avg'\] is <U1, expected real numbers",
        ),
        (
            with_state(0, exp_avg=np.ones(3, complex)),
            r"state\[0\]\['exp_avg'\] is complex128, expected real numbers",
        ),
        (with_state(1, step=np.nan), r"state\[1\]\['step'\] must be in \[0, inf\), got nan"),
        (with_state(1, step=-3), r"state\[1\]\['step'\] must be in \[0, inf\), got -3"),
        (with_state(1, step="two"), r"state\[1\]\['step'\] must be a number, got 'two'"),
        (changed(state={0: 3, 1: good["state"][1]}), r"state\[0\] is int, expected a dict"),
        (changed(state=[]), r"state is list, expected a dict"),
        (changed(param_groups=[[0, 1]]), r"param_groups\[0\] is list, expected a dict"),
        (changed(param_groups=[{"lr": 0.1}]), r"param_groups\[0\] has no 'params'"),
        (lost, r"state\[1\] has no 'exp_avg_sq', it has \['exp_avg', 'step'\]"),
        (changed(param_groups=[{**group, "amsgrad": True}]), r"state\[0\] has no 'max_exp_avg_sq'"),
    ]:
        refuse(opt, lambda sd=sd: opt.load_state_dict(sd), message)
    opt.load_state_dict(good)


def test_betas_that_went_through_json():
    opt = optim.Adam([np.ones(1)])
    sd = opt.state_dict()
    sd["param_groups"][0]["betas"] = [0.5, 0.6]
    opt.load_state_dict(sd)
    assert opt.param_groups[0]["betas"] == (0.5, 0.6)


def test_repr():
    text = repr(optim.SGD({"w": np.ones(1)}, lr=0.5))
    assert text.startswith("SGD (\nParameter Group 0\n    adaptive_clip: None\n")
    assert "    lr: 0.5\n" in text
    assert "    param_names: ['w']\n" in text


@pytest.mark.parametrize("n", [1, 1000, 2**18 + 1, 2**20 + 1])
def test_states_begin_on_a_cache_line(n):
    opt = optim.AdamW([np.zeros(n, np.float32)])
    opt.step([np.ones(n, np.float32)])
    for name in ("exp_avg", "exp_avg_sq"):
        a = opt.state[0][name]
        assert a.ctypes.data % 64 == 0
        assert a.flags.c_contiguous
        assert a.flags.writeable
        assert a.shape == (n,)
