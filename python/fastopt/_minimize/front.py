"""`minimize` and `minimize_method`, as SciPy's users know them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fastopt._minimize.first_order import descend, optimizers
from fastopt._minimize.objective import Box, Objective, start
from fastopt._minimize.quasi_newton import lbfgs
from fastopt._minimize.result import at_iteration, result_class
from fastopt.optim.vectors import unwrapped

_DIFFERENCE_OPTIONS = {"finite_diff_rel_step": "rel_step", "eps": "abs_step"}


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    method: str | None = "lbfgs",
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Minimise a function of one array; the signature is that of `scipy.optimize.minimize`.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns one number. `x` is the array that is being worked on, of the shape of `x0`: read-only
        on the host, and changed after the call, so keep copies of it only.
    x0 : array
        Where to start, of any shape; it is not changed. float32 stays float32 and float64 stays float64, integers
        become float64. An array on a GPU (CuPy, torch) stays there and is what `fun` gets.
    args : tuple
        Further arguments of `fun` and `jac`.
    method : str
        "lbfgs" or the name of an optimizer of `fastopt.optim` in lower case: "adam", "sgd", "adamw" ...
    jac : callable, True, "2-point", "3-point" or None
        ``jac(x, *args)`` returns the gradient, in the shape of x; True: `fun` returns ``(f, g)``. Otherwise SciPy
        computes differences, "2-point" ones for None. The gradient may be in the same array each time.
    hess, hessp, constraints
        Not used by these methods, and refused.
    bounds : scipy.optimize.Bounds or sequence of (min, max), optional
        x is always inside. Optimizers project into them after each step.
    tol : float, optional
        `gtol`, and of "lbfgs" `ftol`, where the options do not give them.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result)`` after each iteration, with a copy of x;
        StopIteration ends the minimisation.
    options : dict, optional
        ``maxiter``
            Iterations at most; 15000 for "lbfgs", otherwise 10000.
        ``gtol``
            Stop when no element of the gradient is larger; 1e-5. With bounds what leads out of them does not count.
        ``ftol``
            Stop when fun changes by no more than this, relative to its size or 1; 2.2e-9 for "lbfgs", otherwise off.
        ``xtol``
            Stop when no element of x changes by more than this; off.
        ``disp``
            Print how it ended.
        ``finite_diff_rel_step``
            SciPy's step of differences.
        ``maxcor``, ``maxfun``, ``maxls``, ``eps``
            Of "lbfgs" alone: pairs kept (10), evaluations at most (15000) and in one line search (20), absolute step
            of differences.
        ``lr`` and all other settings of the optimizer
            For the optimizers. `lr` may be a function of the number of steps taken, from 0. A weight decay is part of
            what is minimised then: "adamw" has one unless it is set to 0.

    Returns
    -------
    scipy.optimize.OptimizeResult, or a dict like it without SciPy
        ``x``, ``fun``, ``jac`` (the gradient at x), ``nit``, ``nfev``, ``njev``, ``success``, ``status`` (0 converged,
        1 limit reached, 2 no descent, 3 not finite, 99 stopped by the callback) and ``message``.

    Raises
    ------
    TypeError, ValueError
        An argument or an option is unknown or out of range, or an array does not fit the others.

    Notes
    -----
    "lbfgs": directions by the two-loop recursion over `maxcor` pairs, steps by the search of Moré and Thuente with the
    constants of L-BFGS-B. With bounds it is a two-metric projection: elements that a scaled step along minus the
    gradient takes to a bound do that step, the others one by the pairs as they are in these others alone, and the
    search follows the projection of the ray, whose slope leaves out what the bounds hold. On a GPU it waits for the
    device once an evaluation and once an iteration, with bounds three times an iteration; an optimizer once a step.

    References
    ----------
    Liu and Nocedal, On the Limited Memory BFGS Method for Large Scale Optimization, 1989; Moré and Thuente, Line Search
    Algorithms with Guaranteed Sufficient Decrease, 1994; Zhu et al., Algorithm 778: L-BFGS-B, 1997; Bertsekas,
    Projected Newton Methods for Optimization Problems with Simple Constraints, SIAM J. Control Optim. 20, 1982; Ferry,
    Gill, Wong and Zhang, Projected-Search Methods for Bound-Constrained Optimization, 2021.
    """
    name = _known(method)
    for argument, value in (("hess", hess), ("hessp", hessp), ("constraints", constraints)):
        if value is not None and not (isinstance(value, tuple | list) and not value):
            raise ValueError(
                f"minimize: {name} takes no {argument}; scipy.optimize.minimize has methods that do"
            )
    settings = dict(options or {})
    disp = settings.pop("disp", False)
    if tol is not None:
        settings.setdefault("gtol", tol)
        if name == "lbfgs":
            settings.setdefault("ftol", tol)
    steps = {
        target: settings.pop(option, None)
        for option, target in _DIFFERENCE_OPTIONS.items()
        if option != "eps" or name == "lbfgs"  # of an optimizer it is a setting
    }
    x = start(x0)
    box = None if bounds is None else Box(bounds, x)
    if box is not None:
        box.project(x)
    objective = Objective(fun, args, jac, box, **steps)
    tell = at_iteration(callback)
    if name == "lbfgs":
        _check_options(lbfgs, settings)
        x, loss, g, nit, end = lbfgs(objective, x, tell, box, **settings)
    else:
        cls = optimizers()[name]
        _check_options(descend, settings, cls)
        x, loss, g, nit, end = descend(cls, objective, x, box, tell, **settings)
    if disp:
        print(f"{end.message}\n  fun {loss:.9g}, {nit} iterations, {objective.nfev} evaluations")
    return result_class()(
        x=unwrapped(x),
        fun=loss,
        jac=unwrapped(g.copy()),
        nit=nit,
        nfev=objective.nfev,
        njev=objective.njev,
        success=end.status == 0,
        status=end.status,
        message=end.message,
    )


def minimize_method(method: str, **settings: Any) -> Callable[..., Any]:
    """Return a method for `scipy.optimize.minimize`: ``minimize(..., method=fo.minimize_method("adamw", lr=0.1))``.

    Parameters
    ----------
    method : str
        As `minimize` has it.
    **settings
        Options of `minimize`; those that SciPy's call gives come before them.

    Returns
    -------
    callable
        It takes what SciPy hands to a custom method.

    Raises
    ------
    ValueError
        There is no such method.
    """
    _known(method)

    def solver(
        fun: Callable[..., Any],
        x0: Any,
        args: Any = (),
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., Any] | None = None,
        tol: float | None = None,
        **options: Any,
    ) -> Any:
        return minimize(
            fun,
            x0,
            args,
            method,
            jac,
            hess,
            hessp,
            bounds,
            constraints,
            tol,
            callback,
            {**settings, **options},
        )

    return solver


def _known(method: Any) -> str:
    """Return a method's name as the registry has it."""
    names = ["lbfgs", *optimizers()]
    name = "lbfgs" if method is None else method
    if not isinstance(name, str) or name.lower() not in names:
        raise ValueError(f"minimize: method is {method!r}, expected one of {', '.join(names)}")
    return name.lower()


#: Options that are numbers, with their least value.
_LEAST = {"maxiter": 0, "maxfun": 1, "maxls": 1, "maxcor": 1, "gtol": 0.0, "ftol": 0.0, "xtol": 0.0}


def _check_options(
    driver: Callable[..., Any], settings: dict[str, Any], cls: type[Any] | None = None
) -> None:
    """Raise for an option that neither the driver nor the optimizer has, or that is out of range."""
    known = [p.name for p in inspect.signature(driver).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for base in cls.__mro__ if cls else ():
        known += [name for name in _settings(base) if name not in known]
    for option, value in settings.items():
        if option not in known:
            raise TypeError(f"minimize: there is no option {option!r}, there are {', '.join(known)}")
        if option in _LEAST and value is not None and not value >= _LEAST[option]:
            raise ValueError(f"minimize: {option} must be at least {_LEAST[option]}, got {value}")


def _settings(cls: type[Any]) -> list[str]:
    """Return the settings that a class's own constructor names."""
    constructor = vars(cls).get("__init__")
    if constructor is None or cls is object:
        return []
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return [name for name in named if name not in ("params", "defaults")]
