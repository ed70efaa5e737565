"""The CUDA driver by ctypes."""
from __future__ import annotations

import ctypes
from functools import lru_cache

from tilelang.backends.cuda.target import for_device, runs
from tilelang.backends.simt import driver as simt
from tilelang.errors import TargetError

LIBRARY = "libcuda.so.1"
MAX_GRID_X = (1 << 31) - 1
_MAJOR, _MINOR, _MULTIPROCESSORS = 75, 76, 16  # CUdevice_attribute
_MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
_MAP_TYPES = {1: 0, 2: 1, 4: 2, 8: 4}  # CUtensorMapDataType: unsigned integers of so many bytes
_MAP_F32 = 7
_FREE_SHARED = 48 << 10
"""Dynamic shared memory a kernel may have without asking for it."""


def _map_numbers(size: int, swizzle: int, floats: bool) -> tuple[int, int]:
    """CUtensorMapDataType and CUtensorMapSwizzle."""
    return _MAP_F32 if floats else _MAP_TYPES[size], swizzle.bit_length() - 5 if swizzle else 0


EXPORTED = simt.Exported(2, lambda threads: MAX_GRID_X, [LIBRARY], _MULTIPROCESSORS, {
    "TL_FREE_SHARED": _FREE_SHARED, "TL_MAX_DYNAMIC_SHARED": _MAX_DYNAMIC_SHARED}, ".cubin", _map_numbers)


class Driver(simt.Driver):
    """The library. Raises TargetError where it cannot be loaded."""

    names = simt.Names("cuInit", "cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc_v2", "cuMemFree_v2",
                       "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2", "cuLaunchKernel", "cuCtxGetCurrent", "cuCtxSetCurrent",
                       "cuLaunchKernelEx", "cuTensorMapEncodeTiled")
    hints = {
        2: "free memory of the device",
        100: "run where there is an NVIDIA GPU",
        209: "name the architecture of this device, or let tilelang find it: TILELANG_TARGET=cuda",
        700: "python -m tilelang check FILE:KERNEL shows where; the process must start anew",
        701: "smaller tiles or fewer stages: a block asks for more than a multiprocessor has",
        710: "an assertion of a kernel failed: standard error has it; the process must start anew",
        716: "python -m tilelang check FILE:KERNEL shows where; the process must start anew",
        900: "call the kernel once before the capture: the first call of a kind loads machine code",
    }

    def __init__(self, path: str) -> None:
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            raise TargetError("running on a GPU needs the NVIDIA driver, which was not found", needs=path,
                              got=str(error), try_='tile.target("emulate:cuda:sm_80") runs the same text on the CPU'
                              ) from None
        super().__init__(library)

    def describe(self, code: int) -> tuple[str, str]:
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        self.library.cuGetErrorName(code, ctypes.byref(name))
        self.library.cuGetErrorString(code, ctypes.byref(text))
        return (name.value or b"?").decode(), (text.value or b"?").decode()

    def open(self, ordinal: int) -> Device:
        return Device(self, ordinal)


class Device(simt.Device):
    """A GPU and its primary context, which it shares with torch and the CUDA runtime."""

    cell = ctypes.c_void_p

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver, self.ordinal = driver, ordinal
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        driver.call("cuDeviceGet", ctypes.byref(handle), ordinal)

        def attribute(number: int) -> int:
            value = ctypes.c_int()
            driver.call("cuDeviceGetAttribute", ctypes.byref(value), number, handle)
            return value.value
        self.capability = attribute(_MAJOR), attribute(_MINOR)
        self.multiprocessors = attribute(_MULTIPROCESSORS)
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self.own = context.value or 0

    @property
    def target(self) -> str:
        return for_device(*self.capability)

    def runs(self, name: str) -> bool:
        return runs(name, *self.capability)

    def allow(self, function: ctypes.c_void_p, shared_bytes: int) -> None:
        if shared_bytes > _FREE_SHARED:
            self.driver.call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared_bytes)


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The process's driver."""
    return Driver(LIBRARY)
