"""An optimizer's step in CUDA graphs of the caller's: a replay runs no Python, so its numbers come before it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._arrays import as_view, assign
from fastopt.optim.attempts import Attempts, LossScale
from fastopt.optim.placement import Device
from fastopt.optim.plans import take_over
from fastopt.optim.tail import NO_TAIL

if TYPE_CHECKING:
    from fastopt.optim.rule import RuleOptimizer


class CapturedStep:
    """What graphs of one optimizer repeat.

    Parameters
    ----------
    optimizer : RuleOptimizer
        Its parameters are on a CUDA device.
    """

    def __init__(self, optimizer: RuleOptimizer) -> None:
        assert isinstance(optimizer._placement, Device)
        self._placement = optimizer._placement
        self._plans = optimizer._refresh()
        for plan in self._plans:
            plan.native.prepare_capture(self._placement.stream())
        self._room = self._placement.norm_room(len(self._plans))
        self._given: list[bool] | None = None
        self._max_norm: float | None = None
        self._held: list[Any] = []  # graphs read gradients and scales as long as they are replayed
        self._grad_norm: Any = None  # of the last replay
        self._attempts: Attempts | None = None
        self._norm: Any = None
        self.found: Any = None  # of gradients that a graph unscales before the step

    def leave_out(self, optimizer: RuleOptimizer) -> None:
        """Make what steps need besides that the device may leave out."""
        self._attempts = optimizer._attempts_at(self._plans)
        self._norm = self._placement.numbers(np.array(math.nan))
        self.found = self._placement.room(np.float64)

    def record(
        self, optimizer: RuleOptimizer, grads: list[Any], inverse: float | LossScale | None = None
    ) -> None:
        """Queue a step on the stream that is being captured; parameters and step counts stay as they are.

        Raises
        ------
        TypeError, ValueError
            As `RuleOptimizer.step`; or other parameters lack a gradient than in an earlier capture.
        RuntimeError
            The optimizer was changed since the room was made.
        """
        self._require_same(optimizer, "step")
        if optimizer.accumulate != 1 or optimizer._scoped or optimizer.norm_type != 2.0:
            raise RuntimeError(
                "step: a graph cannot repeat what is decided from step to step: gradients of several calls, or "
                "clipping other than by value and by the L2 norm of all gradients"
            )
        if (inverse is None) != (self._attempts is None) or isinstance(inverse, float):
            raise RuntimeError(
                "step: a step of a GradScaler is captured after its prepare_capture(optimizer), any other after the "
                "optimizer's prepare_capture()"
            )
        given = [g is not None for g in grads]
        if self._given is not None:
            for i, (now, before) in enumerate(zip(given, self._given, strict=True)):
                if now != before:
                    words = ("no gradient", "a gradient")
                    raise ValueError(
                        f"step: {optimizer._label(i)} has {words[now]}, it had {words[before]} in the step that was "
                        "captured before; call prepare_capture() again"
                    )
            self._require_norm(optimizer, "step")
        chosen = [plan.select(grads) for plan in self._plans]
        natives = [plan.native for plan in self._plans]
        for native, gs in zip(natives, chosen, strict=True):
            native.check(gs)
        if isinstance(inverse, LossScale):
            norm = self._capture_attempt(chosen, optimizer.max_norm, inverse)
        else:
            norm = self._capture_step(natives, chosen, optimizer.max_norm)
        self._given, self._max_norm = given, optimizer.max_norm
        self._held.append((grads, inverse))
        self._grad_norm = norm
        if self._attempts is None:
            optimizer.grad_norm = norm

    def _capture_step(self, natives: list[Any], grads: list[list[Any]], max_norm: float | None) -> Any:
        """Queue the kernels of a step; return where the norm of gradients will be."""
        tail = NO_TAIL
        if max_norm is not None:
            tail = self._placement.limit(natives, grads, max_norm, self._room)
        for native, gs in zip(natives, grads, strict=True):
            self._placement.capture(native, gs, tail)
        return tail.norm

    def _capture_attempt(self, grads: list[list[Any]], max_norm: float | None, scale: LossScale) -> Any:
        """Queue the kernels of a step that the device may leave out."""
        assert self._attempts is not None
        norm = None if max_norm is None else self._norm
        self._attempts.step(grads, max_norm, scale, norm, norm)
        return norm

    def advance(self, optimizer: RuleOptimizer) -> None:
        """Count a step, and queue its coefficients for the next replay."""
        if self._given is None:
            raise RuntimeError("advance: no step was captured since prepare_capture()")
        if optimizer._movable:
            optimizer._follow()
        self._require_same(optimizer, "advance")
        self._require_norm(optimizer, "advance")
        optimizer._require_weights()
        plans = optimizer._refresh()
        if self._attempts is not None:
            self._attempts.advance(optimizer, self._given, captured=True)
            self._keep_norm(optimizer.grad_norm)
            optimizer.grad_norm = self._grad_norm
            return
        active = None if all(self._given) else optimizer._split(np.array(self._given))
        advanced = optimizer._advance(plans, active, NO_TAIL.factor)
        for plan in plans:
            plan.native.advance(plan.coefs, plan.sets, self._placement.stream())
        take_over(advanced)
        optimizer.grad_norm = self._grad_norm

    def _keep_norm(self, last: Any) -> None:
        """Put the norm of the last step where a replay that is left out leaves it."""
        if self._max_norm is None or last is None or last is self._norm:
            return
        last = self._placement.numbers(np.array(last)) if isinstance(last, float) else last
        assign(as_view(self._norm, "grad_norm"), as_view(last, "grad_norm"))

    def _require_same(self, optimizer: RuleOptimizer, call: str) -> None:
        """Refuse where the kernels would have to update other arrays, or by another rule."""
        if (
            optimizer._plans is not self._plans
            or list(map(optimizer._storage, optimizer.param_groups)) != optimizer._kinds
        ):
            raise RuntimeError(
                f"{call}: parameters, state or rule are not what they were at prepare_capture(); call it again, "
                "then capture the step again"
            )

    def _require_norm(self, optimizer: RuleOptimizer, call: str) -> None:
        if optimizer.max_norm != self._max_norm:
            raise RuntimeError(
                f"{call}: max_norm is {optimizer.max_norm}, in the step that was captured it was {self._max_norm}; "
                "call prepare_capture() and capture the step again"
            )


class Capturable:
    """The two calls around a CUDA graph that contains an optimizer's step."""

    _captured: CapturedStep | None = None

    def prepare_capture(self: Any) -> None:
        """Make what a step needs before a CUDA graph that contains it can be captured.

        In a capture nothing can be allocated, and a replay runs no Python that could compute the next learning rate or
        bias correction. So the state arrays and room in device memory are made here, a captured `step` reads its
        numbers from that room, and `advance` puts them there before each replay. The captured step itself runs, and
        counts, only with the replays. ::

            opt.prepare_capture()
            with torch.cuda.graph(graph):  # or CuPy's begin_capture and end_capture
                compute_gradients_into(grads)
                opt.step(grads)
            for _ in range(1000):
                opt.advance()
                graph.replay()

        Learning rates, other settings but `max_norm`, and steps between replays that are not captured go as ever. The
        graph repeats the gradients' addresses and which parameters have none; it may be replayed as long as the
        optimizer lives and until `prepare_capture` is called again, on one stream at a time.

        Raises
        ------
        RuntimeError
            The parameters are on the host, the stream is being captured already, or the optimizer's step computes on
            the host what a replay would need.
        """
        name = type(self).__name__
        if not isinstance(self._placement, Device):
            raise RuntimeError(
                f"prepare_capture: the parameters of {name} are on the host, CUDA graphs are a device's"
            )
        if not self.is_plain() or not self.by_element:
            raise RuntimeError(f"prepare_capture: {name} takes its steps in a way that no graph can repeat")
        if (setting := self.eager_setting()) is not None:
            raise RuntimeError(
                f"prepare_capture: {setting} is computed between steps, which no graph repeats"
            )
        self._captured = CapturedStep(self)

    def advance(self: Any) -> None:
        """Count a step and queue its numbers, on the current stream, for the next replay of a captured step.

        Nothing waits for the device. The replay has to follow on the same stream, before a step of a `GradScaler` that
        is not captured.

        Raises
        ------
        RuntimeError
            No step was captured, or the optimizer has changed in a way that needs another capture.
        ValueError
            A setting went out of range; nothing is changed then.
        """
        if self._captured is None:
            raise RuntimeError("advance: prepare_capture() was not called")
        self._captured.advance(self)
