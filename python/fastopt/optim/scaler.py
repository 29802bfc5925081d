"""Scaling of losses, so that gradients in half precision do not underflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from fastopt import _core
from fastopt._arrays import Array, as_view
from fastopt._device import device_view, is_device_array, library
from fastopt.optim.attempts import LossScale
from fastopt.optim.base import Interval, Optimizer, number
from fastopt.optim.clip import get_total_norm, scale_in_place
from fastopt.optim.lbfgs import LBFGS
from fastopt.optim.params import is_tensor
from fastopt.optim.placement import Device
from fastopt.optim.rule import RuleOptimizer

_RANGES = {
    "scale": Interval(0.0, math.inf, "(0, inf)"),
    "growth_factor": Interval(1.0, math.inf, "(1, inf)"),
    "backoff_factor": Interval(0.0, 1.0, "(0, 1)"),
    "growth_interval": Interval(1.0, math.inf, "[1, inf)"),
    "_growth_tracker": Interval(0.0, math.inf, "[0, inf)"),
}
_HALF = ("float16", "bfloat16")


class _Use:
    """What was done with one optimizer since the last update: found_inf is None before its gradients were checked.

    Of gradients that were unscaled on a device, `found` is where it is found whether they were finite.
    """

    __slots__ = ("found", "found_inf", "stepped")

    def __init__(self) -> None:
        self.found_inf: bool | None = None
        self.stepped = False
        self.found: Any = None


class GradScaler:
    """Scale losses up, undo that in the optimizer's step, and skip steps whose gradients are not finite.

    The scale backs off after a skipped step and grows after `growth_interval` steps without one, as with
    ``torch.amp.GradScaler``::

        loss = scaler.scale(loss_fn(model(x), y))
        loss.backward()
        scaler.step(optimizer)             # of plain arrays: scaler.step(optimizer, grads)
        scaler.update()

    Undoing the scale costs no pass over the gradients: it is part of the factor that the step multiplies them by.
    Whether they are finite is asked in one pass, which is that of `max_norm` where the optimizer has one; that
    limits the norm of the unscaled gradients. A skipped step changes nothing: neither parameters nor state,
    averages or step counts.

    On a GPU neither a step nor an update waits for the answer: scale and growth tracker move there with the first step,
    the step's kernels leave it out by themselves, and the host counts the steps when it is asked for them; `unscale_`
    does not wait either. Then `get_scale` and `state_dict` wait, and so does what such kernels cannot do: optimizers
    that look at whole parameters or have numbers beside the step count while an earlier step is under way, and
    `accumulate`.

    Parameters
    ----------
    device : str, optional
        Accepted for torch's sake and ignored: a step is taken where the parameters are.
    init_scale : float
        The scale to begin with.
    growth_factor : float
        Multiplies the scale after `growth_interval` updates in a row without a skipped step; above 1.
    backoff_factor : float
        Multiplies the scale after an update with a skipped step; in (0, 1).
    growth_interval : int
        At least 1.
    enabled : bool
        False makes everything pass through.

    Raises
    ------
    TypeError, ValueError
        A setting is no number or out of range.

    References
    ----------
    Micikevicius et al., Mixed Precision Training, ICLR 2018.
    """

    def __init__(
        self,
        device: str | None = None,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if device is not None and not isinstance(device, str):
            raise TypeError(f"GradScaler: device must be a name or None, got {device!r}")
        self._enabled = bool(enabled)
        self._scale = _checked("GradScaler", "init_scale", init_scale, "scale")
        self._growth_factor = _checked("GradScaler", "growth_factor", growth_factor)
        self._backoff_factor = _checked("GradScaler", "backoff_factor", backoff_factor)
        self._growth_interval = int(_checked("GradScaler", "growth_interval", growth_interval))
        self._growth_tracker = 0
        self._was_read = False
        self._captured = False
        self._uses: dict[int, _Use] = {}
        self._on_device: LossScale | None = None  # has the numbers that count, where there is one

    def is_enabled(self) -> bool:
        """Tell whether the scaler does anything."""
        return self._enabled

    def get_scale(self) -> float:
        """Return the scale, 1 of a disabled scaler; after steps on a GPU this waits for them."""
        self._was_read = True
        return self._read()[0] if self._enabled else 1.0

    def scale(self, outputs: Any) -> Any:
        """Return a loss times the scale.

        Parameters
        ----------
        outputs : Tensor, array, number, or a list or tuple of such
            Half-precision arrays become float32, in which the scale fits.

        Raises
        ------
        TypeError
            It is none of these.
        """
        if not self._enabled:
            return outputs
        self._was_read = True
        if isinstance(outputs, list | tuple):
            return type(outputs)([self.scale(x) for x in outputs])
        if isinstance(outputs, np.ndarray | np.generic) and outputs.dtype.name in _HALF:
            return outputs.astype(np.float32) * self._read()[0]
        if isinstance(outputs, str | bytes | Mapping) or not hasattr(outputs, "__mul__"):
            raise TypeError(
                f"scale: outputs is {type(outputs).__name__}, expected a Tensor, an array, a number or a list of such"
            )
        if self._on_device is not None:
            x = device_view(outputs.data if is_tensor(outputs) else outputs, "scale: outputs")
            if x is not None and self._on_device.is_beside(x):
                return outputs * self._on_device.factor(x.dtype)
        return outputs * self._read()[0]

    def unscale_(self, optimizer: Optimizer, grads: Any = None) -> None:
        """Divide gradients by the scale in place, for code that looks at them before `step`.

        `step` does without: it undoes the scale and clips in the update itself. On a GPU this waits only for gradients
        that are not C-contiguous, and of optimizers whose steps wait.

        Parameters
        ----------
        optimizer : Optimizer
            Whose gradients they are.
        grads : list, dict or tree, optional
            Gradients of plain arrays, as for its `step`; without it the Tensors' ``.grad``.

        Raises
        ------
        RuntimeError
            It was called for this optimizer since the last `update`, or after `step`; or nothing was scaled.
        ValueError
            A gradient is float16, which does not hold what the scale was for, or read-only. Nothing is changed then.
        """
        if not self._enabled:
            return
        self._require_read("unscale_")
        use = self._use(optimizer)
        if use.stepped:
            raise RuntimeError("unscale_: called after step(), call update() first")
        if use.found_inf is not None:
            raise RuntimeError("unscale_: already called for this optimizer since the last update()")
        arrays = _arrays(optimizer, grads, "unscale_")
        for label, a in arrays:
            if a.dtype == np.float16:
                raise ValueError(
                    f"unscale_: {label} is float16, which unscaled gradients underflow; leave it to step()"
                )
            if not is_device_array(a) and not a.flags.writeable:
                raise ValueError(f"unscale_: {label} is read-only")
        if _is_rule(optimizer) and optimizer.skips_on_device():
            use.found = optimizer.unscale(optimizer._gather(grads), self._beside(optimizer))
        if use.found is not None:
            use.found_inf = False  # what there is to find is found on the device
            return
        use.found_inf = not _all_finite(arrays)
        scale_in_place([a for _, a in arrays], 1.0 / self._read()[0])

    def step(self, optimizer: Optimizer, grads: Any = None, closure: Any = None) -> Any:
        """Step with unscaled gradients if they are all finite.

        Parameters
        ----------
        optimizer : Optimizer
            Any but those that evaluate the model themselves.
        grads : list, dict or tree, optional
            The scaled gradients of plain arrays, as for its `step`; without it the Tensors' ``.grad``.
        closure : callable, optional
            For a disabled scaler only.

        Returns
        -------
        bool
            False where the step was skipped; on a GPU an array of one bool, which is there when the step is done, and
            True of a step that was captured. A disabled scaler returns the closure's loss where there is one.

        Raises
        ------
        RuntimeError
            It was called for this optimizer since the last `update`; nothing was scaled; or with a closure.
        TypeError, ValueError
            As the optimizer's `step`; nothing has changed then.
        """
        if callable(grads):
            grads, closure = None, grads
        if not self._enabled:
            return optimizer.step(grads) if closure is None else optimizer.step(closure)  # type: ignore[attr-defined]
        if closure is not None or isinstance(optimizer, LBFGS):
            raise RuntimeError(
                "step: closures are not supported by an enabled GradScaler, its loss is not scaled"
            )
        self._require_read("step")
        use = self._use(optimizer)
        if use.stepped:
            raise RuntimeError("step: already called for this optimizer since the last update()")
        if use.found is not None and _is_rule(optimizer) and optimizer.skips_on_device():
            ran = optimizer.step_scaled(grads, self._beside(optimizer).undone(use.found))
        elif use.found_inf is not None:
            ran = not (use.found_inf if use.found is None else use.found.tolist())
            if ran:
                optimizer.step(grads)  # type: ignore[attr-defined]
        elif _is_rule(optimizer) and optimizer.skips_on_device():
            ran = optimizer.step_scaled(grads, self._beside(optimizer))
            use.found_inf = False  # what there is to find is found on the device
        else:
            ran = _step_scaled(optimizer, grads, 1.0 / self._read()[0])
            use.found_inf = not ran
        use.stepped = True
        return ran

    def prepare_capture(self, optimizer: Optimizer) -> None:
        """Make what `step` needs before a CUDA graph that contains it can be captured.

        It is `prepare_capture` of the optimizer for steps that may be skipped; whether one is, the graph decides each
        time. `scale` and `update` can be part of the graph, too, with the settings of the capture. ::

            scaler.prepare_capture(opt)
            with torch.cuda.graph(graph):  # or CuPy's begin_capture and end_capture
                compute_gradients_into(grads)  # of scaler.scale(loss)
                scaler.step(opt, grads)
                scaler.update()
            for _ in range(1000):
                opt.advance()
                graph.replay()

        Raises
        ------
        RuntimeError
            As the optimizer's `prepare_capture`, or the scaler is disabled.
        TypeError
            It is no optimizer of arrays that step by a native rule.
        """
        if not self._enabled:
            raise RuntimeError("prepare_capture: the GradScaler is disabled, call the optimizer's")
        if not isinstance(optimizer, RuleOptimizer):
            raise TypeError(f"prepare_capture: {type(optimizer).__name__} cannot be captured")
        if isinstance(optimizer._placement, Device):
            self._beside(optimizer)
        optimizer.prepare_capture()
        assert optimizer._captured is not None
        optimizer._captured.leave_out(optimizer)
        self._captured = True

    def update(self, new_scale: float | None = None) -> None:
        """Change the scale by what the steps since the last update found, or to `new_scale`.

        Raises
        ------
        RuntimeError
            No optimizer took a step, or had its gradients unscaled; after `prepare_capture` it is not told, for replays
            take steps that the host does not see.
        ValueError
            `new_scale` is out of range.
        """
        if not self._enabled:
            return
        self._require_read("update")
        if new_scale is not None:
            self._scale = _checked("update", "new_scale", new_scale, "scale")
            if self._on_device is not None:
                self._on_device.write(self._scale)
        else:
            found = [use.found_inf for use in self._uses.values() if use.found_inf is not None]
            if not found and not self._captured:
                raise RuntimeError("update: no gradients were checked, call step() first")
            settings = (self._growth_factor, self._backoff_factor, self._growth_interval)
            if self._on_device is not None:
                self._on_device.update(settings, any(found))
            else:
                now = (self._scale, self._growth_tracker, any(found))
                self._scale, tracker = _core.updated_scale(*now, *settings)
                self._growth_tracker = int(tracker)
        self._uses = {}

    def _read(self) -> tuple[float, int]:
        """Return scale and growth tracker as they are; of a device's this waits."""
        if self._on_device is not None:
            self._scale, self._growth_tracker, _ = self._on_device.read()
        return self._scale, self._growth_tracker

    def _beside(self, optimizer: RuleOptimizer) -> LossScale:
        """Return the numbers on the device where the optimizer's parameters are; to move them waits."""
        placement, scale = optimizer._placement, self._on_device
        assert isinstance(placement, Device)
        if scale is not None and scale.is_beside(placement.first):
            return scale
        if self._captured:
            raise RuntimeError(
                f"GradScaler: {type(optimizer).__name__} is on another device, or its arrays are another library's, "
                "than the optimizer of prepare_capture, whose graphs have the scale there"
            )
        if optimizer._captured is None and placement.capturing():
            raise RuntimeError(
                "GradScaler: the stream is being captured into a CUDA graph, call prepare_capture(optimizer) before"
            )
        numbers = (self._scale, self._growth_tracker) if scale is None else scale.read()
        self._on_device = LossScale(placement, *numbers)
        return self._on_device

    def get_growth_factor(self) -> float:
        """Return the growth factor."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set the growth factor; ValueError when it is out of range."""
        self._growth_factor = _checked("set_growth_factor", "growth_factor", new_factor)

    def get_backoff_factor(self) -> float:
        """Return the backoff factor."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set the backoff factor; ValueError when it is out of range."""
        self._backoff_factor = _checked("set_backoff_factor", "backoff_factor", new_factor)

    def get_growth_interval(self) -> int:
        """Return the growth interval."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set the growth interval; ValueError when it is out of range."""
        self._growth_interval = int(_checked("set_growth_interval", "growth_interval", new_interval))

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, the settings and the growth tracker with torch's keys; empty of a disabled scaler."""
        self._read()
        return {key: getattr(self, attribute) for key, attribute in _KEYS.items()} if self._enabled else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, of torch's class too.

        Raises
        ------
        RuntimeError
            It is empty: saved from a disabled scaler.
        TypeError, ValueError
            A key is missing or its value out of range; nothing is changed then.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "load_state_dict: state_dict is empty, it may be that of a disabled GradScaler"
            )
        missing = [key for key in _KEYS if key not in state_dict]
        if missing:
            raise ValueError(
                f"load_state_dict: state_dict has no {missing[0]!r}, it has {sorted(state_dict)}"
            )
        values = {key: _checked("load_state_dict", key, state_dict[key]) for key in _KEYS}
        for key, value in values.items():
            whole = key in ("growth_interval", "_growth_tracker")
            setattr(self, _KEYS[key], int(value) if whole else value)
        if self._on_device is not None:
            self._on_device.write(self._scale, self._growth_tracker)

    # Uses since the last update -----------------------------------------------------------------------------

    def _use(self, optimizer: Optimizer) -> _Use:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"GradScaler: optimizer is {type(optimizer).__name__}, expected a fastopt optimizer"
            )
        return self._uses.setdefault(id(optimizer), _Use())

    def _require_read(self, call: str) -> None:
        if not self._was_read:
            raise RuntimeError(
                f"{call}: no loss was scaled, use scale(loss) or get_scale() for the gradients first"
            )

    def __getstate__(self) -> dict[str, Any]:
        if self._uses:
            raise RuntimeError("GradScaler: can only be pickled right after update()")
        self._read()
        return {**self.__dict__, "_on_device": None, "_captured": False}


_KEYS = {
    "scale": "_scale",
    "growth_factor": "_growth_factor",
    "backoff_factor": "_backoff_factor",
    "growth_interval": "_growth_interval",
    "_growth_tracker": "_growth_tracker",
}


def _checked(owner: str, name: str, value: Any, key: str | None = None) -> float:
    """Return a setting as a number, or raise."""
    result, interval = number(owner, name, value), _RANGES[key or name]
    if not interval.holds(result):
        raise ValueError(f"{owner}: {name} must be in {interval.text}, got {value}")
    return result


def _arrays(optimizer: Optimizer, grads: Any, call: str) -> list[tuple[str, Array]]:
    """Return the gradients that there are as views, with what messages call them."""
    found = []
    for i, g in enumerate(optimizer._gather(grads)):
        if g is not None:
            label = optimizer._label(i, "grads")
            found.append((label, as_view(g.data if is_tensor(g) else g, f"{call}: {label}")))
    return found


def _all_finite(arrays: list[tuple[str, Array]]) -> bool:
    """Tell whether all elements are; of arrays on a GPU this waits for the answer."""
    return math.isfinite(get_total_norm([a for _, a in arrays], math.inf))


def _is_rule(optimizer: Optimizer) -> TypeGuard[RuleOptimizer]:
    """Whether an optimizer undoes a scale in its own step."""
    return isinstance(optimizer, RuleOptimizer) and type(optimizer).step is RuleOptimizer.step


def _step_scaled(optimizer: Optimizer, grads: Any, inverse: float) -> bool:
    """Step with the gradients times `inverse`; tell whether they are finite, nothing has changed otherwise."""
    if _is_rule(optimizer):
        return bool(optimizer.step_scaled(grads, inverse))
    if not _all_finite(_arrays(optimizer, grads, "step")):
        return False
    flat = optimizer._gather(grads)
    scaled = [None if g is None else optimizer._checked(i, g).copy() for i, g in enumerate(flat)]
    scale_in_place([g for g in scaled if g is not None], inverse)
    own = [library(g).unwrap(g) if is_device_array(g) else g for g in scaled]
    optimizer.step(optimizer._as_given(own))  # type: ignore[attr-defined]
    return True
