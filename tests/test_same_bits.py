"""The same bits however a network is trained: one table of ways, each compared with one thread of the best level.

A way trains the networks below and returns digests of their weights, state and losses. What is not promised is not
in the table: levels without a fused multiply-add, ``precision="bf16"``, sums and matrix products on a device.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
import host_gpu
from campaign.training import digest
from fastopt import _core, _random, checkpoint, nn, optim
from fastopt import functional as F
from fastopt.data import DataLoader
from fastopt.optim import lr_scheduler

EPOCHS = 3


class Training:
    """A network with everything that belongs to its training, all of one seed."""

    def __init__(self, name: str) -> None:
        fastopt.manual_seed(11)
        sizes, act, last, loss, dtype, kind, settings = NETWORKS[name]
        layers: list[Any] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b, dtype=dtype), act(), nn.Dropout(0.2)]
        self.model = nn.Sequential(*layers[:-2], *last)
        self.loss_fn = loss()
        self.optimizer = getattr(optim, kind)(self.model.parameters(), **settings)
        rng = np.random.default_rng(12)
        n, batch = (300, 128) if sizes[0] > 100 else (60, 8)
        x = rng.standard_normal((n, sizes[0])).astype(dtype)
        classes = loss is nn.CrossEntropyLoss
        y = rng.integers(0, sizes[-1], n) if classes else rng.standard_normal((n, sizes[-1])).astype(dtype)
        self.loader = DataLoader(x, y, batch, shuffle=True, seed=13)
        self.scheduler = lr_scheduler.OneCycleLR(
            self.optimizer, 0.02, total_steps=EPOCHS * len(self.loader), cycle_momentum=False
        )
        self.losses: list[float] = []

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        names = ("model", "optimizer", "scheduler", "loader")
        return {name: getattr(self, name) for name in names}

    def digest(self, *, losses: bool = True) -> str:
        """Of every bit that training has made."""
        weights = [np.asarray(p.data) for p in self.model.parameters()]
        return digest([weights, self.optimizer.state, _random.get_rng_state(), self.losses if losses else 0])


NETWORKS: dict[str, tuple[Any, ...]] = {
    "classes": (
        (10, 24, 4),
        nn.ReLU,
        (),
        nn.CrossEntropyLoss,
        np.float32,
        "AdamW",
        {"max_norm": 1.0, "ema_decay": 0.9},
    ),
    "numbers": (
        (7, 9, 5),
        nn.GELU,
        (nn.Tanh(),),
        nn.MSELoss,
        np.float64,
        "SGD",
        {"lr": 0.1, "momentum": 0.9},
    ),
    "wide": (
        (300, 500, 10),
        nn.SiLU,
        (),
        nn.CrossEntropyLoss,
        np.float32,
        "Adam",
        {"lr": 1e-3, "weight_decay": 0.01},
    ),
    "matrices": ((130, 64, 3), nn.Sigmoid, (), nn.CrossEntropyLoss, np.float32, "LAMB", {"lr": 1e-2}),
}


def eager(t: Training, epochs: int = EPOCHS) -> None:
    for _ in range(epochs):
        for x, y in t.loader:
            t.optimizer.zero_grad()
            loss = t.loss_fn(t.model(x), y)
            loss.backward()
            t.optimizer.step()
            t.scheduler.step()
            t.losses.append(loss.item())


def compiled(t: Training, epochs: int = EPOCHS, **options: Any) -> None:
    step = fastopt.compile(t.model, t.loss_fn, t.optimizer, **options)
    for _ in range(epochs):
        for x, y in t.loader:
            t.losses.append(step(x, y))
            t.scheduler.step()


def run(t: Training, epochs: int = EPOCHS) -> None:
    step = fastopt.compile(t.model, t.loss_fn, t.optimizer)
    t.losses += step.run(t.loader, epochs=epochs, scheduler=t.scheduler).tolist()


def stored(t: Training) -> None:
    compiled(t, fuse_update=False)


TRAIN: dict[str, Callable[..., None]] = {"eager": eager, "compiled": compiled, "run": run, "stored": stored}


def results(way: str) -> dict[str, str]:
    """The digests of all networks, trained in one way."""
    found = {}
    for name in NETWORKS:
        t = Training(name)
        TRAIN[way](t)
        found[name] = t.digest()
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, str]]:
    """What eager and compiled training come to on one thread of the best level."""
    before = _core.num_threads()
    _core.set_num_threads(1)
    found = {way: results(way) for way in ("eager", "compiled")}
    _core.set_num_threads(before)
    return found


# --- the table ----------------------------------------------------------------------------------------

LEVELS = [level for level in _core.isas() if level != "v2"]

#: (how it is trained, what it has to equal, threads, level)
TABLE = [
    *[(way, way, n, None) for way in ("eager", "compiled") for n in range(2, 9)],
    *[(way, way, 2, level) for way in ("eager", "compiled") for level in LEVELS],
    *[("run", "compiled", n, None) for n in (1, 2, 5)],
    *[("stored", "compiled", n, None) for n in (1, 2)],
    ("compiled", "eager", 2, None),
]


@pytest.fixture
def surroundings() -> Iterator[None]:
    before = _core.num_threads(), _core.isa()
    yield
    _core.set_num_threads(before[0])
    _core.set_isa(before[1])


@pytest.mark.parametrize(("way", "equals", "threads", "level"), TABLE)
def test_the_table(expected, surroundings, way, equals, threads, level):
    _core.set_num_threads(threads)
    if level is not None:
        _core.set_isa(level)
    assert results(way) == expected[equals]


CHILD = "import json, test_same_bits as t; print(json.dumps([t.results('eager'), t.results('compiled')]))"


@pytest.mark.parametrize("threads", ["1", "3"])
def test_in_a_process_of_its_own(expected, threads):
    from campaign import children

    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=children.environment(OMP_NUM_THREADS=threads)
    )
    assert json.loads(done.stdout) == [expected["eager"], expected["compiled"]]


@pytest.mark.parametrize("way", ["eager", "compiled", "run"])
@pytest.mark.parametrize("name", NETWORKS)
def test_resumed(tmp_path: Path, name, way):
    unbroken = Training(name)
    TRAIN[way](unbroken)
    expected = unbroken.digest(losses=False)
    broken = Training(name)
    TRAIN[way](broken, 1)
    checkpoint.save(tmp_path / "c.safetensors", **broken.parts)
    resumed = Training(name)
    TRAIN[way](resumed, 1)
    checkpoint.load(tmp_path / "c.safetensors", **resumed.parts)
    TRAIN[way](resumed, EPOCHS - 1)
    assert resumed.digest(losses=False) == expected


def elementwise(array: Callable[[Any], Any]) -> str:
    """Training without a sum or product: a layer of weights of each feature's own, with dropout."""
    rng = np.random.default_rng(5)
    start, x = rng.standard_normal((2, 700)).astype(np.float32)
    w, x = array(start), array(x)
    opt = optim.AdamW([w], lr=0.01, ema_decay=0.9, weight_decay=0.1)
    for step in range(30):
        z = w * x
        y = F.dropout(F.gelu(z), 0.3, seed=1, offset=step)
        opt.step([F.gelu_grad(F.dropout_grad(y, 0.3, 1, step), z) * x])
    host = [np.asarray(a.get() if hasattr(a, "get") else a) for a in (w, *opt.state[0].values())]
    return digest(host)


@pytest.mark.skipif(host_gpu.has_device(), reason="tests/test_gpu.py compares a device with the CPU")
def test_cuda_kernels_over_host_memory():
    with host_gpu.cupy_on("host") as cupy:
        assert elementwise(cupy.asarray) == elementwise(np.array)
