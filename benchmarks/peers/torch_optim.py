"""torch's optimizers on the same shapes: every implementation that torch offers for a class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Classes that torch fuses on the CPU.
FUSED = {"SGD", "Adam", "AdamW", "Adagrad"}


def version() -> str:
    import torch

    return torch.__version__


def steppers(
    name: str, options: dict, arrays: list[np.ndarray], grads: list[np.ndarray], threads: int
) -> dict[str, Callable]:
    """Return {implementation: step} for torch's class `name`, each over tensors of its own."""
    import torch

    torch.set_num_threads(threads)
    made = {}
    modes = {"torch-foreach": {"foreach": True}, "torch-loop": {"foreach": False}}
    if name in FUSED:
        modes = {"torch-fused": {"fused": True}, **modes}
    for mode, flags in modes.items():
        params = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(g)
        made[mode] = getattr(torch.optim, name)(params, **options, **flags).step
    return made
