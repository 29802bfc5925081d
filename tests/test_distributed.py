"""Ranks of an MPI program: operations, and the same training on 1, 2, 3 and 4 of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ranks_tools import must_run, needs_mpi

pytestmark = needs_mpi

Results = dict[str, np.ndarray]

WAYS = ("eager", "overlapped", "compiled", "sharded", "compiled_sharded")
CASES = (
    "adamw", "clipped", "groups", "by_parameter", "accumulated", "lamb", "lars", "novograd", "muon", "adafactor",
)  # fmt: skip


@pytest.mark.parametrize("order", ["rank", "engine"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_operations(n: int, order: str) -> None:
    out = must_run(n, "operations.py", order)
    assert sorted(re.findall(r"rank (\d) done", out)) == [
        str(r) for r in range(n)
    ]  # ranks write over each other


@pytest.mark.parametrize("n", [2, 3])
def test_losses_that_are_no_plain_mean_take_a_weight(n: int) -> None:
    assert must_run(n, "losses.py").count("done") == n


def train(n: int, path: Path, *cases: str) -> Results:
    must_run(n, "training.py", path, *cases)
    return dict(np.load(path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Results]:
    """The results of all cases by the number of ranks; 0 is a process without MPI."""
    folder = tmp_path_factory.mktemp("trained")
    return {n: train(n, folder / f"{n}.npz") for n in (0, 2, 3, 4)}


def worst(a: Results, b: Results, case: str, way: str, against: str = "eager") -> float:
    """The largest difference of parameters and losses."""
    names = [k.split("/")[2] for k in a if k.startswith(f"{case}/{way}/") and not k.endswith("bytes")]
    assert len(names) == 7
    return max(np.abs(a[f"{case}/{way}/{k}"] - b[f"{case}/{against}/{k}"]).max() for k in names)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_ranks_train_as_one_process(trained: dict[int, Results], n: int, way: str, case: str) -> None:
    # Parameters are at most 1 and were changed six times; sums of 24 samples are rounded in another order.
    assert worst(trained[n], trained[0], case, way) <= 1e-6


@pytest.mark.parametrize("case", [*CASES, "soap"])
@pytest.mark.parametrize("n", [0, 2, 3, 4])
def test_shared_out_state_gives_the_bits_of_whole_state(
    trained: dict[int, Results], n: int, case: str
) -> None:
    # The norm of all gradients is added up in other pieces.
    tolerance = {"clipped": 1e-6, "by_parameter": 1e-6, "novograd": 1e-6, "lamb": 1e-6, "lars": 1e-6}
    for way in ("sharded", "compiled_sharded"):
        assert worst(trained[n], trained[n], case, way) <= tolerance.get(case, 0.0)


def test_bits_do_not_change_from_run_to_run(trained: dict[int, Results], tmp_path: Path) -> None:
    again = train(3, tmp_path / "again.npz")
    assert again.keys() == trained[3].keys()
    for name, values in again.items():
        np.testing.assert_array_equal(values, trained[3][name], err_msg=name)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("case", ["adamw", "lamb", "muon", "soap"])
def test_ranks_share_out_the_state(trained: dict[int, Results], case: str, n: int) -> None:
    whole = trained[0][f"{case}/eager/state_bytes"][0]
    assert (trained[n][f"{case}/eager/state_bytes"] == whole).all()
    assert trained[n][f"{case}/sharded/state_bytes"].sum() == whole


def test_state_of_a_large_parameter_is_an_equal_part(tmp_path: Path) -> None:
    must_run(4, "memory.py", tmp_path / "bytes.npz")
    found = np.load(tmp_path / "bytes.npz")
    elements = 300 * 500 + 500
    np.testing.assert_array_equal(found["whole"], [8 * elements] * 4)
    # Equal parts, to a multiple of 128 elements in each of two averages.
    assert found["slices"].sum() == 8 * elements
    assert np.abs(found["slices"] - 2 * elements).max() <= 4 * 8 * 128
    assert found["int8"].sum() < found["slices"].sum() / 3.5
    # Three steps with gradients of at most 5, each rank's rounded to 8 bits, and once more their sum.
    for name, roundings in (("reduced", 2), ("reduced_slices", 1)):
        assert 0 < np.abs(found[name] - found["sums"]).max() <= 3 * roundings * 5 * 2**-9
    # State in bytes is rounded by chance, by an element's place in its array: in pieces by other chances.
    alone, shared = (np.abs(found[f"{k}_trained"] - found["whole_trained"]).max() for k in ("bytes", "int8"))
    assert 0 < shared <= 2 * alone


def test_perceptrons_fit_as_in_one_process(tmp_path: Path) -> None:
    must_run(0, "perceptrons.py", tmp_path / "1.npz")
    must_run(3, "perceptrons.py", tmp_path / "3.npz")
    alone, together = np.load(tmp_path / "1.npz"), np.load(tmp_path / "3.npz")
    for name in alone.files:
        if not name.startswith("any_seed"):
            np.testing.assert_allclose(together[name], alone[name], atol=2e-5, err_msg=name)
