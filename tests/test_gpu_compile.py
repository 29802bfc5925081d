"""Compiled steps on a device whose update is the optimizer's own: the program leaves it the gradients there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt import optim
from gpu_tools import cp, drawn, kind

__all__ = ["cp", "kind"]

ROWS, INSIDE, OUTSIDE = 48, 20, 5
Make = Callable[[Any], Any]

#: With what a program cannot do itself: matrix steps, norms of whole parameters, evaluations of their own, settings.
OPTIMIZERS: dict[str, Make] = {
    "Muon": lambda m: optim.Muon(m.named_parameters(), lr=0.02, adamw={"lr": 0.01}),
    "Adafactor": lambda m: optim.Adafactor(m.parameters(), lr=0.02),
    "SOAP": lambda m: optim.SOAP(m.parameters(), lr=0.02, max_precond_dim=8),
    "LAMB": lambda m: optim.LAMB(m.parameters(), lr=0.02, max_norm=1.0),
    "LARS": lambda m: optim.LARS(m.parameters(), lr=0.02),
    "NovoGrad": lambda m: optim.NovoGrad(m.parameters(), lr=0.02),
    "Prodigy": lambda m: optim.Prodigy(m.parameters(), d0=1e-3),
    "LBFGS": lambda m: optim.LBFGS(m.parameters(), max_iter=3, line_search_fn="strong_wolfe"),
    "accumulate": lambda m: optim.AdamW(m.parameters(), lr=0.01, accumulate=2),
    "adaptive_clip": lambda m: optim.SGD(m.parameters(), lr=0.1, adaptive_clip=0.05),
    "clip_scope": lambda m: optim.SGD(m.parameters(), lr=0.1, max_norm=0.1, clip_scope="parameter"),
    "norm_type": lambda m: optim.Adam(m.parameters(), lr=0.01, max_norm=0.1, norm_type=1.0),
}


class Place:
    """The host, or the device of CuPy."""

    def __init__(self, cp: Any = None) -> None:
        self.array = np.copy if cp is None else cp.asarray
        self._device = "cpu" if cp is None else "cuda"

    def model(self, dropout: float = 0.2) -> Any:
        """Return one in float64, with the same weights each time."""
        fo.manual_seed(3)
        layers = [fo.nn.Linear(INSIDE, 16), fo.nn.Tanh(), fo.nn.Dropout(dropout), fo.nn.Linear(16, OUTSIDE)]
        return fo.nn.Sequential(*layers).to(np.float64).to(self._device)


def numbers(model: Any) -> list[np.ndarray]:
    return [np.asarray(p.data.get() if hasattr(p.data, "get") else p.data) for p in model.parameters()]


def data(place: Place) -> tuple[Any, Any]:
    targets = np.random.default_rng(2).integers(0, OUTSIDE, ROWS)
    return place.array(drawn((ROWS, INSIDE), np.float64, 1)), place.array(targets)


def trained(place: Place, make: Make, many: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Losses and weights of as many steps as make graphs and replay them, whole runs or one by one."""
    model, (x, y) = place.model(), data(place)
    opt = make(model)
    step = fo.compile(model, fo.nn.CrossEntropyLoss(), opt)
    scheduler = optim.lr_scheduler.ExponentialLR(opt, 0.95)
    if many:
        losses = step.run(x, y, batch_size=14, epochs=3, scheduler=scheduler)
    else:
        losses = np.array([step(x[t : t + 16], y[t : t + 16]) for t in (0, 8, 16, 0, 8, 16)])
    return losses, numbers(model)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_host(cp: Any, name: str, many: bool) -> None:
    losses, weights = trained(Place(cp), OPTIMIZERS[name], many)
    expected, host = trained(Place(), OPTIMIZERS[name], many)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for a, b in zip(weights, host, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_data_parallel(cp: Any) -> None:
    """Gradients that ranks average come from the program as well, here of one rank."""
    found = []
    for place in (Place(), Place(cp)):
        model, (x, y) = place.model(), data(place)
        step = fo.compile(model, fo.nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=0.01))
        fo.distributed.DataParallel(step, comm=fo.distributed.NullComm())
        found.append([step.run(x, y, batch_size=16, epochs=3), *numbers(model)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_settings_change_between_steps(cp: Any) -> None:
    """From the program's own updates to kept gradients and back; a frozen parameter has none."""
    found = []
    for place in (Place(), Place(cp)):
        model, (x, y) = place.model(0.0), data(place)
        opt = optim.AdamW(model.parameters(), lr=0.01)
        step = fo.compile(model, fo.nn.CrossEntropyLoss(), opt)
        for accumulate in (1, 2, 1):
            opt.accumulate = accumulate
            for _ in range(4):
                step(x, y)
        assert [int(entry["step"]) for entry in opt.state.values()] == [10] * 4
        model[0].weight.requires_grad = False
        frozen = numbers(model)[0]
        opt.accumulate = 2
        step.run(x, y, batch_size=16, epochs=2)
        np.testing.assert_array_equal(numbers(model)[0], frozen)
        found.append(numbers(model))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_refused_step_changes_nothing(cp: Any) -> None:
    model, (x, y) = Place(cp).model(), data(Place(cp))
    opt = optim.Muon(model.named_parameters(), adamw={})
    step = fo.compile(model, fo.nn.CrossEntropyLoss(), opt)
    step(x, y)
    before, bad = numbers(model), y.copy()
    bad[33] = OUTSIDE
    with pytest.raises(ValueError, match=r"target\[33\] is 5, input has 5 classes"):
        step(x, bad)
    for a, b in zip(numbers(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="fuse_update is True, but Muon is no rule optimizer"):
        fo.compile(model, fo.nn.CrossEntropyLoss(), opt, fuse_update=True)
