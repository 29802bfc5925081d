"""Arrays of every kind as arguments of functions and optimizers: right against NumPy, or refused untouched.

A call that takes its arguments has written nothing but its result, which is compared with the float64 references of
the tests by their rule of tolerance. One that refuses has changed no byte of any of them, and what everybody would
call an ordinary array (float32 or float64, of any layout) must be taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import reference
import reference_layerwise
from campaign import arrays, batches
from campaign.arrays import COMPUTED, Given
from campaign.counts import Counts
from cases import ACTIVATIONS, LOSSES, OPTIMIZERS
from fastopt import _ops, functional, optim
from fastopt.optim.rule import RuleOptimizer
from reference_optim import run as reference_run

Rng = np.random.Generator
Call = Callable[[], Any]

#: What a child may take beyond its imports: less than the elements of an array of more than 2**31 would.
_MEMORY = 1 << 30


def run(count: int, seed: int) -> Counts:
    """Make so many calls."""
    return batches.run("campaign.arguments", count, seed, _MEMORY)


def case(rng: Rng, folder: Path) -> str:
    """Make one call of a function or of an optimizer."""
    kind = _KINDS[rng.integers(len(_KINDS))]
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings(
            "ignore", message="overflow encountered in cast"
        )  # of float16, as NumPy's own
        return f"{kind(rng)} ({kind.__name__.strip('_')})"


def _outcome(
    call: Call, given: list[Given], written: Given | None, ordinary: bool, check: Callable[[Any], None]
) -> str:
    """Make a call; hold its refusal to changing nothing, and its result to `check`."""
    huge = any(g.array.size > 2**31 for g in given)
    result, error = _try(call)
    if error is not None:
        short = isinstance(error, MemoryError)
        assert huge or not (ordinary or short), f"ordinary arrays were refused: {error!r}"
        assert short or str(error), "an error without a message"
        assert all(g.untouched() for g in given), f"a refused call has changed an argument: {error!r}"
        return "refused for lack of memory" if short else "refused"
    for g in given:
        if written is not None and (g is written or (g.base is not None and g.base is written.base)):
            continue
        assert g.untouched(), "an argument that is only read was changed"
    if written is not None:
        assert written.kept_within(), "something was written beside the result"
    if huge:
        return "right, of more than 2**31 elements"
    check(result)
    return "right"


def _try(call: Call) -> tuple[Any, Exception | None]:
    """What a call returns, and the error with which it refuses."""
    try:
        return call(), None
    except (TypeError, ValueError, MemoryError) as err:
        return None, err


def _is_ordinary(*given: Given | None) -> bool:
    return all(
        g is None or (g.array.dtype in COMPUTED and g.array.dtype.isnative and g.array.size <= 2**31)
        for g in given
    )


def _can_receive(out: Given | None, like: Given, *apart: Given) -> bool:
    """Whether `out` is an ordinary place for a result: of the right kind, writable, in memory of its own."""
    if out is None:
        return True
    a = out.array
    fits = a.shape == like.array.shape and a.dtype == like.array.dtype and a.flags.writeable
    fits = fits and not arrays.shares(a)
    return bool(fits and not any(arrays.overlap(out, g) for g in apart))


def _input(rng: Rng, size: tuple[int, ...] | None = None) -> Given:
    of = arrays.dtype(rng)
    if size is None and rng.random() < 0.004 and batches.LIMITED:
        return arrays.huge(rng, of)
    return arrays.draw(rng, arrays.shape(rng) if size is None else size, of)


def _room(rng: Rng, x: Given) -> Given | None:
    """A place for a result like `x`: none, `x` itself, its memory with a shift, or an array of its own."""
    kind = rng.random()
    if kind < 0.35:
        return None
    if kind < 0.5:
        return x
    if kind < 0.65 and x.base is not None:
        return x.shifted(int(rng.integers(-4, 5)))
    if x.array.size > 2**20:
        return None
    return arrays.draw(rng, *arrays.like(rng, x.array))


def _list(*given: Given | None) -> list[Given]:
    return [g for g in given if g is not None]


def _array(given: Given | None) -> Any:
    return None if given is None else given.array


def _as_float(values: Any) -> Any:
    """What functions compute with: integers become float32, and half precision is computed in it."""
    if values.dtype in COMPUTED:
        return values
    with np.errstate(all="ignore"):
        return values.astype(np.float32)


def _close(ours: Any, x: Any, f: Callable[[Any], Any], unit: float = 1.0) -> None:
    """Hold a result to the reference `f` of the values `x`, in the dtype that is computed in."""
    narrow = x.dtype.kind not in "iub" and x.dtype not in COMPUTED
    values = _as_float(x)
    exact, plain = f(reference.wide(values)), f(values).astype(values.dtype)
    ours = np.asarray(ours)
    if narrow:
        assert ours.dtype == x.dtype, f"{ours.dtype} of {x.dtype}"
        with np.errstate(all="ignore"):
            plain, ours = plain.astype(x.dtype).astype(np.float32), ours.astype(np.float32)
    ulps = 2.0**17 if narrow else 16.0
    reference.assert_accurate(ours, plain, exact, unit, ulps=ulps)


# --- functions ----------------------------------------------------------------------------------------


def _params(rng: Rng, rows: list[tuple[float, ...]]) -> tuple[float, ...]:
    return rows[rng.integers(len(rows))]


def _activation(rng: Rng) -> str:
    name = list(ACTIVATIONS)[rng.integers(len(ACTIVATIONS))]
    params = _params(rng, ACTIVATIONS[name])
    x = _input(rng)
    out = _room(rng, x)
    apart = () if out is x else (x,)
    ordinary = _is_ordinary(x) and _can_receive(out, x, *apart)

    def check(y: Any) -> None:
        assert out is None or y is out.array
        _close(y, x.values, lambda v: reference.ACTIVATIONS[name][0](v, *params))

    return _outcome(
        lambda: functional.activation(name, x.array, params, out=_array(out)),
        _list(x, out),
        out,
        ordinary,
        check,
    )


def _activation_grad(rng: Rng) -> str:
    name = list(ACTIVATIONS)[rng.integers(len(ACTIVATIONS))]
    x = _input(rng)
    if x.array.size > 2**20:
        return "left out"
    dy = arrays.draw(rng, *arrays.like(rng, x.array))
    out = _room(rng, dy)
    fits = x.array.shape == dy.array.shape and x.array.dtype == dy.array.dtype
    ordinary = fits and _is_ordinary(x, dy) and (out is None or _can_receive(out, x, x, dy))
    grad = getattr(functional, {"gelu_tanh": "gelu"}.get(name, name) + "_grad")
    options = {"approximate": "tanh"} if name == "gelu_tanh" else {}
    params = ACTIVATIONS[name][0]

    def check(dx: Any) -> None:
        d = _as_float(dy.values)

        def plain(v: Any) -> Any:
            with np.errstate(all="ignore"):
                return d.astype(v.dtype) * reference.ACTIVATIONS[name][1](v, *params)

        if np.isfinite(d).all() and np.isfinite(_as_float(x.values)).all():
            _close(dx, x.values, plain, 8.0)

    return _outcome(
        lambda: grad(dy.array, x.array, **options, out=_array(out)), _list(x, dy, out), out, ordinary, check
    )


def _softmax(rng: Rng) -> str:
    name = ("softmax", "log_softmax")[rng.integers(2)]
    x = _input(rng)
    out = _room(rng, x)
    axis = int(rng.integers(-3, 3))
    ordinary = (
        _is_ordinary(x) and -x.array.ndim <= axis < x.array.ndim and (out is None or _can_receive(out, x, x))
    )

    def check(y: Any) -> None:
        if np.isfinite(_as_float(x.values)).all() and x.array.shape[axis]:
            _close(y, x.values, lambda v: getattr(reference, name)(v, axis))

    call = getattr(functional, name)
    return _outcome(lambda: call(x.array, axis, out=_array(out)), _list(x, out), out, ordinary, check)


def _dropout(rng: Rng) -> str:
    x = _input(rng)
    p, seed, offset = float(rng.choice([0.0, 0.3, 1.0])), int(rng.integers(2**63)), int(rng.integers(2**40))
    out = _room(rng, x)
    ordinary = _is_ordinary(x) and (out is None or _can_receive(out, x, x))

    def check(y: Any) -> None:
        _close(y, x.values, lambda v: reference.dropout(v, p, seed, offset))

    return _outcome(
        lambda: functional.dropout_grad(x.array, p, seed, offset, out=_array(out)),
        _list(x, out),
        out,
        ordinary,
        check,
    )


def _loss(rng: Rng) -> str:
    name = list(LOSSES)[rng.integers(len(LOSSES))]
    rows, kind = LOSSES[name]
    params = _params(rng, rows)
    x = _input(rng)
    if x.array.size > 2**20:
        return "left out"
    t = arrays.draw(rng, *arrays.like(rng, x.array), special=False)
    if kind != "number" and t.array.flags.writeable and t.array.dtype in COMPUTED:
        with np.errstate(all="ignore"):
            np.copyto(t.array, np.abs(np.tanh(t.array)) if kind == "probability" else -np.abs(t.array))
        t = Given(t.array, t.base, t.offset)
    reduction = ("mean", "sum", "none")[rng.integers(3)]
    out = _room(rng, x)

    def check(result: Any) -> None:
        value, grad = result
        v = _as_float(x.values)
        target = t.values.astype(v.dtype)
        if not (v.size and np.isfinite(v).all() and np.isfinite(target).all()) or name == "poisson_nll":
            return

        def part(i: int) -> Callable[[Any], Any]:
            return lambda a: np.asarray(
                reference.loss(name, a, target.astype(a.dtype), params, None, reduction)[i]
            )

        unit = float(np.nan_to_num(np.abs(part(0)(reference.wide(v)))).max() + 1)
        _close(value, x.values, part(0), unit)
        _close(grad, x.values, part(1))

    return _outcome(
        lambda: _ops.loss(name, x.array, t.array, params, None, reduction, True, _array(out)),
        _list(x, t, out),
        out,
        False,
        check,
    )


def _cross_entropy(rng: Rng) -> str:
    x = _input(rng, arrays.shape(rng, 1 + int(rng.integers(3))))
    classes = x.array.shape[0 if x.array.ndim == 1 else 1]
    of = [np.dtype(kind) for kind in ("i8", "i8", "i4", "u1", "?", ">i8", "f4", "O")][rng.integers(8)]
    target_shape = (x.array.shape[:1] + x.array.shape[2:]) if x.array.ndim > 1 else ()
    t = arrays.draw(rng, target_shape if rng.random() < 0.9 else arrays.shape(rng), of)
    if of.kind in "iu" and t.array.flags.writeable and rng.random() < 0.85:
        t.array[...] = rng.integers(0, max(1, classes), t.array.shape)
        t = Given(t.array, t.base, t.offset)
    reduction = ("mean", "sum", "none")[rng.integers(3)]
    out = _room(rng, x)
    in_range = of.kind in "iu" and t.array.shape == target_shape and classes > 0
    in_range = in_range and t.array.size > 0 and bool(((t.array >= 0) & (t.array < classes)).all())
    ordinary = in_range and _is_ordinary(x) and (out is None or _can_receive(out, x, x))

    def check(result: Any) -> None:
        v = _as_float(x.values)
        if not np.isfinite(v).all() or not in_range or classes > 1023:  # the reference has a square of them
            return
        labels = t.values.astype(np.int64)

        def part(i: int) -> Callable[[Any], Any]:
            return lambda a: np.asarray(reference.cross_entropy(a, labels, reduction=reduction)[i])

        _close(result[0], x.values, part(0), float(np.abs(part(0)(reference.wide(v))).max() + 1))
        _close(result[1], x.values, part(1))

    return _outcome(
        lambda: functional.cross_entropy_with_grad(
            x.array, t.array, reduction=reduction, grad_out=_array(out)
        ),
        _list(x, t, out),
        out,
        ordinary,
        check,
    )


def _linear(rng: Rng) -> str:
    w = _input(rng, arrays.shape(rng, 2))
    wide, of = w.array.shape[1], w.array.dtype
    batch = arrays.shape(rng, int(rng.integers(3)))
    x = arrays.draw(
        rng, (*batch, wide if rng.random() < 0.95 else 5), of if rng.random() < 0.9 else arrays.dtype(rng)
    )
    b = None
    if rng.random() < 0.6:
        b = arrays.draw(rng, (w.array.shape[0],) if rng.random() < 0.95 else (3,), of)
    result = np.empty((*batch, w.array.shape[0]), of)
    out = None
    if rng.random() < 0.4:
        out = arrays.draw(rng, *arrays.like(rng, result))
    ordinary = _is_ordinary(w, x, b) and x.array.dtype == of and x.array.shape[-1] == wide
    ordinary = ordinary and (b is None or b.array.shape == w.array.shape[:1])
    ordinary = ordinary and (out is None or _can_receive(out, Given(result)))

    def check(y: Any) -> None:
        parts = [g.values for g in _list(x, w, b)]
        if not all(p.dtype in COMPUTED and np.isfinite(p).all() for p in parts):
            return

        def product(v: Any) -> Any:
            ours = v @ w.values.T.astype(v.dtype)
            return ours if b is None else ours + b.values.astype(v.dtype)

        size = np.abs(x.values) @ np.abs(w.values.T) + (0 if b is None else np.abs(b.values))
        _close(y, x.values.astype(of), product, float(size.max(initial=1)))

    return _outcome(
        lambda: functional.linear(x.array, w.array, _array(b), out=_array(out)),
        _list(x, w, b, out),
        out,
        ordinary,
        check,
    )


# --- optimizers ---------------------------------------------------------------------------------------

_ROWS = [
    (name, row)
    for name in OPTIMIZERS
    if issubclass(getattr(optim, name), RuleOptimizer) and name != "SparseAdam"
    for row in range(len(OPTIMIZERS[name]["options"]))
]


def _optimizer(rng: Rng) -> str:
    name, row = _ROWS[rng.integers(len(_ROWS))]
    options = OPTIMIZERS[name]["options"][row]
    of = arrays.dtype(rng) if rng.random() < 0.3 else COMPUTED[rng.integers(2)]
    params = [arrays.draw(rng, arrays.shape(rng), of, special=False) for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.05 and params[0].base is not None:
        params.append(params[0].shifted(int(rng.integers(-3, 4))))
    if rng.random() < 0.01 and batches.LIMITED:
        params.append(arrays.huge(rng, of))
    ordinary = _is_ordinary(*params) and all(
        p.array.flags.writeable and not arrays.shares(p.array) for p in params
    )
    ordinary = ordinary and len({id(p.base) for p in params}) == len(params)
    opt, error = _try(lambda: getattr(optim, name)([p.array for p in params], **options))
    if error is not None:
        assert not ordinary, f"{name}: ordinary parameters were refused: {error!r}"
        assert all(p.untouched() for p in params), f"{name}: a refused parameter has changed: {error!r}"
        return "refused by the constructor"
    return _step(rng, opt, name, options, params, ordinary)


def _gradient(rng: Rng, p: Given) -> Given:
    kind = rng.random()
    if kind < 0.03 and p.base is not None:
        return p.shifted(int(rng.integers(-3, 4)))
    if kind < 0.04:
        return p
    size, of = arrays.like(rng, p.array) if rng.random() < 0.2 else (p.array.shape, p.array.dtype)
    return arrays.draw(rng, size, of, special=rng.random() < 0.1)


def _step(rng: Rng, opt: Any, name: str, options: Any, params: list[Given], ordinary: bool) -> str:
    """Step twice, the second time with other gradients, and compare with the references."""
    steps: list[list[Any]] = []
    outcome = "right"
    for _ in range(2):
        params = [Given(p.array, p.base, p.offset) for p in params]
        grads = [_gradient(rng, p) for p in params]
        state = _frozen(opt)
        fit = all(
            g.array.shape == p.array.shape and g.array.dtype == p.array.dtype
            for g, p in zip(grads, params, strict=True)
        )
        apart = len({id(x.base) for x in params + grads}) == len(params) + len(grads)
        _, error = _try(lambda grads=grads: opt.step([g.array for g in grads]))
        if error is not None:
            assert not (ordinary and fit and apart), f"{name}: ordinary gradients were refused: {error!r}"
            assert all(x.untouched() for x in params + grads), (
                f"{name}: a refused step has changed: {error!r}"
            )
            assert _is_state(_frozen(opt), state), f"{name}: a refused step has changed the state: {error!r}"
            outcome = "refused"
            continue
        assert all(x.kept_within(*params) for x in params), (
            f"{name}: something was written beside a parameter"
        )
        for g in grads:
            assert any(g.base is p.base for p in params) or g.untouched(), f"{name}: a gradient has changed"
        steps.append([params, [g.values for g in grads]])
    if steps:
        _compare(name, options, steps)
    return outcome


def _frozen(opt: Any) -> dict[Any, bytes]:
    return {(i, key): np.asarray(v).tobytes() for i, entry in opt.state.items() for key, v in entry.items()}


def _is_state(now: dict[Any, bytes], before: dict[Any, bytes]) -> bool:
    """Whether the state is what it was; averages may have begun, with the parameters, when a step was tried."""
    kept = all(now.get(key) == value for key, value in before.items())
    return kept and all(key == "ema" for _, key in now.keys() - before.keys())


def _compare(name: str, options: Any, steps: list[list[Any]]) -> None:
    start = [p.values for p in steps[0][0]]
    grads = [gs for _, gs in steps]
    ours = [p.array for p in steps[-1][0]]
    wide = start[0].dtype in COMPUTED
    if not wide or not all(np.isfinite(g).all() for gs in grads for g in gs):
        return
    # First moments are never denormal (docs/decisions.md), which norms and estimates make a whole step of.
    tiny = any(((g != 0) & (np.abs(g) < 1e-30)).any() for gs in grads for g in gs)
    if tiny and (name in reference_layerwise.UPDATES or name == "Prodigy"):
        return
    big = np.longdouble if start[0].dtype == np.float64 else np.float64
    with np.errstate(all="ignore"):
        exact = reference_run(name, start, grads, options, big)
        plain = reference_run(name, start, grads, options, start[0].dtype)
    for mine, e, p in zip(ours, exact.params, plain.params, strict=True):
        # The plain baseline of a centred second moment may take the root of a negative number.
        if mine.size and np.isfinite(np.asarray(e, np.float64)).all() and np.isfinite(p).all():
            reference.assert_accurate(mine, p, e, 1.0, ulps=64.0)


_KINDS = [
    *[_activation, _activation_grad, _softmax, _dropout, _loss, _cross_entropy, _linear],
    *[_optimizer] * 5,
]
