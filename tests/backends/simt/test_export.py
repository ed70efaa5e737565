"""Exported kernels of GPUs, called against drivers without a device whose launches the emulator runs."""
from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llvmlite import ir

import tilelang as tile
from tests.backends.cuda.test_launch import big_fn
from tests.backends.simt.exported import DLPACK, SONAME
from tests.backends.simt.fake import COMPILER, FakeDriver
from tests.backends.simt.overlapping import overlap_fn
from tests.backends.simt.test_clusters import swap_fn
from tests.backends.simt.test_launch import counted_fn, persistent_fn, scale_fn, unpack_fn
from tilelang.backends.cpu import machine
from tilelang.backends.cpu.codegen import slots
from tilelang.backends.cuda import driver as cuda
from tilelang.backends.hip import driver as hip
from tilelang.backends.simt import start, window
from tilelang.jit import Kernel
from tilelang.ops.matmul import matmul_kernel

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
TARGET = {"cuda": "cuda:sm_86", "hip": "hip:gfx942"}


def product_fn(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f16, "M N"]):
    m, n = tile.grid(tile.cdiv(a.shape[0], 128), tile.cdiv(b.shape[1], 64))
    acc = tile.zeros((128, 64), tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=3):
        acc += tile.dot(tile.load(a, (m * 128, k), (128, 64)), tile.load(b, (k, n * 64), (64, 64)))
    tile.store(c, (m * 128, n * 64), acc.to(tile.f16))


def shared_fn(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f16, "M N"]):
    """`product_fn` whose programs copy blocks of b for each other."""
    m, n = tile.grid(tile.cdiv(a.shape[0], 128), tile.cdiv(b.shape[1], 64), cluster=(2, 1))
    acc = tile.zeros((128, 64), tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=3):
        acc += tile.dot(tile.load(a, (m * 128, k), (128, 64)), tile.load(b, (k, n * 64), (64, 64)))
    tile.store(c, (m * 128, n * 64), acc.to(tile.f16))


def test_libraries_compute_what_kernels_mean(gpu: FakeDriver, tmp_path: Path) -> None:
    folder, target = tmp_path / "exported", TARGET[gpu.kind]
    x = np.ones((16, 64), np.float32)
    codes = np.zeros((5, 50), np.int64)
    for fn, args in ((scale_fn, (x, x, 1.0, 0)), (persistent_fn, (np.ones(64, np.int32),)), (counted_fn, (x[0], 1)),
                     (unpack_fn, (tile.Packed.from_codes(codes, tile.u3),)), (big_fn, (x[0],))):
        Kernel(fn).export(folder, *args, target=target, name=fn.__name__.removesuffix("_fn"))
    Kernel(overlap_fn).export(folder, x[0], x[0], target={"cuda": "cuda:sm_90a"}.get(gpu.kind, target), name="overlap")
    a = np.zeros((64, 64), np.float16)
    Kernel(product_fn).export(folder, a, a, a.copy(), target={"cuda": "cuda:sm_90a"}.get(gpu.kind, target),
                              name="product")
    Kernel(shared_fn).export(folder, a, a, a.copy(), target={"cuda": "cuda:sm_90a"}.get(gpu.kind, target),
                             name="shared")
    shared = json.loads((folder / "shared.json").read_text())["code"]
    assert [c["cluster"] for c in shared] == ([2, 1, 1] if gpu.kind == "cuda" else [1] * len(shared))
    if gpu.kind == "cuda":
        Kernel(swap_fn).export(folder, a, a.copy(), target="cuda:sm_90a", name="swap")
        far, unshared = (c["takes"] for c in shared[1:])
        assert [[t["parameter"] for t in takes if t["kind"] == "map"] for takes in (far, unshared)] == [
            [], ["a", "b", "c"]]
    manifest = json.loads((folder / "product.json").read_text())
    assert [x["parameter"] for x in manifest["takes"] if x["kind"] == "map"] == (
        ["a", "b", "c"] if gpu.kind == "cuda" else [])
    assert not gpu.launches
    (folder / "driver").mkdir()
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.backends.simt.exported", str(folder),
                           gpu.kind], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.split() == [
        "scale", "far", "persistent", "counted", "unpack", "big", "overlap", "product", "shared", "swap"], done.stderr


ALONE = """
import sys
for name in ("tilelang", "llvmlite", "lark", "torch"):
    sys.modules[name] = None
import ctypes, numpy as np, tvm_ffi
folder, kind, soname, device = sys.argv[1:]
driver = ctypes.CDLL(soname)
LAUNCHED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p,
                            ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
seen = []
callback = LAUNCHED(lambda f, *rest: seen.append(rest[:6]))
driver.fake_callback(callback)

class OnDevice:
    def __init__(self, array):
        self.array = array
    def __dlpack_device__(self):
        return int(device), 0
    def __dlpack__(self, **options):
        capsule, pointer = self.array.__dlpack__(), ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = int(device)
        return capsule

x, y = (OnDevice(np.ones((32, 64), np.float32)) for _ in range(2))
tvm_ffi.load_module(folder + "/scale.so").scale(x, y, 1.0, 0)
print(seen)
"""


def test_python_needs_tvm_ffi_alone(gpu: FakeDriver, tmp_path: Path) -> None:
    x = np.ones((16, 64), np.float32)
    library = Kernel(scale_fn).export(tmp_path, x, x, 1.0, 0, target=TARGET[gpu.kind], name="scale")
    shutil.copy(gpu.path, tmp_path / SONAME[gpu.kind])  # the loaded file must not have that name
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path), gpu.kind, SONAME[gpu.kind],
                           str(DLPACK[gpu.kind])], capture_output=True, text=True, timeout=60,
                          env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    manifest = json.loads(library.with_suffix(".json").read_text())
    assert eval(done.stdout) == [(4, 1, 1, manifest["code"][0]["threads"], 1, 1)]
    for code in manifest["code"]:  # the files hold what the library does
        assert (tmp_path / code["file"]).read_bytes() in library.read_bytes()
    assert [(p["kind"], p["parameter"]) for p in manifest["takes"]][-3:] == [
        ("value", "by"), ("value", "add"), ("workers", None)]
    assert len(manifest["code"]) == (1 if gpu.kind == "cuda" else 2)


def test_a_missing_driver_is_named(gpu: FakeDriver, tmp_path: Path) -> None:
    x = np.ones((16, 64), np.float32)
    Kernel(scale_fn).export(tmp_path, x, x, 1.0, 0, target=TARGET[gpu.kind], name="scale")
    program = ALONE.replace("ctypes.CDLL(soname)", "ctypes.CDLL(folder + '/" + Path(gpu.path).name + "')")
    for path in {"cuda": cuda, "hip": hip}[gpu.kind].EXPORTED.libraries:  # found before a real one
        (tmp_path / Path(path).name).touch()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(tmp_path), gpu.kind, "",
                           str(DLPACK[gpu.kind])], capture_output=True, text=True, timeout=60,
                          env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert f"scale: the driver of the GPU was not found; it needs {SONAME[gpu.kind]}" in done.stderr


def test_native_code_knows_which_calls_are_suited() -> None:
    """As `Lowered.fits` does, for random shapes and strides."""
    a = np.zeros((64, 64), np.float16)
    for target in ("hip:gfx942", "cuda:sm_90a"):
        lowered = matmul_kernel.lower(a, a, a.astype(np.float32), target=target, BM=64, BN=64, BK=32, ACC=tile.f32)
        assert any(w.axis is not None for w in window.windows(lowered.thread)) or lowered.rendered.maps
        asked, known = _asked(lowered), slots(lowered.tile.params)
        rng, answers = np.random.default_rng(0), set()
        for _ in range(2000):
            shapes = rng.choice([0, 1, 5, 31, 64, 1000], (3, 2)).tolist()
            strides = [[int(rng.choice([-100, 0, 1, 60, 1000, 1 << 24, 1 << 30, 1 << 39, 1 << 62])), 1]
                       for _ in range(3)]
            context = np.zeros(len(known), np.int64)
            for tensor in range(3):
                for axis in range(2):
                    context[known["shape", tensor, axis]] = shapes[tensor][axis]
                    context[known["stride", tensor, axis]] = strides[tensor][axis]
            wanted = lowered.fits(shapes, strides)
            assert bool(asked(context.ctypes.data)) == wanted, (shapes, strides)
            answers.add(wanted)
        assert answers == {True, False}


def _asked(lowered: Any) -> Any:
    """What native code makes of `fits`, as a function of the context alone."""
    module = ir.Module()
    asked = start._Start(module, lowered, None)
    asked.b.ret(asked.b.zext(asked.b.icmp_signed("==", asked.choice(), start.I64(0)), start.I64))
    loaded = machine.Loaded(machine.object_code(str(module), machine.host()), "tl_start")
    call = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 3)(loaded.address("tl_start"))
    return lambda context: (loaded, call(context, None, None))[1]
