"""The HIP runtime by ctypes: the part of it that is like the CUDA driver."""
from __future__ import annotations

import ctypes
import re
from functools import lru_cache

from tilelang.backends.hip import libraries
from tilelang.backends.hip.target import for_device
from tilelang.backends.simt import driver as simt
from tilelang.errors import TargetError

MAX_THREADS_X = (1 << 32) - 1
"""Threads along the first extent of a grid, which HIP counts in 32 bits."""
_MULTIPROCESSORS = 63  # hipDeviceAttribute_t
_LIBRARY = "libamdhip64.so"
EXPORTED = simt.Exported(
    10, lambda threads: MAX_THREADS_X // threads, [*(f"{_LIBRARY}{v}" for v in libraries.VERSIONS[:3]), _LIBRARY],
    _MULTIPROCESSORS, {}, ".hsaco")
_PROPERTIES = "hipGetDevicePropertiesR0600", "hipGetDeviceProperties"
"""Each fills another structure; before ROCm 6 there is only the second."""


class Driver(simt.Driver):
    """The library. Raises TargetError where it cannot be loaded."""

    names = simt.Names("hipInit", "hipModuleLoadData", "hipModuleGetFunction", "hipMalloc", "hipFree",
                       "hipMemcpyHtoD", "hipMemcpyDtoH", "hipModuleLaunchKernel", "hipGetDevice", "hipSetDevice")
    hints = {
        2: "free memory of the device",
        100: "run where there is an AMD GPU, as a user who may open /dev/kfd",
        101: "run where there is an AMD GPU of that number",
        209: "name the architecture of this device, or let tilelang find it: TILELANG_TARGET=hip",
        700: "python -m tilelang check FILE:KERNEL shows where; the process must start anew",
        701: "smaller tiles or fewer stages: a block asks for more than a compute unit has",
        719: "an assertion of a kernel may have failed; the process must start anew",
        900: "call the kernel once before the capture: the first call of a kind loads machine code",
    }

    def __init__(self) -> None:
        found = libraries.load(_LIBRARY, "hipModuleLaunchKernel")
        if found is None:
            raise TargetError("running on a GPU needs AMD's HIP runtime, which was not found",
                              needs="libamdhip64.so in the process, with torch, in $ROCM_PATH/lib, in /opt/rocm/lib, "
                              "or known to the loader", got="none of them",
                              try_='tile.target("emulate:hip:gfx942") runs the same text on the CPU')
        for name in ("hipGetErrorName", "hipGetErrorString"):
            getattr(found.library, name).restype = ctypes.c_char_p
        super().__init__(found.library)

    def describe(self, code: int) -> tuple[str, str]:
        return self.library.hipGetErrorName(code).decode(), self.library.hipGetErrorString(code).decode()

    def open(self, ordinal: int) -> Device:
        return Device(self, ordinal)


class Device(simt.Device):
    """A GPU; what HIP calls its primary context is made at its first use."""

    cell = ctypes.c_int

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver, self.ordinal, self.own = driver, ordinal, ordinal
        value, properties = ctypes.c_int(), ctypes.create_string_buffer(1 << 14)
        # The structure grows with every release, and its fields move: the name is found by what it looks like.
        query = next(name for name in _PROPERTIES if hasattr(driver.library, name))
        driver.call(query, properties, ordinal)
        found = re.search(rb"gfx[0-9a-f]+(?=[:\0])", properties.raw)
        self.arch = found[0].decode() if found else "a processor without a name"
        driver.call("hipDeviceGetAttribute", ctypes.byref(value), _MULTIPROCESSORS, ordinal)
        self.multiprocessors = value.value

    @property
    def target(self) -> str:
        return for_device(self.arch)

    def runs(self, name: str) -> bool:
        return name == f"hip:{self.arch}"

    def allow(self, function: ctypes.c_void_p, shared_bytes: int) -> None:
        """Every kernel may have all there is."""


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The process's runtime."""
    return Driver()
