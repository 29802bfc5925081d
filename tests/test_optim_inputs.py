"""What optimizers take: structures, layouts, Tensors and foreign arrays; and what they refuse, unchanged."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import OPTIMIZERS
from fastopt import optim
from optim_tools import RULES, make, refuse


def tree():
    rng = np.random.default_rng(3)
    return {
        "layers": [
            {"w": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)},
            (rng.standard_normal(4),),
        ],
        "scale": np.array(1.5),
    }


def leaves(t):
    if isinstance(t, dict):
        return [x for v in t.values() for x in leaves(v)]
    if isinstance(t, list | tuple):
        return [x for v in t for x in leaves(v)]
    return [t]


def ones_like(t):
    if isinstance(t, dict):
        return {k: ones_like(t[k]) for k in reversed(list(t))}  # the order of keys does not matter
    if isinstance(t, list | tuple):
        return [ones_like(v) for v in t]
    return np.full_like(t, t.size)


@pytest.mark.parametrize(
    "form", ["tree", "flat", "generator", "pairs", "dict of pairs", "groups", "group dicts"]
)
def test_structures(form):
    t = tree()
    expected = [a - 0.1 * a.size for a in leaves(t)]
    flat = leaves(t)
    grads = [np.full_like(a, a.size) for a in flat]
    names = ["a", "b", "c", "d"]
    if form == "tree":
        opt = optim.SGD(t, lr=0.1)
        assert opt.param_groups[0]["param_names"] == ["layers.0.w", "layers.0.b", "layers.1.0", "scale"]
        opt.step(ones_like(t))
    elif form == "flat":
        opt = optim.SGD(t, lr=0.1)
        opt.step(tuple(grads))
    elif form == "generator":
        opt = optim.SGD((a for a in flat), lr=0.1)
        assert "param_names" not in opt.param_groups[0]
        opt.step(g for g in grads)
    elif form in ("pairs", "dict of pairs"):
        pairs = list(zip(names, grads, strict=True))
        opt = optim.SGD(zip(names, flat, strict=True), lr=0.1)
        assert opt.param_groups[0]["param_names"] == names
        opt.step(pairs if form == "pairs" else dict(reversed(pairs)))
    else:
        opt = optim.SGD([{"params": t["layers"]}, {"params": t["scale"], "lr": 0.1}], lr=0.1)
        inner, scale = ones_like(t["layers"]), [np.ones(())]
        opt.step([inner, scale] if form == "groups" else [{"params": inner}, {"params": scale}])
    for a, b in zip(flat, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_gradients_of_a_scalar_parameter_may_be_numpy_scalars():
    p = np.array(2.0, np.float32)
    optim.SGD([p], lr=0.5).step([np.float32(1.0)])
    assert p == 1.5


STRUCTURE_ERRORS = [
    ({"w": 1}, r"grads has no 'b', params has the keys 'w', 'b'"),
    ({"w": 1, "b": 1, "c": 1}, r"grads has 'c', params has only the keys 'w', 'b'"),
    ({"w": 1, "b": {"x": 1}}, r"grads\['b'\] is dict, expected an array"),
    ([1], r"grads has 1 entries, params has 2"),
    ([[1], [1]], r"grads is a list of 2, params has the keys"),
    ("w", r"grads is str, expected"),
    ({1, 2}, r"grads is a set"),
]


@pytest.mark.parametrize(("grads", "message"), STRUCTURE_ERRORS)
def test_wrong_structure(grads, message):
    def fill(t):
        if isinstance(t, dict):
            return {k: fill(v) for k, v in t.items()}
        if isinstance(t, list):
            return [fill(v) for v in t]
        return np.ones(2) if isinstance(t, int) else t

    opt = optim.Adam({"w": np.zeros(2), "b": np.zeros(2)})
    refuse(opt, lambda: opt.step(grads if isinstance(grads, set | str) else fill(grads)), message)


def test_wrong_nested_structure():
    t = tree()
    opt = optim.SGD(t)
    g = ones_like(t)
    g["layers"][0] = [g["layers"][0]["w"]]
    refuse(opt, lambda: opt.step(g), r"grads\['layers'\]\[0\] is a list of 1, params has the keys 'w', 'b'")
    g = ones_like(t)
    g["layers"][1] = g["layers"][1] * 2
    refuse(opt, lambda: opt.step(g), r"grads\['layers'\]\[1\] has 2 entries, params has 1")
    g = ones_like(t)
    g["layers"][0]["b"] = np.ones(3)
    refuse(
        opt,
        lambda: opt.step(g),
        r"grads\['layers'\]\[0\]\['b'\] has shape \(3,\), params\['layers'\]\[0\]\['b'\] has shape \(2,\)",
    )
    refuse(opt, lambda: opt.step(np.ones(4)), r"grads is a single ndarray, expected the structure of params")


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [(name, *error) for name in OPTIMIZERS for error in OPTIMIZERS[name]["errors"]],
)
def test_settings_out_of_range(name, options, message):
    shape = (3, 2) if name == "Muon" else 3
    with pytest.raises((TypeError, ValueError), match=name + ": .*" + message):
        make(name, [np.zeros(shape)], options)
    if "max_norm" in options:
        return
    opt = make(name, [np.zeros(shape)])
    refuse(
        opt,
        lambda: opt.add_param_group({"params": [np.zeros(shape)], **options}),
        "works on one" if name == "LBFGS" else message,
    )
    assert len(opt.param_groups) == 1


SECOND_RULE = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"centered": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
}


@pytest.mark.parametrize(("name", "extra"), [*((name, None) for name in RULES), *SECOND_RULE.items()])
def test_refused_steps_change_nothing(name, extra):
    a, b = np.ones((2, 3), np.float32), np.ones(4, np.float32)
    opt = make(name, [a, b])
    if extra is not None:
        opt.add_param_group({"params": [np.ones(3, np.float32)], **extra})
    good = [np.ones_like(p) for g in opt.param_groups for p in g["params"]]
    opt.step(good)

    def broken(i, g):
        return [g if k == i else x for k, x in enumerate(good)]

    last = len(good) - 1
    where = {0: r"grads\[0\]", last: r"grads\[1\]"}
    if extra is not None:
        where = {0: r"grads\[0\]\[0\]", last: r"grads\[1\]\[0\]"}
    for i, label in where.items():
        shape = good[i].shape
        refuse(
            opt,
            lambda i=i, s=shape: opt.step(broken(i, np.ones(s))),
            label + r" is float64, params.* is float32",
        )
        refuse(
            opt, lambda i=i: opt.step(broken(i, np.ones((5, 5), np.float32))), label + r" has shape \(5, 5\)"
        )
        refuse(opt, lambda i=i, s=shape: opt.step(broken(i, np.ones(s, int))), label + r" is int64")
        refuse(opt, lambda i=i: opt.step(broken(i, object())), label + r" is object, expected an array")
    refuse(opt, lambda: opt.step(good[:-1]), r"grads has \d entries, params has \d")
    refuse(opt, lambda: opt.step(), r"is a plain array, so step needs grads")
    refuse(opt, lambda: opt.step(lambda: 1.0), r"closure returned float, plain arrays need \(loss, grads\)")
    refuse(opt, lambda: opt.step(lambda: (1, 2, 3)), r"closure returned 3 values")
    for key, value in {"lr": float("nan"), "weight_decay": -1.0, "clip_value": float("nan")}.items():
        old = opt.param_groups[0][key]
        opt.param_groups[0][key] = value
        refuse(opt, lambda: opt.step(good), rf"{name}: {key} must be in .* in param_groups\[0\]")
        opt.param_groups[0][key] = old
    opt.step(good)
    assert opt.state.get(0, {}).get("step", 2) == 2


def test_gradient_that_overlaps_another_parameter():
    memory = np.ones(10)
    opt = optim.SGD([memory[:4]], momentum=0.9)
    before = memory.copy()
    with pytest.raises(ValueError, match=r"grads\[0\] overlaps params\[0\]"):
        opt.step([memory[2:6]])
    np.testing.assert_array_equal(memory, before)


def read_only():
    a = np.ones(3)
    a.flags.writeable = False
    return a


shared_memory = np.zeros(8)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda: np.zeros(3), TypeError, r"params is a single ndarray, expected a list, dict or tree"),
        (list, ValueError, r"params is empty"),
        (lambda: 3, TypeError, r"params is int, expected a list"),
        (lambda: {1.0}, TypeError, r"params is a set, whose order changes between runs"),
        (lambda: [np.zeros(3, int)], TypeError, r"params\[0\] is int64, expected one of float32"),
        (lambda: [np.zeros(3), np.zeros(3, ">f8")], TypeError, r"params\[1\] is >f8, expected"),
        (lambda: [[1.0, 2.0]], TypeError, r"params\[0\]\[0\] is float, expected an array"),
        (lambda: {"w": read_only()}, ValueError, r"params\['w'\] is read-only"),
        (lambda: [np.broadcast_to(np.zeros(1), 5)], ValueError, r"params\[0\] is read-only"),
        (
            lambda: [np.lib.stride_tricks.as_strided(np.zeros(9), (4, 4), (8, 8))],
            ValueError,
            r"params\[0\] has elements that share memory",
        ),
        (lambda: [shared_memory, shared_memory], ValueError, r"params\[1\] is the same array as params\[0\]"),
        (
            lambda: {"a": shared_memory[:5], "b": shared_memory[4:]},
            ValueError,
            r"params\['b'\] overlaps params\['a'\]",
        ),
        (
            lambda: [shared_memory[::2], np.zeros(2), shared_memory[::3]],
            ValueError,
            r"params\[2\] overlaps params\[0\]",
        ),
        (lambda: [("w", np.zeros(1)), ("w", np.zeros(1))], ValueError, r"params has the name 'w' twice"),
        (
            lambda: [("w", np.zeros(1)), np.zeros(1)],
            ValueError,
            r"params mixes arrays with and without names",
        ),
        (
            lambda: [{"params": [np.zeros(1)]}, {"lr": 1}],
            ValueError,
            r"a group has no 'params', it has \['lr'\]",
        ),
        (lambda: [{"params": [np.zeros(1)]}, [np.zeros(1)]], TypeError, r"a group is list, expected a dict"),
        (lambda: [{"params": [np.zeros(1)], "max_norm": 1.0}], ValueError, r"max_norm is one for all groups"),
        (lambda: [np.ma.zeros(3)], TypeError, r"params\[0\] is a masked array"),
    ],
)
def test_parameters_that_are_refused(params, error, message):
    with pytest.raises(error, match="Adam: " + message):
        optim.Adam(params())


def test_interleaved_parameters_do_not_overlap():
    memory = np.zeros(9)
    optim.SGD([memory[::2], memory[1::2]], lr=1.0).step([np.full(5, -1.0), np.full(4, -2.0)])
    np.testing.assert_array_equal(memory, [1, 2, 1, 2, 1, 2, 1, 2, 1])


def test_params_list_of_a_group_is_not_to_be_changed():
    opt = optim.SGD([np.zeros(2)])
    opt.step([np.ones(2)])
    opt.param_groups[0]["params"].append(np.zeros(2))
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]\['params'\] was changed, use add_param_group"):
        opt.step([np.ones(2)])
    opt.param_groups[0]["params"] = [np.zeros(2)]
    with pytest.raises(RuntimeError, match="use add_param_group"):
        opt.step([np.ones(2)])


# -------------------------------------------------------------------------------------------------- layouts


@st.composite
def layouts(draw):
    """A writable view of some memory: sliced, transposed, reversed, misaligned."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    steps = [draw(st.sampled_from([-2, -1, 1, 2, 3])) for _ in shape]
    axes = draw(st.permutations(range(len(shape))))
    big = tuple(max(1, n * abs(s)) for n, s in zip(shape, steps, strict=True))
    dtype = np.dtype(draw(st.sampled_from(["f4", "f8"])))
    misaligned = draw(st.booleans())
    raw = np.zeros(int(np.prod(big)) * dtype.itemsize + 1, np.uint8)
    memory = raw[1:] if misaligned else raw[:-1]
    a = memory.view(dtype).reshape(big)
    a = a[(*(slice(None, None, s) for s in steps), ...)]
    return a[(*(slice(0, n) for n in shape), ...)].transpose(axes)


@settings(max_examples=150, deadline=None)
@given(st.lists(layouts(), min_size=1, max_size=3), st.integers(0, 99))
def test_any_layout_gives_the_same_bits(params, seed):
    rng = np.random.default_rng(seed)
    for p in params:
        p[...] = rng.standard_normal(p.shape)
    plain = [np.array(p, order="C") for p in params]
    a, b = (optim.Adam(ps, lr=0.1, amsgrad=True, ema_decay=0.5) for ps in (params, plain))
    for _ in range(3):
        grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in params]
        strange = [np.array(g, order="F") for g in grads]
        for k, g in enumerate(strange):
            if g.ndim and g.shape[0]:
                doubled = np.repeat(g, 2, axis=0)
                strange[k] = doubled[::2] if k % 2 else doubled[::-2][::-1]
        a.step(strange)
        b.step(grads)
    for i, (p, q) in enumerate(zip(params, plain, strict=True)):
        np.testing.assert_array_equal(p, q)
        for key, value in b.state[i].items():
            np.testing.assert_array_equal(a.state[i][key], value)
    a.load_state_dict(pickle.loads(pickle.dumps(b.state_dict())))
    for opt, ps in ((a, params), (b, plain)):
        opt.step([np.ones(p.shape, p.dtype) for p in ps])
    assert all(np.array_equal(p, q) for p, q in zip(params, plain, strict=True))


def test_the_view_s_surroundings_are_left_alone():
    memory = np.ones((4, 6), np.float32)
    optim.SGD([memory[1:3, ::2]], lr=1.0).step([np.ones((2, 3), np.float32)])
    expected = np.ones((4, 6), np.float32)
    expected[1:3, ::2] = 0
    np.testing.assert_array_equal(memory, expected)


def test_dlpack_array():
    class Foreign:
        def __init__(self, a):
            self.a = a

        def __dlpack__(self, **kwargs):
            return self.a.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.a.__dlpack_device__()

    a = np.ones(3, np.float32)
    optim.SGD([Foreign(a)], lr=1.0).step([Foreign(np.full(3, 2.0, np.float32))])
    np.testing.assert_array_equal(a, -np.ones(3))


@pytest.mark.peers
def test_torch_tensors_are_updated_in_place():
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    model = torch.nn.Linear(5, 3, dtype=torch.float64)
    twin = copy.deepcopy(model)
    x = torch.randn(7, 5, dtype=torch.float64)
    opts = [optim.Adam(model.named_parameters(), lr=0.1), torch.optim.Adam(twin.named_parameters(), lr=0.1)]
    for _ in range(5):
        for m, o in zip((model, twin), opts, strict=True):
            o.zero_grad()
            (m(x) ** 2).sum().backward()
            o.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), rtol=1e-10)
    opts[0].zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in model.parameters())
    opts[0].zero_grad()
    assert all(p.grad is None for p in model.parameters())
    # A parameter whose storage was replaced is followed, not left behind.
    model.weight.data = torch.zeros(3, 5, dtype=torch.float64)
    opts[0].step([torch.ones(3, 5, dtype=torch.float64), torch.ones(3, dtype=torch.float64)])
    assert (model.weight.detach() != 0).all()


# -------------------------------------------------------------------------------------------------- Tensors


def fo_tensor(a):
    tensor = pytest.importorskip("fastopt.tensor")
    return tensor.Tensor(a, requires_grad=True)


def test_tensors_use_their_gradients():
    w, b, frozen = (fo_tensor(np.full(n, 2.0, np.float32)) for n in (3, 2, 4))
    opt = optim.SGD([("w", w), ("b", b), ("frozen", frozen)], lr=0.5, momentum=0.9)

    def closure():
        opt.zero_grad()
        loss = (w * w).sum() + (3 * b).sum()
        loss.backward()
        return loss

    loss = opt.step(closure)
    assert float(loss) == 24.0
    np.testing.assert_array_equal(w.data, 0.0)
    np.testing.assert_array_equal(b.data, 0.5)
    np.testing.assert_array_equal(frozen.data, 2.0)
    assert opt.state.keys() == {0, 1}
    opt.step(closure=closure)
    np.testing.assert_allclose(b.data, 0.5 - 0.5 * (0.9 * 3 + 3), rtol=1e-6)
    opt.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(w.grad.data, 0.0)
    opt.zero_grad()
    assert w.grad is None
    opt.step()
    np.testing.assert_allclose(b.data, 0.5 - 0.5 * (0.9 * 3 + 3), rtol=1e-6)


def test_tensor_results_are_no_parameters():
    w = fo_tensor(np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"params\[0\] is the result of an operation, expected a leaf"):
        optim.SGD([w * 2])


def test_closure_of_plain_arrays():
    x = np.array([4.0])
    opt = optim.SGD([x], lr=0.25)
    assert opt.step(lambda: (float(x[0] ** 2), [2 * x])) == 16.0
    np.testing.assert_array_equal(x, 2.0)
