"""Several runs that differ in their optimizer, side by side: an epoch of each in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastopt import _random
from fastopt._dataset import Dataset
from fastopt._train import Config, Diverged, Trainer

_COLUMNS = ("optimizer", "lr", "train loss", "test loss", "test", "best test", "in epoch", "s/epoch")


class Run:
    """One of the runs, with the random numbers that it would have if it ran alone."""

    def __init__(self, config: Config, dataset: Dataset, device: str) -> None:
        self.trainer = Trainer(config, dataset, device=device)
        self.stopped: str | None = None  # why it goes no further
        self._random = _random.get_rng_state()

    @property
    def active(self) -> bool:
        return self.stopped is None and self.trainer.epoch < self.trainer.config.epochs

    def epoch(self, stop: Callable[[], bool]) -> str:
        """Train an epoch, and return the line that says so."""
        _random.set_rng_state(self._random)
        try:
            return self.trainer.run_epoch(stop=stop)
        except Diverged as err:
            self.stopped = str(err)
            return self.stopped
        finally:
            self._random = _random.get_rng_state()


class Comparison:
    """Runs with the same data, initial weights, batches and dropout masks, each as `fastopt train` would make it.

    Parameters
    ----------
    configs
        The settings of each run by its name.
    dataset, device
        What all of them learn, and where.
    """

    def __init__(self, configs: Mapping[str, Config], dataset: Dataset, device: str = "cpu") -> None:
        self.runs = {name: Run(config, dataset, device) for name, config in configs.items()}

    def run(self, log: Callable[[str], None], stop: Callable[[], bool] = lambda: False) -> None:
        """Train all of them to their last epoch; a run that diverges stops, the others go on.

        Once ``stop`` says True it ends with KeyboardInterrupt; `rows` has what was finished by then.
        """
        width = max(map(len, self.runs))
        while any(run.active for run in self.runs.values()):
            for name, run in self.runs.items():
                if run.active:
                    log(f"{name:<{width}}  {run.epoch(stop)}")
                if stop():
                    raise KeyboardInterrupt

    def histories(self) -> dict[str, dict[str, list[float]]]:
        """The numbers of each run's epochs, as `fastopt.plot.plot_comparison` takes them."""
        return {
            name if run.stopped is None else f"{name} (diverged)": run.trainer.history
            for name, run in self.runs.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """Each run in numbers, best test accuracy first, and of equal ones the lower test loss."""
        rows = [self._row(name, run) for name, run in self.runs.items()]
        return sorted(rows, key=_rank)

    @staticmethod
    def _row(name: str, run: Run) -> dict[str, Any]:
        trainer = run.trainer
        row = {"name": name, "optimizer": trainer.config.optimizer, "lr": trainer.config.lr}
        row |= {"epochs": trainer.epoch, "train_seconds": trainer.train_seconds}
        if trainer.epoch:
            result = trainer.result()
            row |= {
                key: result[key] for key in ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
            }
            accuracies = trainer.history["test_accuracy"]
            row["best_test_accuracy"] = max(accuracies)
            row["best_epoch"] = accuracies.index(max(accuracies)) + 1
        if run.stopped is not None:
            row["stopped"] = run.stopped
        return row

    def lines(self) -> list[str]:
        """`rows` as a table."""
        cells = [list(_COLUMNS)]
        for row in self.rows():
            if "test_accuracy" not in row:
                cells.append([row["name"], f"{row['lr']:g}", *["-"] * (len(_COLUMNS) - 2)])
            else:
                cells.append(
                    [
                        row["name"],
                        f"{row['lr']:g}",
                        *("-" if row[k] is None else f"{row[k]:.4f}" for k in ("train_loss", "test_loss")),
                        f"{row['test_accuracy']:.2%}",
                        f"{row['best_test_accuracy']:.2%}",
                        str(row["best_epoch"]),
                        f"{row['train_seconds'] / row['epochs']:.3f}",
                    ]
                )
            if "stopped" in row:
                cells[-1].append(row["stopped"])
        widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
        return [_aligned(line, widths) for line in cells]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of the table; what goes beyond its columns follows as it is."""
    columns = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=False)]
    return "  ".join([cells[0].ljust(widths[0]), *columns, *cells[len(widths) :]])


def _rank(row: Mapping[str, Any]) -> tuple[bool, float, float]:
    """Runs that stopped come last."""
    loss = row.get("test_loss")
    return "stopped" in row, -row.get("test_accuracy", 0.0), float("inf") if loss is None else loss
