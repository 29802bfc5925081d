"""torch, eager and compiled: every way that it offers for a task on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

Calls = dict[str, Callable[[], Any]]
aten = torch.ops.aten

#: Optimizers that torch fuses on the CPU.
FUSED = {"SGD", "Adam", "AdamW", "Adagrad"}


def version() -> str:
    return str(torch.__version__)


def set_threads(n: int) -> None:
    torch.set_num_threads(n)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    """The arrays as tensors over the same memory."""
    return [torch.from_numpy(a) for a in arrays]


def room(*like: np.ndarray) -> list[torch.Tensor]:
    """Tensors for results, over NumPy's memory, which lies in large pages as ours does."""
    return [torch.from_numpy(np.zeros_like(a)) for a in like]


# -------------------------------------------------------------------------------------------------- linear


def linear_forward(x_: np.ndarray, w_: np.ndarray, b_: np.ndarray) -> Calls:
    x, w, b = tensors(x_, w_, b_)
    y = torch.from_numpy(np.zeros((len(x_), len(w_)), np.float32))
    wt = w.t()
    calls: Calls = {
        "torch-linear": lambda: F.linear(x, w, b).relu_(),
        "torch-addmm": lambda: torch.addmm(b, x, wt, out=y).relu_(),
    }
    if torch.backends.mkldnn.is_available():  # what torch.compile calls
        fused = torch.ops.mkldnn._linear_pointwise
        calls["torch-onednn"] = lambda: fused(x, w, b, "relu", [], "")
    return calls


def linear_backward(dy_: np.ndarray, x_: np.ndarray, w_: np.ndarray, y_: np.ndarray) -> Calls:
    dy, x, w, y = tensors(dy_, x_, w_, y_)
    dz, dx, dw, db = room(dy_, x_, w_, dy_[0])

    def by_hand() -> tuple[torch.Tensor, ...]:
        aten.threshold_backward.grad_input(dy, y, 0.0, grad_input=dz)
        torch.mm(dz, w, out=dx)
        torch.mm(dz.t(), x, out=dw)
        torch.sum(dz, 0, out=db)
        return dx, dw, db

    leaves = x.clone().requires_grad_(), w.clone().requires_grad_(), torch.zeros_like(db).requires_grad_()
    # The graph of the layer as it is trained; y itself is what the gradient of relu reads.
    z = F.linear(*leaves)
    with torch.no_grad():
        z.copy_(y)
    out = z.relu()

    def autograd() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(out, leaves, dy, retain_graph=True)

    return {"torch-out": by_hand, "torch-autograd": autograd}


# --------------------------------------------------------------------------------------------- activations

_FORWARD: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "relu": lambda x, y: torch.clamp_min(x, 0.0, out=y),
    "leaky_relu": lambda x, y: aten.leaky_relu.out(x, 0.01, out=y),
    "sigmoid": lambda x, y: torch.sigmoid(x, out=y),
    "tanh": lambda x, y: torch.tanh(x, out=y),
    "gelu": lambda x, y: aten.gelu.out(x, approximate="none", out=y),
    "silu": lambda x, y: aten.silu.out(x, out=y),
    "elu": lambda x, y: aten.elu.out(x, out=y),
    "softplus": lambda x, y: aten.softplus.out(x, out=y),
}
_BACKWARD: dict[str, Callable[..., Any]] = {
    "relu": lambda dy, x, y, dx: aten.threshold_backward.grad_input(dy, y, 0.0, grad_input=dx),
    "leaky_relu": lambda dy, x, y, dx: aten.leaky_relu_backward.grad_input(dy, x, 0.01, False, grad_input=dx),
    "sigmoid": lambda dy, x, y, dx: aten.sigmoid_backward.grad_input(dy, y, grad_input=dx),
    "tanh": lambda dy, x, y, dx: aten.tanh_backward.grad_input(dy, y, grad_input=dx),
    "gelu": lambda dy, x, y, dx: aten.gelu_backward.grad_input(dy, x, approximate="none", grad_input=dx),
    "silu": lambda dy, x, y, dx: aten.silu_backward.grad_input(dy, x, grad_input=dx),
    "elu": lambda dy, x, y, dx: aten.elu_backward.grad_input(dy, 1.0, 1, 1, False, x, grad_input=dx),
    "softplus": lambda dy, x, y, dx: aten.softplus_backward.grad_input(dy, x, 1.0, 20.0, grad_input=dx),
}


def activation(name: str, x_: np.ndarray) -> Calls:
    (x,), (y,), function = tensors(x_), room(x_), _FORWARD[name]
    return {"torch-out": lambda: function(x, y)}


def activation_grad(name: str, dy_: np.ndarray, x_: np.ndarray, y_: np.ndarray) -> Calls:
    (dy, x, y), (dx,), function = tensors(dy_, x_, y_), room(x_), _BACKWARD[name]
    return {"torch-out": lambda: function(dy, x, y, dx)}


# -------------------------------------------------------------------------------------------------- losses


def _autograd(function: Callable[..., torch.Tensor], input_: np.ndarray, target: torch.Tensor) -> Callable:
    """A leaf's loss and gradient; the gradient is a new tensor each time, as in training."""
    leaf = torch.from_numpy(input_.copy()).requires_grad_()

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        leaf.grad = None
        value = function(leaf, target)
        value.backward()
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    return call


def cross_entropy(logits_: np.ndarray, target_: np.ndarray) -> Calls:
    (logits, target), (log_p, dlog_p, grad) = tensors(logits_, target_), room(logits_, logits_, logits_)
    one = torch.ones(())

    def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
        aten._log_softmax.out(logits, 1, False, out=log_p)
        value, weight = aten.nll_loss_forward(log_p, target, None, 1, -100)
        aten.nll_loss_backward.grad_input(one, log_p, target, None, 1, -100, weight, grad_input=dlog_p)
        aten._log_softmax_backward_data.out(dlog_p, log_p, 1, torch.float32, out=grad)
        return value, grad

    return {"torch-autograd": _autograd(F.cross_entropy, logits_, target), "torch-out": by_hand}


def loss(name: str, input_: np.ndarray, target_: np.ndarray) -> Calls:
    (x, target), (grad,) = tensors(input_, target_), room(input_)
    one, mean = torch.ones(()), 1

    def mse() -> tuple[torch.Tensor, torch.Tensor]:
        return F.mse_loss(x, target), aten.mse_loss_backward.grad_input(one, x, target, mean, grad_input=grad)

    def smooth_l1() -> tuple[torch.Tensor, torch.Tensor]:
        value = F.smooth_l1_loss(x, target)
        aten.smooth_l1_loss_backward.grad_input(one, x, target, mean, 1.0, grad_input=grad)
        return value, grad

    def bce_with_logits() -> tuple[torch.Tensor, torch.Tensor]:
        value = F.binary_cross_entropy_with_logits(x, target)
        return value, torch.sigmoid(x, out=grad).sub_(target).div_(x.numel())

    by_hand = {"mse": mse, "smooth_l1": smooth_l1, "bce_with_logits": bce_with_logits}[name]
    function = {
        "mse": F.mse_loss,
        "smooth_l1": F.smooth_l1_loss,
        "bce_with_logits": F.binary_cross_entropy_with_logits,
    }[name]
    return {"torch-autograd": _autograd(function, input_, target), "torch-out": by_hand}


def softmax(name: str, x_: np.ndarray) -> Calls:
    (x,), (y,) = tensors(x_), room(x_)
    function = getattr(aten, f"_{name}").out
    return {"torch-out": lambda: function(x, 1, False, out=y)}


def batch_norm(x_: np.ndarray, dy_: np.ndarray, weight_: np.ndarray, bias_: np.ndarray) -> Calls:
    x, dy, weight, bias = tensors(x_, dy_, weight_, bias_)
    mean, var = torch.zeros_like(bias), torch.ones_like(bias)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]

    def autograd() -> tuple[torch.Tensor, ...]:
        y = F.batch_norm(leaves[0], mean, var, *leaves[1:], training=True)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    def by_hand() -> tuple[torch.Tensor, ...]:
        y, *saved = aten.native_batch_norm(x, weight, bias, mean, var, True, 0.1, 1e-5)
        wanted = [True] * 3
        return y, *aten.native_batch_norm_backward(dy, x, weight, mean, var, *saved, True, 1e-5, wanted)

    return {"torch-autograd": autograd, "torch-aten": by_hand}


# ------------------------------------------------------------------------------------- optimizers, training


def steppers(name: str, options: dict, arrays: list[np.ndarray], grads: list[np.ndarray]) -> Calls:
    """Every implementation that torch has of an optimizer, each over tensors of its own."""
    made: Calls = {}
    modes = {"torch-foreach": {"foreach": True}, "torch-loop": {"foreach": False}}
    if name in FUSED:
        modes = {"torch-fused": {"fused": True}, **modes}
    for mode, flags in modes.items():
        params = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(g)
        made[mode] = getattr(torch.optim, name)(params, **options, **flags).step
    return made


def tails(arrays: list[np.ndarray], grads: list[np.ndarray], max_norm: float, ema_decay: float) -> Calls:
    """Unscale and check, clip by the norm, AdamW, averages: each by torch's fastest call on many tensors."""
    params = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.from_numpy(g.copy())
    own = [p.grad for p in params]
    values = [p.detach() for p in params]
    averages = [v.clone() for v in values]
    step = torch.optim.AdamW(params, fused=True).step
    found_inf, inverse = torch.zeros(1), torch.ones(1)

    def call() -> None:
        torch._amp_foreach_non_finite_check_and_unscale_(own, found_inf, inverse)
        if found_inf.item():
            return
        torch.nn.utils.clip_grad_norm_(params, max_norm, foreach=True)
        step()
        torch._foreach_lerp_(averages, values, 1.0 - ema_decay)

    return {"torch-foreach": call}


def adam(arrays: list[np.ndarray], grads: list[np.ndarray]) -> Calls:
    params = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]
    for p, g in zip(params, tensors(*grads), strict=True):
        p.grad = g
    step = torch.optim.Adam(params, lr=1e-3, fused=True).step

    def call() -> torch.Tensor:
        step()
        return params[0].detach()[:1000]

    return {"torch-fused": call}


def _network(net: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    layers: list[torch.nn.Module] = []
    for w, b in zip(net.weights, net.biases, strict=True):
        layer = torch.nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w))
            layer.bias.copy_(torch.from_numpy(b))
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    return model, torch.optim.Adam(model.parameters(), lr=net.lr, fused=True)


def _stepper(net: Any, forward: Callable[[torch.nn.Module], Callable[..., torch.Tensor]]) -> Callable:
    model, optimizer = _network(net)
    loss_of = forward(model)
    xs, ys = tensors(*net.xs), tensors(*net.ys)
    batches = itertools.cycle(list(zip(xs, ys, strict=True)))

    def step() -> float:
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def train(net: Any) -> Calls:
    def eager(model: torch.nn.Module) -> Callable[..., torch.Tensor]:
        return lambda x, y: F.cross_entropy(model(x), y)

    def compiled(model: torch.nn.Module) -> Callable[..., torch.Tensor]:
        return torch.compile(eager(model), dynamic=False)

    calls = {"torch-fused": _stepper(net, eager)}
    if net.compile:
        try:
            _stepper(net, compiled)()
        except Exception as error:  # inductor needs a compiler, and may fail in any way it likes
            print(f"torch.compile: left out, {str(error).splitlines()[0]}", flush=True)
        else:
            calls["torch-compile"] = _stepper(net, compiled)
    return calls
