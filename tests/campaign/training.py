"""The small training run that campaigns break and resume, and a digest of every bit of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt import _random, checkpoint, nn, optim
from fastopt.data import DataLoader
from fastopt.optim import lr_scheduler

Run = dict[str, Any]


def make(width: int = 24, seed: int = 1, optimizer: str = "AdamW") -> Run:
    """A model with dropout, optimizer, schedule and shuffled batches, all of a seed."""
    fastopt.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Dropout(0.25), nn.Linear(width, 4))
    settings = {"lr": 0.01, "max_norm": 1.0, "ema_decay": 0.9} if optimizer == "AdamW" else {"lr": 0.01}
    opt = getattr(optim, optimizer)(model.parameters(), **settings)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((60, 10)).astype(np.float32)
    return {
        "model": model,
        "optimizer": opt,
        "scheduler": lr_scheduler.CosineAnnealingLR(opt, T_max=200),
        "loader": DataLoader(x, rng.integers(0, 4, 60), batch_size=8, shuffle=True, seed=3),
    }


def train(run: Run, steps: int) -> None:
    """Take so many eager steps, from where the last call has left the batches, through as many epochs as that needs."""
    loss_fn = nn.CrossEntropyLoss()
    loader = run["loader"]
    if not hasattr(loader, "going"):  # a pass that is left and begun anew would be another epoch
        loader.going = chain.from_iterable(repeat(loader))
    for x, y in islice(loader.going, steps):
        run["optimizer"].zero_grad()
        loss_fn(run["model"](x), y).backward()
        run["optimizer"].step()
        run["scheduler"].step()


def digest(value: Any) -> str:
    """A hash of every bit of arrays, numbers and texts in dicts and lists, in order."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()[:16]


def _add(found: Any, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            found.update(repr(key).encode())
            _add(found, item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(found, item)
    elif hasattr(value, "dtype"):
        a = np.ascontiguousarray(value)
        found.update(f"{a.dtype}{a.shape}".encode())
        found.update(a.view(np.uint8).data if a.ndim else a.tobytes())
    else:
        found.update(repr(value).encode())


def state_of(run: Run) -> str:
    """The digest of all that a run goes on from."""
    parts = {name: part.state_dict() for name, part in run.items()}
    weights = {name: np.asarray(value) for name, value in parts.pop("model").items()}
    return digest([weights, parts, _random.get_rng_state()])


def random_state() -> dict[str, Any]:
    """The state of fastopt's random numbers."""
    return _random.get_rng_state()


@contextmanager
def of_its_own(state: dict[str, Any]) -> Iterator[None]:
    """Draw random numbers from another state, and afterwards from where they were."""
    before = _random.get_rng_state()
    _random.set_rng_state(state)
    try:
        yield
    finally:
        _random.set_rng_state(before)


def resume(path: Path, width: int = 24) -> tuple[Run, dict[str, Any]]:
    """A new run that goes on from a file, and what `checkpoint.load` returned."""
    run = make(width, seed=99)
    return run, checkpoint.load(path, **run)
