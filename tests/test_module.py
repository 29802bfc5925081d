"""What a module holds, how it is changed as a whole, saved and loaded."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fastopt import nn, optim
from fastopt._random import manual_seed
from fastopt.creation import ones, tensor, zeros
from fastopt.tensor import Tensor

RNG = np.random.default_rng(3)


class Net(nn.Module):
    """A custom module with everything a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(ones(1))
        self.register_buffer("offset", zeros(2))
        self.register_buffer("scratch", np.ones(2, np.float32), persistent=False)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.left_out = None

    def forward(self, x):
        return self.body(x) * self.scale + self.offset


def mlp(seed: int = 0) -> nn.Sequential:
    manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


# --------------------------------------------------------------------------------------- what a module holds


def test_parameters_buffers_and_modules_by_name() -> None:
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale", "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias",
    ]  # fmt: skip
    assert [n for n, _ in net.named_parameters(recurse=False)] == ["scale"]
    assert [n for n, _ in net.named_parameters(prefix="net")][:2] == ["net.scale", "net.body.0.weight"]
    assert [n for n, _ in net.named_buffers()] == ["offset", "scratch"]
    assert [n for n, _ in net.named_modules()] == ["", "body", "body.0", "body.1", "body.2"]
    assert [n for n, _ in net.named_children()] == ["body"]
    assert list(net.children()) == [net.body]
    assert list(net.modules())[2] is net.body[0]
    assert sum(p.numel() for p in net.parameters()) == 1 + 12 + 4 + 8 + 2
    assert list(net.state_dict()) == [
        "scale", "offset", "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias",
    ]  # fmt: skip


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert len(model.state_dict()) == 4
    layer = nn.Linear(2, 2)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(list(twice.parameters())) == 2
    twice(np.ones((1, 2), np.float32)).sum().backward()
    assert layer.weight.grad is not None


def test_containers() -> None:
    a, b, c = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)
    model = nn.Sequential({"in": a, "act": b, "out": c})
    assert len(model) == 3
    assert list(model) == [a, b, c]
    assert (model[0], model[-1]) == (a, c)
    assert list(model.state_dict()) == ["in.weight", "in.bias", "out.weight", "out.bias"]
    part = model[:2]
    assert isinstance(part, nn.Sequential)
    assert list(part) == [a, b]
    plain = nn.Sequential(a, b)
    assert plain.append(c) is plain
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    np.testing.assert_array_equal(plain(np.ones((1, 2))).data, model(np.ones((1, 2))).data)
    assert list(plain[1:].state_dict()) == ["1.weight", "1.bias"]
    plain[1] = nn.Tanh()
    assert isinstance(plain[1], nn.Tanh)
    assert [n for n, _ in plain.named_children()] == ["0", "1", "2"]
    for bad in (3, -4):
        with pytest.raises(IndexError, match=f"Sequential: index {bad} is out of range for 3 modules"):
            plain[bad]
    layers = nn.ModuleList([a, c])
    layers.extend([b])
    assert (len(layers), layers[2]) == (3, b)
    assert len(list(layers.parameters())) == 4
    empty = nn.Sequential()
    t = tensor([1.0])
    assert empty(t) is t


def test_setting_attributes() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(
        TypeError, match=r"Linear: weight is a Parameter and cannot become ndarray: use \.data"
    ):
        layer.weight = np.ones((2, 2))
    layer.bias = None
    assert [n for n, _ in layer.named_parameters()] == ["weight"]
    net = Net()
    net.offset = np.full(2, 5.0, np.float32)
    assert isinstance(net.offset, Tensor)
    assert net.state_dict()["offset"].tolist() == [5.0, 5.0]
    net.register_parameter("extra", nn.Parameter([1.0]))
    net.add_module("child", nn.Linear(1, 1))
    assert "extra" in net.state_dict()
    assert "child.weight" in net.state_dict()
    with pytest.raises(TypeError, match="register_parameter: x must be a Parameter or None, got Tensor"):
        net.register_parameter("x", tensor([1.0]))
    with pytest.raises(TypeError, match="register_module: x must be a Module or None, got int"):
        net.register_module("x", 3)
    with pytest.raises(TypeError, match="got int"):
        nn.Sequential(3)
    with pytest.raises(NotImplementedError, match="Module: forward is not defined"):
        nn.Module()(1)


def test_a_parameter_uses_the_array_it_is_given() -> None:
    a = np.ones((2, 2), np.float32)
    p = nn.Parameter(a)
    assert p.data is a
    assert p.requires_grad
    assert not nn.Parameter(a, requires_grad=False).requires_grad
    assert nn.Parameter(tensor([1.0])).dtype == np.float32
    assert not isinstance(p * 2, nn.Parameter)
    assert repr(nn.Parameter([1.0])) == "Parameter containing:\ntensor([1.], requires_grad=True)"


def test_apply_freeze_and_zero_grad() -> None:
    model = mlp()
    seen = []
    assert model.apply(seen.append) is model
    assert seen == [*model, model]
    model.requires_grad_(False)
    assert not model(np.ones((1, 6))).requires_grad
    model.requires_grad_()
    model[0].requires_grad_(False)
    model(np.ones((1, 6))).sum().backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_to_converts_parameters_and_buffers() -> None:
    net = Net()
    weight = net.body[0].weight
    values = weight.numpy().copy()
    assert net.double() is net
    assert net.body[0].weight is weight
    assert {t.dtype for t in net.state_dict().values()} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(weight.data, values)
    assert net(np.ones((1, 3))).dtype == np.float64
    assert net.to("cpu").to(np.float32).scale.dtype == np.float32
    assert net.half().scale.dtype == np.float16
    assert net.float().scale.dtype == np.float32
    with pytest.raises(TypeError, match="dtype must be floating-point, got int64"):
        net.to(np.int64)
    for target in ("meta", None):
        with pytest.raises(TypeError, match=f"to: expected a dtype, 'cpu' or 'cuda', got {target!r}"):
            net.to(target)
    assert net.to(dtype=np.float32) is net


def test_repr() -> None:
    assert repr(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Dropout(0.1))) == (
        "Sequential(\n"
        "  (0): Linear(in_features=2, out_features=3, bias=True)\n"
        "  (1): ReLU()\n"
        "  (2): Dropout(p=0.1, inplace=False)\n"
        ")"
    )


# ----------------------------------------------------------------------------------------------- state


def test_state_dict_shares_memory_and_loads_in_place() -> None:
    source, target = mlp(0), mlp(1)
    state = source.state_dict()
    assert np.shares_memory(state["0.weight"].data, source[0].weight.data)
    assert not state["0.weight"].requires_grad
    memory = [p.data for p in target.parameters()]
    keys = target.load_state_dict(state)
    assert keys == ([], [])
    for before, p, q in zip(memory, target.parameters(), source.parameters(), strict=True):
        assert p.data is before
        np.testing.assert_array_equal(p.data, q.data)


def test_an_optimizer_goes_on_after_a_load() -> None:
    model, saved = mlp(0), {k: v.numpy().copy() for k, v in mlp(1).state_dict().items()}
    opt = optim.SGD(model.parameters(), lr=0.5)
    model.load_state_dict(saved)
    model(np.ones((2, 6))).sum().backward()
    gradient = model[4].bias.grad.numpy().copy()
    opt.step()
    np.testing.assert_allclose(model[4].bias.data, saved["4.bias"] - np.float32(0.5) * gradient, rtol=1e-6)
    assert gradient.any()


def test_load_state_dict_takes_arrays_lists_and_other_dtypes() -> None:
    layer = nn.Linear(1, 2)
    layer.load_state_dict({"weight": np.array([[1.0], [2.0]]), "bias": [3, 4]})
    assert layer.weight.tolist() == [[1.0], [2.0]]
    assert layer.bias.tolist() == [3.0, 4.0]
    assert layer.weight.dtype == np.float32


@pytest.mark.peers
def test_load_state_dict_takes_torchs() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    ours = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    ours.load_state_dict(theirs.state_dict())
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours(x).data, expected, rtol=1e-5, atol=1e-6)
    assert not np.shares_memory(ours[0].weight.data, theirs[0].weight.detach().numpy())


def test_load_state_dict_names_every_problem_and_changes_nothing() -> None:
    model = mlp()
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()}
    del state["2.bias"]
    state["9.weight"] = np.ones(3)
    state["0.weight"] = np.ones((5, 7))
    with pytest.raises(ValueError, match="load_state_dict: Sequential") as error:
        model.load_state_dict(state)
    text = str(error.value)
    assert "missing keys 2.bias" in text
    assert "unexpected keys 9.weight" in text
    assert "0.weight has shape (5, 7), the module's has (5, 6)" in text
    with pytest.raises(ValueError, match=r"0.weight has shape \(5, 7\)"):
        model.load_state_dict(state, strict=False)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.data, before[key])
    del state["0.weight"]
    keys = model.load_state_dict(state, strict=False)
    assert keys.missing_keys == ["0.weight", "2.bias"]
    assert keys.unexpected_keys == ["9.weight"]
    np.testing.assert_array_equal(model[2].weight.data, before["2.weight"] + 1)


def test_copies_and_pickles() -> None:
    model = mlp()
    x = RNG.standard_normal((2, 6))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin(x).data, model(x).data)
        twin[0].weight.data[...] = 0
        assert model[0].weight.data.any()


def test_a_buffer_can_be_deleted() -> None:
    net = Net()
    del net.offset
    assert "offset" not in net.state_dict()
    with pytest.raises(AttributeError):
        del net.offset


def test_arrays_given_by_name_are_wrapped_too() -> None:
    class Named(nn.Module):
        def forward(self, x, y):
            return type(x), type(y)

    assert Named()(np.ones(2), y=np.ones(2)) == (Tensor, Tensor)


def test_zero_grad_keeps_the_gradients_where_asked() -> None:
    layer = nn.Linear(2, 1)
    layer(ones(1, 2)).sum().backward()
    gradient = layer.weight.grad
    layer.zero_grad(set_to_none=False)
    assert layer.weight.grad is gradient
    assert gradient.tolist() == [[0, 0]]
    layer.zero_grad()
    assert layer.weight.grad is None


@pytest.mark.parametrize("name", ["", "a.b", "forward"])
def test_a_module_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=r"register_module: .* is no name for a module"):
        nn.Sequential({name: nn.ReLU()})


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_network_of_half_precision(name: str) -> None:
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    dtype = np.dtype(name)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin = copy.deepcopy(net)
    net.to(dtype)
    x = np.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]])
    y = net(tensor(x, dtype=dtype))
    y.sum().backward()
    twin(tensor(x, dtype=np.float32)).sum().backward()
    assert y.dtype == dtype
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert p.grad.dtype == dtype
        np.testing.assert_allclose(p.grad.data.astype(float), q.grad.data, atol=0.03, rtol=0.02)
