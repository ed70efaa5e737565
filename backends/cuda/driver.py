"""The CUDA driver by ctypes: devices, machine code loaded on them, memory, and errors in words."""
from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from tilelang.backends.cuda.target import for_device
from tilelang.errors import TargetError

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR, _MULTIPROCESSORS = 75, 76, 16  # CUdevice_attribute
_MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
_FREE_SHARED = 48 << 10
"""Dynamic shared memory a kernel may have without asking for it."""
_HINTS = {
    2: "free memory of the device",
    100: "run where there is an NVIDIA GPU",
    209: "name the architecture of this device, or let tilelang find it: TILELANG_TARGET=cuda",
    700: "python -m tilelang check FILE:KERNEL shows where; the process must start anew",
    701: "smaller tiles or fewer stages: a block asks for more than a multiprocessor has",
    710: "an assertion of a kernel failed: standard error has it; the process must start anew",
    716: "python -m tilelang check FILE:KERNEL shows where; the process must start anew",
    900: "call the kernel once before the capture: the first call of a kind loads machine code",
}


class Driver:
    """The library, its functions checked for errors. Raises TargetError where it cannot be loaded."""

    def __init__(self, path: str) -> None:
        try:
            self.library = ctypes.CDLL(path)
        except OSError as error:
            raise TargetError("running on a GPU needs the NVIDIA driver, which was not found", needs=path,
                              got=str(error), try_='tile.target("emulate:cuda:sm_80") runs the same text on the CPU'
                              ) from None
        self.devices: dict[int, Device] = {}
        self.call("cuInit", 0)

    def call(self, name: str, *args: object) -> None:
        """Calls a function of the driver. Raises TargetError with the error's name, and what may help."""
        if code := getattr(self.library, name)(*args):
            raise self.error(name, code)

    def error(self, name: str, code: int) -> TargetError:
        """What an error code says."""
        texts = []
        for query in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self.library, query)(code, ctypes.byref(text))
            texts.append((text.value or b"?").decode())
        return TargetError(f"{name} failed", got=f"error {code}, {texts[0]}: {texts[1]}", try_=_HINTS.get(code, ""))

    def device(self, ordinal: int = 0) -> Device:
        """The device of that number."""
        if ordinal not in self.devices:
            self.devices[ordinal] = Device(self, ordinal)
        return self.devices[ordinal]


class Device:
    """A GPU and its primary context, which it shares with torch and the CUDA runtime."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver, self.ordinal = driver, ordinal
        handle, self.context = ctypes.c_int(), ctypes.c_void_p()
        driver.call("cuDeviceGet", ctypes.byref(handle), ordinal)

        def attribute(number: int) -> int:
            value = ctypes.c_int()
            driver.call("cuDeviceGetAttribute", ctypes.byref(value), number, handle)
            return value.value
        self.capability = attribute(_MAJOR), attribute(_MINOR)
        self.multiprocessors = attribute(_MULTIPROCESSORS)
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), handle)

    @property
    def target(self) -> str:
        """The target for this device, such as "cuda:sm_90a". Raises TargetError for one that has none."""
        return for_device(*self.capability)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the device this thread's inside."""
        self.driver.call("cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            self.driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def load(self, cubin: bytes, name: str, shared_bytes: int) -> ctypes.c_void_p:
        """The function `name` of machine code, allowed `shared_bytes` of dynamic shared memory."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        with self.current():
            self.driver.call("cuModuleLoadData", ctypes.byref(module), cubin)
            self.driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            if shared_bytes > _FREE_SHARED:
                self.driver.call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared_bytes)
        return function

    @contextmanager
    def copied(self, address: int, size: int, back: bool) -> Iterator[int]:
        """Host memory on the device, as aligned as it was; copied back at the end where `back`."""
        memory, phase = ctypes.c_uint64(), address % 16
        self.driver.call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size + phase + 1))
        place, host, count = ctypes.c_uint64(memory.value + phase), ctypes.c_void_p(address), ctypes.c_size_t(size)
        try:
            if size:
                self.driver.call("cuMemcpyHtoD_v2", place, host, count)
            yield place.value
            if back and size:
                self.driver.call("cuMemcpyDtoH_v2", host, place, count)
        finally:
            self.driver.call("cuMemFree_v2", memory)


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The process's driver."""
    return Driver(LIBRARY)
