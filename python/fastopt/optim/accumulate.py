"""Gradients added up over several calls of step, before one update with their mean or sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt._arrays import Array, Dense, DeviceDense, as_view, assign, zeros_for
from fastopt._device import is_device_array, library
from fastopt.optim.placement import Host
from fastopt.optim.tail import COMMON_COEFS, NO_TAIL

_WIDE = ("float32", "float64")


class _Adder:
    """Native plans that add gradients to sums: one call for all tensors of a kind.

    For float32 and float64 it is the rule "sgd" with the sum as parameter and a rate of -1. For half precision it is
    "momentum" without a decay: its state is the sum in float32, its parameter the gradient that a step gets in the end.
    """

    def __init__(
        self, placement: Host, wide: bool, index: list[int], grads: list[Any], sums: list[Any]
    ) -> None:
        self.index, self.grads = index, grads
        self._placement = placement
        common = [1.0, math.inf, 0.0, 0.0, -1.0, 1.0]  # a rate of -1 and no decay
        self._coefs = np.zeros((1, COMMON_COEFS + (0 if wide else 2)))
        self._coefs[0, : len(common)] = common
        self._coefs[0, COMMON_COEFS:] = 1.0
        self._wide = wide
        self.native = placement.plan("sgd" if wide else "momentum", grads, [] if wide else [sums], None)

    def chosen(self, grads: list[Any]) -> list[Any]:
        return [grads[i] for i in self.index]

    def add(self, grads: list[Any], inverse: float) -> None:
        """Add the gradients that there are, times `inverse`."""
        coefs = self._coefs.copy()
        coefs[0, 0] = inverse
        coefs[0, 4] = -1.0 if self._wide else 0.0
        self._placement.step(self.native, self.chosen(grads), coefs, None, NO_TAIL)

    def finish(self, grads: list[Any], given: list[bool], inverse: float, factor: float) -> None:
        """The same, and leave the sums times `factor` as gradients; of those given before without one now, too."""
        now = self.chosen(grads)
        coefs = np.repeat(self._coefs, 2, axis=0)
        coefs[:, 0] = inverse, 0.0  # what stands in for a gradient that is missing counts nothing
        coefs[:, 4], coefs[:, 5] = -factor, factor if self._wide else 0.0
        sets = np.array([g is None for g in now], np.int32)
        usable = [
            own if g is None and given[i] else g
            for g, own, i in zip(now, self.grads, self.index, strict=True)
        ]
        self._placement.step(self.native, usable, coefs, sets, NO_TAIL)


class Accumulator:
    """Sums of gradients for one optimizer.

    Attributes
    ----------
    count : int
        How often gradients were added since the last update.
    """

    def __init__(self) -> None:
        self.count = 0
        self._given: list[bool] = []
        self._sums: list[Any] = []  # in the parameters' shapes
        self._grads: list[Any] = []  # of half precision, what a step gets; else the sums themselves
        self._adders: list[_Adder] | None = None

    def add(
        self,
        dense: list[Dense | DeviceDense],
        placement: Host,
        grads: list[Any],
        inverse: float,
        last: float | None,
    ) -> list[Any] | None:
        """Add gradients times `inverse`; with `last` return the sums times `last`, and None where none was given.

        The gradients are in the parameters' layouts, and what is returned too. Nothing has changed where one is
        refused.
        """
        adders = self._bind(dense, placement)
        for adder in adders if len(adders) > 1 else ():
            adder.native.check(adder.chosen(grads))
        given = [before or g is not None for before, g in zip(self._given, grads, strict=True)]
        for adder in adders:
            if last is None:
                adder.add(grads, inverse)
            else:
                adder.finish(grads, given, inverse, last)
        self._given = given
        self.count += 1
        if last is None:
            return None
        means: list[Any] = [None] * len(grads)
        for adder in adders:
            for i, mean in zip(adder.index, adder.grads, strict=True):
                means[i] = mean if given[i] else None
        return means

    def clear(self) -> None:
        """Begin anew, after an update."""
        self.count = 0
        for i, given in enumerate(self._given):
            if given:
                for a in {id(a): a for a in (self._sums[i], self._grads[i])}.values():
                    a.fill(0)
        self._given = [False] * len(self._given)

    def unbind(self) -> None:
        """Forget what was derived from the parameters; they may lie elsewhere now."""
        self._adders = None

    def _bind(self, dense: list[Dense | DeviceDense], placement: Host) -> list[_Adder]:
        if self._adders is not None:
            return self._adders
        for d in dense[len(self._sums) :]:
            dtype = d.source.dtype
            wide = dtype.name in _WIDE
            total = zeros_for(d, dtype if wide else np.dtype(np.float32))
            self._sums.append(total)
            self._grads.append(total if wide else zeros_for(d, dtype))
            self._given.append(False)
        self._adders = []
        for wide in (True, False):
            index = [i for i, d in enumerate(dense) if (d.source.dtype.name in _WIDE) is wide]
            if index:
                grads = [self._laid_out(self._grads, dense, i) for i in index]
                sums = grads if wide else [self._laid_out(self._sums, dense, i) for i in index]
                self._adders.append(_Adder(placement, wide, index, grads, sums))
        return self._adders

    def _laid_out(self, arrays: list[Any], dense: list[Dense | DeviceDense], i: int) -> Any:
        """Return array i in the layout of its parameter, which may have changed."""
        arranged = dense[i].arrange(arrays[i])
        if is_device_array(arrays[i]) or not arrays[i].size or np.may_share_memory(arranged, arrays[i]):
            return arranged
        moved = zeros_for(dense[i], arrays[i].dtype)
        moved[...] = arrays[i]
        if self._sums[i] is self._grads[i]:
            self._sums[i] = self._grads[i] = moved
        else:
            arrays[i] = moved
        return dense[i].arrange(moved)

    # State ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """Return the partial sums, arrays being copies; None where there are none."""
        if not self.count:
            return None
        sums = {i: self._sums[i].copy() for i, given in enumerate(self._given) if given}
        return {
            "count": self.count,
            "sums": {i: library(a).unwrap(a) if is_device_array(a) else a for i, a in sums.items()},
        }

    def checked(
        self, saved: Any, dense: list[Dense | DeviceDense], labels: list[str]
    ) -> tuple[int, dict[int, Array]]:
        """Return count and sums of what `state` returned, or raise."""
        if saved is None:
            return 0, {}
        if not isinstance(saved, Mapping) or not {"count", "sums"} <= saved.keys():
            raise TypeError("load_state_dict: 'accumulated' must be a dict with 'count' and 'sums'")
        sums = {}
        for i, value in dict(saved["sums"]).items():
            where = f"load_state_dict: accumulated['sums'][{i!r}]"
            if not isinstance(i, int) or not 0 <= i < len(dense):
                raise ValueError(f"{where} belongs to none of {len(dense)} parameters")
            view = as_view(value, where)
            if view.shape != dense[i].source.shape:
                raise ValueError(
                    f"{where} has shape {view.shape}, {labels[i]} has shape {dense[i].source.shape}"
                )
            sums[i] = view
        return int(saved["count"]), sums

    def take(
        self, count: int, sums: dict[int, Array], dense: list[Dense | DeviceDense], placement: Host
    ) -> None:
        """Take over what `checked` returned."""
        self.clear()
        if count:
            self._bind(dense, placement)
            for i, value in sums.items():
                assign(self._sums[i], value)
                self._given[i] = True
        self.count = count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_adders": None}
