"""Arrays of CUDA devices where there is no device: what is said, and that nothing else is asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import fastopt as fo
from cli_helpers import must_fail
from fastopt import _device
from fastopt._arrays import as_view


class CudaArray:
    """What numba, say, hands over."""

    @property
    def __cuda_array_interface__(self) -> dict:
        return {"shape": (1,), "typestr": "<f4", "data": (4096, False), "version": 3}


@pytest.fixture
def no_device() -> None:
    try:
        _device.native()
    except RuntimeError:
        return
    pytest.skip("there is a device")


@pytest.mark.usefixtures("no_device")
def test_a_device_array_without_a_device_says_what_to_install() -> None:
    message = r"params\[0\] is on a CUDA device: (there is no NVIDIA driver: install|this build of fastopt has no CUDA)"
    with pytest.raises(RuntimeError, match=message):
        as_view(CudaArray(), "params[0]")
    with pytest.raises(RuntimeError, match=message):
        fo.optim.SGD([CudaArray()], lr=0.1)


@pytest.mark.usefixtures("no_device")
def test_the_command_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cuda", "cuda:1"):
        message = must_fail(capsys, "train", "digits", "--device", name)
        assert message.startswith(f"fastopt train: error: --device {name}: ")
        assert re.search("(there is no NVIDIA driver: install|this build of fastopt has no CUDA)", message)


def test_importing_and_training_on_the_cpu_loads_no_cuda_module() -> None:
    code = """
import sys
import numpy as np
import fastopt as fo
fo.optim.Adam([w := np.ones(3, np.float32)]).step([w.copy()])
fo.functional.relu(np.ones(3))
assert not {"fastopt._cuda", "cupy", "torch"} & sys.modules.keys(), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numpy_arrays_are_on_no_device() -> None:
    assert _device.device_view(np.ones(3), "x") is None
    assert not _device.on_device(np.ones(3))
    assert not _device.on_device([1.0])


def test_info_tells_what_a_gpu_takes_without_loading_it() -> None:
    code = """
import sys
from fastopt.cli import main
assert main(["info", "--json"]) == 0
assert not {"cupy", "torch"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    gpu = json.loads(done.stdout)["gpu"]
    assert set(gpu) == {"available", "reason", "devices", "driver", "architectures", "cupy", "cublaslt"}
    assert gpu["available"] == (gpu["reason"] is None)
    if gpu["available"]:
        assert gpu["devices"]
        assert gpu["architectures"]
        assert gpu["driver"]
