"""Exported kernels: called by a process that has only tvm-ffi and NumPy, and by a C++ program."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi

import tilelang as tile
from tilelang import errors
from tilelang.backends.cuda import nvrtc
from tilelang.backends.hip import clang
from tilelang.backends.host import compiler
from tilelang.ops.matmul import matmul_kernel

CONSTS = {"BM": 32, "BN": 64, "BK": 32, "ACC": tile.f32}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    a = np.ones((4, 4), np.float32)
    return matmul_kernel.export(tmp_path_factory.mktemp("export"), a, a, a.copy(), name="matmul", **CONSTS)


def test_python_needs_tvm_ffi_alone(library: Path) -> None:
    program = """
import os, sys
for name in ("tilelang", "llvmlite", "lark", "torch"):
    sys.modules[name] = None
import numpy as np, tvm_ffi
matmul = tvm_ffi.load_module(sys.argv[1]).matmul
rng = np.random.default_rng(0)
def check():
    for m, n, k in ((1, 1, 1), (100, 70, 33), (0, 5, 5), (257, 300, 129)):
        a, b, c = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32), \\
            np.empty((m, n), np.float32)
        matmul(a, b, c)
        np.testing.assert_allclose(c, a @ b, atol=1e-4 * max(k, 1))
check()
if (child := os.fork()) == 0:  # its threads start anew
    check()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
try:
    matmul(np.ones((3, 4), np.float32), np.ones((5, 6), np.float32), np.ones((3, 6), np.float32))
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(library)], capture_output=True, text=True,
                         timeout=120)
    assert run.returncode == 0, run.stderr
    assert "matmul: the arguments are not what it was compiled for: a f32[M, K], neighbours along dimension 1; " \
        in run.stdout


PROGRAM = """
#include <cstdio>
#include "matmul.h"

static DLTensor tensor(float* data, int64_t* shape, int64_t* strides) {
  DLTensor t = {data, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, strides, 0};
  return t;
}

int main() {
  float a[6] = {1, 2, 3, 4, 5, 6}, b[6] = {1, 0, 0, 1, 1, 1}, c[4];
  int64_t sa[2] = {2, 3}, sb[2] = {3, 2}, sc[2] = {2, 2}, ra[2] = {3, 1}, rb[2] = {2, 1};
  DLTensor x = tensor(a, sa, ra), y = tensor(b, sb, rb), z = tensor(c, sc, rb);
  if (matmul(&x, &y, &z)) return 1;
  std::printf("%g %g %g %g\\n", c[0], c[1], c[2], c[3]);
  return matmul(&x, &x, &z) == -1 ? 0 : 2;
}
"""


def test_a_program_in_cpp(library: Path, tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(PROGRAM)
    ffi = Path(tvm_ffi.libinfo.find_libtvm_ffi())
    includes = [f"-I{p}" for p in (str(library.parent), *tvm_ffi.libinfo.include_paths())]
    subprocess.run([*compiler(), "-o", str(tmp_path / "main"), str(tmp_path / "main.cpp"), *includes, str(library),
                    "-Wl,--no-as-needed", str(ffi), f"-Wl,-rpath,{library.parent}:{ffi.parent}"], check=True,
                   timeout=120)
    run = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "4 5 10 11\n")


def test_the_manifest(library: Path) -> None:
    manifest = json.loads(library.with_suffix(".json").read_text())
    assert manifest["symbol"] == "__tvm_ffi_matmul" and manifest["parameters"][0] == {
        "name": "a", "kind": "tensor", "dtype": "f32", "dims": ["M", "K"], "mode": "in", "unit_stride": [False, True],
        "align": 1}
    names = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True).stdout
    assert [line.split()[-1] for line in names.splitlines()] == ["__tvm_ffi_matmul"]


@tile.kernel
def unpacked(x: tile.Tensor[tile.u3, "M N"], y: tile.InOut[tile.f32, "M N"], by: tile.f32, least: tile.u64):
    m = tile.grid(x.shape[0])
    for n in tile.range(0, x.shape[1], 8):
        v = tile.maximum(tile.load(x, (m, n), (8,)).to(tile.u64), least)
        tile.store(y, (m, n), tile.load(y, (m, n), (8,)) + v.to(tile.f32) * by)


def test_packed_tensors_and_numbers(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 8, (3, 21))
    x, y = tile.Packed.from_codes(codes, tile.u3), np.ones((3, 21), np.float32)
    module = tvm_ffi.load_module(unpacked.export(tmp_path, x, y, 1.0, 0))
    module.unpacked(x.buffer, *x.shape, *x.strides, y, 0.5, 2)
    assert np.array_equal(y, 1 + np.maximum(codes, 2) * 0.5)
    assert "static inline int unpacked(DLTensor* x, const int64_t* x_shape, const int64_t* x_strides, DLTensor* y, " \
        "double by, uint64_t least)" in (tmp_path / "unpacked.h").read_text()


@pytest.mark.parametrize(("target", "file"), [
    pytest.param("cuda:sm_90a", "gpu.cubin", marks=pytest.mark.skipif(nvrtc.find() is None, reason="no NVRTC")),
    pytest.param("hip:gfx942", "gpu.hsaco", marks=pytest.mark.skipif(clang.version() is None, reason="no ziglang"))])
def test_machine_code_of_gpus(target: str, file: str, tmp_path: Path) -> None:
    """By the real compilers; tests/backends/simt/test_export.py calls such libraries."""
    a = np.ones((64, 64), np.float16)
    library = matmul_kernel.export(tmp_path, a, a, a.astype(np.float32), name="gpu", target=target, BM=64, BN=64,
                                   BK=32, ACC=tile.f32)
    code = (tmp_path / file).read_bytes()
    assert code[:4] == b"\x7fELF" and code in library.read_bytes()
    manifest = json.loads((tmp_path / "gpu.json").read_text())
    assert manifest["target"] == target and manifest["code"][0]["report"]["registers"] > 32
    with pytest.raises(ValueError, match="c f32.M, N., neighbours along dimension 1, address, rows and strides mult"):
        tvm_ffi.load_module(library).gpu(a, a, a.astype(np.float32))  # these are not on a GPU
    assert "lies on one GPU" in (tmp_path / "gpu.h").read_text()


def test_a_tuned_kernel_is_exported_as_it_would_run(tmp_path: Path) -> None:
    tuned = tile.autotune(matmul_kernel, BM=[16], BN=[32], BK=[16])
    a = np.ones((4, 4), np.float32)
    library = tuned.export(tmp_path, a, a, a.copy(), ACC=tile.f32)
    tvm_ffi.load_module(library).matmul_kernel(a, a, c := np.zeros_like(a))
    assert (c == 4).all()


@tile.kernel
def odd(int: tile.Tensor[tile.f32, "N"], tl_result: tile.Out[tile.f32, "N"], double: tile.f32, größe: tile.i32):
    tile.store(tl_result, 0, tile.load(int, 0, 8) * double + größe.to(tile.f32))


def test_names_that_are_none_in_c(tmp_path: Path) -> None:
    x = np.ones(8, np.float32)
    for target in ("cpu", "cuda:sm_80") if nvrtc.find() else ("cpu",):
        odd.export(tmp_path, x, x, 2.0, 1, target=target)
        (tmp_path / "main.c").write_text('#include "odd.h"\nint (*f)(DLTensor*, DLTensor*, double, int64_t) = odd;\n')
        subprocess.run([*compiler(), "-x", "c++", "-fsyntax-only", "-Werror", str(tmp_path / "main.c"),
                        f"-I{tmp_path}", *(f"-I{p}" for p in tvm_ffi.libinfo.include_paths())], check=True)
    kernel = odd.lower(x, x, 2.0, 1, target="hip:gfx942").source.partition("TL_KERNEL(")[2].partition("{")[0]
    assert kernel.isascii() and "gruf6udfe" in kernel
    for name in ("int", "größe", 3, "nullptr", "main", "memset"):
        with pytest.raises(errors.ArgumentCount, match="is not a valid name of a C function"):
            odd.export(tmp_path, x, x, 2.0, 1, name=name)


@tile.kernel
def alike(x: tile.Tensor[tile.u3, "N"], x_shape: tile.f32, int: tile.i32, int_: tile.i32, NULL: tile.f64,
          DLTensor: tile.u8, memset: tile.bf16, kTVMFFIInt: tile.i1, y: tile.Out[tile.f32, "N"]):
    tile.store(y, 0, tile.load(x, 0, 8).to(tile.f32) * x_shape + (int - int_).to(tile.f32))


REFUSED = """
#include "alike.h"
#include "ALIKE.h"
#include <stdio.h>

int main(void) {
  unsigned char bytes[3] = {0x88, 0xc6, 0xfa};
  float y[8];
  int64_t b = 3, n = 8, one = 1, three = 3, far = INT64_MIN, back = -3;
  DLTensor x = {bytes, {kDLCPU, 0}, 1, {kDLUInt, 8, 1}, &b, &one, 0};
  DLTensor out = {y, {kDLCPU, 0}, 1, {kDLFloat, 32, 1}, &n, &one, 0}, nowhere = out, shapeless = out;
  nowhere.data = 0;
  shapeless.shape = 0;
  if (alike(&x, &n, &three, 2, 5, 4, 0, 0, 0, 1, &out)) return 1;
  for (int i = 0; i < 8; i++) printf("%g ", y[i]);
  printf("%d", ALIKE(&x, &n, &three, 2, 5, 4, 0, 0, 0, 1, &nowhere));
  printf("%d", alike(&x, &n, &three, 2, 5, 4, 0, 0, 0, 1, &shapeless));
  printf("%d", alike(0, &n, &three, 2, 5, 4, 0, 0, 0, 1, &out));
  printf("%d", alike(&x, 0, &three, 2, 5, 4, 0, 0, 0, 1, &out));
  printf("%d", alike(&x, &n, &far, 2, 5, 4, 0, 0, 0, 1, &out));
  printf("%d", alike(&x, &n, &back, 2, 5, 4, 0, 0, 0, 1, &out));
  printf("%d", alike(&x, &n, &three, 2, 5, 4, 0, 256, 0, 1, &out));
  x.strides = &far;
  printf("%d", alike(&x, &n, &three, 2, 5, 4, 0, 0, 0, 1, &out));
  return 0;
}
"""


def test_a_program_in_c_of_two_kernels_with_arguments_that_are_refused(tmp_path: Path) -> None:
    """Names that collide in C, null pointers, and strides that leave the bytes of a packed tensor."""
    x, y = tile.Packed.from_codes(np.arange(8), tile.u3), np.zeros(8, np.float32)
    for name in ("alike", "ALIKE"):
        alike.export(tmp_path, x, 2.0, 5, 4, 0.0, 0, 0.0, True, y, name=name)
    (tmp_path / "main.c").write_text(REFUSED)
    ffi = Path(tvm_ffi.libinfo.find_libtvm_ffi())
    subprocess.run([*compiler(), "-x", "c", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-o",
                    str(tmp_path / "main"), str(tmp_path / "main.c"), "-x", "none", str(tmp_path / "alike.so"),
                    str(tmp_path / "ALIKE.so"), f"-I{tmp_path}", *(f"-I{p}" for p in tvm_ffi.libinfo.include_paths()),
                    "-Wl,--no-as-needed", str(ffi), f"-Wl,-rpath,{tmp_path}:{ffi.parent}"], check=True, timeout=120)
    run = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "1 3 5 7 9 11 13 15 " + "-1" * 8)


def test_a_program_keeps_the_library_it_has_loaded(tmp_path: Path) -> None:
    x = np.ones(8, np.float32)
    library = odd.export(tmp_path, x, x, 2.0, 1)
    old = tvm_ffi.load_module(library)
    before = library.stat().st_ino
    assert odd.export(tmp_path, x, x, 2.0, 1) == library and library.stat().st_ino != before
    old.odd(x, y := np.zeros(8, np.float32), 2.0, 1)
    assert (y == 3).all()
    assert {file.name for file in tmp_path.iterdir()} == {"odd.so", "odd.h", "odd.json"}


@tile.kernel
def careful(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    v = tile.load(x, 0, 8)
    assert (v >= 0).all(), "a negative number"
    assert (v < 9).all()
    tile.store(y, 0, v)


def test_an_assertion_says_which(tmp_path: Path) -> None:
    x = np.ones(8, np.float32)
    call = tvm_ffi.load_module(careful.export(tmp_path, x, x.copy())).careful
    for bad, message in ((-x, "careful: a negative number .line .* of test_export.py"),
                         (9 * x, "careful: .v < 9..all.. .line")):
        with pytest.raises(RuntimeError, match=message):
            call(bad, x.copy())
    call(x, y := np.zeros_like(x))
    assert (y == 1).all()


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    @tile.kernel
    def prints(x: tile.Tensor[tile.f32, "N"]):
        tile.print(tile.load(x, (0,), (4,)))
    x = np.ones(4, np.float32)
    with pytest.raises(errors.TargetError, match="`prints` prints"):
        prints.export(tmp_path, x)
    with pytest.raises(errors.TargetError, match="for the CPU and GPUs, not for emulate:cuda:sm_80"):
        prints.export(tmp_path, x, target="emulate:cuda:sm_80")
    with pytest.raises(errors.ArgumentCount, match="is not a valid name of a C function"):
        prints.export(tmp_path, x, name="a-b")
    assert not list(tmp_path.iterdir())
