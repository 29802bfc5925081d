"""Instruction sets, threads, and the native optimizer step on arrays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest
import threadpoolctl

import fastopt as fo
from fastopt import _core

ADAM = np.array([[1.0, np.inf, 0.0, 0.0, 1e-3, 1.0, 0.0, 1.0, 0.9, 0.999, 1.5, 1e-8, 0.0]])
SGD = np.array([[1.0, np.inf, 0.0, 0.0, 0.5, 1.0, 0.0, 1.0]])


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# --- instruction sets ---------------------------------------------------------------------------------


def test_isa_is_the_best_available_and_can_be_set(isa: str) -> None:
    assert _core.isa() == isa
    assert _core.isas()[-1] in {"v2", "neon"}


def test_environment_chooses_the_isa() -> None:
    lowest = _core.isas()[-1]
    assert run("from fastopt import _core; print(_core.isa())", FASTOPT_ISA=lowest) == lowest


def test_unknown_isa_is_refused_and_reported() -> None:
    before = _core.isa()
    with pytest.raises(ValueError, match=r"set_isa: 'mmx' is not available, expected one of .*" + before):
        _core.set_isa("mmx")
    assert _core.isa() == before
    code = "import warnings; warnings.simplefilter('ignore'); from fastopt import _core; print(_core.rejected_isa())"
    assert run(code, FASTOPT_ISA="mmx") == "mmx"


# --- threads ------------------------------------------------------------------------------------------


def test_threads_from_environment() -> None:
    assert run("import fastopt as fo; print(fo.get_num_threads())", OMP_NUM_THREADS="3") == "3"


def test_thread_count_must_be_positive(threads) -> None:
    threads(2)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        fo.set_num_threads(0)
    assert fo.get_num_threads() == 2


def test_threadpoolctl_limits_reach_the_pool(threads) -> None:
    threads(2)
    with threadpoolctl.threadpool_limits(1):
        assert fo.get_num_threads() == 1
    assert fo.get_num_threads() == 2
    assert "fastopt" in {pool["user_api"] for pool in threadpoolctl.threadpool_info()}


def adam_result(n: int, steps: int = 3) -> np.ndarray:
    rng = np.random.default_rng(1)
    p, g = rng.standard_normal((2, n)).astype(np.float32)
    plan = _core.StepPlan("adam", [p], [[np.zeros_like(p)], [np.zeros_like(p)]])
    for _ in range(steps):
        plan.step([g], ADAM)
    return p


def test_results_do_not_depend_on_the_number_of_threads(threads, isa: str) -> None:
    results = []
    for n in (1, 2, 3, 8):
        threads(n)
        results.append(adam_result(300_001).tobytes())
    assert len(set(results)) == 1


@pytest.mark.skipif(len(_core.isas()) < 2, reason="one instruction set level only")
def test_levels_with_fma_agree_bit_for_bit() -> None:
    before = _core.isa()
    results = set()
    for level in _core.isas():
        if level != "v2":
            _core.set_isa(level)
            results.add(adam_result(10_007).tobytes())
    _core.set_isa(before)
    assert len(results) == 1


def test_pool_works_after_fork() -> None:
    code = """
import os, numpy as np
from fastopt import _core
_core.set_num_threads(2)
def total(seed):
    p = np.random.default_rng(seed).standard_normal(200_000).astype("f4")
    plan = _core.StepPlan("sgd", [p], [])
    for _ in range(20):
        plan.step([np.ones_like(p)], np.array([[1, np.inf, 0, 0, .5, 1, 0, 1]]))
    return float(p.sum(dtype="f8"))
expected = total(0)
child = os.fork()
if child == 0:
    os._exit(0 if total(0) == expected else 1)
status = os.waitpid(child, 0)[1]
print(status, total(0) == expected)
"""
    assert run(code) == "0 True"


def test_work_is_done_where_the_system_grants_no_threads() -> None:
    code = """
import resource, numpy as np
from fastopt import _core
p, g = np.zeros(400_000, "f4"), np.ones(400_000, "f4")
plan = _core.StepPlan("sgd", [p], [])
coefs = np.array([[1, np.inf, 0, 0, .5, 1, 0, 1]])
_core.set_num_threads(200)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**22, used + 2**22))  # less than two stacks
plan.step([g], coefs)
plan.step([g], coefs)
threads = next(line for line in open("/proc/self/status") if line.startswith("Threads"))
print(bool((p == -1).all()), int(threads.split()[1]) < 200)
"""
    assert run(code) == "True True"


def test_many_python_threads_step_different_plans_and_one_plan(threads) -> None:
    threads(2)
    n, workers, steps = 50_000, 4, 25
    own = [np.zeros(n, np.float32) for _ in range(workers)]
    common = np.zeros(n, np.float32)
    gradient = np.ones(n, np.float32)
    common_plan = _core.StepPlan("sgd", [common], [])

    def work(p: np.ndarray) -> None:
        plan = _core.StepPlan("sgd", [p], [])
        for _ in range(steps):
            plan.step([gradient], SGD)
            common_plan.step([gradient], SGD)

    running = [threading.Thread(target=work, args=(p,)) for p in own]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for p in own:
        np.testing.assert_array_equal(p, np.float32(-0.5 * steps))
    np.testing.assert_array_equal(common, np.float32(-0.5 * steps * workers))


# --- the step driver ----------------------------------------------------------------------------------


def test_rules_list_states_and_coefficients() -> None:
    rules = _core.rules()
    assert rules["adam"] == {
        "states": ("exp_avg", "exp_avg_sq"),
        "coefs": ("beta1", "beta2", "rsqrt_bc2", "eps", "eps_root"),
        "packable": ("exp_avg", "exp_avg_sq"),
        "signed": ("exp_avg",),
    }
    assert rules["sgd"] == {"states": (), "coefs": (), "packable": (), "signed": ()}


def test_common_terms_follow_the_documented_order(isa: str) -> None:
    """g = clip(scale g) + l2 p + l1 sign(p); p = decay p - lr g; ema = d ema + (1 - d) p."""
    p = np.array([1.0, -2.0, 0.0, 4.0])
    g = np.array([10.0, -1.0, 0.5, -30.0])
    ema = np.array([0.0, 1.0, 2.0, 3.0])
    scale, clip, l1, l2, lr, decay, ema_decay = 0.5, 4.0, 0.25, 0.125, 0.1, 0.99, 0.75
    folded = np.clip(scale * g, -clip, clip) + l2 * p + l1 * np.sign(p)
    expected = decay * p - lr * folded
    expected_ema = ema_decay * ema + (1 - ema_decay) * expected
    plan = _core.StepPlan("sgd", [p], [], [ema])
    plan.step([g], np.array([[scale, clip, l1, l2, lr, decay, ema_decay, 1.0]]))
    np.testing.assert_allclose(p, expected, rtol=1e-15)
    np.testing.assert_allclose(ema, expected_ema, rtol=1e-15)


def test_gradients_of_none_leave_their_tensor_alone_and_rows_choose_coefficients() -> None:
    a, b, c = (np.zeros(3, np.float32) for _ in range(3))
    one = np.ones(3, np.float32)
    coefs = np.repeat(SGD, 2, axis=0)
    coefs[1, 4] = 2.0
    _core.StepPlan("sgd", [a, b, c], []).step([one, None, one], coefs, np.array([0, 1, 1], np.int32))
    assert (a[0], b[0], c[0]) == (-0.5, 0.0, -2.0)


@pytest.mark.parametrize("storage", [ml_dtypes.bfloat16, np.float16], ids=["bfloat16", "float16"])
def test_low_precision_storage_rounds_to_nearest_even(storage: type, isa: str) -> None:
    """With lr = 1 and p = 0 the step stores -g unchanged, and with g float32-representable sums it rounds."""
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(storage)
    finite = values[np.isfinite(values.astype(np.float32))]
    p = np.zeros_like(finite)
    coefs = SGD.copy()
    coefs[0, 4] = -1.0
    _core.StepPlan("sgd", [p], []).step([finite], coefs)
    np.testing.assert_array_equal(p.astype(np.float32), finite.astype(np.float32))
    rng = np.random.default_rng(0)
    start = rng.standard_normal(10_000).astype(storage)
    gradient = (rng.standard_normal(10_000) * 1e-2).astype(storage)
    p = start.copy()
    _core.StepPlan("sgd", [p], []).step([gradient], coefs)
    exact = start.astype(np.float32) + gradient.astype(np.float32)
    np.testing.assert_array_equal(p.view(np.uint16), exact.astype(storage).view(np.uint16))


@pytest.mark.parametrize("storage", [ml_dtypes.bfloat16, np.float16], ids=["bfloat16", "float16"])
def test_low_precision_overflow_and_nan(storage: type, isa: str) -> None:
    top = float(ml_dtypes.finfo(storage).max)
    p = np.array([top, -top, 0.0, 1.0], dtype=storage)
    g = np.array([top, -top, np.nan, np.inf], dtype=storage)
    coefs = SGD.copy()
    coefs[0, 4] = -1.0
    _core.StepPlan("sgd", [p], []).step([g], coefs)
    np.testing.assert_array_equal(p.astype(np.float32), [np.inf, -np.inf, np.nan, np.inf])


def test_centred_rmsprop_stays_finite_on_constant_gradients(isa: str) -> None:
    """There v - m^2 is rounding alone, of either sign; its root must not be NaN."""
    g = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    p, v, m = np.zeros_like(g), np.zeros_like(g), np.zeros_like(g)
    plan = _core.StepPlan("rmsprop_centered", [p], [[v], [m]])
    for _ in range(60):
        plan.step([g], np.array([[1.0, np.inf, 0.0, 0.0, 1e-9, 1.0, 0.0, 1.0, 0.5, 1e-3, 0.0]]))
    assert (v.astype(np.float64) < m.astype(np.float64) ** 2).any()
    assert np.isfinite(p).all()


def test_norm_is_global_and_keeps_nan(isa: str) -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (5, 100_003, 0, 8192)]
    plan = _core.StepPlan("sgd", [np.zeros_like(a) for a in arrays], [])
    flat = np.concatenate(arrays).astype(np.float64)
    assert plan.norm(arrays) == pytest.approx(np.sqrt((flat**2).sum()), rel=1e-6)
    assert plan.norm(arrays, 1) == pytest.approx(np.abs(flat).sum(), rel=1e-6)
    assert plan.norm(arrays, np.inf) == np.abs(flat).max()
    assert plan.norm([None, None, None, None]) == 0.0
    arrays[1][70_000] = np.nan
    assert all(np.isnan(plan.norm(arrays, ord)) for ord in (1, 2, np.inf))
    with pytest.raises(ValueError, match=r"norm: ord must be 1, 2 or inf, got 3"):
        plan.norm(arrays, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16])
def test_norms_of_each_tensor_do_not_depend_on_threads(dtype: str, isa: str) -> None:
    rng = np.random.default_rng(4)
    shapes = [(5,), (17, 12_001), (0, 3), (8192,), (), (8193,)]
    params, grads = ([rng.standard_normal(s).astype(dtype) for s in shapes] for _ in range(2))
    plan = _core.StepPlan("sgd", params, [])
    given = [*grads[:3], None, *grads[4:]]
    out = np.full(6, np.nan)
    plan.norms(given, out)
    expected = [0.0 if g is None else np.sqrt((g.astype(np.float64) ** 2).sum()) for g in given]
    np.testing.assert_allclose(out, expected, rtol=1e-13)
    of_params = np.empty(6)
    plan.param_norms(of_params)
    np.testing.assert_allclose(
        of_params, [np.sqrt((p.astype(np.float64) ** 2).sum()) for p in params], rtol=1e-13
    )
    before = fo.get_num_threads()
    try:
        for threads in (1, 3):
            fo.set_num_threads(threads)
            again = np.empty(6)
            plan.norms(given, again)
            np.testing.assert_array_equal(again, out)
            plan.param_norms(again)
            np.testing.assert_array_equal(again, of_params)
    finally:
        fo.set_num_threads(before)
    given[1][3, 7] = np.nan
    plan.norms(given, out)
    assert np.isnan(out).tolist() == [False, True, False, False, False, False]


def test_norms_refuse_another_array_to_write_to() -> None:
    plan = _core.StepPlan("sgd", [np.zeros(3), np.zeros(2)], [])
    for wrong, message in [
        (np.zeros(3), r"out is float64 of shape \(3,\), expected float64 of shape \(2,\)"),
        (np.zeros(2, np.float32), r"out is float32"),
        (np.zeros((2, 1)), r"out is float64 of shape \(2, 1\)"),
    ]:
        with pytest.raises(TypeError, match="param_norms: " + message):
            plan.param_norms(wrong)
        with pytest.raises(TypeError, match="norms: " + message):
            plan.norms([None, None], wrong)


def test_the_plan_keeps_its_arrays_alive() -> None:
    def lists() -> tuple[list, list, list]:
        return [np.zeros(3)], [[np.zeros(3)]], [np.zeros(3)]

    params, states, emas = lists()
    arrays = [weakref.ref(a) for a in (params[0], states[0][0], emas[0])]
    plan = _core.StepPlan("momentum", params, states, emas)
    for held in (params, states[0], emas):
        held.clear()
    assert all(a() is not None for a in arrays)
    plan.step([np.ones(3)], np.array([[1, np.inf, 0, 0, 0.5, 1, 0.5, 1, 0.9, 1.0]]))
    assert [a().tolist() for a in arrays] == [[-0.5] * 3, [1.0] * 3, [-0.25] * 3]


def test_gradient_may_be_the_parameter_itself() -> None:
    w = np.full(5, 2.0)
    _core.StepPlan("sgd", [w], []).step([w], SGD)
    np.testing.assert_array_equal(w, 1.0)


BUFFER = np.zeros(64, np.float32)
READ_ONLY = np.zeros(3, np.float32)
READ_ONLY.flags.writeable = False
MISALIGNED = np.zeros(13, np.uint8)[1:].view(np.float32)

REFUSED_PARAMS = {
    "list": ([[1.0]], TypeError, r"params\[0\] is list, expected a NumPy array"),
    "int": ([np.zeros(3, np.int64)], TypeError, r"params\[0\] is int64, expected float32"),
    "big-endian": ([np.zeros(3, ">f4")], TypeError, r"params\[0\] is >f4, expected float32"),
    "strided": ([BUFFER[::2]], ValueError, r"params\[0\] is not C-contiguous"),
    "misaligned": ([MISALIGNED], ValueError, r"params\[0\] is not aligned"),
    "read-only": ([np.zeros(3, np.float32), READ_ONLY], ValueError, r"params\[1\] is read-only"),
    "overlap": ([BUFFER[:10], BUFFER[9:20]], ValueError, r"params\[1\] overlaps params\[0\]"),
    "twice": ([BUFFER, BUFFER], ValueError, r"params\[[01]\] overlaps params\[[01]\]"),
}


@pytest.mark.parametrize("case", REFUSED_PARAMS)
def test_refused_parameters(case: str) -> None:
    params, error, message = REFUSED_PARAMS[case]
    with pytest.raises(error, match=message):
        _core.StepPlan("sgd", params, [])


P = np.arange(6, dtype=np.float32).reshape(2, 3)
STATE = np.zeros((2, 3), np.float32)
REFUSED_STEPS = {
    "dtype": ([np.zeros((2, 3))], TypeError, r"step: grads\[0\] is float64, params\[0\] is float32"),
    "shape": (
        [np.zeros((3, 2), np.float32)],
        ValueError,
        r"grads\[0\] has shape \(3, 2\), params\[0\] has shape \(2, 3\)",
    ),
    "count": ([], ValueError, r"grads has 0 entries, params has 1"),
    "strided": ([np.zeros((2, 6), np.float32)[:, ::2]], ValueError, r"grads\[0\] is not C-contiguous"),
    "negative stride": ([np.zeros((2, 3), np.float32)[::-1]], ValueError, r"grads\[0\] is not C-contiguous"),
    "scalar": ([1.0], TypeError, r"grads\[0\] is float, expected a NumPy array"),
    "state": ([STATE], ValueError, r"grads\[0\] overlaps momentum_buffer\[0\] in memory; pass a copy"),
}


@pytest.mark.parametrize("case", REFUSED_STEPS)
def test_refused_gradients_change_nothing(case: str) -> None:
    grads, error, message = REFUSED_STEPS[case]
    before = P.tobytes(), STATE.tobytes()
    plan = _core.StepPlan("momentum", [P], [[STATE]])
    with pytest.raises(error, match=message):
        plan.step(grads, np.array([[1, np.inf, 0, 0, 0.5, 1, 0, 1, 0.9, 1.0]]))
    assert (P.tobytes(), STATE.tobytes()) == before


def test_refused_coefficients_and_states() -> None:
    plan = _core.StepPlan("sgd", [P.copy()], [])
    with pytest.raises(ValueError, match=r"coefs has 13 columns, rule 'sgd' takes 8"):
        plan.step([P], ADAM)
    with pytest.raises(ValueError, match=r"sets\[0\] is 1, coefs has 1 rows"):
        plan.step([P], SGD, np.array([1], np.int32))
    with pytest.raises(ValueError, match=r"rule is 'adamant', expected one of sgd, momentum"):
        _core.StepPlan("adamant", [P], [])
    with pytest.raises(ValueError, match=r"states has 1 entries, the rule's states has 2"):
        _core.StepPlan("adam", [P], [[STATE]])
    with pytest.raises(TypeError, match=r"momentum_buffer\[0\] is float64, params\[0\] is float32"):
        _core.StepPlan("momentum", [P], [[np.zeros((2, 3))]])


def test_plan_survives_a_reshape_of_its_parameter() -> None:
    w = np.zeros((2, 3), np.float32)
    plan = _core.StepPlan("sgd", [w], [])
    w.resize(6, refcheck=False)
    with pytest.raises(ValueError, match=r"grads\[0\] has shape \(6,\), params\[0\] has shape \(2, 3\)"):
        plan.step([np.ones(6, np.float32)], SGD)
    plan.step([np.ones((2, 3), np.float32)], SGD)
    np.testing.assert_array_equal(w, -0.5)


def test_an_array_may_be_several_tensors_of_a_plan():
    """Each part has its norm and its row of coefficients; a missing gradient is missing in all of them."""
    p, q = np.zeros((3, 4)), np.zeros(5)
    plan = _core.StepPlan("sgd", [p, q], [], parts=[3, 1])
    g = np.arange(12.0).reshape(3, 4)
    out = np.empty(4)
    plan.norms([g, np.ones(5)], out)
    np.testing.assert_allclose(out, [*np.linalg.norm(g, axis=1), np.sqrt(5)], rtol=1e-15)
    coefs = np.zeros((4, 8))
    coefs[:, 0] = coefs[:, 5] = 1.0
    coefs[:, 1] = np.inf
    coefs[:, 4] = 1.0, 10.0, 100.0, 1000.0
    plan.step([g, None], coefs, np.arange(4, dtype=np.int32))
    np.testing.assert_array_equal(p, -g * [[1.0], [10.0], [100.0]])
    np.testing.assert_array_equal(q, 0.0)
    plan.param_norms(out)
    np.testing.assert_allclose(out, [*np.linalg.norm(p, axis=1), 0.0], rtol=1e-15)
    with pytest.raises(ValueError, match="sets has 2 entries, the plan has 4"):
        plan.step([g, None], coefs, np.zeros(2, np.int32))
    for parts, message in [
        ([5, 1], r"parts\[0\] is 5, params\[0\] has 12 elements"),
        ([3, 0], r"parts\[1\] is 0, params\[1\] has 5 elements"),
        ([3], "parts has 1 entries, params has 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            _core.StepPlan("sgd", [p, q], [], parts=parts)
    codes, exponents = np.zeros((3, 4), np.uint8), np.zeros(1, np.uint8)
    with pytest.raises(
        ValueError,
        match=r"parts\[0\] is 3, of 4 elements each; those of params\[0\] share exponents 128 at a time",
    ):
        _core.StepPlan("momentum", [p.astype(np.float32)], [[codes]], parts=[3], exponents=[[exponents]])
