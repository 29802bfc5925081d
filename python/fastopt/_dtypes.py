"""dtypes under torch's names. Each one is NumPy's own dtype object."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DType = np.dtype[Any]

float16 = np.dtype(np.float16)
float32 = np.dtype(np.float32)
float64 = np.dtype(np.float64)
int8 = np.dtype(np.int8)
int16 = np.dtype(np.int16)
int32 = np.dtype(np.int32)
int64 = np.dtype(np.int64)
uint8 = np.dtype(np.uint8)
bool_ = np.dtype(np.bool_)

#: What Python floats become, as in torch.
DEFAULT_FLOAT = float32

# Kind "V" is bfloat16, which NumPy knows only through ml_dtypes.
_CATEGORY = {"b": 0, "i": 1, "u": 1, "f": 2, "V": 2}


def __getattr__(name: str) -> DType:
    if name == "bfloat16":
        import ml_dtypes

        dtype: DType = np.dtype(ml_dtypes.bfloat16)
        return dtype
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def dtype_of(target: Any) -> DType:
    """Return the dtype that a ``to(target)`` asks for."""
    try:
        if target is not None:  # NumPy's default is no answer to a forgotten argument
            dtype: DType = np.dtype(target)
            return dtype
    except TypeError:
        pass
    raise TypeError(f"to: expected a dtype, 'cpu' or 'cuda', got {target!r}")


def is_floating(dtype: DType) -> bool:
    """Whether `dtype` is a real floating-point dtype, bfloat16 included."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def promote(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> DType:
    """Return the dtype in which `a` and `b` meet, by torch's rule.

    A float dtype wins over an integer one and that over bool, whatever their widths; inside one category an
    array with dimensions wins over a 0-d one, and the wider dtype over the narrower.
    """
    da, db = a.dtype, b.dtype
    ca, cb = _CATEGORY.get(da.kind), _CATEGORY.get(db.kind)
    if ca is None or cb is None:
        raise TypeError(f"expected real numbers, got {da} and {db}")
    if ca != cb:
        return da if ca > cb else db
    if (a.ndim == 0) != (b.ndim == 0):
        return db if a.ndim == 0 else da
    if {da.name, db.name} == {"float16", "bfloat16"}:
        return float32
    dtype: DType = np.promote_types(da, db)
    return dtype
