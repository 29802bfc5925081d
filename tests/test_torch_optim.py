"""fastopt.torch: the optimizers as torch.optim.Optimizer, beside torch's own classes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastopt as fo
from cases import OPTIMIZERS
from optim_tools import PEER_ROWS, RULES, TORCH_LACKS, problem

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def tensors(arrays):
    return [torch.tensor(a, requires_grad=True) for a in arrays]


def give(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else torch.tensor(g)


def small_problem(dtype="float64", n=6):
    start, grads = problem(dtype)
    return start[1 : n + 1], [g[1 : n + 1] for g in grads]


def assert_same(params, others, rtol):
    for p, q in zip(params, others, strict=True):
        want = q.detach().numpy()
        np.testing.assert_allclose(
            p.detach().numpy(), want, rtol=0, atol=rtol * np.abs(want).max(initial=0.0)
        )


# ------------------------------------------------------------------------------------- torch's own classes


@pytest.mark.parametrize(("name", "row"), PEER_ROWS)
def test_each_goes_on_from_the_other_s_state(name, row):
    options = {k: v for k, v in OPTIMIZERS[name]["options"][row].items() if k not in TORCH_LACKS}
    ours, theirs = getattr(fo.torch, name), getattr(torch.optim, name)
    start, grads = small_problem()
    rtol = 2e-6 if name in ("NAdam", "ASGD") else 1e-10  # torch rounds mu_product, eta and mu to float32
    first, second = tensors(start), tensors(start)
    a, b = ours(first, **options), theirs(second, **options)
    for g in grads[:3]:
        for params, opt in ((first, a), (second, b)):
            give(params, g)
            opt.step()
    assert_same(first, second, rtol)

    heir_of_torch, heir_of_ours = ([p.detach().clone().requires_grad_() for p in q] for q in (second, first))
    c, d = ours(heir_of_torch), theirs(heir_of_ours)
    c.load_state_dict(b.state_dict())
    d.load_state_dict(copy.deepcopy(a.state_dict()))
    assert {k: c.param_groups[0][k] for k in options} == options
    pairs = [(first, a), (second, b), (heir_of_torch, c), (heir_of_ours, d)]
    for g in grads[3:9]:
        for params, opt in pairs:
            give(params, g)
            opt.step()
    for params, _ in pairs[1:]:
        assert_same(params, first, rtol)


@pytest.mark.parametrize(("name", "row"), PEER_ROWS)
def test_groups_and_state_have_torch_s_keys(name, row):
    options = {k: v for k, v in OPTIMIZERS[name]["options"][row].items() if k not in TORCH_LACKS}
    start, grads = small_problem()
    entries = []
    for module in (fo.torch, torch.optim):
        params = tensors(start)
        opt = getattr(module, name)(params, **options)
        give(params, grads[0])
        opt.step()
        entries.append(opt.state_dict())
    ours, theirs = entries
    assert theirs["param_groups"][0].keys() <= ours["param_groups"][0].keys()
    for i, entry in theirs["state"].items():
        kept = {k: v for k, v in entry.items() if v is not None}
        assert ours["state"][i].keys() == kept.keys()
        for key, value in kept.items():
            found = ours["state"][i][key]
            assert found.shape == value.shape
            assert found.dtype == value.dtype or key in ("mu_product", "eta", "mu")  # which torch rounds


def test_lbfgs_evaluates_the_closure_as_torch_s_does():
    results = []
    for module in (fo.torch, torch.optim):
        p = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
        opt = module.LBFGS([p], line_search_fn="strong_wolfe")
        calls = []

        def closure(p=p, opt=opt, calls=calls):
            opt.zero_grad()
            loss = (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
            loss.backward()
            calls.append(loss.item())
            return loss

        for _ in range(3):
            assert torch.is_tensor(opt.step(closure))
        results.append((p.detach().numpy(), len(calls)))
    assert results[0][1] == results[1][1]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)


def test_sparse_gradients_of_embeddings():
    results = []
    for module in (fo.torch, torch.optim):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(9, 4, sparse=True, dtype=torch.float64)
        opt = module.SparseAdam(embedding.parameters(), lr=0.1)
        for rows in ([1, 5, 5], [0, 5], [8]):
            opt.zero_grad()
            embedding(torch.tensor(rows)).square().sum().backward()
            opt.step()
        results.append(embedding.weight.detach().clone())
    np.testing.assert_allclose(results[0].numpy(), results[1].numpy(), rtol=1e-12)
    p = torch.ones(3, 2, requires_grad=True)
    p.grad = torch.ones(3, 2)
    with pytest.raises(TypeError, match=r"SparseAdam: gradient 0 is not sparse along its first axis alone"):
        fo.torch.SparseAdam([p]).step()


def test_matrices():
    for name, shapes, rtol in (("Muon", [(6, 4)], 0.02), ("Adafactor", [(6, 4), (5,)], 1e-12)):
        rng = np.random.default_rng(0)
        start = [rng.standard_normal(shape) for shape in shapes]
        grads = [[rng.standard_normal(shape) for shape in shapes] for _ in range(8)]
        runs = [(tensors(start), module) for module in (fo.torch, torch.optim)]
        runs = [(params, getattr(module, name)(params, lr=0.02)) for params, module in runs]
        for t, g in enumerate(grads):
            if t == 4:  # each goes on from the other's state
                states = [copy.deepcopy(opt.state_dict()) for _, opt in runs]
                runs[0][1].load_state_dict(states[1])
                runs[1][1].load_state_dict(states[0])
            for params, opt in runs:
                give(params, g)
                opt.step()
        for p, q, s in zip(runs[0][0], runs[1][0], start, strict=True):
            moved = q.detach().numpy() - s  # torch's Muon multiplies in bfloat16
            np.testing.assert_allclose(p.detach().numpy() - s, moved, rtol=0, atol=rtol * np.abs(moved).max())


@pytest.mark.parametrize("schedule", ["StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_torch_s_schedules(schedule):
    arguments = {
        "StepLR": {"step_size": 2, "gamma": 0.3},
        "CosineAnnealingLR": {"T_max": 7},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 12},  # moves the betas too
        "ReduceLROnPlateau": {"patience": 1, "factor": 0.5},
    }[schedule]
    start, grads = small_problem()
    results = []
    for module in (fo.torch, torch.optim):
        params = tensors(start)
        opt = module.AdamW(params, lr=0.02)
        schedule_of = getattr(torch.optim.lr_scheduler, schedule)(opt, **arguments)
        rates = []
        for t, g in enumerate(grads[:10]):
            give(params, g)
            opt.step()
            schedule_of.step(*([float(t > 2)] if schedule == "ReduceLROnPlateau" else []))
            rates.append((opt.param_groups[0]["lr"], opt.param_groups[0]["betas"]))
        results.append((params, rates))
    assert results[0][1] == results[1][1]
    assert len(set(results[0][1])) > 2
    assert_same(results[0][0], results[1][0], 1e-10)


@pytest.mark.parametrize("bad", [False, True])
def test_grad_scaler(bad):
    results = []
    for module in (fo.torch, torch.optim):
        p = torch.ones(3, requires_grad=True)
        opt = module.SGD([p], lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for t in range(3):
            opt.zero_grad()
            factor = torch.inf if bad and t == 1 else 1.0
            scaler.scale((p * p).sum() * factor).backward()
            scaler.step(opt)
            scaler.update()
        results.append((p, scaler.get_scale()))
    assert results[0][1] == results[1][1] == (32.0 if bad else 64.0)
    assert_same([results[0][0]], [results[1][0]], 1e-6)


def test_a_network_trains_as_with_torch():
    x, y = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    losses = []
    for module in (fo.torch, torch.optim):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        opt = module.AdamW(model.named_parameters(), lr=0.05)
        assert opt.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
        for _ in range(30):
            opt.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] < 0.5


# ----------------------------------------------------------------------------------------- what it does alone


@pytest.mark.parametrize("name", RULES)
def test_the_steps_are_those_of_the_class_for_arrays(name):
    start, grads = small_problem("float32")
    params, arrays = tensors(start), [a.copy() for a in start]
    addresses = [p.data_ptr() for p in params]
    a, b = getattr(fo.torch, name)(params), getattr(fo.optim, name)(arrays)
    for t, g in enumerate(grads[:5]):
        g = [None if t == 2 and i == 1 else x for i, x in enumerate(g)]
        give(params, g)
        assert a.step() is None
        b.step(g)
    for p, x, address in zip(params, arrays, addresses, strict=True):
        assert p.data_ptr() == address
        np.testing.assert_array_equal(p.detach().numpy(), x)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("name", RULES)
def test_copies_go_their_own_way(name, how):
    model = torch.nn.Linear(4, 3)
    opt = getattr(fo.torch, name)(model.parameters(), max_norm=2.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)

    def train(model, opt):
        opt.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        opt.step()

    train(model, opt)
    schedule.step()
    if how == "pickle":
        model2, opt2 = pickle.loads(pickle.dumps((model, opt)))
    else:
        model2, opt2 = copy.deepcopy((model, opt))
    assert opt2.inner.max_norm == 2.0
    assert repr(opt) == repr(opt2)
    before = model2.weight.detach().clone()
    train(model, opt)
    assert torch.equal(model2.weight, before)
    train(model2, opt2)
    assert torch.equal(model2.weight, model.weight)
    assert not torch.equal(model2.weight, before)
    opt2.param_groups[0]["lr"] = 0.0
    assert opt.param_groups[0]["lr"] > 0


def test_autograd_notices_that_saved_values_are_gone():
    p, still = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    opt = fo.torch.SGD([p, still], lr=0.1)
    product, kept = (p * p).sum(), (still * still).sum()
    p.grad = torch.ones(3)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    kept.backward()


def test_groups():
    p, q, r = (torch.ones(2, requires_grad=True) for _ in range(3))
    opt = fo.torch.SGD([{"params": [p]}, {"params": q, "lr": 0.5}], lr=0.1)
    opt.add_param_group({"params": [r], "momentum": 0.9})
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.5, 0.1]
    for x in (p, q, r):
        x.grad = torch.ones(2)
    opt.step()
    opt.param_groups[0]["lr"] = 0.2
    opt.step()
    np.testing.assert_allclose(p.detach().numpy(), 0.7, rtol=1e-6)
    np.testing.assert_allclose(q.detach().numpy(), 0.0, atol=1e-6)
    np.testing.assert_allclose(r.detach().numpy(), 1 - 0.1 - 0.19, rtol=1e-6)
    assert list(opt.state) == [r]
    assert torch.equal(opt.state[r]["momentum_buffer"], torch.full((2,), 1.9))
    opt.state[r]["momentum_buffer"].zero_()  # the live state
    opt.step()
    assert torch.equal(opt.state[r]["momentum_buffer"], torch.ones(2))


def test_state_can_be_replaced():
    p = torch.ones(2, requires_grad=True)
    opt = fo.torch.Adam([p], lr=0.1)
    p.grad = torch.ones(2)
    opt.step()
    entry = copy.deepcopy(opt.state[p])
    opt.state = {}
    assert opt.state == {}
    opt.step()
    assert opt.state[p]["step"] == 1
    opt.state = {p: entry | {"step": torch.tensor(7.0)}}
    opt.step()
    assert opt.state[p]["step"] == 8


def test_refusals_change_nothing():
    p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    opt = fo.torch.Adam([p])
    for group, message in [
        ({"params": [q], "lr": -1.0}, r"Adam: lr must be in \[0, inf\), got -1.0"),
        ({"params": [torch.ones(2, dtype=torch.int32)]}, r"is int32, expected one of float32"),
        ({"params": [p]}, r"some parameters appear in more than one parameter group"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            opt.add_param_group(group)
        assert len(opt.param_groups) == len(opt.inner.param_groups) == 1
    with pytest.raises(ValueError, match=r"Adam: betas must be a pair"):
        fo.torch.Adam([p], betas=0.9)
    with pytest.raises(ValueError, match=r"AdamW: capturable=True is not supported"):
        fo.torch.AdamW([p], capturable=True)
    p.grad = torch.ones(2)
    opt.step()
    before = copy.deepcopy(opt.state_dict())
    bad = copy.deepcopy(before)
    bad["state"][0]["exp_avg"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"state\[0\]\['exp_avg'\] has shape \(3,\)"):
        opt.load_state_dict(bad)
    after = opt.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert all(torch.equal(v, after["state"][0][k]) for k, v in before["state"][0].items())


def test_closures_and_hooks():
    p = torch.ones(2, requires_grad=True)
    opt = fo.torch.SGD([p], lr=0.1)
    seen = []
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    opt.register_load_state_dict_pre_hook(lambda _, sd: {**sd, "extra": seen.append("load")})
    opt.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    opt.register_state_dict_post_hook(lambda _, sd: {**sd, "tag": 1})

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        assert p.grad is None
        loss = (p * p).sum()
        loss.backward()
        seen.append("closure")
        return loss

    with torch.no_grad():
        assert opt.step(closure).item() == 2.0
    np.testing.assert_allclose(p.detach().numpy(), 0.8, rtol=1e-6)
    saved = opt.state_dict()
    assert saved["tag"] == 1
    opt.load_state_dict(saved)
    assert seen == ["before", "closure", "after", "load", "loaded"]


def test_state_of_bfloat16_parameters_keeps_its_digits():
    pytest.importorskip("ml_dtypes")
    p = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
    opt = fo.torch.Adam([p])
    p.grad = torch.full((5,), 1.0 + 2**-7, dtype=torch.bfloat16)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    assert saved["state"][0]["exp_avg"].dtype == torch.float32
    other = fo.torch.Adam([p.detach().clone().requires_grad_()])
    other.load_state_dict(saved)
    entry = next(iter(other.state.values()))
    assert torch.equal(entry["exp_avg"], saved["state"][0]["exp_avg"])
    theirs = torch.optim.Adam([p])
    theirs.load_state_dict(saved)
    opt.load_state_dict(theirs.state_dict())
    assert opt.state[p]["exp_avg"].dtype == torch.float32


def test_averages_and_clipping_of_fastopt():
    p = torch.ones(3, requires_grad=True)
    opt = fo.torch.SGD([p], lr=1.0, ema_decay=0.5, max_norm=1.0)
    p.grad = torch.full((3,), 10.0)
    opt.step()
    assert opt.inner.grad_norm == pytest.approx(300**0.5)
    with opt.swap_ema():
        np.testing.assert_allclose(p.detach().numpy(), 1 - 0.5 / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(p.detach().numpy(), 1 - 1 / 3**0.5, rtol=1e-6)


def test_every_class_is_there():
    assert {"LBFGS", *RULES} <= set(fo.torch.__all__)
    for name in RULES:
        cls = getattr(fo.torch, name)
        assert issubclass(cls, torch.optim.Optimizer)
        assert f"`fastopt.optim.{name}`" in cls.__doc__
        assert "lr" in cls.__signature__.parameters


def test_torch_is_imported_when_asked_for_alone():
    quiet = "import sys, fastopt; sys.exit('torch' in sys.modules or 'fastopt.torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", quiet], check=False).returncode == 0
    lacking = "import sys; sys.modules['torch'] = None; import fastopt; fastopt.torch"
    done = subprocess.run([sys.executable, "-c", lacking], capture_output=True, text=True, check=False)
    assert "ImportError: fastopt.torch needs torch" in done.stderr
