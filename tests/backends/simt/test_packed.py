"""Loads of packed tensors: several codes at once where rows begin at bytes, one by one elsewhere."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import tilelang as tile
from benchmarks import gcn
from tests.backends.hip.test_clang import compiles
from tests.backends.simt.test_dots import STORED
from tilelang.args import describe
from tilelang.backends.simt.facts import chunk, run_of
from tilelang.ir import codec
from tilelang.ir.core import TensorType
from tilelang.ir.dtypes import dtype
from tilelang.layouts import local, spatial

ROWS = spatial(32, 2) * local(1, 32)


@tile.kernel
def unpacked(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.f32, "M N"]):
    """The numbers of a packed matrix, by blocks of 32 x 64, of which a thread has 32 neighbours."""
    m, n = tile.grid(tile.cdiv(x.shape[0], 32), tile.cdiv(x.shape[1], 64))
    block = tile.pin(tile.load(x, (m * 32, n * 64), (32, 64)), ROWS)
    tile.store(y, (m * 32, n * 64), block.to(tile.f32))


def of_codes(name: str, columns: int, row_bits: int | None = None) -> tuple[tile.Packed, np.ndarray]:
    """A matrix of 11 rows in memory that begins at a multiple of 16, and its numbers."""
    dt = dtype(name)
    codes = np.random.default_rng(0).integers(0, 1 << dt.bits, (11, columns))
    x = tile.Packed.from_codes(codes, dt, row_bits)
    room = np.zeros(len(x.buffer) + 16, np.uint8)
    start = -room.ctypes.data % 16
    room[start:start + len(x.buffer)] = x.buffer
    x.buffer = room[start:start + len(x.buffer)]
    return x, codec.decode(codec.from_bits(codes.astype(np.uint64), dt), dt).astype(np.float32)


@pytest.mark.parametrize(("name", "columns", "row_bits", "wide"), [
    ("f4e2m1", 96, None, "ld_codes<4, 32, 16>"), ("f4e2m1", 88, None, "ld_codes<4, 8, 4>"),
    ("f6e3m2", 128, None, "ld_codes<6, 32, 8>"), ("f6e2m3", 80, 80 * 6 + 32, "ld_codes<6, 16, 4>"),
    ("i4", 64, 64 * 4 + 16, "ld_codes<4, 4, 2>"), ("u3", 128, None, "ld_codes<3, 32, 4>"),
    ("u1", 128, None, "ld_codes<1, 32, 4>"), ("i7", 80, 80 * 7 + 16, "ld_codes<7, 16, 2>"),
    ("u5", 33, 33 * 5, ""), ("i4", 66, 66 * 4, "")])
@pytest.mark.parametrize("target", ["cuda:sm_80", "hip:gfx950"])
def test_codes_are_loaded_together(target: str, name: str, columns: int, row_bits: int | None, wide: str) -> None:
    """As many as the alignment of rows allows; runs of them lie in the tensor or outside of it."""
    x, numbers = of_codes(name, columns, row_bits)
    y = np.empty(numbers.shape, np.float32)
    source = unpacked.lower(x, y, target=target).source
    assert (f"tl::{wide}(" in source and "ld_bits" not in source) if wide else "ld_codes" not in source
    with tile.target(f"emulate:{target}"):
        unpacked(x, y)
    np.testing.assert_array_equal(y, numbers)


def test_an_address_that_is_not_aligned_takes_narrow_loads() -> None:
    """What a call promises is looked at in every call."""
    x, numbers = of_codes("f4e2m1", 96)
    room = np.zeros(len(x.buffer) + 1, np.uint8)
    room[1:] = x.buffer
    moved = tile.Packed(room[1:], x.dtype, x.shape)
    y = np.empty(numbers.shape, np.float32)
    for packed in (x, moved):
        with tile.target("emulate:hip:gfx950"):
            unpacked(packed, y)
        np.testing.assert_array_equal(y, numbers)


@pytest.mark.parametrize("name", ["u1", "u3", "f4e2m1", "u5", "f6e3m2", "u7"])
def test_what_the_type_says_of_memory(name: str) -> None:
    """Of extents up to 256 and rows of any length: runs divide the extent, and begin where an access may."""
    dt, memory = dtype(name), np.zeros(4096, np.uint8)
    for columns in range(1, 257):
        for extra in (0, 3, 8, 128):
            x = tile.Packed(memory, dt, (2, columns), columns * dt.bits + extra)
            a = describe("x", x, None)
            t = TensorType(dt, (2, columns), "in", a.unit, a.align)
            width = run_of(t)
            assert columns % width == 0
            if width > 1:
                size = chunk(t, width)
                assert width * dt.bits % (8 * size) == x.row_bits % (8 * size) == a.address % size == 0


@tile.kernel
def product(a: tile.Tensor[tile.T, "M K"], s: tile.Tensor[tile.e8m0, "M G"], b: tile.Tensor[tile.U, "N K"],
            t: tile.Tensor[tile.e8m0, "N G"], c: tile.Out[tile.f32, "M N"]):
    """c = (a * s) @ (b * t)^T for 64 x 64 of the result, a scale for 32 neighbours along k."""
    acc = tile.zeros((64, 64), tile.f32)
    for k in tile.range(0, a.shape[1], 128):
        g = k // 32
        acc = tile.dot_scaled(tile.load(a, (0, k), (64, 128)), tile.load(s, (0, g), (64, 4)),
                              tile.load(b, (0, k), (64, 128)).T, tile.load(t, (0, g), (64, 4)).T, acc)
    tile.store(c, (0, 0), acc)


@compiles
@pytest.mark.parametrize(("a", "b"), [("f4e2m1", "f4e2m1"), ("f8e4m3", "f6e2m3")])
def test_scaled_products_of_packed_operands(a: str, b: str) -> None:
    """Operands come from memory as instructions take them, in wide loads: nothing takes them apart. Sums are exact."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-2, 3, (64, 256)).astype(np.float64) for _ in range(2))
    s, t = (2.0 ** rng.integers(-2, 3, (64, 8)) for _ in range(2))
    args = [v.astype(STORED[n]) if n in STORED else tile.Packed.pack(v, dtype(n)) for v, n in ((x, a), (y, b))]
    scales = [v.astype(ml_dtypes.float8_e8m0fnu) for v in (s, t)]
    c = np.empty((64, 64), np.float32)
    with tile.target("emulate:hip:gfx950"):
        product(args[0], scales[0], args[1], scales[1], c)
    np.testing.assert_array_equal(c, (x * np.repeat(s, 32, 1)) @ (y * np.repeat(t, 32, 1)).T)
    code = product.lower(args[0], scales[0], args[1], scales[1], c, target="hip:gfx950")
    loop = gcn.main_loop(code.assembly, code.rendered.name)
    loads = {i.split()[0] for i in loop if i.startswith("global_load")}
    assert f"global_load_dwordx{4 if 'f4' in b else 2}" in loads and len(loop) < 8 * gcn.products(loop)
