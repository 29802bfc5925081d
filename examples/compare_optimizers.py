"""How far down Rosenbrock's valley each optimizer gets in 500 steps; the minimum is at (1, 1)."""

import numpy as np

import fastopt as fo


def rosenbrock(p):
    """Value and gradient."""
    x, y = p
    value = (1 - x) ** 2 + 100 * (y - x * x) ** 2
    return value, np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])


optimizers = {
    "SGD": lambda p: fo.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: fo.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Nesterov": lambda p: fo.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True),
    "Adagrad": lambda p: fo.optim.Adagrad(p, lr=0.5),
    "Adadelta": lambda p: fo.optim.Adadelta(p, lr=30.0),
    "RMSprop": lambda p: fo.optim.RMSprop(p, lr=0.01),
    "Adam": lambda p: fo.optim.Adam(p, lr=0.1),
    "AMSGrad": lambda p: fo.optim.Adam(p, lr=0.1, amsgrad=True),
    "AdamW": lambda p: fo.optim.AdamW(p, lr=0.1, weight_decay=0.0),
    "NAdam": lambda p: fo.optim.NAdam(p, lr=0.05),
    "L-BFGS": lambda p: fo.optim.LBFGS(p, line_search_fn="strong_wolfe"),
}

start, _ = rosenbrock(np.array([-1.5, 2.0]))
for name, make in optimizers.items():
    p = np.array([-1.5, 2.0])
    optimizer = make([p])
    if name == "L-BFGS":  # it calls the function itself, several times a step
        for _ in range(5):
            optimizer.step(lambda p=p: (rosenbrock(p)[0], [rosenbrock(p)[1]]))
    else:
        for _ in range(500):
            optimizer.step([rosenbrock(p)[1]])
    value, _ = rosenbrock(p)
    print(f"{name:>8}: f({p[0]:6.3f}, {p[1]:6.3f}) = {value:.2e}")
    assert value < start / 2
