"""Training runs on a GPU: batches gathered there, checkpoints from and to every device, the command line."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo
import host_gpu
from cli_helpers import must_fail
from fastopt import _device, _safetensors, _train, checkpoint
from fastopt.cli import main
from fastopt.data import DataLoader, TensorDataset
from gpu_tools import assert_same_bits, cp, drawn, dtypes, kind

__all__ = ["cp", "kind"]

ROWS = 23


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    return drawn((ROWS, 3), np.float32, 1), np.arange(ROWS)


# ----------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_of_the_host(cp: Any, shuffle: bool, drop_last: bool) -> None:
    x, y = _arrays()
    options = {"batch_size": 5, "shuffle": shuffle, "drop_last": drop_last, "seed": 4}
    host, device = DataLoader(x, y, **options), DataLoader(cp.asarray(x), cp.asarray(y), **options)
    for _ in range(2):
        pairs = list(zip(host, device, strict=True))
        assert len(pairs) == (4 if drop_last else 5)
        for (xh, yh), (xd, yd) in pairs:
            assert type(xd) is type(yd) is cp.ndarray
            assert_same_bits(xd, xh)
            assert_same_bits(yd, yh)


def test_batches_in_order_are_views_and_shuffled_ones_are_not(cp: Any) -> None:
    x = cp.asarray(_arrays()[0])
    next(iter(DataLoader(x, batch_size=4)))[...] = 0
    assert float(abs(x[:4]).max()) == 0
    next(iter(DataLoader(x, batch_size=ROWS, shuffle=True, seed=0)))[...] = 1
    assert float(abs(x[:4]).max()) == 0


def test_tensors_on_the_device_give_tensors_there(cp: Any) -> None:
    x, y = _arrays()
    data = TensorDataset(fo.tensor(x).to("cuda"), cp.asarray(y))
    xb, yb = next(iter(DataLoader(data, batch_size=6, shuffle=True, seed=2)))
    expected = next(iter(DataLoader(x, y, batch_size=6, shuffle=True, seed=2)))
    assert isinstance(xb, fo.Tensor)
    assert_same_bits(xb.data, expected[0])
    assert_same_bits(yb, expected[1])


def test_host_and_device_arrays_stay_together(cp: Any) -> None:
    x, y = _arrays()
    for xb, yb in DataLoader(cp.asarray(x), y, batch_size=4, shuffle=True, seed=1):
        assert isinstance(yb, np.ndarray)
        np.testing.assert_array_equal(xb.get(), x[yb])


@pytest.mark.parametrize("dtype", dtypes("float32", "bfloat16"), ids=str)
def test_torch_batches_are_torch_tensors(cp: Any, kind: str, dtype: np.dtype) -> None:
    torch = pytest.importorskip("torch")
    x = _arrays()[0].astype(dtype)
    tensor = host_gpu.torch_tensor(kind, x)
    for shuffle in (False, True):
        got = list(DataLoader(tensor, batch_size=5, shuffle=shuffle, seed=3))
        expected = list(DataLoader(x, batch_size=5, shuffle=shuffle, seed=3))
        assert all(isinstance(part, torch.Tensor) for part in got)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a.float().cpu().numpy(), b.astype(np.float32))


def test_the_loader_refuses_device_arrays_of_other_lengths(cp: Any) -> None:
    with pytest.raises(ValueError, match=r"array 1 has 4 rows, array 0 has 5"):
        DataLoader(cp.zeros((5, 2)), cp.zeros(4))


# ------------------------------------------------------------------------------------------- checkpoints


def _trained(device: str, steps: int = 3, seed: int = 5) -> tuple[Any, Any]:
    fo.manual_seed(seed)
    model = fo.nn.Sequential(fo.nn.Linear(3, 4), fo.nn.Tanh(), fo.nn.Linear(4, 2)).to(device)
    opt = fo.optim.Adam(model.parameters(), lr=0.05, amsgrad=True)
    _go_on(model, opt, device, steps)
    return model, opt


def _go_on(model: Any, opt: Any, device: str, steps: int) -> None:
    x = fo.tensor(_arrays()[0]).to(device)
    for _ in range(steps):
        opt.zero_grad()
        (model(x) ** 2).mean().backward()
        opt.step()


def _state(model: Any, opt: Any) -> list[Any]:
    entries = [entry[key] for entry in opt.state_dict()["state"].values() for key in sorted(entry)]
    return [p.data for p in model.parameters()] + [e for e in entries if getattr(e, "shape", ())]


def _host(a: Any) -> np.ndarray:
    return a.get() if hasattr(a, "get") else np.asarray(a)


@pytest.mark.parametrize(("here", "there"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_checkpoints_go_across_devices(cp: Any, tmp_path: Path, here: str, there: str) -> None:
    path = tmp_path / "run.safetensors"
    model, opt = _trained(here)
    checkpoint.save(path, model=model, optimizer=opt, epoch=3)
    other, its_opt = _trained(there, steps=1, seed=6)
    assert checkpoint.load(path, model=other, optimizer=its_opt)["epoch"] == 3
    expected = cp.ndarray if there == "cuda" else np.ndarray
    state = _state(other, its_opt)
    assert {type(a) for a in state} == {expected}
    for a, b in zip(state, _state(model, opt), strict=True):
        np.testing.assert_array_equal(_host(a), _host(b))
    _go_on(model, opt, here, 2)
    _go_on(other, its_opt, there, 2)
    exact = here == there
    for a, b in zip(_state(other, its_opt), _state(model, opt), strict=True):
        np.testing.assert_allclose(_host(a), _host(b), rtol=0 if exact else 1e-4, atol=0 if exact else 1e-6)


def test_a_file_from_the_device_is_that_of_the_host(cp: Any, tmp_path: Path) -> None:
    model, _ = _trained("cpu")
    for device in ("cpu", "cuda"):
        checkpoint.save(tmp_path / device, model=model.to(device), rng=False)
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "cuda").read_bytes()


def test_device_arrays_that_a_checkpoint_cannot_hold_or_fit(cp: Any, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(TypeError, match=r"extra\.z has dtype complex64"):
        checkpoint.save(path, extra={"z": cp.zeros(2, np.complex64)})
    assert not path.exists()
    checkpoint.save(path, model=fo.nn.Linear(3, 2))
    wide = fo.nn.Linear(4, 2).to("cuda")
    before = _host(wide.weight.data)
    with pytest.raises(ValueError, match=r"model\['weight'\] has shape \(2, 4\), .* has \(2, 3\)"):
        checkpoint.load(path, model=wide)
    np.testing.assert_array_equal(_host(wide.weight.data), before)


@pytest.mark.parametrize("dtype", dtypes("float32", "float64", "float16", "bfloat16"), ids=str)
def test_arrays_of_every_dtype_and_layout_are_saved(cp: Any, tmp_path: Path, dtype: np.dtype) -> None:
    a = drawn((4, 6), np.float32, 7).astype(dtype)
    for part in (a, a.T, a[::2, 1:4]):
        stored = cp.asarray(a)
        there = {6: stored.T, 4: stored}.get(len(part), stored[::2, 1:4])
        fo.save({"a": there}, tmp_path / "a")
        assert_same_bits(fo.load(tmp_path / "a")["a"], part)


@pytest.mark.parametrize("dtype", dtypes("float32", "bfloat16"), ids=str)
def test_torch_tensors_of_the_device_are_saved(cp: Any, kind: str, tmp_path: Path, dtype: np.dtype) -> None:
    pytest.importorskip("torch")
    a = drawn(5, np.float32, 8).astype(dtype)
    fo.save({"a": host_gpu.torch_tensor(kind, a)}, tmp_path / "a")
    assert_same_bits(fo.load(tmp_path / "a")["a"], a)
    assert _safetensors.can_hold(_device.device_view(host_gpu.torch_tensor(kind, a), "a"))


# -------------------------------------------------------------------------------------- the command line


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    centres = np.array([[0, 2, 0, 1], [2, 0, 0, 1], [0, 0, 2, 1]])
    np.savez(tmp_path / "t.npz", x=(rng.normal(size=(150, 4)) * 0.4 + centres[y]).astype(np.float32), y=y)
    return tmp_path / "t.npz"


def _result(capsys: pytest.CaptureFixture[str], *argv: Any) -> dict[str, Any]:
    code = main([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "adam"],
        ["--optimizer", "sgd", "--scheduler", "onecycle", "--activation", "gelu"],
        ["--optimizer", "adamw", "--dropout", "0.2", "--hidden", "8,8", "--scheduler", "plateau"],
    ],
    ids=lambda options: options[1],
)
def test_a_run_on_the_device_follows_the_cpu(
    cp: Any, capsys: pytest.CaptureFixture[str], problem: Path, options: list[str]
) -> None:
    argv = ["train", problem, "--epochs", 4, "--batch-size", 32, *options]
    host, device = (_result(capsys, *argv, "--device", name) for name in ("cpu", "cuda"))
    assert (host["device"], device["device"]) == ("cpu", "cuda:0")
    assert device["train_loss"] == pytest.approx(host["train_loss"], rel=1e-4)
    assert device["test_loss"] == pytest.approx(host["test_loss"], rel=1e-4)
    assert abs(device["test_accuracy"] - host["test_accuracy"]) <= 1 / 30
    assert device["train_seconds"] > 0


def test_a_run_computes_on_the_device(cp: Any, problem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(problem), "--epochs", "2", "--device", "cuda:0"]) == 0
    out = capsys.readouterr().out
    assert "batch 64; cuda:0\n" in out
    assert "confusion on the test set" in out


@pytest.mark.parametrize(("here", "there"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_is_resumed_on_any_device(
    cp: Any, problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], here: str, there: str
) -> None:
    save = tmp_path / "m.safetensors"
    argv = ["train", problem, "--batch-size", 32, "--hidden", 8, "--lr", 0.05]
    whole = _result(capsys, *argv, "--epochs", 4, "--device", here)
    _result(capsys, *argv, "--epochs", 2, "--device", here, "--save", save)
    resumed = _result(capsys, "train", "--resume", save, "--epochs", 4, "--device", there)
    assert resumed["epochs"] == 4
    assert resumed["train_loss"] == pytest.approx(whole["train_loss"], rel=0 if here == there else 1e-4)
    assert main(["predict", str(save), str(problem), "--out", str(tmp_path / "p.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.8


def test_a_device_that_is_not_there(cp: Any, problem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = must_fail(capsys, "train", problem, "--device", "cuda:99")
    assert line.startswith("fastopt train: error: --device: device is 'cuda:99', the number of CUDA devices")


def test_cupy_that_is_not_there(
    cp: Any, kind: str, problem: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "device":
        pytest.skip("CuPy is in use")
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(_device, "_libraries", {})
    for name in ("cuda", "cuda:0"):
        line = must_fail(capsys, "train", problem, "--device", name)
        expected = f"--device {name}: Tensors on a GPU need CuPy: pip install 'fastopt[cuda13]'\n"
        assert line == f"fastopt train: error: {expected}"


@pytest.mark.parametrize("name", ["DeviceError", "MissingLibrary"])
def test_what_a_device_lacks_is_told_in_a_line(
    cp: Any, problem: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def run(*_: Any) -> None:
        raise getattr(_device.native(), name)("there are no 8 bytes of device memory")

    monkeypatch.setattr(_train.Trainer, "run", run)
    assert main(["train", str(problem), "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "fastopt train: error: there are no 8 bytes of device memory\n"
    monkeypatch.setattr(_train.Trainer, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["train", str(problem), "--device", "cuda"])


def test_info_knows_the_module(cp: Any, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = _result(capsys, "info")["gpu"]
    assert gpu["available"] is True
    assert gpu["reason"] is None
    assert gpu["architectures"] == "host" if kind == "host" else gpu["architectures"]
    assert main(["info"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["cuda"].startswith(f"kernels {gpu['architectures']}; driver ")


def test_a_loss_that_is_not_finite_is_told(
    cp: Any, problem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", str(problem), "--optimizer", "sgd", "--lr", "1e30", "--epochs", "9", "--device", "cuda"]
    assert main(argv) == 2
    assert "try a smaller --lr than 1e+30" in capsys.readouterr().err


def test_the_monitor_measures_on_the_device(
    cp: Any, problem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", problem, "--epochs", 3, "--hidden", "8,8", "--dropout", 0.2, "--monitor"]
    host, device = (_result(capsys, *argv, "--device", name)["gradients"] for name in ("cpu", "cuda"))
    assert [layer["name"] for layer in device["layers"]] == [layer["name"] for layer in host["layers"]]
    for ours, theirs in zip(device["layers"], host["layers"], strict=True):
        assert ours["verdict"] == theirs["verdict"] == "ok"
        for key in ("gradient", "weight", "ratio"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3)


def test_optimizers_are_compared_on_the_device(
    cp: Any, problem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [problem, "--epochs", 3, "--dropout", 0.2, "--device", "cuda"]
    rows = _result(capsys, "compare", *options, "--optimizers", "adam,lion")["runs"]
    for row in rows:
        alone = _result(capsys, "train", *options, "--optimizer", row["name"])
        assert row["train_loss"] == alone["train_loss"]
        assert row["test_loss"] == alone["test_loss"]


def test_a_run_on_the_device_is_stopped_within_an_epoch(
    cp: Any,
    problem: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = tmp_path / "m.safetensors"
    argv = ["train", problem, "--epochs", 4, "--batch-size", 4, "--dropout", 0.2, "--device", "cuda"]
    whole = _result(capsys, *argv)
    gave = DataLoader.gave

    def interrupted(self: DataLoader, batches: int) -> None:
        if self.epoch == 1 and batches > 2:
            signal.raise_signal(signal.SIGINT)
        gave(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(DataLoader, "gave", interrupted)
        assert main([*map(str, argv), "--save", str(save)]) == 130
    assert " of 30 batches after epoch 1, is " in capsys.readouterr().err
    resumed = _result(capsys, "train", "--resume", save, "--device", "cuda")
    for key in ("epochs", "train_loss", "test_loss", "test_accuracy"):
        assert resumed[key] == whole[key]
