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
compile
    A model, a loss and an optimizer as one native training step.
minimize
    A function of one array and its gradient, as scipy.optimize.minimize, by any of the optimizers or L-BFGS.
data, checkpoint
    Readers and batches; atomic saves.
distributed
    The same training on several processes and machines, over MPI or NCCL.
torch, compat, interop
    The optimizers as torch.optim.Optimizer; other libraries' optimizers by their names and defaults; optimizer state
    to and from other libraries.
sklearn
    scikit-learn's MLPClassifier and MLPRegressor over the compiled step.
plot, monitor, info
    Pictures of training; where gradients vanish or explode; what this build is and runs on.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastopt import _dtypes, functional, nn, optim
from fastopt._core import __version__
from fastopt._dtypes import DType as dtype
from fastopt._dtypes import bool_ as bool
from fastopt._dtypes import float16, float32, float64, int8, int16, int32, int64, uint8
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
    full_like,
    linspace,
    normal,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from fastopt.functional import log_softmax, relu, sigmoid, softmax, tanh
from fastopt.operations import (
    abs,
    all,
    allclose,
    any,
    argmax,
    argmin,
    cat,
    clamp,
    clip,
    cos,
    dot,
    equal,
    exp,
    flatten,
    log,
    matmul,
    max,
    maximum,
    mean,
    min,
    minimum,
    mm,
    mv,
    norm,
    permute,
    pow,
    reshape,
    sin,
    sqrt,
    square,
    squeeze,
    stack,
    std,
    sum,
    transpose,
    unsqueeze,
    var,
    where,
)
from fastopt.optim import GradScaler
from fastopt.tensor import Tensor

if TYPE_CHECKING:  # what __getattr__ loads
    from fastopt import checkpoint, data
    from fastopt.checkpoint import load_object as load
    from fastopt.checkpoint import save_object as save
    from fastopt.monitor import GradientMonitor
    from fastopt.program import compile

# torch's other names of the same dtypes.
float, double, half = float32, float64, float16
int, long = int32, int64

__all__ = [
    "GradScaler",
    "GradientMonitor",
    "Tensor",
    "__version__",
    "abs",
    "all",
    "allclose",
    "any",
    "arange",
    "argmax",
    "argmin",
    "as_tensor",
    "bool",
    "cat",
    "checkpoint",
    "clamp",
    "clip",
    "compile",
    "cos",
    "data",
    "dot",
    "double",
    "dtype",
    "empty",
    "enable_grad",
    "equal",
    "exp",
    "eye",
    "flatten",
    "float",
    "float16",
    "float32",
    "float64",
    "from_numpy",
    "full",
    "full_like",
    "functional",
    "generator",
    "get_num_threads",
    "get_rng_state",
    "half",
    "int",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_grad_enabled",
    "linspace",
    "load",
    "log",
    "log_softmax",
    "long",
    "manual_seed",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mm",
    "mv",
    "nn",
    "no_grad",
    "norm",
    "normal",
    "ones",
    "ones_like",
    "optim",
    "permute",
    "pow",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "relu",
    "reshape",
    "save",
    "set_num_threads",
    "set_rng_state",
    "sigmoid",
    "sin",
    "softmax",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "sum",
    "tanh",
    "tensor",
    "transpose",
    "uint8",
    "unsqueeze",
    "var",
    "where",
    "zeros",
    "zeros_like",
]


# Loaded when first asked for: not every program uses these, and they cost import time.
_LAZY_MODULES = frozenset(
    {"checkpoint", "compat", "data", "distributed", "info", "interop", "monitor", "plot", "sklearn", "torch"}
)
_LAZY_NAMES = {
    "GradientMonitor": ("monitor", "GradientMonitor"),
    "compile": ("program", "compile"),
    "load": ("checkpoint", "load_object"),
    "minimize": ("_minimize", "minimize"),
    "minimize_method": ("_minimize", "minimize_method"),
    "save": ("checkpoint", "save_object"),
}


def __getattr__(name: str) -> Any:
    if name == "bfloat16":
        return _dtypes.bfloat16
    if name in _LAZY_MODULES:
        return importlib.import_module(f"fastopt.{name}")
    if name in _LAZY_NAMES:
        module, attribute = _LAZY_NAMES[name]
        value = globals()[name] = getattr(importlib.import_module(f"fastopt.{module}"), attribute)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_MODULES, *_LAZY_NAMES, "bfloat16"})
