"""Gradients by central differences in float64: what the tape's are held against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastopt.tensor import Tensor

STEP = 1e-5


def check_gradients(f: Callable[..., Tensor], *arrays: np.ndarray) -> None:
    """Hold the gradients of sum(f(*arrays) * c), for a random c, against central differences.

    The difference of step h is wrong by about h**2 of the third derivative and eps / h of the value.
    """
    tensors = [Tensor(np.array(a, np.float64), requires_grad=True) for a in arrays]
    y = f(*tensors)
    c = np.random.default_rng(7).uniform(0.5, 1.5, y.shape)
    y.backward(c)
    for position, tensor in enumerate(tensors):
        assert tensor.grad is not None, f"no gradient for input {position}"
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.dtype == np.float64
        expected = np.empty(tensor.shape)
        for index in np.ndindex(tensor.shape):
            values = []
            for sign in (1, -1):
                moved = [Tensor(np.array(a, np.float64)) for a in arrays]
                moved[position].data[index] += sign * STEP
                values.append(float((f(*moved).data * c).sum()))
            expected[index] = (values[0] - values[1]) / (2 * STEP)
        np.testing.assert_allclose(
            tensor.grad.data, expected, rtol=1e-6, atol=1e-7, err_msg=f"input {position}"
        )
