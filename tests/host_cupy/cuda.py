"""cupy.cuda over the host: one device, streams in whose order everything has already happened."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import SimpleNamespace
from typing import Any

_local = threading.local()


def _host_call(name: str, *handles: int) -> int:
    """Call a function of the kernels over host memory that takes handles and returns one, or an error."""
    function = getattr(ctypes.CDLL(sys.modules["fastopt._cuda"].__file__), f"host_cuda_{name}")
    function.restype = ctypes.c_void_p
    return function(*map(ctypes.c_void_p, handles)) or 0


class CUDARuntimeError(RuntimeError):
    """What the driver refuses."""


class _BaseStream:
    """A stream by its handle."""

    def __init__(self, ptr: int, device_id: int = 0) -> None:
        self.ptr = ptr
        self.device_id = device_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BaseStream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr

    def _stack(self) -> list[_BaseStream]:
        if not hasattr(_local, "streams"):
            _local.streams = [_BaseStream(0)]
        return _local.streams

    def use(self) -> _BaseStream:
        self._stack()[-1] = self
        return self

    def __enter__(self) -> _BaseStream:
        self._stack().append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack().pop()

    done = True

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    def record(self, event: Event | None = None) -> Event:
        return Event() if event is None else event

    def wait_event(self, event: Event) -> None:
        """Nothing is left to wait for."""

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        _host_call("begin_capture", self.ptr)

    def end_capture(self) -> Graph:
        handle = _host_call("end_capture", self.ptr)
        if not handle:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture"
            )
        return Graph(handle)

    def is_capturing(self) -> bool:
        return bool(self.ptr and sys.modules["fastopt._cuda"].is_capturing(self.ptr))


class Stream(_BaseStream):
    """A stream of its own; its handle is the address of memory that nothing else has."""

    null: _BaseStream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self._memory = ctypes.create_string_buffer(4096)
        super().__init__(0 if null else ctypes.addressof(self._memory))


Stream.null = _BaseStream(0)


class ExternalStream(_BaseStream):
    """Another library's stream."""


class Graph:
    """What was captured of our kernels; CuPy's own operations ran at once and are no part of it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def launch(self, stream: Any = None) -> None:
        _host_call("launch_graph", self._handle, (stream or get_current_stream()).ptr)

    def upload(self, stream: Any = None) -> None:
        """A graph is where it runs."""

    def __del__(self) -> None:
        if "fastopt._cuda" in sys.modules:
            _host_call("free_graph", self._handle)


class Event:
    """A point in a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.ptr = id(self)

    done = True

    def record(self, stream: Any = None) -> None:
        """Everything before it has happened."""

    def synchronize(self) -> None:
        """Nothing is left to wait for."""


def get_elapsed_time(start: Event, end: Event) -> float:
    """No time passes: only a device's clock would say how much."""
    return 0.0


def get_current_stream(device_id: int = -1) -> _BaseStream:
    return Stream.null._stack()[-1]


class Device:
    """The one device."""

    def __init__(self, device: int | None = None) -> None:
        self.id = int(device or 0)
        if self.id != 0:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    compute_capability = "90"

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: Any) -> None:
        """The device stays the current one."""

    def use(self) -> Device:
        return self

    def synchronize(self) -> None:
        """Nothing is left to wait for."""


def is_available() -> bool:
    return True


def alloc_pinned_memory(size: int) -> Any:
    """Memory with a buffer's interface; all of the host's is the device's."""
    return (ctypes.c_char * size)()


def _set_device(device: int) -> None:
    Device(device)


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    is_hip=False,
    getDeviceCount=lambda: 1,
    getDevice=lambda: 0,
    setDevice=_set_device,
    deviceSynchronize=lambda: None,
    streamSynchronize=lambda ptr: None,
    getDeviceProperties=lambda device: {"name": b"host", "major": 9, "minor": 0, "multiProcessorCount": 1},
    runtimeGetVersion=lambda: 13000,
    driverGetVersion=lambda: 13000,
)
