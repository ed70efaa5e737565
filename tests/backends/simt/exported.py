"""Calls exported kernels against a driver without a device: `python -m tests.backends.simt.exported FOLDER KIND`.

A process of its own, because the exported libraries find the driver by its name. Raises where something is wrong.
"""
from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from tests.backends.simt.fake import REGISTERS, FakeDriver, code_object
from tilelang.backends.cuda import occupancy as cuda
from tilelang.backends.hip import occupancy as hip
from tilelang.ir.dtypes import dtype
from tilelang.ir.packed import Packed

DLPACK = {"cuda": 2, "hip": 10}
SONAME = {"cuda": "libcuda.so.1", "hip": "libamdhip64.so.7"}
STREAM = 7000


class OnDevice:
    """An array that says it is on a GPU, for which its memory is the driver's."""

    def __init__(self, array: np.ndarray[Any, Any], kind: str, number: int = 0) -> None:
        self.array, self.device = array, (DLPACK[kind], number)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        (ctypes.c_int32 * 2).from_address(pointer(capsule, b"dltensor") + 8)[:] = self.device
        return capsule


class Exported:
    """The libraries of a folder, called with arrays."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.fake = FakeDriver(folder / "driver", kind, SONAME[kind])
        ffi = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
        for number in range(2):
            ffi.TVMFFIEnvSetStream(DLPACK[kind], number, ctypes.c_void_p(STREAM + number), None)

    def __call__(self, name: str, *args: Any, number: int = 0) -> None:
        if self.kind == "hip":  # the text of a loaded kernel begins behind this
            head = code_object(f"{name}_fn_kernel", vgpr_count=REGISTERS, sgpr_count=20)
            self.fake.library.fake_header(head, len(head))
        fn = getattr(tvm_ffi.load_module(self.folder / f"{name}.so"), name)
        fn(*(OnDevice(a, self.kind, number) if isinstance(a, np.ndarray) else a for a in args))
        if self.fake.errors:
            raise self.fake.errors[0]


def scale(call: Exported) -> None:
    for m, n in ((64, 64), (1, 4), (33, 72), (0, 8)):
        x, y = np.arange(m * n, dtype=np.float32).reshape(m, n), np.zeros((m, n), np.float32)
        call("scale", x, y, 2.5, -3)
        np.testing.assert_array_equal(y, x * 2.5 - 3)
    launches = call.fake.launches
    assert len(launches) == 3 and {x.stream for x in launches} == {STREAM} and {x.device for x in launches} == {0}
    assert call.fake.library.fake_loaded() == (1 if call.kind == "cuda" else 2)  # once, not at each call
    assert call.fake.library.fake_depth() == (0 if call.kind == "cuda" else 1)
    call("scale", x := np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32), 1.0, 0, number=1)
    assert (launches[-1].device, launches[-1].stream) == (1, STREAM + 1)
    for wrong in ((x, x, 1.0, 0), (x, x[:, :3].copy(), 1.0, 0), (x.T, x.copy(), 1.0, 0), (x, x.copy(), 1.0, 1 << 15),
                  (x[:, :3].copy(), np.zeros((4, 3), np.float32), 1.0, 0), (x.ravel(), x.copy(), 1.0, 0)):
        refused(ValueError, "scale: the arguments are not what it was compiled for", call, "scale", *wrong)
    refused(ValueError, "not what it was compiled for", call, "scale", OnDevice(x, call.kind, 0),
            OnDevice(x.copy(), call.kind, 1), 1.0, 0)
    assert len(launches) == 4
    launch = {"cuda": "cuLaunchKernel", "hip": "hipModuleLaunchKernel"}[call.kind]
    call.fake.fail(launch, 700)
    refused(RuntimeError, "scale: the launch failed: error 700, (CUDA_ERROR_ILLEGAL_ADDRESS|hipErrorIllegalAddress): "
            "what the driver says", call, "scale", x, x.copy(), 1.0, 0)
    call.fake.fail("", 0)


def refused(kind: type[Exception], text: str, call: Exported, name: str, *args: Any) -> None:
    try:
        call(name, *args)
    except kind as error:
        assert re.search(text, str(error)), error
    else:
        raise AssertionError(f"{name} took {args}")


def persistent(call: Exported) -> None:
    for n in (4, 64, 1000, 64 * 100):
        x, y = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
        call("persistent", x, y)
        np.testing.assert_array_equal(y, x + 1)
        launch = call.fake.launches[-1]
        blocks, _ = cuda.resident_blocks(86, launch.block[0], REGISTERS, 0) if call.kind == "cuda" else \
            hip.resident_blocks(64 << 10, launch.block[0], REGISTERS, 0)
        assert launch.numbers()["workers"] == 13 * blocks and launch.grid[0] == min(13 * blocks, -(-n // 64))


def counted(call: Exported) -> None:
    x = np.zeros(320, np.float32)
    for blocks in (3, 10, 0, -1):
        call("counted", x, blocks)
    np.testing.assert_array_equal(x, np.repeat([2, 1], [96, 224]))


def unpack(call: Exported) -> None:
    codes = np.random.default_rng(0).integers(0, 8, (5, 50))
    x, y = Packed.from_codes(codes, dtype("u3"), 157), np.zeros((5, 50), np.int32)
    call("unpack", x.buffer, *x.shape, *x.strides, y)
    np.testing.assert_array_equal(y, codes)


def big(call: Exported) -> None:
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    call("big", x, y)
    np.testing.assert_array_equal(y, x[::-1])
    launch = call.fake.launches[-1]
    assert launch.shared == launch.shared_limit == 64 << 10 if call.kind == "cuda" else launch.shared == 0


def overlap(call: Exported) -> None:
    x, w, y = np.arange(300, dtype=np.float32), np.full(300, 2, np.float32), np.zeros(300, np.float32)
    call("overlap", x, w, y)
    np.testing.assert_array_equal(y, 2 * x)
    assert call.kind == "hip" or call.fake.library.fake_overlapping() == 1


def far(call: Exported) -> None:
    """One row again and again, which windows cannot tell from others."""
    x, y = np.arange(64, dtype=np.float32), np.zeros((64, 64), np.float32)
    call("scale", np.stack([x] * 64), y, 1.0, 0)
    call("scale", np.lib.stride_tricks.as_strided(x, (64, 64), (0, 4)), y, 2.0, 0)
    np.testing.assert_array_equal(y, np.stack([2 * x] * 64))
    near, other = call.fake.launches
    assert (near.text == other.text) == (call.kind == "cuda")


def product(call: Exported) -> None:
    """Blocks go by maps of the tensors, where these can say the strides."""
    rng = np.random.default_rng(0)
    for m, n, k in ((128, 72, 200), (64, 64, 64), (128, 72, 200)):
        a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((m, k), (k, n)))
        c, repeated = np.zeros((m, n), np.float16), np.lib.stride_tricks.as_strided(a, a.shape, (0, 2))
        for left in (a, a, repeated):
            call("product", left, b, c)
            np.testing.assert_array_equal(c, left.astype(np.float64) @ b.astype(np.float64))
    by_map, again, without = call.fake.launches[-3:]
    if call.kind == "cuda":
        assert "tl::tensor_store" in by_map.text == again.text and "TL_TENSOR_MAP" not in without.text
        call("product", a, b, c)
        counts = []
        for out in (c, np.zeros_like(c)):
            before = call.fake.library.fake_other_calls()
            call("product", a, b, out)
            counts.append(call.fake.library.fake_other_calls() - before)
        assert counts[1] == counts[0] + 1  # what has not changed is not encoded again


def shared(call: Exported) -> None:
    """Two programs copy for each other; where there are three, each for itself."""
    rng = np.random.default_rng(0)
    for m in (256, 384, 250):
        a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((m, 136), (136, 72)))
        c = np.zeros((m, 72), np.float16)
        call("shared", a, b, c)
        np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))
    ways = ["tl::tensor_multicast" in launch.text for launch in call.fake.launches]
    assert ways == ([True, False, True] if call.kind == "cuda" else [False] * 3)
    assert [launch.grid for launch in call.fake.launches] == [(4, 1, 1), (6, 1, 1), (4, 1, 1)]


def swap(call: Exported) -> None:
    """Programs that know of each other."""
    if call.kind == "hip":
        return
    x, y = np.arange(32 * 256).reshape(32, 256).astype(np.float16), np.zeros((32, 256), np.float16)
    call("swap", x, y)
    np.testing.assert_array_equal(y, x.reshape(32, 2, 2, 64)[:, :, ::-1].reshape(32, 256))
    refused(RuntimeError, "swap: the grid is not made of whole clusters", call, "swap", x[:, :192].copy(),
            y[:, :192].copy())


def main(folder: Path, kind: str) -> None:
    """Every case, in one process: the driver is found once."""
    call = Exported(folder, kind)
    for case in (scale, far, persistent, counted, unpack, big, overlap, product, shared, swap):
        call.fake.launches.clear()
        case(call)
        print(case.__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
