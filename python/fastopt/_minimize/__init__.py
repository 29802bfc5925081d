"""`minimize`: functions of one array, with SciPy's signature, over the optimizers and L-BFGS."""

from fastopt._minimize.front import minimize, minimize_method

__all__ = ["minimize", "minimize_method"]
