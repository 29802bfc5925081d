"""The solvers of scikit-learn's multilayer perceptrons (``sklearn.neural_network._stochastic_optimizers``)."""

from __future__ import annotations

from typing import Any

from fastopt import optim


class SGDOptimizer(optim.SGD):
    """scikit-learn's SGD: the rate is part of the velocity, Nesterov's form by default.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `fastopt.optim.Optimizer`.
    learning_rate_init : float
        The rate to begin with; the groups' ``lr`` is the one in use.
    lr_schedule : {"constant", "invscaling", "adaptive"}
        What `iteration_ends` and `trigger_stopping` do to the rate.
    momentum : float
        Decay of the velocity.
    nesterov : bool
        Look ahead; without momentum it makes no difference.
    power_t : float
        The exponent of "invscaling".
    **common
        Further arguments of `fastopt.optim.SGD`.
    """

    def __init__(
        self,
        params: Any,
        learning_rate_init: float = 0.1,
        lr_schedule: str = "constant",
        momentum: float = 0.9,
        nesterov: bool = True,
        power_t: float = 0.5,
        **common: Any,
    ) -> None:
        if lr_schedule not in ("constant", "invscaling", "adaptive"):
            raise ValueError(
                f"SGDOptimizer: lr_schedule must be constant, invscaling or adaptive, got {lr_schedule!r}"
            )
        self.learning_rate_init, self.lr_schedule, self.power_t = learning_rate_init, lr_schedule, power_t
        form: Any = {"nesterov": nesterov and momentum != 0, "momentum_form": "velocity", **common}
        super().__init__(params, learning_rate_init, momentum, **form)

    def iteration_ends(self, time_step: int) -> None:
        """Set the rate of "invscaling" after `time_step` samples."""
        if self.lr_schedule == "invscaling":
            for group in self.param_groups:
                group["lr"] = self.learning_rate_init / (time_step + 1) ** self.power_t

    def trigger_stopping(self, msg: str = "", verbose: bool = False) -> bool:
        """Divide the rate of "adaptive" by five, unless it is at most 1e-6; tell whether training is to stop."""
        stop = self.lr_schedule != "adaptive" or self.param_groups[0]["lr"] <= 1e-6
        if not stop:
            for group in self.param_groups:
                group["lr"] /= 5.0
        if verbose:
            print(f"{msg} {'Stopping.' if stop else 'The learning rate is now a fifth.'}")
        return stop


def AdamOptimizer(
    params: Any,
    learning_rate_init: float = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    **common: Any,
) -> optim.Adam:
    """Return scikit-learn's Adam: epsilon beside moments that are not corrected."""
    options = {"eps_mode": "hat", **common}
    return optim.Adam(params, learning_rate_init, (beta_1, beta_2), epsilon, **options)
