from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

__version__: str
compiler: str

_Array = NDArray[Any]

class _Rule(TypedDict):
    states: tuple[str, ...]
    packable: tuple[str, ...]
    signed: tuple[str, ...]
    coefs: tuple[str, ...]

def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def rejected_isa() -> str | None: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def math(name: str, x: _Array) -> _Array: ...
def philox(seed: int, offset: int, n: int) -> NDArray[np.uint32]: ...
def rules() -> dict[str, _Rule]: ...
def packing_group() -> int: ...
def encode(values: NDArray[np.float32], with_sign: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]: ...
def decode(
    codes: NDArray[np.uint8], exponents: NDArray[np.uint8], with_sign: bool
) -> NDArray[np.float32]: ...
def joint_norm(norms: list[float]) -> float: ...
def clip_factor(norm: float, max_norm: float) -> float: ...
def updated_scale(
    scale: float,
    growth_tracker: float,
    found_inf: bool,
    growth_factor: float,
    backoff_factor: float,
    growth_interval: float,
) -> tuple[float, float]: ...

class StepPlan:
    def __init__(
        self,
        rule: str,
        params: list[_Array],
        states: list[list[_Array]],
        emas: list[_Array] | None = None,
        exponents: list[list[_Array | None] | None] = ...,
        remainders: list[_Array | None] | None = None,
        by_chance: bool = False,
        shadows: list[_Array | None] | None = None,
        parts: list[int] | None = None,
    ) -> None: ...
    def step(
        self,
        grads: list[_Array | None],
        coefs: NDArray[np.float64],
        sets: NDArray[np.int32] | None = None,
        factors: NDArray[np.float64] | None = None,
    ) -> None: ...
    def measure(
        self,
        grads: list[_Array | None],
        coefs: NDArray[np.float64],
        sets: NDArray[np.int32] | None,
        out: NDArray[np.float64],
    ) -> None: ...
    def check(self, grads: list[_Array | None]) -> None: ...
    def norm(self, grads: list[_Array | None], ord: float = 2.0) -> float: ...
    def norms(self, grads: list[_Array | None], out: NDArray[np.float64]) -> None: ...
    def param_norms(self, out: NDArray[np.float64]) -> None: ...
    @property
    def steps(self) -> int: ...

_Parameter = tuple[_Array, _Array | None, int, int, int]

class Program:
    def __init__(
        self,
        dtype: str,
        bf16: bool,
        layers: list[
            tuple[
                str,
                int,
                int,
                _Parameter | None,
                _Parameter | None,
                str,
                tuple[float, ...],
                bool,
                tuple[Any, ...] | None,
            ]
        ],
        loss: tuple[str, tuple[float, ...], str, _Array | None, int, float],
        plans: list[tuple[StepPlan, int, NDArray[np.int32] | None]],
    ) -> None: ...
    def reserve(self, rows: int) -> None: ...
    def check_classes(self, call: str, target: NDArray[np.int64]) -> None: ...
    def run(
        self,
        call: str,
        x: _Array,
        target: _Array,
        order: NDArray[np.int64] | None,
        begin: int,
        end: int,
        batch: int,
        steps: int,
        weight: _Array | None,
        param: _Array | None,
        rates: list[float],
        seed: int,
        offset: int,
        coefs: NDArray[np.float64],
        max_norm: float,
        gather_weight: bool = False,
        squares: NDArray[np.float64] | None = None,
        ready: Callable[[int], object] | None = None,
    ) -> tuple[NDArray[np.float64], float]: ...
    def step_plain(self, x: Any, target: Any, coefs: NDArray[np.float64]) -> float | None: ...
    def predict(self, x: _Array, batch: int) -> _Array: ...
    @property
    def steps(self) -> int: ...

def activations() -> dict[str, tuple[tuple[str, ...], bool, bool]]: ...
def losses() -> dict[str, tuple[tuple[str, ...], bool, bool]]: ...
def activation(name: str, x: _Array, bias: _Array | None, params: tuple[float, ...], out: _Array) -> None: ...
def activation_grad(
    name: str,
    dy: _Array,
    x: _Array | None,
    y: _Array | None,
    params: tuple[float, ...],
    out: _Array,
) -> None: ...
def dropout(x: _Array, p: float, seed: int, offset: int, out: _Array) -> None: ...
def copy(x: _Array, y: _Array) -> None: ...
def fma_peak(tasks: int) -> float: ...
def axpy(a: float, x: _Array, y: _Array) -> None: ...
def sum(x: _Array) -> float: ...
def abs_sum(x: _Array) -> float: ...
def sum_squares(x: _Array) -> float: ...
def abs_max(x: _Array) -> float: ...
def dot(x: _Array, y: _Array) -> float: ...
def bias_grad(dy: _Array, out: _Array) -> None: ...
def loss(
    name: str,
    input: _Array,
    target: _Array,
    params: tuple[float, ...],
    weight: _Array | None,
    param: _Array | None,
    out: _Array,
    grad_out: _Array | None,
    divisor: float,
    each: bool,
) -> None: ...
def softmax(x: _Array, out: _Array, log: bool) -> None: ...
def softmax_grad(dy: _Array, y: _Array, out: _Array, log: bool) -> None: ...
def cross_entropy(
    input: _Array,
    target: _Array,
    weight: _Array | None,
    out: _Array,
    grad_out: _Array | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    log_probabilities: bool,
) -> None: ...
def batch_norm(
    input: _Array,
    weight: _Array | None,
    bias: _Array | None,
    running_mean: _Array | None,
    running_var: _Array | None,
    training: bool,
    momentum: float,
    eps: float,
    saved: _Array,
    out: _Array,
) -> None: ...
def batch_norm_grad(
    dy: _Array,
    input: _Array,
    saved: _Array,
    weight: _Array | None,
    training: bool,
    out: _Array | None,
    sums: _Array | None,
) -> None: ...
def matmul(x: _Array, y: _Array, out: _Array, beta: float, bf16: bool) -> None: ...
def linear(
    input: _Array,
    weight: _Array,
    bias: _Array | None,
    activation: str,
    params: tuple[float, ...],
    p: float,
    seed: int,
    offset: int,
    residual: _Array | None,
    residual_scale: float,
    kept_input: _Array | None,
    kept_output: _Array | None,
    out: _Array,
    bf16: bool,
) -> None: ...
def linear_plain(input: Any, weight: Any, bias: Any, activation: Any, out: Any) -> _Array | None: ...
def linear_backward_plain(
    dy: Any, x: Any, w: Any, activation: Any, z: Any, y: Any, dx: Any, dw: Any, db: Any, dz: Any
) -> tuple[_Array, _Array, _Array] | None: ...
def linear_dx(
    dy: _Array,
    w: _Array,
    activation: str,
    params: tuple[float, ...],
    x: _Array | None,
    y: _Array | None,
    p: float,
    seed: int,
    offset: int,
    out: _Array,
    bf16: bool,
) -> None: ...
def linear_backward(
    dy: _Array,
    x: _Array | None,
    w: _Array | None,
    activation: str,
    params: tuple[float, ...],
    z: _Array | None,
    y: _Array | None,
    p: float,
    seed: int,
    offset: int,
    scale: float,
    dz: _Array | None,
    dx: _Array | None,
    dw: _Array | None,
    db: _Array | None,
    add: bool,
    bf16: bool,
) -> None: ...
