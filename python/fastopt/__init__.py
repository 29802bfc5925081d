"""fastopt: the training core for NumPy.

Fused kernels for layers, activations, losses and optimizer updates on the arrays you have.

Modules
-------
optim
    Optimizers and learning-rate schedules that update arrays in place.
functional
    Activations, losses and layers as functions: arrays in, arrays out; Tensors in, taped Tensors out.
nn
    Modules, layers, losses and initialisers.
data, checkpoint
    Readers and batches; atomic saves.
plot, info
    Pictures of training; what this build is and runs on.
"""

from typing import Any

from fastopt import _dtypes, checkpoint, data, functional, info, nn, optim, plot
from fastopt._core import __version__
from fastopt._dtypes import DType as dtype
from fastopt._dtypes import bool_ as bool
from fastopt._dtypes import float16, float32, float64, int32, int64
from fastopt._random import generator, get_rng_state, manual_seed, set_rng_state
from fastopt._tape import enable_grad, is_grad_enabled, no_grad
from fastopt._threads import get_num_threads, set_num_threads
from fastopt.creation import (
    arange,
    as_tensor,
    empty,
    eye,
    from_numpy,
    full,
    linspace,
    ones,
    ones_like,
    rand,
    randint,
    randn,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from fastopt.functional import log_softmax, relu, sigmoid, softmax, tanh
from fastopt.operations import cat, stack, where
from fastopt.tensor import Tensor

__all__ = [
    "Tensor",
    "__version__",
    "arange",
    "as_tensor",
    "bool",
    "cat",
    "checkpoint",
    "data",
    "dtype",
    "empty",
    "enable_grad",
    "eye",
    "float16",
    "float32",
    "float64",
    "from_numpy",
    "full",
    "functional",
    "generator",
    "get_num_threads",
    "get_rng_state",
    "info",
    "int32",
    "int64",
    "is_grad_enabled",
    "linspace",
    "log_softmax",
    "manual_seed",
    "nn",
    "no_grad",
    "ones",
    "ones_like",
    "optim",
    "plot",
    "rand",
    "randint",
    "randn",
    "randperm",
    "relu",
    "set_num_threads",
    "set_rng_state",
    "sigmoid",
    "softmax",
    "stack",
    "tanh",
    "tensor",
    "where",
    "zeros",
    "zeros_like",
]


def __getattr__(name: str) -> Any:
    # ml_dtypes is optional, and importing it costs time.
    if name == "bfloat16":
        return _dtypes.bfloat16
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
