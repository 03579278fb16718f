"""How much GPU memory processes hold, as NVIDIA's management library (NVML) says.

Loaded by a monitor only when a call was given a GPU: it makes no CUDA context and starts no thread.  NVML names
processes as the node's outermost PID namespace does; inside a container that hides it, nothing is found.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection

LIBRARY = "libnvidia-ml.so.1"
_TOO_SMALL = 7  # NVML_ERROR_INSUFFICIENT_SIZE
_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


class _Process(ctypes.Structure):
    """``nvmlProcessInfo_t`` since version 2 of the call that fills it."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Gpus:
    """All GPUs of this node.  OSError where there is no NVML, or it does not work."""

    def __init__(self, library: str = LIBRARY) -> None:
        before = set(os.listdir("/proc/self/fd"))
        self._nvml = nvml = ctypes.CDLL(library)
        self._list = next((found for version in (3, 2) if (found := getattr(nvml, f"{_LIST}_v{version}", None))), None)
        if self._list is None:
            raise OSError(f"{library} is too old to list processes")
        self._list.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p)
        nvml.nvmlDeviceGetHandleByIndex_v2.argtypes = (ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p))
        count = ctypes.c_uint()
        if code := nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            raise OSError(f"{library} does not work here (error {code})")
        self._devices = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0:
                self._devices.append(device)
        self._room = 64
        self.descriptors = [int(fd) for fd in set(os.listdir("/proc/self/fd")) - before if _is_device(fd)]

    def used(self, pids: Collection[int]) -> int:
        """Bytes that these processes hold, on all GPUs together."""
        return sum(bytes_ for device in self._devices for pid, bytes_ in self._processes(device) if pid in pids)

    def _processes(self, device: ctypes.c_void_p) -> list[tuple[int, int]]:
        assert self._list is not None
        while True:
            count, found = ctypes.c_uint(self._room), (_Process * self._room)()
            code = self._list(device, ctypes.byref(count), found)
            if code != _TOO_SMALL:
                break
            self._room = max(2 * self._room, count.value)
        if code:
            return []
        return [(one.pid, one.used) for one in found[: count.value] if one.used != _UNKNOWN]


_LIST = "nvmlDeviceGetComputeRunningProcesses"


def _is_device(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/")
    except OSError:
        return False


def find() -> Gpus | None:
    try:
        return Gpus()
    except (OSError, AttributeError):
        return None
