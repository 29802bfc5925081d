"""Groups by names: parameters without weight decay, settings by pattern; gradients keep their structure."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastopt as fo
from fastopt import optim
from optim_tools import RULES, make, refuse


def tree():
    return {
        "first": {"weight": np.ones((2, 3)), "bias": np.ones(2)},
        "LayerNorm": {"weight": np.ones(2)},
        "last": {"weight": np.ones((1, 2)), "Bias": np.ones(1)},
    }


def like(params, value):
    return {k: like(v, value) if isinstance(v, dict) else np.full_like(v, value) for k, v in params.items()}


NAMES = [["first.weight", "last.weight"], ["first.bias", "LayerNorm.weight", "last.Bias"]]


@pytest.mark.parametrize("name", [name for name in RULES if name != "Rprop"])
def test_no_decay(name):
    """What is named decays not; the gradients are in the structure of the parameters."""
    params = tree()
    opt = make(name, params, {"lr": 0.1, "weight_decay": 0.5, "no_decay": ("bias", "norm")})
    assert [group["param_names"] for group in opt.param_groups] == NAMES
    assert [group["weight_decay"] for group in opt.param_groups] == [0.5, 0.0]
    assert opt.param_groups[0]["params"][1] is params["last"]["weight"]
    other = tree()
    kept = [other["first"]["weight"], other["last"]["weight"]]
    rest = [other["first"]["bias"], other["LayerNorm"]["weight"], other["last"]["Bias"]]
    groups = [{"params": kept}, {"params": rest, "weight_decay": 0.0}]
    twin = make(name, groups, {"lr": 0.1, "weight_decay": 0.5})
    for _ in range(2):
        opt.step(like(params, 0.5))
        twin.step([[np.full_like(p, 0.5) for p in group] for group in (kept, rest)])
    for group, expected in zip(opt.param_groups, (kept, rest), strict=True):
        for p, q in zip(group["params"], expected, strict=True):
            np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize(
    "given",
    [
        ("bias", "norm"),
        "*[bn][io][ar][sm]*",
        lambda name, p: p.ndim < 2,
        lambda name, p: "weight" not in name,
    ],
)
def test_predicates(given):
    names = [group["param_names"] for group in optim.AdamW(tree(), no_decay=given).param_groups]
    if given == "*[bn][io][ar][sm]*":
        assert names[1] == ["first.bias", "LayerNorm.weight", "last.Bias"]
    elif callable(given) and given("weight", np.zeros(1)) is False:
        assert names[1] == ["first.bias", "last.Bias"]
    else:
        assert names == NAMES


def numbered(seed=0):
    rng = np.random.default_rng(seed)
    return [
        ("w", rng.standard_normal((2, 3))),
        ("bias", rng.standard_normal(3)),
        ("v", rng.standard_normal(4)),
    ]


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "pairs", "foreign"])
def test_gradients_in_every_form(form):
    """All of them come to where they belong, though the bias now stands last."""
    params, grads = numbered(), [g for _, g in numbered(1)]
    expected = [p - 0.5 * g for (_, p), g in zip(params, grads, strict=True)]
    collection = dict(params) if form == "dict" else params
    opt = optim.SGD(collection, lr=0.5, no_decay="bias")
    assert [group["param_names"] for group in opt.param_groups] == [["w", "v"], ["bias"]]
    names = ["w", "bias", "v"]
    if form in ("dict", "pairs"):
        given = list(zip(names, grads, strict=True))
        opt.step(dict(given) if form == "dict" else given)
    elif form == "foreign":
        opt.step([g.view(type("Own", (np.ndarray,), {})) for g in grads])
    else:
        opt.step(grads if form == "list" else tuple(grads))
    for (_, p), q in zip(params, expected, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-14, atol=1e-15)
    opt.step([None, grads[1], None])
    np.testing.assert_allclose(params[1][1], expected[1] - 0.5 * grads[1], rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(params[0][1], expected[0], rtol=1e-14, atol=1e-15)
    refuse(
        opt,
        lambda: opt.step([grads[0], grads[2], grads[1]]),
        r"grads\['v'\] has shape \(3,\), params\['v'\] has shape",
    )


def test_groups_of_the_caller():
    """Each is divided by itself, one has its own patterns, and one none."""
    params = [numbered(), [("bias", np.ones(2)), ("u", np.ones(2))], [("bias", np.ones(5))]]
    opt = optim.SGD(
        [
            {"params": params[0]},
            {"params": params[1], "no_decay": "u"},
            {"params": params[2], "no_decay": None},
        ],
        lr=1.0,
        weight_decay=0.5,
        no_decay=["bias"],
    )
    assert [group["param_names"] for group in opt.param_groups] == [
        ["w", "v"],
        ["bias"],
        ["bias"],
        ["u"],
        ["bias"],
    ]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.5, 0.0, 0.5, 0.0, 0.5]
    opt.step([[(name, np.zeros_like(p)) for name, p in group] for group in params])
    np.testing.assert_array_equal(params[1][0][1], 0.5)
    np.testing.assert_array_equal(params[1][1][1], 1.0)
    np.testing.assert_array_equal(params[2][0][1], 0.5)
    with pytest.raises(TypeError, match=r"grads\[1\]\['u'\] is float32, params\[1\]\['u'\] is float64"):
        opt.step([None, {"bias": None, "u": np.zeros(2, np.float32)}, None])
    opt.add_param_group({"params": {"more": np.ones(1), "bias2": np.ones(1)}})
    assert [group["param_names"] for group in opt.param_groups[-2:]] == [["more"], ["bias2"]]
    refuse(
        opt,
        lambda: opt.add_param_group({"params": [np.ones(1)]}),
        "no_decay has patterns, but params have no names",
    )


def test_state_is_that_of_two_groups():
    params, others = numbered(), numbered()
    opt = optim.AdamW(params, lr=0.1, no_decay="bias")
    twin = optim.AdamW(
        [{"params": [others[0], others[2]]}, {"params": [others[1]], "weight_decay": 0.0}], lr=0.1
    )
    grads = [g for _, g in numbered(1)]
    for each, given in ((opt, grads), (twin, [{"w": grads[0], "v": grads[2]}, {"bias": grads[1]}])):
        each.step(given)
    saved, expected = opt.state_dict(), twin.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    for i, entry in expected["state"].items():
        assert all(np.array_equal(value, saved["state"][i][key]) for key, value in entry.items())
    clone = pickle.loads(pickle.dumps(opt))
    opt.load_state_dict(copy.deepcopy(expected))
    for each in (opt, clone):
        each.step(grads)
    for group, other in zip(opt.param_groups, clone.param_groups, strict=True):
        for p, q in zip(group["params"], other["params"], strict=True):
            np.testing.assert_array_equal(p, q)


def test_tensors_of_a_module():
    model = fo.nn.Sequential(fo.nn.Linear(3, 4), fo.nn.ReLU(), fo.nn.Linear(4, 2))
    opt = optim.AdamW(model.named_parameters(), lr=0.1, weight_decay=0.5, no_decay=("bias",))
    assert [group["param_names"] for group in opt.param_groups] == [
        ["0.weight", "2.weight"],
        ["0.bias", "2.bias"],
    ]
    x, y = np.ones((5, 3), np.float32), np.zeros((5, 2), np.float32)
    loss_fn = fo.nn.MSELoss()
    loss_fn(model(fo.tensor(x)), y).backward()
    opt.step()
    assert opt.state.keys() == {0, 1, 2, 3}
    step = fo.compile(model, loss_fn, opt)
    assert step(x, y) < step(x, y) + 1
    with pytest.raises(ValueError, match="AdamW: no_decay has patterns, but params have no names"):
        optim.AdamW(model.parameters(), no_decay="bias")
    opt = optim.AdamW(model.parameters(), no_decay=lambda name, p: name == "" and p.ndim < 2)
    assert [len(group["params"]) for group in opt.param_groups] == [2, 2]


@pytest.mark.parametrize("given", [3, [""], ["bias", 1], ""])
def test_patterns_that_are_refused(given):
    with pytest.raises(TypeError, match="AdamW: no_decay must be patterns of names or a function"):
        optim.AdamW(tree(), no_decay=given)


def test_nothing_or_everything_matches():
    assert [len(g["params"]) for g in optim.AdamW(tree(), no_decay="nothing").param_groups] == [5]
    groups = optim.AdamW(tree(), no_decay="*").param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(5, 0.0)]


def test_param_groups():
    params = {
        "body.weight": np.ones((2, 2)),
        "body.bias": np.ones(2),
        "head.weight": np.ones(2),
        "head.bias": np.ones(1),
    }
    settings = {
        ("bias", "norm"): {"weight_decay": 0.0},
        "head.*": {"lr": 1.0},
        lambda name, p: p.ndim > 5: {"lr": 3.0},
    }
    groups = optim.param_groups(params, settings)
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["body.weight"],
        ["body.bias", "head.bias"],
        ["head.weight"],
    ]
    opt = optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    assert [(g["lr"], g["weight_decay"]) for g in opt.param_groups] == [(0.1, 0.5), (0.1, 0.0), (1.0, 0.5)]
    same = optim.param_groups(iter(params.items()), settings)
    assert [[name for name, _ in group["params"]] for group in same] == [
        [name for name, _ in group["params"]] for group in groups
    ]
    with pytest.raises(TypeError, match=r"param_groups: named must be a dict or \(name, array\) pairs"):
        optim.param_groups([np.ones(1)], settings)
    with pytest.raises(TypeError, match="param_groups: a pattern must be patterns of names"):
        optim.param_groups(params, {3: {}})
