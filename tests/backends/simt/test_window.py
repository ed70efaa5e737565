"""Windows of tensors: blocks at every edge, of every kind of stride, and what a window must not be."""
from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.backends.hip.test_clang import compiles
from tests.backends.simt import kernels
from tilelang.backends.emulator.execute import execute
from tilelang.backends.simt.window import LIMIT, reaches
from tilelang.errors import CheckError

TARGET = "hip:gfx942"


@tile.kernel
def copy(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"], BM: tile.Const = 16, BN: tile.Const = 32):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    tile.store(y, (m * BM, n * BN), tile.load(x, (m * BM, n * BN), (BM, BN)))


@tile.kernel
def shifted(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"], by: tile.i32, BM: tile.Const = 16,
            BN: tile.Const = 64):
    """Rows and columns `by` further on, which may be negative, and 7 where there are none."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    tile.store(y, (m * BM, 0), tile.load(x, (m * BM + by, by), (BM, BN), fill=7.0))


def large() -> Any:
    return np.arange(80 * 96, dtype=np.float32).reshape(80, 96)


@pytest.mark.parametrize(("name", "windows"), [
    ("[:33, :50]", True), ("[:16, :32]", True), ("[::2, :40]", True), ("[:, ::2]", True), ("[:1, :3]", True),
    ("[:40, :96].T", True), ("[::-1]", False), ("[:, ::-1]", False), ("broadcast", False), ("[:0]", True)])
def test_blocks_of_every_stride(name: str, windows: bool) -> None:
    x = np.broadcast_to(large()[:1], (40, 96)) if name == "broadcast" else eval("x" + name, {"x": large()})
    seen = copy.lower(x, np.zeros(x.shape, np.float32), target=TARGET)
    strides = [tuple(s // 4 for s in a.strides) for a in (x, np.zeros(x.shape, np.float32))]
    assert (seen.suited([None] * 2, [x.shape] * 2, strides) is seen) == windows
    with tile.target("emulate:" + TARGET):
        np.testing.assert_array_equal(copy(x), x)


@pytest.mark.parametrize("by", [-70, -5, 0, 3, 100])
def test_other_values_outside(by: int) -> None:
    x = large()[:50, :64]
    want = np.full_like(x, 7)
    for i in range(50):
        for j in range(64):
            if 0 <= i + by < 50 and 0 <= j + by < 64:
                want[i, j] = x[i + by, j + by]
    with tile.target("emulate:" + TARGET):
        np.testing.assert_array_equal(shifted(x, by=by), want)


@tile.kernel
def before(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M 64"], z: tile.InOut[tile.f32, "M N"],
           copied: tile.Out[tile.f32, "M 64"]):
    """Blocks from four columns before the first one on: read, copied, and written from column 0 on."""
    m = tile.grid(tile.cdiv(x.shape[0], 16)) * 16
    s = tile.shared((16, 64), tile.f32)
    tile.copy_async(x, s, (m, -4))
    tile.commit()
    tile.store(y, (m, 0), tile.load(x, (m, -4), (16, 64)))
    tile.store(z, (m, -4), tile.load(x, (m, 0), (16, 64), fill=7.0))
    tile.wait()
    tile.barrier()
    tile.store(copied, (m, 0), tile.load(s, (0, 0), (16, 64)))


@pytest.mark.parametrize("target", [TARGET, "hip:gfx950"])
def test_blocks_that_begin_before_the_rows_of_a_contiguous_tensor(target: str) -> None:
    """Windows once ended four elements before the last row does: these were read as 0, and not written."""
    x = large()[:, :60].copy()
    z = np.zeros_like(x)
    with tile.target("emulate:" + target):
        y, copied = before(x, z=z)
    np.testing.assert_array_equal(y[:, 4:], x)
    np.testing.assert_array_equal(copied, y)
    np.testing.assert_array_equal(z, np.pad(x[:, 4:], ((0, 0), (0, 4)), constant_values=7))


def test_blocks_that_reach_too_far() -> None:
    thread = copy.lower(large(), large(), target=TARGET).thread
    shapes, row = [(80, 96)] * 2, LIMIT // 4 // 16
    assert reaches(thread, shapes, [(row, 1)] * 2)
    assert not reaches(thread, shapes, [(row * 2, 1), (96, 1)])
    assert not reaches(thread, shapes, [(20, 1), (96, 1)])  # rows overlap


@compiles
def test_nothing_branches_around_an_access() -> None:
    a = np.zeros((256, 256), np.float16)
    listing = kernels.matmul.lower(a, a, np.zeros((256, 256), np.float32), BM=128, BN=128, BK=32, STAGES=2,
                                   target=TARGET).assembly
    assert "buffer_load_dwordx4" in listing and "buffer_store_dword" in listing
    assert "saveexec" not in listing and not re.search(r"^\tglobal_", listing, re.MULTILINE)


def test_a_window_that_is_too_large_is_found() -> None:
    """As if a row more were inside: the emulator still knows where the tensor ends."""
    x = large()[:33, :64].copy()
    code = copy.lower(x, x, target=TARGET)
    larger = re.sub(r"(window_of\(\w+, \w+, )(\w+)\)", r"\1\2 + 64 * 8)", code.source)
    assert larger != code.source
    text = replace(code.rendered, text=larger)
    with pytest.raises(CheckError, match="bounds-global"):
        execute(code.tile, text, [x, x.copy()], [x.shape] * 2, [(64, 1)] * 2)


@tile.kernel
def twice(x: tile.InOut[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"], BM: tile.Const = 16, BN: tile.Const = 32):
    t = tile.load(x, (0, 0), (BM, BN))
    tile.store(x, (0, 0), t * 2.0)
    tile.store(y, (0, 0), t)


def test_only_tensors_of_one_use_have_windows() -> None:
    thread = twice.lower(large(), large(), target=TARGET).thread
    assert {op.operands[0].name for op in thread.walk() if op.name == "window"} == {"y"}
    cuda = copy.lower(large(), large(), target="cuda:sm_80").thread
    assert not any(op.name == "window" for op in cuda.walk())
