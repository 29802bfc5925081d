"""Batch normalisation as a layer."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import functional
from fastopt._dtypes import DEFAULT_FLOAT
from fastopt.nn.module import Module, Parameter
from fastopt.tensor import Tensor


class BatchNorm1d(Module):
    """Normalise each channel over the batch; see `fastopt.functional.batch_norm`.

    Parameters
    ----------
    num_features : int
        C of an input of shape (N, C) or (N, C, L).
    eps : float
        Added to the variance.
    momentum : float or None
        The share of each batch in the running statistics. None: all batches count alike; on a GPU that waits for
        their number.
    affine : bool
        Whether there are weight and bias.
    track_running_stats : bool
        Without running statistics a batch is normalised with its own in evaluation mode too.
    dtype : dtype, optional
        float32 unless said otherwise. Inputs of another dtype are converted to it.

    Attributes
    ----------
    weight, bias : Parameter, shape (num_features,), or None
        1 and 0 at the start.
    running_mean, running_var : Tensor, shape (num_features,), or None
        Buffers, as is the next: part of `state_dict`, not trained.
    num_batches_tracked : Tensor of one int64, or None

    Raises
    ------
    ValueError
        When called while training: one value per channel, which has no variance.
    """

    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        dtype: npt.DTypeLike | None = None,
    ) -> None:
        if operator.index(num_features) < 1:
            raise ValueError(f"BatchNorm1d: num_features must be at least 1, got {num_features}")
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"BatchNorm1d: eps must be finite and at least 0, got {eps}")
        if momentum is not None and not (math.isfinite(momentum) and momentum >= 0):
            raise ValueError(f"BatchNorm1d: momentum must be None or finite and at least 0, got {momentum}")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        wanted = np.dtype(dtype or DEFAULT_FLOAT)
        self.weight = Parameter(np.ones(num_features, wanted)) if affine else None
        self.bias = Parameter(np.zeros(num_features, wanted)) if affine else None
        tracks = track_running_stats
        self.register_buffer("running_mean", np.zeros(num_features, wanted) if tracks else None)
        self.register_buffer("running_var", np.ones(num_features, wanted) if tracks else None)
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if tracks else None)

    def reset_running_stats(self) -> None:
        """Begin anew: mean 0, variance 1, no batch."""
        for buffer, value in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if buffer is not None:
                buffer.data[...] = value

    def reset_parameters(self) -> None:
        """Reset the running statistics too."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            self.weight.data[...] = 1
            self.bias.data[...] = 0

    @property
    def uses_batch(self) -> bool:
        """Whether a call would use the statistics of its batch."""
        return self.training or self.running_mean is None

    def forward(self, input: Any) -> Any:
        tracks = self.training and self.num_batches_tracked is not None
        momentum = 0.0 if self.momentum is None else self.momentum
        if tracks and self.momentum is None:
            momentum = 1 / (int(self.num_batches_tracked) + 1)  # type: ignore[arg-type]
        y = functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.uses_batch,
            momentum,
            self.eps,
        )
        if tracks:
            count = self.num_batches_tracked.data  # type: ignore[union-attr]
            count += 1
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )
