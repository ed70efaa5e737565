"""Packed rows in full: by permutations of registers of AVX-512 and AVX2, whatever way the nest runs."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.backends.cpu.native import compile_for
from tests.backends.cpu.processors import assembly, take_for
from tilelang.backends.cpu import machine


@tile.kernel
def rows(x: tile.Tensor[tile.T, "N K"], bits: tile.Tensor[tile.i32, "N W"], y: tile.Out[tile.T, "N D"],
         BN: tile.Const = 16, W: tile.Const = 3, FIRST: tile.Const = 0):
    n = tile.grid(tile.cdiv(bits.shape[0], BN))
    tile.store(y, (n * BN, 0), tile.expand_load(x, (n * BN, FIRST), tile.load(bits, (n * BN, 0), (BN, W))))


@tile.kernel
def columns(x: tile.Tensor[tile.T, "N K"], bits: tile.Tensor[tile.i32, "N W"], y: tile.Out[tile.T, "D N"],
            BN: tile.Const = 16, W: tile.Const = 3, FIRST: tile.Const = 0):
    """Stored the other way round: vectors run along the rows."""
    n = tile.grid(tile.cdiv(bits.shape[0], BN))
    tile.store(y, (0, n * BN), tile.expand_load(x, (n * BN, FIRST), tile.load(bits, (n * BN, 0), (BN, W))).T)


def packed(dtype: Any, n: int, k: int, words: int) -> tuple[Any, Any]:
    """Values, and bits: some rows have more than there are values."""
    rng = np.random.default_rng(n)
    x, bits = rng.integers(-99, 99, (n, k)).astype(dtype), rng.integers(-2 ** 31, 2 ** 31, (n, words)).astype(np.int32)
    bits[0], bits[1], bits[2:] = -1, 0, np.where(rng.random((n - 2, words)) < 0.5, bits[2:] & 0x5050505, bits[2:])
    return x, bits


@pytest.fixture(params=["host", "x86-64-v4"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for(request.param, monkeypatch, rows, columns, part)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(("kernel", "dtype", "first"), [
    (rows, np.float32, 0), (rows, np.float32, 2), (rows, np.float16, 0), (rows, np.int8, 0), (rows, np.float64, 0),
    (columns, np.float32, 0), (columns, np.float16, 2)])
def test_rows_in_full(kernel: Any, dtype: Any, first: int) -> None:
    """Rows that a block lies across the end of, and the last ones of memory, with many values and few."""
    for n, k in ((37, 40), (64, 96), (20, 3)):
        x, bits = packed(dtype, n, k, 3)
        got, wanted = (np.empty((n, 96) if kernel is rows else (96, n), dtype) for _ in range(2))
        kernel(x, bits, got, FIRST=first)
        kernel.reference(x, bits, wanted, FIRST=first)
        np.testing.assert_array_equal(got, wanted)


def test_negative_and_other_strides() -> None:
    """Nothing is read past the memory of a tensor: here the last row of the memory comes first."""
    x, bits = packed(np.float32, 40, 70, 3)
    for view in (x[::-1], x[:, ::2]):
        got, wanted = (np.empty((40, 96), np.float32) for _ in range(2))
        rows(view, bits, got)
        rows.reference(view, bits, wanted)
        np.testing.assert_array_equal(got, wanted)


@tile.kernel
def part(x: tile.Tensor[tile.f32, "N K"], bits: tile.Tensor[tile.i32, "N W"], y: tile.Out[tile.f32, "N D"]):
    full = tile.expand_load(x, (0, 0), tile.load(bits, (0, 0), (16, 2)))
    tile.store(y, (0, 0), full[:, 5:56:3] + tile.expand_load(x, (0, 0), tile.load(bits, (0, 0), (16, 2)))[:, :17])


@pytest.mark.usefixtures("processor")
def test_slices() -> None:
    """Columns that do not begin with a word."""
    x, bits = packed(np.float32, 16, 40, 2)
    got, wanted = (np.empty((16, 17), np.float32) for _ in range(2))
    part(x, bits, got)
    part.reference(x, bits, wanted)
    np.testing.assert_array_equal(got, wanted)


@tile.kernel
def products(q: tile.Tensor[tile.f32, "D"], x: tile.Tensor[tile.f32, "N K"], bits: tile.Tensor[tile.i32, "N W"],
             y: tile.Out[tile.f32, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 64))
    full = tile.expand_load(x, (n * 64, 0), tile.load(bits, (n * 64, 0), (64, 4)))
    tile.store(y, n * 64, (full * tile.load(q, 0, 128)[None, :]).sum(1))


@pytest.mark.skipif(not machine.host().triple.startswith("x86_64"), reason="looks at x86 instructions")
@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64-v4"])
def test_code(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over rows expand them in registers: nothing is gathered, and inside of the tensor no load has a mask."""
    x, bits = packed(np.float32, 256, 38, 4)
    q = np.ones(128, np.float32)
    code, whole = assembly(processor, products, q, x, bits), processor == "x86-64-v4"
    assert ("vpermi2ps" if whole else "vpermd") in code and "gather" not in code
    if whole:
        loaded = [line for line in code.splitlines() if "vmovups" in line and "(%r" in line and "zmm" in line]
        assert any("{%k" in line for line in loaded) and not all("{%k" in line for line in loaded)
    take_for(processor, monkeypatch, products)
    np.testing.assert_array_equal(products(q, x, bits), products.reference(q, x, bits))
