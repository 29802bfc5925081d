"""Runs on several ranks: checkpoints that any number of ranks goes on from, ranks that fail, ``fastopt train``."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from fastopt import checkpoint
from ranks_tools import UNNOTICED, must_run, needs_mpi, run_ranks

pytestmark = needs_mpi


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints after an epoch on so many ranks, and ``unbroken.npz`` of a process that went on with another."""
    made = {n: tmp_path_factory.mktemp(f"saved{n}") for n in (0, 4)}
    must_run(4, "checkpoints.py", "save", made[4])
    must_run(0, "checkpoints.py", "go on", made[0], made[0] / "unbroken.npz")
    return made


@pytest.mark.parametrize(("saved", "resumed"), [(4, 2), (4, 0), (4, 4), (0, 3)])
def test_any_number_of_ranks_goes_on(
    folders: dict[int, Path], tmp_path: Path, saved: int, resumed: int
) -> None:
    must_run(resumed, "checkpoints.py", "resume", folders[saved], tmp_path / "out.npz")
    unbroken, found = np.load(folders[0] / "unbroken.npz"), np.load(tmp_path / "out.npz")
    assert len(found.files) == len(unbroken.files) == 60
    for name in found.files:
        np.testing.assert_allclose(found[name], unbroken[name], atol=1e-6, err_msg=name)


def test_checkpoints_of_ranks_are_those_of_one_process(folders: dict[int, Path]) -> None:
    for path in sorted(folders[0].glob("*.safetensors")):
        alone, together = checkpoint.read(path), checkpoint.read(folders[4] / path.name)
        assert alone["loader"] == together["loader"]
        assert alone["optimizer"]["param_groups"] == together["optimizer"]["param_groups"]
        states = alone["optimizer"]["state"], together["optimizer"]["state"]
        assert states[0].keys() == states[1].keys() != set()
        for i, entry in states[0].items():
            assert entry.keys() == states[1][i].keys(), path.name
            for name, value in entry.items():
                other = states[1][i][name]
                assert np.shape(value) == np.shape(other), (path.name, name)
                np.testing.assert_allclose(np.asarray(other), np.asarray(value), atol=1e-6)


#: What rank 1 does, what it runs under, and what the others then say.
FAILURES = {
    "raise": ((), r"RankError: rank 1 failed: ArithmeticError: out of luck"),
    "leave": ((), r"RankError: rank 1 failed: SystemExit: 0"),
    "hang": ((), r"RankError: rank 1 did not answer within \d+ s of waiting in \w+"),
    "kill": (UNNOTICED, r"RankError: rank 1 did not answer within \d+ s of waiting in \w+"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_failing_rank_is_named_and_the_last_checkpoint_stays(tmp_path: Path, how: str) -> None:
    under, message = FAILURES[how]
    path = tmp_path / "run.safetensors"
    timeout = (
        20 if how in ("hang", "kill") else 60
    )  # also the longest that a busy machine may stop the others
    began = time.monotonic()
    done = run_ranks(3, "failing.py", how, path, timeout, under=under)
    assert done.returncode != 0
    assert time.monotonic() - began < 200  # far from what a run without an end would take
    assert len(re.findall(message, done.stderr)) >= 1, done.stderr
    assert "done" not in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert checkpoint.read(path)["epoch"] == 0
    done = run_ranks(2, "failing.py", "nothing", path, 60)  # fewer ranks go on
    assert done.returncode == 0, done.stderr


def test_a_killed_rank_ends_the_program_by_the_launcher(tmp_path: Path) -> None:
    done = run_ranks(3, "failing.py", "kill", tmp_path / "run.safetensors", 600)
    assert done.returncode != 0
    assert checkpoint.read(tmp_path / "run.safetensors")["epoch"] == 0


def test_a_save_that_fails_fails_everywhere(tmp_path: Path) -> None:
    done = run_ranks(3, "failing.py", "saving", tmp_path / "run.safetensors", 60)
    assert done.returncode != 0
    assert "FileNotFoundError: save: /nowhere/x.safetensors" in done.stderr
    assert "RankError: rank 0 could not save /nowhere/x.safetensors" in done.stderr


def test_a_callback_of_one_rank_stops_all() -> None:
    assert must_run(2, "telling.py", "callback").count("done") == 2


#: What goes wrong on one rank alone, and what is said of it.
ALONE = {
    "data": "error: rank 1 failed: ",
    "output": "error: rank 0 failed: ",
    "save": "error: rank 0 failed: KeyboardInterrupt",
    "fit": "RankError: rank 1 failed: KeyboardInterrupt",
}


@pytest.mark.parametrize("what", ALONE)
def test_what_one_rank_meets_alone_is_told(tmp_path: Path, what: str) -> None:
    began = time.monotonic()
    done = run_ranks(2, "telling.py", what, tmp_path / "none")
    assert done.returncode != 0
    assert ALONE[what] in done.stderr, done.stdout + done.stderr
    assert time.monotonic() - began < 50  # the timeout is 60 or 300 s


def results(out: str) -> dict[str, object]:
    return json.loads(out.splitlines()[-1])


def test_the_command_trains_alike_on_any_number_of_ranks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((700, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 2] > 1))
    command = ("-m", "fastopt", "train", tmp_path / "data.npz", "--epochs", "3", "--dropout", "0", "--json")
    alone = results(must_run(0, *command))
    together = results(must_run(4, *command, "--shard-state", "--save", tmp_path / "run.safetensors"))
    assert together["world_size"] == 4
    assert together["test_accuracy"] == alone["test_accuracy"]
    np.testing.assert_allclose(together["train_loss"], alone["train_loss"], rtol=1e-5)
    resumed = run_ranks(
        2, "-m", "fastopt", "train", "--resume", tmp_path / "run.safetensors", "--epochs", "4"
    )
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("epoch 4/4") == 1
    assert "resumed after epoch 3" in resumed.stdout


def test_the_command_says_once_what_is_wrong(tmp_path: Path) -> None:
    wrong = run_ranks(3, "-m", "fastopt", "train", "digits", "--bogus")
    assert wrong.returncode == 2
    assert wrong.stderr.count("no option --bogus") == 1
    missing = run_ranks(3, "-m", "fastopt", "train", tmp_path / "none.csv")
    assert missing.returncode == 2
    assert missing.stderr.count("none.csv") == 1


def test_mnist_has_the_same_accuracy_on_any_number_of_ranks(shared: Path) -> None:
    command = (
        "-m",
        "fastopt",
        "train",
        "mnist",
        "--data",
        shared / "data" / "mnist",
        "--epochs",
        "1",
        "--json",
    )
    command = (*command, "--hidden", "64", "--batch-size", "256")
    alone = results(must_run(0, *command))
    for n in (2, 4):
        together = results(must_run(n, *command, "--shard-state"))
        # One of ten thousand digits may lie on the edge that another order of sums moves.
        assert abs(float(together["test_accuracy"]) - float(alone["test_accuracy"])) <= 3e-4
        assert float(together["test_accuracy"]) > 0.9
