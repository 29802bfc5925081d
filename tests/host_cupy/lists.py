"""Which of NumPy's functions CuPy 14.2 has, and which of their keywords it refuses."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


UFUNCS = _words(
    """
    abs absolute acos acosh add arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan atan2 atanh
    bitwise_and bitwise_count bitwise_invert bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
    cbrt ceil conj conjugate copysign cos cosh deg2rad degrees divide divmod equal exp exp2 expm1 fabs float_power
    floor floor_divide fmax fmin fmod frexp gcd greater greater_equal heaviside hypot invert isfinite isinf isnan lcm
    ldexp left_shift less less_equal log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or
    logical_xor matmul maximum minimum mod modf multiply negative nextafter not_equal positive pow power rad2deg
    radians reciprocal remainder right_shift rint sign signbit sin sinh sqrt square subtract tan tanh true_divide trunc
    """
)

#: Functions that NumPy hands over through __array_function__; random, linalg and input and output apart.
FUNCTIONS = _words(
    """
    all allclose amax amin angle any append apply_along_axis argmax argmin argpartition argsort argwhere around
    array_equal array_equiv array_split astype atleast_1d atleast_2d atleast_3d average bincount broadcast_arrays
    broadcast_to can_cast choose clip column_stack compress concat concatenate convolve copy copyto corrcoef correlate
    count_nonzero cov cross cumprod cumsum cumulative_prod cumulative_sum delete diag diagflat diagonal diff digitize
    dot dsplit dstack ediff1d einsum empty_like expand_dims extract fill_diagonal flatnonzero flip fliplr flipud
    full_like gradient histogram hsplit hstack imag inner interp intersect1d isclose iscomplex iscomplexobj isin
    isneginf isposinf isreal isrealobj kron lexsort linspace logspace matrix_transpose max may_share_memory mean median
    meshgrid min moveaxis nan_to_num nanargmax nanargmin nancumprod nancumsum nanmax nanmean nanmedian nanmin nanprod
    nanstd nansum nanvar ndim nonzero ones_like outer packbits pad partition percentile permute_dims piecewise place
    polyval prod ptp put put_along_axis putmask quantile ravel ravel_multi_index real repeat reshape resize result_type
    roll rollaxis rot90 round searchsorted select setdiff1d setxor1d shape shares_memory size sort split squeeze stack
    std sum swapaxes take take_along_axis tensordot tile trace transpose trapezoid tril trim_zeros triu union1d unique
    unpackbits unravel_index unwrap vander var vdot vsplit vstack where zeros_like
    """
)

LINALG = _words("cholesky det eigh eigvalsh inv lstsq matrix_rank norm pinv qr slogdet solve svd")

#: Functions of NumPy's that return a number of Python's or NumPy's where CuPy has a 0-d array.
SCALARS = _words("allclose array_equal array_equiv count_nonzero")

_NO_WHERE = frozenset({"where", "initial"})
_NO_CORRECTION = frozenset({"correction", "mean", "where"})

#: Keywords that NumPy takes and CuPy does not.
REFUSED = {
    **dict.fromkeys(
        _words("all any mean nanmean sum prod max min amax amin nansum nanprod nanmax nanmin"), _NO_WHERE
    ),
    **dict.fromkeys(_words("std var nanstd nanvar"), _NO_CORRECTION),
    "argpartition": frozenset({"kind", "order"}),
    "argsort": frozenset({"order", "stable"}),
    "broadcast_arrays": frozenset({"subok"}),
    "broadcast_to": frozenset({"subok"}),
    "clip": frozenset({"min", "max", "where", "casting", "dtype"}),
    "count_nonzero": frozenset({"keepdims"}),
    "einsum": frozenset({"optimize", "out"}),
    "empty_like": frozenset({"device"}),
    "full_like": frozenset({"device"}),
    "isin": frozenset({"kind"}),
    "linspace": frozenset({"device"}),
    "ones_like": frozenset({"device"}),
    "partition": frozenset({"kind", "order"}),
    "percentile": frozenset({"weights"}),
    "quantile": frozenset({"weights"}),
    "reshape": frozenset({"shape"}),
    "sort": frozenset({"order", "stable"}),
    "take": frozenset({"mode"}),
    "unique": frozenset({"sorted"}),
    "zeros_like": frozenset({"device"}),
}
