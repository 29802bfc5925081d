"""What a fit tells while it runs: callbacks, a progress bar, or lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Epoch(NamedTuple):
    """What callbacks are given after each pass over the data.

    Attributes
    ----------
    estimator : MLPClassifier or MLPRegressor
        The one that is being fitted; its ``coefs_`` are those of the last fit until this one ends, unless it is on the
        CPU without `ema`.
    epoch : int
        Passes done by this fit.
    loss : float
        As in ``loss_curve_``.
    learning_rate : float
        Of the next step.
    validation_score, validation_loss : float or None
        Where there is validation data.
    """

    estimator: Any
    epoch: int
    loss: float
    learning_rate: float
    validation_score: float | None = None
    validation_loss: float | None = None


class Progress:
    """Shows epochs as `verbose` asks for: a bar where tqdm is installed, lines from 2 on or without it.

    Parameters
    ----------
    verbose : bool or int
    epochs : int
        That are planned.
    callbacks : callable or iterable of callable, optional
        Called with an `Epoch`; False, returned by one, ends the fit.
    """

    def __init__(
        self, verbose: Any, epochs: int, callbacks: Callable[[Epoch], Any] | Iterable[Any] | None
    ) -> None:
        self.lines = bool(verbose)
        self._bar: Any = None
        self._callbacks = [callbacks] if callable(callbacks) else list(callbacks or ())
        if verbose is True or verbose == 1:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self.lines = False
            self._bar = tqdm(total=epochs, desc="fit", unit="epoch")

    @property
    def silent(self) -> bool:
        """Whether nobody asks for epochs."""
        return not (self.lines or self._callbacks or self._bar is not None)

    def tell(self, epoch: Epoch) -> bool:
        """Show an epoch and call the callbacks; tell whether the fit goes on."""
        if self._bar is not None:
            numbers = {"loss": f"{epoch.loss:.4g}"}
            if epoch.validation_score is not None:
                numbers["score"] = f"{epoch.validation_score:.4g}"
            self._bar.set_postfix(numbers, refresh=False)
            self._bar.update()
        if self.lines:
            print(f"Iteration {epoch.epoch}, loss = {epoch.loss:.8f}")
            if epoch.validation_score is not None:
                print(f"Validation score: {epoch.validation_score:f}")
        answers = [callback(epoch) for callback in self._callbacks]
        return all(answer is not False for answer in answers)

    def say(self, message: str) -> None:
        """Show a message."""
        if self._bar is not None:
            self._bar.write(message)
        elif self.lines:
            print(message)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
