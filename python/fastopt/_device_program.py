"""The native program of a compiled step over arrays on a CUDA device, with the methods of `_core.Program`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._device import library, native
from fastopt._device_products import check_precision

Array = npt.NDArray[Any]


class DeviceProgram:
    """A program on the device of `like`, queued on CuPy's current stream.

    Parameters
    ----------
    like : CuPy array
        A parameter of the model.
    precision : str or None
        As `fastopt.compile` has it.
    layers, loss, plans
        As `_core.Program` takes them, with CuPy arrays.
    fuse : bool
        Let products update weights where they can.
    """

    def __init__(
        self,
        like: Any,
        precision: str | None,
        layers: list[Any],
        loss: tuple[Any, ...],
        plans: list[Any],
        fuse: bool = True,
    ) -> None:
        word = check_precision("compile", precision, like.dtype)
        self._like = like
        self._library = library(like)
        self._width_in, self._width = layers[0][1], layers[-1][2]
        self._native: Any = native().Program(like.dtype.name, word, layers, loss, plans, fuse)

    @property
    def steps(self) -> int:
        """The steps done so far."""
        steps: int = self._native.steps
        return steps

    def reserve(self, rows: int) -> None:
        """Make room for batches of so many rows."""
        self._native.reserve(rows)

    def check_classes(self, call: str, target: Any) -> None:
        """Do nothing: `run` and `step_plain` check them on the device, before the first step."""

    def run(self, *arguments: Any) -> tuple[npt.NDArray[np.float64], float]:
        """Run a block of steps, and wait for them: their losses and the last norm of all gradients."""
        *rest, gather_weight, squares = arguments
        if squares is not None:
            raise ValueError("run: the weights' squares before each step are not computed on a device")
        result: tuple[npt.NDArray[np.float64], float] = self._native.run(*rest, self._stream(), gather_weight)
        return result

    def step_plain(self, x: Any, target: Any, coefs: Array) -> float | None:
        """Take one step where everything is as the kernels want it, and wait for its loss; else None."""
        loss: float | None = self._native.step_plain(x, target, coefs, self._stream())
        return loss

    def predict(self, x: Any, batch: int) -> Any:
        """Return the model's output for `x`, rows of a matrix."""
        out = self._library.empty(self._like, (x.size // self._width_in, self._width), self._like.dtype)
        self._native.predict(x, batch, out, self._stream())
        return out

    def _stream(self) -> int:
        return self._library.stream(self._like)
