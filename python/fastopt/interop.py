"""Optimizer state to and from other libraries: torch's state dictionaries, optax's trees."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._device import TorchArray


def as_tensors(x: Any) -> Any:
    """Return `x` with its arrays as torch tensors of the same memory.

    Parameters
    ----------
    x : array, or dict, list or tuple of such
        Anything else stays as it is.
    """
    import torch

    if isinstance(x, dict):
        return {key: as_tensors(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(as_tensors(value) for value in x)
    if isinstance(x, np.ndarray):
        if x.dtype.name == "bfloat16":  # of which torch and NumPy only share the bits
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)
    if isinstance(x, TorchArray):
        return x.tensor
    return (
        torch.utils.dlpack.from_dlpack(x)
        if hasattr(x, "__cuda_array_interface__") and not torch.is_tensor(x)
        else x
    )
