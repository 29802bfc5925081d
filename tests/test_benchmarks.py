"""The benchmarks' own sums: quantiles, tables and files, and that all providers do equal work."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fastopt import _bench, _core

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import activations
import batch_norm
import curves
import harness
import linear
import losses
import optim
import peers
import sklearn_fit
import tables
import tails
import train
from harness import Aim, Case, Many, Row

BENCHMARKS = (linear, losses, activations, batch_norm, train, curves, optim, tails, sklearn_fit)


def _row(provider: str, p50: float, **changed: object) -> Row:
    fields = {
        "op": "train", "provider": provider, "mode": "step", "dtype": "float32", "size": "784-256-10 b64",
        "p50": p50, "p20": p50 - 1, "p80": p50 + 1.5, "rate": 12.5, "unit": "GFLOP/s", "share": 0.25,
        "isa": "v4", "threads": 2, "device": "cpu", "version": "1.0",
    }  # fmt: skip
    return Row(**{**fields, **changed})  # type: ignore[arg-type]


def _case(calls: dict, **changed: object) -> Case:
    fields = {"op": "op", "mode": "step", "size": "1", "flops": 2e6, "nbytes": 1e6}
    return Case(build=lambda _: calls, **{**fields, **changed})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ceilings of little memory, and results in a folder of their own."""
    monkeypatch.setattr(harness.Copy, "elements", 1 << 16)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)


# ------------------------------------------------------------------------------------------------- ceilings


def test_copy_copies_arrays_of_any_length_and_alignment(isa: str) -> None:
    for n in (0, 1, 15, 16, 17, 1003, 40_000):
        for shift in (0, 1, 7):
            x = np.arange(n + shift, dtype=np.float32)[shift:]
            whole = np.full(n + shift + 1, -1, np.float32)
            y = whole[shift : shift + n]
            _core.copy(x, y)
            np.testing.assert_array_equal(y, x)
            assert whole[-1] == -1
            assert (whole[:shift] == -1).all()


def test_copy_refuses_other_arrays() -> None:
    x = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="copy: x is float64, expected float32"):
        _core.copy(np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match=r"copy: y has shape \(3,\), x has shape \(4,\)"):
        _core.copy(x, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="copy: y "):
        _core.copy(x, x)


def test_fma_peak_counts_the_operations_of_its_tasks(isa: str) -> None:
    lanes = {"v2": 4, "v3": 8, "v4": 16, "neon": 4}[isa]
    assert _core.fma_peak(1) == 2 * lanes * 12 * 4096
    assert _core.fma_peak(7) == 7 * _core.fma_peak(1)
    with pytest.raises(ValueError, match="fma_peak: tasks must be at least 1, got 0"):
        _core.fma_peak(0)


# ------------------------------------------------------------------------------------------------- harness


def test_a_pause_lasts_until_no_thread_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench, "_LONGEST_PAUSE", 60.0)
    neighbour = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 200_000))
    neighbour.start()
    harness.settle()
    assert not neighbour.is_alive()


def test_interleave_takes_turns_in_an_order_drawn_for_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "settle", lambda: None)
    monkeypatch.setattr(harness, "WARM_SECONDS", 0.0)
    order: list[str] = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(1e-3)) for name in "abc"}
    samples = harness.interleave(calls, rounds=8, sample_seconds=1e-4)
    assert {name: len(values) for name, values in samples.items()} == {"a": 8, "b": 8, "c": 8}
    assert all((values >= 1e-3).all() for values in samples.values())
    # Two calls each to find the repeats, then two untimed and a timed one a turn.
    turns = order[6:]
    assert turns[::3] == turns[1::3] == turns[2::3]
    rounds = ["".join(turns[9 * r : 9 * r + 9 : 3]) for r in range(8)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) > 2


def test_a_call_of_many_units_is_divided_and_has_a_mode_of_its_own() -> None:
    calls = {"fastopt": lambda: 1.0, "fastopt-run": Many(lambda: time.sleep(8e-3), 4)}
    ours, run, ceiling = harness.measure(_case(calls), {}, 3)
    assert (ours.mode, run.mode, ceiling.mode) == ("step", "run", "step")
    assert 2000 <= run.p50 < 8000
    assert ceiling.provider == "copy"
    assert ceiling.share == pytest.approx(1.0, abs=0.01)


def test_rows_hold_quantiles_rates_and_shares() -> None:
    seconds = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * 1e-3
    row = harness.figures(_case({}, unit="GFLOP/s"), "p", seconds, 7e6, "GFLOP/s", 4e9)
    assert (row.p20, row.p50, row.p80) == (2000.0, 3500.0, 5000.0)
    assert row.rate == 2.0
    assert row.share == 0.5


def test_shares_and_ratios_are_those_of_the_rounds() -> None:
    # Half of the rounds fell into a phase of half the speed, in which the peer is twice as slow as we are.
    phase = np.array([1.0, 2.0, 1.0, 2.0, 1.0])
    row = harness.figures(_case({}), "p", 2e-3 * phase, 1e6, "GB/s", 1e9 / phase, mine=1e-3 * phase)
    assert (row.share, row.ratio) == (0.5, 2.0)
    assert harness.figures(_case({}), "p", phase, 1e6, "GB/s", 1e9).ratio == 0.0


def test_each_mode_has_a_ratio_of_its_own() -> None:
    seconds = {"fastopt": 4.0, "fastopt-run": 1.0, "peer": 8.0, "peer-run": 3.0, "copy": 1.0}
    samples = {name: np.array([value, value]) for name, value in seconds.items()}
    calls = {name: Many(int, 2) if name.endswith("run") else int for name in seconds if name != "copy"}
    rows = harness.rows(_case(calls), calls, {"copy": harness.Copy()}, samples, {"peer": "2.0"})
    assert [(row.provider, row.mode, row.ratio, row.version) for row in rows] == [
        ("fastopt", "step", 1.0, ""),
        ("fastopt-run", "run", 1.0, ""),
        ("peer", "step", 2.0, "2.0"),
        ("peer-run", "run", 3.0, "2.0"),
        ("copy", "step", 0.0, ""),
    ]
    step, run = harness.comparisons(rows)
    assert (step.ratio(), run.ratio()) == (2.0, 3.0)


def test_providers_that_disagree_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.ones(3, np.float32)
    good = _case({"fastopt": lambda: (x, 2.0), "numpy": lambda: (x * 1.00001, 2.0)})
    harness.compare(good, good.build({}))
    bad = _case({"fastopt": lambda: x, "numpy": lambda: x * 1.01})
    assert list(harness.run([bad], {}, 1)) == []
    assert "LEFT OUT: op step 1: numpy differs from fastopt by 1.0e-02" in capsys.readouterr().out
    for other in (x[:2], np.full(3, np.nan)):
        with pytest.raises(harness.Differs):
            harness.compare(bad, {"fastopt": lambda: x, "numpy": lambda other=other: other})


def test_a_case_beyond_memory_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(harness.run([_case({}, memory=1e18)], {}, 1)) == []
    assert "left out, it needs" in capsys.readouterr().out


def test_comparison_finds_the_best_peer_and_what_aims_reached() -> None:
    rows = [_row("fastopt-eager", 90.0), _row("fastopt", 50.0), _row("torch-fused", 200.0)]
    rows += [_row("torch-compile", 150.0), _row("sklearn", 400.0), _row("fma", 1.0, share=1.0)]
    (found,) = harness.comparisons(rows)
    assert found.mine is rows[1]
    assert found.best() is rows[3]
    assert found.ratio(["sklearn"]) == 8.0
    rows[4].ratio = 7.5
    assert found.ratio(["sklearn"]) == 7.5
    rows[4].ratio = 0.0
    assert found.ratio(["jax"]) is None
    aims = (
        Aim(2.5, ("torch", "jax")),
        Aim(9, ("sklearn",)),
        Aim(1, ("jax",)),
        Aim(0.2, share=True),
        Aim(1, mode="run"),
    )
    case = _case({}, op="train", size="784-256-10 b64", aims=aims)
    assert [reached for _, reached in found.aims(case)] == [3.0, 8.0, 0.25]
    text = found.text(case)
    assert "3.00x, aim 2.5x torch/jax: ok" in text
    assert "8.00x, aim 9x sklearn: SHORT" in text


def test_csv_round_trip_and_merge(tmp_path: Path) -> None:
    rows = [
        _row("fastopt", 50.25),
        _row("torch-fused", 100.0),
        _row("fastopt", 7.0, size="other", version=""),
    ]
    assert harness.write("train", rows) == tmp_path / "train.csv"
    assert harness.read("train") == rows
    assert harness.read("nothing") == []
    fresh = [_row("fastopt", 40.0), _row("fastopt", 1.0, size="new")]
    merged = harness.merge(harness.read("train"), fresh)
    assert [(r.size, r.p50) for r in merged] == [("784-256-10 b64", 40.0), ("other", 7.0), ("new", 1.0)]


def test_geometric_mean() -> None:
    assert harness.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert harness.geometric_mean([]) == 1.0


# -------------------------------------------------------------------------------------------------- tables


def test_train_table() -> None:
    rows = [_row("fastopt", 50.0), _row("torch-fused", 100.0), _row("jax", 150.0), _row("sklearn", 500.0)]
    rows += [_row("fastopt-run", 40.0, mode="run"), _row("sklearn-epoch", 400.0, mode="run")]
    harness.write("train", rows)
    text = tables.render("train")
    assert text is not None
    assert text.splitlines()[2] == (
        "| 784-256-10 b64 | 50 / 40 | - | 100 | - | 150 / - | 500 / 400 | - | - "
        "| **2.00** (aim 2.5x torch/jax), 10.00 (aim 8x sklearn) | 10.00 (aim 8x sklearn) |"
    )
    assert text.endswith("threads: 2, instruction set v4, float32.\n")
    assert tables.render("linear") is None


def test_linear_table_ends_with_the_geometric_mean() -> None:
    rows = []
    for size, ours in (("1x256x784", 10.0), ("8x1024x1024", 40.0)):
        rows += [_row("fastopt", ours, op="linear", mode="forward", size=size)]
        rows += [
            _row(p, t, op="linear", mode="forward", size=size)
            for p, t in (("torch-a", 20.0), ("numpy", 30.0))
        ]
    text = tables.linear_table(rows)
    assert (
        "| 1x256x784 | forward | 10 (9 - 12) | 12 | 25% | 20 (torch-a) | 30 | 2.00 |" in text.splitlines()[2]
    )
    assert "**0.50**" in text
    assert "Geometric mean of the ratios: 1.00 (aim 1.25)" in text


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_every_table_is_made_from_its_benchmarks_rows(name: str) -> None:
    benchmark = {b.__name__: b for b in BENCHMARKS}[name]
    rows = []
    for case in benchmark.CASES:
        for provider in ("fastopt", "torch-out", "copy"):
            rows.append(_row(provider, 5.0, op=case.op, mode=case.mode, size=case.size))
    lines = tables.TABLES[name](rows).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(benchmark.CASES)
    assert len({line.count("|") for line in table}) == 1


def test_keys_of_cases_are_unique() -> None:
    for benchmark in BENCHMARKS:
        keys = [case.key for case in benchmark.CASES]
        assert len(set(keys)) == len(keys), benchmark.__name__
        assert set(benchmark.PEERS) <= set(peers.NAMES)


# ---------------------------------------------------------------------------------------------- equal work

SMALL = [
    linear.case("forward", 5, 7, 19),
    linear.case("backward", 5, 7, 19),
    *(activations.case(mode, name, 1001) for name in activations.NAMES for mode in ("forward", "backward")),
    batch_norm.case(13, 17),
    losses.cross_entropy(13, 17),
    *(losses.elementwise(name, 1001) for name in losses.ELEMENTWISE),
    *(losses.softmax(name, 13, 17) for name in ("softmax", "log_softmax")),
    train.case((12, 9, 8, 4), 6, batches=3, compile=False),
    sklearn_fit.case("fit.digits", sklearn_fit.digits, (1797, 64, 10), 10, None, 1, 1.0),
    curves.adam(1001),
]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SMALL, ids=lambda case: "-".join(case.key[:2]))
def test_every_provider_does_the_same_work(case: Case) -> None:
    """All libraries that are installed; a run checks this again, at full size."""
    pytest.importorskip("torch")
    calls = case.build(peers.load())
    assert any(not name.startswith("fastopt") for name in calls)
    harness.compare(case, calls)
    for name, call in calls.items():
        if isinstance(call, Many):
            assert np.isfinite(harness.parts(call())[0]).all(), name


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_compare_sees_a_peer_that_skips_the_update() -> None:
    """A step's third loss depends on the two updates before it."""
    case = SMALL[-2]
    numpy = peers.load(["numpy"])
    frozen = train.net((12, 9, 8, 4), 6, 3, compile=False)
    frozen.lr = 0.0
    calls = case.build(numpy)
    with pytest.raises(harness.Differs, match="lazy differs"):
        harness.compare(case, {**calls, "lazy": numpy["numpy"].train(frozen)["numpy"]})
