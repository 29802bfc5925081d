"""What the campaigns of faults have found: a test of each defect."""

from __future__ import annotations

import copy
import errno
import os
import re
import subprocess
import sys
import textwrap
import threading
import zipfile

import ml_dtypes
import numpy as np
import pytest

import fastopt
from campaign import training
from campaign.file_seeds import archive, npy
from cases import OPTIMIZERS
from fastopt import checkpoint, data, nn, optim
from optim_tools import make


def python(code: str, **options) -> subprocess.CompletedProcess:
    """Run a program in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# --- threads ------------------------------------------------------------------------------------------

DAEMONS = """
    import threading, time
    import numpy as np
    import fastopt as fo

    def work(call):
        while True:
            call()

    x = np.ones((300, 300), np.float32)
    opt = fo.optim.Adam([x.copy()])
    model = fo.nn.Linear(300, 300)
    step = fo.compile(model, fo.nn.MSELoss(), fo.optim.SGD(model.parameters(), lr=1e-3))
    calls = [lambda: opt.step([x]), lambda: fo.relu(x), lambda: fo.functional.linear(x, x), lambda: step(x, x)]
    for call in calls:
        threading.Thread(target=work, args=(call,), daemon=True).start()
    time.sleep(0.05)
"""


def test_the_interpreter_ends_while_daemon_threads_compute():
    """A thread that came back for the GIL then was ended inside a destructor: the process aborted."""
    for _ in range(3):
        done = python(DAEMONS)
        assert (done.returncode, done.stderr) == (0, "")


def in_threads(count, work):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("name", ["Adam", "SGD", "SOAP", "LAMB", "Prodigy", "NAdam"])
def test_threads_that_step_one_optimizer_take_turns(name):
    """They lost steps, and wrote the coefficients that a native step of another thread was reading."""
    options = OPTIMIZERS[name]["options"][1]
    start = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    ours, alone = start.copy(), start.copy()
    opt, twin = make(name, [ours], options), make(name, [alone], options)
    g = np.ones_like(start)

    def work():
        for _ in range(25):
            opt.step([g])

    in_threads(4, work)
    for _ in range(100):
        twin.step([g])
    np.testing.assert_array_equal(ours, alone)
    for key, value in twin.state[0].items():
        np.testing.assert_array_equal(opt.state[0][key], value, err_msg=key)


def test_compiled_and_eager_steps_of_one_optimizer_take_turns():
    model, twin = nn.Linear(30, 20), nn.Linear(30, 20)
    twin.load_state_dict(model.state_dict())
    x, y = np.ones((5, 30), np.float32), np.zeros((5, 20), np.float32)
    results = []
    for network, many in ((model, in_threads), (twin, lambda count, work: [work() for _ in range(count)])):
        opt = optim.Adam(network.parameters(), lr=0.0)
        step = fastopt.compile(network, nn.MSELoss(), opt)
        zero = [np.zeros_like(p.data) for p in network.parameters()]

        def work(step=step, opt=opt, zero=zero):
            for _ in range(50):
                step(x, y)
                opt.step(zero)

        many(4, work)
        results.append([float(entry["step"]) for entry in opt.state.values()])
    assert results == [[400.0, 400.0]] * 2


class Interrupted:
    """A native plan during whose step Ctrl-C was pressed."""

    def __init__(self, native):
        self._native = native

    def __getattr__(self, name):
        return getattr(self._native, name)

    def step(self, *arguments):
        self._native.step(*arguments)
        raise KeyboardInterrupt


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", ["Adam", "NAdam", "LAMB"])
def test_a_step_that_is_interrupted_counts(name, strided):
    """The exception came between the update of the arrays and that of the step count."""
    start = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    make_one = (lambda: np.repeat(start, 2, axis=1)[:, ::2]) if strided else start.copy
    ours, whole = make_one(), make_one()
    opt, twin = make(name, [ours]), make(name, [whole])
    g = np.ones_like(start)
    for _ in range(2):
        opt.step([g])
        (plan,) = opt._plans
        native, plan.native = plan.native, Interrupted(plan.native)
        with pytest.raises(KeyboardInterrupt):
            opt.step([g])
        plan.native = native
    for _ in range(4):
        twin.step([g])
    np.testing.assert_array_equal(ours, whole)
    for key, value in twin.state[0].items():
        np.testing.assert_array_equal(opt.state[0][key], value, err_msg=key)


def test_a_long_prediction_hears_ctrl_c():
    """It was one native call, however long."""
    model = nn.Sequential(nn.Linear(20, 1000), nn.ReLU(), nn.Linear(1000, 4))
    step = fastopt.compile(model, nn.MSELoss(), optim.SGD(model.parameters()))
    x = np.broadcast_to(
        np.random.default_rng(0).standard_normal((1000, 20)).astype(np.float32), (200, 1000, 20)
    )
    x = x.reshape(-1, 20)
    whole = step.predict(x)
    np.testing.assert_array_equal(whole, np.tile(step.predict(x[:1000]), (200, 1)))
    calls = []

    class Counting:
        def predict(self, a, batch):
            calls.append(len(a))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return native.predict(a, batch)

    native = step._stepping.inference()
    with pytest.raises(KeyboardInterrupt):
        step._predicted(Counting(), x, 1000)
    assert sum(calls) < len(x)


# --- files --------------------------------------------------------------------------------------------


VALID = "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            archive([("x.npy", npy(np.ones(3)))], zipfile.ZIP_LZMA),
            r"x is compressed by method 14, .* 0 and 8",
        ),
        (archive([("x.npy", npy(np.ones(3)))], zipfile.ZIP_BZIP2), r"x is compressed by method 12"),
        (archive([("x.npy", npy(np.ones(3), "[" * 80 + "'''"))]), r"x: .*multi-line string"),
        (
            archive([("x.npy", npy(0, "{'descr': '<f8', 'fortran_order': False, 'shape': (-3, 4)}"))]),
            "negative",
        ),
        (archive([("x.npy", npy(0, "{'descr': 'S0', 'fortran_order': False, 'shape': (9**9,)}"))]), "x: "),
        (
            archive(
                [("x.npy", npy(0, "{'descr': '|S0', 'fortran_order': False, 'shape': (999999999999,)}"))]
            ),
            "S0",
        ),
        (archive([("x.npy", npy(np.ones(3), VALID, (9, 9)))]), "x: we only support format version"),
    ],
    ids=["lzma", "bzip2", "token", "negative", "arithmetic", "no size", "version"],
)
def test_a_damaged_npz_file_is_named(tmp_path, content, message):
    """NumPy's and zipfile's own exceptions came out, of any class and without the file."""
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"d\.npz: .*{message}"):
        data.read_npz(path)


def test_an_npz_file_whose_directory_points_nowhere(tmp_path):
    content = bytearray(archive([("x.npy", npy(np.ones(3)))]))
    content[-6:-2] = (2**31).to_bytes(4, "little")  # where the directory begins
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"d\.npz: "):
        data.read_npz(path)


@pytest.mark.parametrize(("cell", "column"), [("1e39", 2), ("-1e300", 2)])
def test_a_number_beyond_float32_is_refused(tmp_path, cell, column):
    """It became an infinity, with a warning of NumPy's."""
    path = tmp_path / "big.csv"
    path.write_text(f"1,2,0\n\n3,{cell},1\n")
    message = rf"big\.csv: line 3, column {column}: '{re.escape(cell)}' is beyond the range of float32"
    with pytest.raises(ValueError, match=message):
        data.read_csv(path)


def test_a_fractional_label_beyond_float32_is_refused(tmp_path):
    path = tmp_path / "big.csv"
    path.write_text("1,0.5\n2,1e39\n")
    with pytest.raises(ValueError, match=r"big\.csv: row 2 of data has the label 1e39, .* float32"):
        data.read_csv(path)


def test_labels_that_differ_by_a_nul_are_different(tmp_path):
    """NumPy's strings end at one."""
    path = tmp_path / "nul.csv"
    path.write_text("1,a\n2,a\0\n3,a\n")
    table = data.read_csv(path)
    assert table.classes == ["a", "a\0"]
    np.testing.assert_array_equal(table.y, [0, 1, 0])


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("scheduler", "T_max", 0, "ZeroDivisionError"),
        ("optimizer", "param_groups", [{"lr": -1.0}], r"param_groups\[0\] has no 'params'"),
        ("optimizer", "param_groups", [[[]]], "param_groups"),
        ("loader", "batch", 10**6, "this loader has 8"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, part, key, value, message):
    """Some errors of what was loaded into came out without the file, or of a class that nobody expects."""
    path = tmp_path / "c.safetensors"
    run = training.make()
    training.train(run, 3)
    states = {name: copy.deepcopy(obj.state_dict()) for name, obj in run.items()}
    states[part][key] = value
    checkpoint.save(path, **{name: Holder(state) for name, state in states.items()})
    before = training.state_of(run)
    with pytest.raises(ValueError, match=rf"load: {part} in .*c\.safetensors does not fit: .*{message}"):
        checkpoint.load(path, **run)
    assert training.state_of(run) == before


def test_a_schedule_takes_over_its_own_attributes_alone():
    """Any key became an attribute, in place of the optimizer or a method, and stayed after a refused load."""
    opt = optim.SGD([np.zeros(1)], lr=0.5)
    schedule = optim.lr_scheduler.StepLR(opt, 3)
    state = {
        **schedule.state_dict(),
        "optimizer": 1,
        "step": 2,
        "verbose": False,
        "last_epoch": 7,
        "_position": 4,
    }
    schedule.load_state_dict(state)
    assert schedule.optimizer is opt
    assert schedule.state_dict().keys() == state.keys() - {"optimizer", "step", "verbose"}
    schedule.step()
    assert schedule.last_epoch == 5  # counted from the position, whatever the other says
    np.testing.assert_allclose(opt.param_groups[0]["lr"], 0.05, rtol=1e-15)


def test_a_save_into_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    """It raised when the new file was in place already."""
    opened = os.open

    def refused(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    checkpoint.save(tmp_path / "c.safetensors", extra=3)
    assert checkpoint.load(tmp_path / "c.safetensors")["extra"] == 3


@pytest.mark.parametrize(("key", "value"), [("epoch", 0.5), ("batch", 1.5), ("seed", -1), ("seed", "x")])
def test_a_loader_takes_whole_numbers(key, value):
    """A fraction was cut off, and a negative seed failed at the next epoch."""
    loader = data.DataLoader(np.zeros((6, 2)), batch_size=2, seed=1)
    before = loader.state_dict()
    with pytest.raises(
        ValueError, match=rf"DataLoader\.load_state_dict: {key} is {value!r}, expected a whole"
    ):
        loader.load_state_dict({**before, key: value})
    assert loader.state_dict() == before


def test_a_header_of_several_lines(tmp_path):
    """Its first line alone was taken for the header, and the rest of the cell for data."""
    path = tmp_path / "long.csv"
    path.write_text('\n"height\nin m",label\n1.5,a\n2.5,b\n')
    table = data.read_csv(path)
    assert (table.features, table.classes) == (["height\nin m"], ["a", "b"])
    np.testing.assert_array_equal(table.x, np.array([[1.5], [2.5]], np.float32))
    path.write_text('a,b\n1,2\n3,"\n')
    with pytest.raises(ValueError, match=r"long\.csv: line 3"):
        data.read_csv(path, label=None)


# --- arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [np.ones((3, 2)), np.ones((2, 3), np.float32), np.ones((2, 3), int)])
def test_dropping_everything_checks_where_it_writes(out):
    """With p = 1 the result went into any array, of any shape."""
    before = out.copy()
    with pytest.raises((TypeError, ValueError), match="dropout: out"):
        fastopt.functional.dropout_grad(np.ones((2, 3)), 1.0, 1, 2, out=out)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, out: fastopt.functional.relu(x, out=out),
        lambda x, out: fastopt.functional.softmax(x, 0, out=out),
        lambda x, out: fastopt.functional.sigmoid_grad(x, x, out=out),
        lambda x, out: fastopt.functional.mse_loss_with_grad(x, x, grad_out=out),
        lambda x, out: fastopt.functional.linear(x, np.eye(3), out=out),
    ],
    ids=["activation", "softmax", "gradient", "loss", "linear"],
)
def test_a_result_of_shared_elements_is_refused(call):
    """Whatever was written last stayed, for all of them."""
    out = np.lib.stride_tricks.as_strided(np.ones(3), (4, 3), (0, 8))
    with pytest.raises(ValueError, match=r"out has elements that share memory|overlaps itself in memory"):
        call(np.ones((4, 3)), out)
    np.testing.assert_array_equal(out, 1.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_probability_that_is_no_number_is_refused_without_a_warning(dtype):
    """The smallest of bfloat16 numbers with a NaN came with NumPy's warning."""
    x = np.full(100, 0.5, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    x[70] = np.nan
    with pytest.raises((ValueError, TypeError), match=r"bce: input\[70\] is nan|bce: input is"):
        fastopt._ops.loss("bce", x, x)


class Holder:
    """Anything with a state."""

    def __init__(self, state):
        self.state_dict = lambda: state


def test_a_number_that_no_float_holds(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save_object(float("inf"), path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + size].replace(rb"\"inf\"", b"1" + b"0" * 400)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"c\.safetensors: damaged checkpoint: OverflowError"):
        checkpoint.read(path)
