"""Exponential moving averages of weights, and swapping them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastopt._arrays import Array, assign
from fastopt._device import device_view
from fastopt.optim.params import check_distinct, collection, flatten, prepare
from fastopt.optim.vectors import unwrapped


@contextmanager
def swapped(params: Sequence[Array], averages: Sequence[Array]) -> Iterator[None]:
    """Let `params` hold `averages` inside a with block.

    The weights are kept aside rather than exchanged, so averages of a wider dtype lose nothing.
    """
    weights = [p.copy() for p in params]
    try:
        for p, average in zip(params, averages, strict=True):
            p[...] = average
        yield
    finally:
        for p, w in zip(params, weights, strict=True):
            p[...] = w


class WeightAverage:
    """Exponential moving average of weights that some other code updates.

    An optimizer's own `ema_decay` does the same inside its step, without this pass over the weights.

    .. math:: a \\leftarrow decay \\cdot a + (1 - decay) \\cdot p

    Parameters
    ----------
    params : list, dict, nested tree or (name, array) pairs
        Arrays or Tensors. The average starts as a copy of them, in float32 at least.
    decay : float
        In [0, 1).

    Raises
    ------
    TypeError, ValueError
        As `fastopt.optim.Optimizer` for parameters; `decay` is out of range.

    References
    ----------
    Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
    """

    def __init__(self, params: Any, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"WeightAverage: decay must be in [0, 1), got {decay}")
        flat = flatten(collection(params, "WeightAverage"), 0, "WeightAverage")
        labels = ["params" + path for path in flat.paths]
        dense = [prepare(p, label, "WeightAverage") for p, label in zip(flat.arrays, labels, strict=True)]
        self._params = [d.source for d in dense]
        check_distinct(self._params, labels, "WeightAverage")
        self.decay = decay
        self.updates = 0
        self._averages = [
            p.astype(np.float64 if p.dtype == np.float64 else np.float32, copy=True) for p in self._params
        ]

    @property
    def averages(self) -> list[Any]:
        """The averages, live, as arrays of the parameters' library."""
        return [unwrapped(a) for a in self._averages]

    def update(self) -> None:
        """Take the weights as they are now into the average."""
        for average, p in zip(self._averages, self._params, strict=True):
            average += (1.0 - self.decay) * (p.astype(average.dtype, copy=False) - average)
        self.updates += 1

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Let the parameters hold their averages inside a with block; the weights come back after it."""
        with swapped(self._params, self._averages):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return the averages (copies), the decay and the number of updates."""
        copies = [unwrapped(a.copy()) for a in self._averages]
        return {"decay": self.decay, "updates": self.updates, "averages": copies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; ValueError when a shape differs, with nothing changed."""
        saved = []
        for i, a in enumerate(state_dict["averages"]):
            view = device_view(a, f"load_state_dict: averages[{i}]")
            saved.append(np.asarray(a) if view is None else view)
        if [a.shape for a in saved] != [a.shape for a in self._averages]:
            raise ValueError(
                f"load_state_dict: averages have shapes {[a.shape for a in saved]}, "
                f"the parameters have {[a.shape for a in self._averages]}"
            )
        for average, a in zip(self._averages, saved, strict=True):
            assign(average, a)
        self.decay = float(state_dict["decay"])
        self.updates = int(state_dict["updates"])
