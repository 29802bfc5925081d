"""checkpoint.py: exact round trips, whole or not at all, refusals that change nothing, exact resume."""

import errno
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import _random, _safetensors, checkpoint, nn, optim
from fastopt.data import DataLoader
from fastopt.optim import lr_scheduler
from fastopt.tensor import Tensor

DTYPES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]


class Holder:
    """Anything with a state."""

    def __init__(self, state, refuse=None):
        self.state, self.refuse = state, refuse

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        if self.refuse and state is not self.state:
            raise self.refuse
        self.state = state


def round_trip(path, value):
    checkpoint.save(path, extra=value, rng=False)
    return checkpoint.load(path, rng=False)["extra"]


def same(a, b):
    """Equal in type and in every bit, NaNs included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return a == b


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c.safetensors"


# ------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize("name", [*DTYPES, "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7)])
def test_arrays_keep_every_bit(path, name, shape):
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)
    bits = np.random.default_rng(0).integers(
        0, 2 if name == "bool" else 256, math.prod(shape) * dtype.itemsize
    )
    array = bits.astype(np.uint8).view(dtype).reshape(shape)
    got = round_trip(path, {"a": array})["a"]
    assert same(got, array)
    assert got.flags.writeable
    assert got.flags.aligned


def test_layouts(path):
    base = np.arange(24.0).reshape(4, 6)
    odd = {
        "transposed": base.T,
        "strided": base[::2, ::-3],
        "big endian": base.astype(">f8"),
        "misaligned": np.frombuffer(b"x" + base.tobytes(), np.uint8)[1:].view(np.float64).reshape(4, 6),
    }
    got = round_trip(path, odd)
    for name, array in odd.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == np.float64
        assert got[name].dtype.isnative


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.dictionaries(
            st.integers() | st.sampled_from(["__array__", "__tuple__", "a.b"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(value=json_values)
def test_everything_else_comes_back_the_same(path, value):
    assert same(round_trip(path, value), value)


def test_special_values(path):
    value = {
        "floats": [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, 2 / 3],
        "scalars": [np.float32(0.1), np.int8(-3), np.bool_(True), np.float16(math.inf), np.uint64(2**64 - 1)],
        "big": 2**200,
        0: {"step": 3, (1, "x"): [None, True]},
        "__array__": {"__float__": 1},
    }
    assert same(round_trip(path, value), value)


def test_names_that_would_collide(path):
    value = {"a.b": np.ones(2), "a": {"b": np.zeros(3)}}
    assert same(round_trip(path, value), value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"f": [1, len]}, r"save: extra\.f\.1 is builtin_function_or_method, which a checkpoint cannot hold"),
        ({"z": np.zeros(2, complex)}, r"save: extra\.z has dtype complex128"),
        ({"o": np.array([{}])}, r"save: extra\.o has dtype object"),
        ({"s": {1, 2}}, r"save: extra\.s is set"),
        ({"t": np.array(["a"])}, r"save: extra\.t has dtype <U1"),
    ],
)
def test_what_it_cannot_hold(path, extra, message):
    checkpoint.save(path, extra="old")
    before = path.read_bytes()
    with pytest.raises(TypeError, match=message):
        checkpoint.save(path, extra=extra)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_the_safetensors_package_reads_our_files_and_we_read_its(path):
    library = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(1)
    arrays = {name: rng.integers(0, 2, (3, 5)).astype(name) for name in DTYPES}
    checkpoint.save(path, model=Holder(arrays), rng=False)
    theirs = library.load_file(path)
    assert sorted(theirs) == sorted(f"model.{name}" for name in DTYPES)
    assert all(same(theirs[f"model.{name}"], arrays[name]) for name in DTYPES)

    library.save_file(arrays, path, metadata={"k": "v"})
    ours, metadata = _safetensors.read(path)
    assert metadata == {"k": "v"}
    assert all(same(ours[name], arrays[name]) for name in DTYPES)
    with pytest.raises(ValueError, match="no checkpoint of fastopt"):
        checkpoint.load(path)


# ------------------------------------------------------------------------------------ damaged files


def test_truncated_at_every_byte(path):
    checkpoint.save(path, extra={"a": np.arange(5.0), "b": np.arange(3, dtype=np.int8)}, rng=False)
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"c\.safetensors"):
            checkpoint.read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(
        ValueError, match=rf"describes {len(content)} bytes, the file holds {len(content) + 1}"
    ):
        checkpoint.read(path)


def test_flipped_header_bytes_are_read_or_refused(path):
    checkpoint.save(path, extra={"a": np.arange(5.0), "b": [1, "x", (2.5, None)]}, rng=False)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for i in range(header):
        for flip in (1, 4, 32, 128):
            damaged = bytearray(content)
            damaged[i] ^= flip
            path.write_bytes(bytes(damaged))
            try:
                checkpoint.read(path)
            except ValueError as error:
                message = str(error)
            else:
                continue
            assert "c.safetensors" in message


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header of 0 bytes, the file holds 0"),
        (struct.pack("<Q", 2**63), f"header of {2**63} bytes, the file holds 8"),
        (raw([1]), "the header is list, expected object"),
        (raw(b"[" * 100000), "not a safetensors file"),
        (raw({"__metadata__": {"fastopt": 3}}), "metadata is not a dictionary of strings"),
        (raw({"a": {"dtype": "F32", "shape": [2]}}), "'a': damaged safetensors header"),
        (
            raw({"a": {"dtype": "F8", "shape": [2], "data_offsets": [0, 8]}}, b"0" * 8),
            "has dtype 'F8', expected one",
        ),
        (raw({"a": {"dtype": ["F4"], "shape": [2], "data_offsets": [0, 8]}}, b"0" * 8), "has dtype"),
        (
            raw({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"0" * 8),
            "must be whole numbers",
        ),
        (
            raw({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, b"0" * 8),
            "must be whole numbers",
        ),
        (
            raw({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"0" * 8),
            "does not fill bytes 0 to 8",
        ),
        (raw({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64]}}), "describes"),
        (
            raw({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, b"0" * 8),
            "begins at byte 4 .* expected 0",
        ),
        (raw({"a": {"dtype": "U8", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}), "has shape"),
        (
            raw({n: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in "ab"}, b"0" * 4),
            "begins at byte 0 .* expected 4",
        ),
        (raw({"__metadata__": {"fastopt": "{}"}}), "damaged checkpoint"),
        (raw({"__metadata__": {"fastopt": '{"format": 2}'}}), "format is 2, this version reads 1"),
        (
            raw({"__metadata__": {"fastopt": '{"format": 1, "contents": {"a": {"__array__": "x"}}}'}}),
            "damaged checkpoint",
        ),
    ],
)
def test_damaged_headers(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"c\.safetensors: .*{message}"):
        checkpoint.read(path)


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(path)


# -------------------------------------------------------------------------------- whole or not at all


def test_failed_write_leaves_the_old_file(path, monkeypatch):
    checkpoint.save(path, extra="old")
    before = path.read_bytes()
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*args):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match="No space left"):
                checkpoint.save(path, extra="new")
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


def test_targets(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no directory .*gone"):
        checkpoint.save(tmp_path / "gone" / "c.safetensors")
    with pytest.raises(OSError, match="is not a regular file"):
        checkpoint.save(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    checkpoint.save(link, extra=1)
    assert link.is_symlink()
    assert checkpoint.load(path)["extra"] == 1
    mask = os.umask(0o022)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


CHILD = """
    import os, signal, sys
    import numpy as np
    from fastopt import _safetensors, checkpoint

    path, where = sys.argv[1:]
    value = {"a": np.full((64, 1024), 1.0), "b": np.full(1000, 1, np.int64), "n": 1}
    checkpoint.save(path, extra=value)

    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(file, arrays, metadata):
        class Half:
            left = 200_000
            def write(self, content):
                file.write(content[: self.left])
                self.left -= len(content)
                if self.left <= 0:
                    file.flush()
                    die()
        write(Half(), arrays, metadata)

    write, fsync, replace = _safetensors.write, os.fsync, os.replace
    if where == "write":
        _safetensors.write = write_half
    elif where == "fsync":
        os.fsync = die
    elif where == "before replace":
        os.replace = die
    elif where == "after replace":
        os.replace = lambda *args: (replace(*args), die())
    new = {"a": np.full((64, 1024), 2.0), "b": np.full(1000, 2, np.int64), "n": 2}
    checkpoint.save(path, extra=new)
"""

LOOP = """
    import sys
    import numpy as np
    from fastopt import checkpoint

    k = 0
    while True:
        k += 1
        checkpoint.save(sys.argv[1], extra={"a": np.full(400_000, float(k)), "b": np.full(1000, k), "n": k})
        print(k, flush=True)
"""


def is_whole(extra):
    return bool(np.all(extra["a"] == extra["n"]) and np.all(extra["b"] == extra["n"]))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize(
    ("where", "version"), [("write", 1), ("fsync", 1), ("before replace", 1), ("after replace", 2)]
)
def test_killed_at(path, where, version):
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(CHILD), path, where], check=False)
    assert child.returncode == -signal.SIGKILL
    extra = checkpoint.load(path)["extra"]
    assert extra["n"] == version
    assert is_whole(extra)
    checkpoint.save(path, extra="next")  # what the killed one left behind is not in the way
    assert checkpoint.load(path)["extra"] == "next"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_at_any_moment(path):
    rng = np.random.default_rng(0)
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(LOOP), path], stdout=subprocess.PIPE, text=True
        )
        first = child.stdout.readline()
        time.sleep(rng.uniform(0, 0.03))
        child.kill()
        seen = [int(line) for line in (first + child.stdout.read()).split()]
        child.wait()
        child.stdout.close()
        extra = checkpoint.load(path)["extra"]
        assert is_whole(extra)
        assert extra["n"] in (seen[-1], seen[-1] + 1)


# ------------------------------------------------------------------------------- loading into objects


def make_run(seed, hidden=16, optimizer="adam", scheduler=True):
    """Model with dropout, optimizer, scheduler and loader, all random from ``seed``."""
    _random.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, 3))
    make = {
        "adam": lambda: optim.Adam(model.parameters(), lr=0.01, amsgrad=True),
        "sgd": lambda: optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
        "nadam": lambda: optim.NAdam(model.parameters(), lr=0.01, weight_decay=1e-3),
        "rmsprop": lambda: optim.RMSprop(model.parameters(), lr=0.01, momentum=0.5, centered=True),
        "adadelta": lambda: optim.Adadelta(model.parameters()),
        "ema": lambda: optim.AdamW(model.parameters(), lr=0.01, ema_decay=0.9, max_norm=1.0),
    }
    opt = make[optimizer]()
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 3, 50)
    return {
        "model": model,
        "optimizer": opt,
        "scheduler": lr_scheduler.CosineAnnealingLR(opt, T_max=30) if scheduler else None,
        "loader": DataLoader(x, y, batch_size=7, shuffle=True),
    }


def train(run, steps):
    """Take ``steps`` steps, through as many epochs as that needs; return the losses."""
    losses, loss_fn = [], nn.CrossEntropyLoss()
    while len(losses) < steps:
        for xb, yb in run["loader"]:
            run["optimizer"].zero_grad()
            loss = loss_fn(run["model"](xb), yb)
            loss.backward()
            run["optimizer"].step()
            if run["scheduler"] is not None:
                run["scheduler"].step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    return losses


def everything(run, path):
    """Every bit of a run's state."""
    checkpoint.save(path, **run)
    return checkpoint.read(path)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "nadam", "rmsprop", "adadelta", "ema"])
@pytest.mark.parametrize("stop", [0, 1, 8, 13])
def test_resume_is_bit_identical(path, tmp_path, optimizer, stop):
    unbroken = make_run(1, optimizer=optimizer)
    expected = train(unbroken, 20)

    broken = make_run(1, optimizer=optimizer)
    losses = train(broken, stop)
    checkpoint.save(path, **broken, epoch=stop, extra={"losses": losses})
    resumed = make_run(2, optimizer=optimizer)
    train(resumed, 3)  # state of its own, all to be replaced
    back = checkpoint.load(path, **resumed)
    assert back == {"epoch": stop, "extra": {"losses": losses}}
    losses += train(resumed, 20 - stop)
    assert losses == expected
    assert same(everything(resumed, tmp_path / "a"), everything(unbroken, tmp_path / "b"))


def test_loaded_state_does_not_alias(path):
    run = make_run(1)
    train(run, 2)
    checkpoint.save(path, **run)
    weight = next(iter(run["model"].parameters())).data
    train(run, 2)
    checkpoint.load(path, **run)
    assert next(iter(run["model"].parameters())).data is weight  # views that others hold stay true


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: {**run, "model": make_run(3, hidden=17)["model"]},
            r"model\['0.weight'\] has shape \(17, 6\), .* \(16, 6\)",
        ),
        (
            lambda run: {**run, "model": nn.Sequential(nn.Linear(6, 16))},
            r"unexpected \['3.weight', '3.bias'\]",
        ),
        (lambda run: {**run, "optimizer": make_run(3, hidden=17)["optimizer"]}, "shape|size"),
        (lambda run: {**run, "optimizer": optim.Adam(list(run["model"].parameters())[:2])}, "param"),
        (lambda run: {**run, "scheduler": Holder({}, ValueError("scheduler refuses"))}, "scheduler refuses"),
        (
            lambda run: {**run, "loader": DataLoader(np.zeros((2, 6)), batch_size=2)},
            "batch is 5, this loader has 1",
        ),
    ],
    ids=["model shape", "model keys", "optimizer shape", "optimizer groups", "scheduler", "loader"],
)
def test_a_refused_load_changes_nothing(path, tmp_path, change, message):
    saved = make_run(1)
    train(saved, 5)
    checkpoint.save(path, **saved)
    run = make_run(2)
    train(run, 3)
    run = change(run)
    before = everything(run, tmp_path / "before")
    with pytest.raises((ValueError, KeyError), match=message):
        checkpoint.load(path, **run)
    assert same(everything(run, tmp_path / "after"), before)


def test_part_that_was_not_saved(path):
    checkpoint.save(path, model=Holder({"w": np.ones(2)}), rng=False, epoch=4)
    optimizer = Holder({})
    with pytest.raises(ValueError, match=r"holds no optimizer, only epoch, extra, model"):
        checkpoint.load(path, optimizer=optimizer)
    assert checkpoint.load(path) == {"epoch": 4, "extra": None}


def test_model_dtype_must_fit(path):
    checkpoint.save(path, model=Holder({"w": np.ones(2)}))
    with pytest.raises(ValueError, match=r"model\['w'\] has dtype float32, .* has float64"):
        checkpoint.load(path, model=Holder({"w": np.ones(2, np.float32)}))


def test_rng_is_optional(path):
    _random.manual_seed(7)
    checkpoint.save(path)
    expected = _random.generator().normal(size=4)
    checkpoint.load(path, rng=False)
    assert not np.array_equal(_random.generator().normal(size=4), expected)
    checkpoint.load(path)
    np.testing.assert_array_equal(_random.generator().normal(size=4), expected)


def test_one_object(path):
    model = nn.Linear(2, 3)
    fastopt.save({"model": model.state_dict(), "best": (3, 0.5), "loss": Tensor(2.5)}, path)
    loaded = fastopt.load(path)
    assert (loaded["best"], loaded["loss"].item()) == ((3, 0.5), 2.5)
    other = nn.Linear(2, 3)
    other.load_state_dict(loaded["model"])
    np.testing.assert_array_equal(other.weight.data, model.weight.data)
    checkpoint.save(path, model=model)
    with pytest.raises(ValueError, match=r"a training run \(model, rng\): load it with checkpoint.load"):
        fastopt.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"model.0.weight":', b'"model.0.weighu":', "damaged checkpoint"),
        (
            rb"{\"__array__\":\"model.0.bias\"}",
            rb"[\"__array__\",\"model.0.bias\"]",
            "model['0.bias'] is no array",
        ),
        (rb"\"epoch\":null", rb"\"epoco\":null", "no epoch"),
        (rb"\"base_lrs\"", rb"\"bbse_lrs\"", "load: scheduler in"),
        (rb"\"params\"", rb"\"parbms\"", "params"),
        (rb"\"0.weight\"", rb"\"0.weighu\"", "missing ['0.weight'], unexpected ['0.weighu']"),
    ],
)
def test_a_damaged_state_is_refused_whole(path, tmp_path, old, new, message):
    run = make_run(1)
    train(run, 3)
    checkpoint.save(path, **run)
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    train(run, 2)
    before = everything(run, tmp_path / "before")
    with pytest.raises(ValueError, match=re.escape(message)):
        checkpoint.load(path, **run)
    assert same(everything(run, tmp_path / "after"), before)
