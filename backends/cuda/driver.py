"""The CUDA driver by ctypes."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from tilelang.backends.cuda.target import for_device, runs
from tilelang.backends.simt import driver as simt
from tilelang.backends.simt.driver import MAP, MAP_ALIGN
from tilelang.errors import TargetError

LIBRARY = "libcuda.so.1"
MAX_GRID_X = (1 << 31) - 1
_MAJOR, _MINOR, _MULTIPROCESSORS = 75, 76, 16  # CUdevice_attribute
_MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
_MAP_TYPES = {1: 0, 2: 1, 4: 2, 8: 4}  # CUtensorMapDataType: unsigned integers of so many bytes
_MAP_F32 = 7
_PROMOTE_128 = 2  # CUtensorMapL2promotion
_STRIDE = 16
"""A stride of a dimension of one element, which may be anything that a map can say."""
_OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_FREE_SHARED = 48 << 10
"""Dynamic shared memory a kernel may have without asking for it."""


def _map_numbers(size: int, swizzle: int, floats: bool) -> tuple[int, int]:
    """CUtensorMapDataType and CUtensorMapSwizzle."""
    return _MAP_F32 if floats else _MAP_TYPES[size], swizzle.bit_length() - 5 if swizzle else 0


EXPORTED = simt.Exported(2, [LIBRARY], _MULTIPROCESSORS, {
    "TL_MAP_STRIDE": _STRIDE, "TL_MAP_PROMOTION": _PROMOTE_128,
    "TL_FREE_SHARED": _FREE_SHARED, "TL_MAX_DYNAMIC_SHARED": _MAX_DYNAMIC_SHARED, "TL_OVERLAP": _OVERLAP}, ".cubin",
    _map_numbers)


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("number", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (*((name, ctypes.c_uint) for name in ("x", "y", "z", "threads", "threads_y", "threads_z", "shared")),
                ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint))


class Driver(simt.Driver):
    """The library. Raises TargetError where it cannot be loaded."""

    names = simt.Names("cuInit", "cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc_v2", "cuMemFree_v2",
                       "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2", "cuLaunchKernel", "cuCtxGetCurrent")
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
        handle, self.context = ctypes.c_int(), ctypes.c_void_p()
        driver.call("cuDeviceGet", ctypes.byref(handle), ordinal)

        def attribute(number: int) -> int:
            value = ctypes.c_int()
            driver.call("cuDeviceGetAttribute", ctypes.byref(value), number, handle)
            return value.value
        self.capability = attribute(_MAJOR), attribute(_MINOR)
        self.multiprocessors = attribute(_MULTIPROCESSORS)
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), handle)
        self.own = self.context.value

    @property
    def target(self) -> str:
        return for_device(*self.capability)

    def runs(self, name: str) -> bool:
        return runs(name, *self.capability)

    @contextmanager
    def current(self) -> Iterator[None]:
        self.driver.call("cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            self.driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def overlapping(self, function: ctypes.c_void_p, threads: int, shared_bytes: int, stream: ctypes.c_void_p,
                    params: Any) -> Callable[[int, int], int]:
        attribute = _Attribute(_OVERLAP, 0, (1,))
        config = _Config(1, 1, 1, threads, 1, 1, shared_bytes, None, ctypes.pointer(attribute), 1)
        at, start = ctypes.byref(config), self.driver.library.cuLaunchKernelEx

        def launch(x: int, y: int) -> int:
            config.x, config.y, config.stream = x, y, stream.value
            return int(start(at, function, params, None))
        return launch

    def tensor_map(self, address: int, size: int, extents: Sequence[int], strides: Sequence[int],
                   boxes: Sequence[int], swizzle: int, floats: bool = False) -> bytes:
        rank, wide, (kind, permutation) = len(extents), ctypes.c_uint64, _map_numbers(size, swizzle, floats)
        narrow = ctypes.c_uint32 * rank
        room = ctypes.create_string_buffer(2 * MAP)
        at = -ctypes.addressof(room) % MAP_ALIGN
        steps = [stride if n > 1 else _STRIDE for n, stride in zip(extents, strides, strict=True)][1:]
        self.driver.call("cuTensorMapEncodeTiled", ctypes.byref(room, at), kind, rank, wide(address),
                         (wide * rank)(*extents), (wide * max(rank - 1, 1))(*steps), narrow(*boxes),
                         narrow(*[1] * rank), 0, permutation, _PROMOTE_128, 0)
        return room.raw[at:at + MAP]

    def widest(self, threads: int) -> int:
        return MAX_GRID_X

    def allow(self, function: ctypes.c_void_p, shared_bytes: int) -> None:
        if shared_bytes > _FREE_SHARED:
            self.driver.call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared_bytes)


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The process's driver."""
    return Driver(LIBRARY)
