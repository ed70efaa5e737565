"""Sums that share what they load are made several at once, on this processor and on one with AVX2 only."""
from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.cpu.native import HOST, compile_for
from tests.backends.cpu.processors import level
from tilelang.backends.cpu import machine

EPS = 2.0 ** -23


@tile.kernel
def products(q: tile.Tensor[tile.f32, "R D"], k: tile.Tensor[tile.T, "L D"], x: tile.Out[tile.f32, "R L"],
             y: tile.Out[tile.f32, "R D"], high: tile.Out[tile.f32, "R L"], R: tile.Const, N: tile.Const,
             D: tile.Const):
    """x = q k^T, y = x k and the largest products, by blocks of N keys."""
    tile.grid(1)
    queries, total = tile.load(q, (0, 0), (R, D)), tile.zeros((R, D), tile.f32)
    for n in tile.range(0, k.shape[0], N, stages=2):
        keys = tile.load(k, (n, 0), (N, D)).to(tile.f32)
        each = queries[:, None, :] * keys[None, :, :]
        scores = each.sum(2)
        tile.store(x, (0, n), scores)
        tile.store(high, (0, n), each.max(2))
        total += (scores[:, :, None] * keys[None, :, :]).sum(1)
    tile.store(y, (0, 0), total)


@pytest.fixture(params=["host", "avx2", "x86-64-v4"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for(request.param, monkeypatch, products)


# rows, keys in a block, channels: whole squares of sums, remainders of either dimension, tails of a vector, one row
@pytest.mark.parametrize(("shape", "dtype"), [
    ((4, 16, 128), torch.bfloat16), ((4, 6, 32), torch.float32), ((5, 9, 16), torch.bfloat16),
    ((17, 4, 48), torch.float32), ((2, 8, 40), torch.bfloat16), ((3, 1, 7), torch.float32),
    ((1, 32, 64), torch.bfloat16)])
@pytest.mark.usefixtures("target")
def test_sums_of_products(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """A sum of n terms is off by at most n roundings of the sum of their sizes, however it is ordered."""
    rows, block, d = shape
    length = 2 * block + block // 2  # the last block crosses the edge
    q, k = torch.randn(rows, d), torch.randn(length, d).to(dtype)
    x, y, high = products(q, k, R=rows, N=block, D=d)
    a, b = q.double(), k.double()
    assert ((x - a @ b.T).abs() <= d * EPS * (a.abs() @ b.abs().T)).all()
    assert ((y - a @ b.T @ b).abs() <= (d + length) * EPS * (a.abs() @ b.abs().T @ b.abs())).all()
    assert torch.equal(high, (q[:, None, :] * k.float()[None, :, :]).amax(2))


@pytest.mark.skipif(not HOST.triple.startswith("x86_64"), reason="looks at what is made for AVX-512")
def test_what_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen sums of 4 rows and 4 keys end in one vector, later rows are asked for, and a broadcast made outside the
    loop takes no memory: beside two buffers of 4 x 64 sums there is nothing as large."""
    monkeypatch.setattr(machine, "host", lambda: level("x86-64-v4"))
    q, k = np.zeros((4, 128), np.float32), np.zeros((256, 128), np.float32)
    (x, high), y = np.zeros((2, 4, 256), np.float32), np.zeros((4, 128), np.float32)
    thread = str(products.lower(q, k, x, y, high, R=4, N=64, D=128).thread)
    assert "reduce_each" in thread and "fma" in thread and re.search("prefetch %k.*near=True", thread)
    shapes = re.findall(r"alloc .*shape=\(([\d, ]+)\)", thread)
    assert shapes and max(int(np.prod([int(n) for n in s.split(",") if n.strip()])) for s in shapes) <= 4 * 128


@pytest.mark.usefixtures("target")
def test_passes_ask_for_the_next_rows_together() -> None:
    """With 16 registers, 2 x 4 sums at a time of 10 rows: each of five passes asks for one of the next four rows that
    they all read; 4 x 2 of 4 rows: one pass asks for two. Half a line, or a line, for each step of eight columns. Each
    strip of the sums of rows asks for its part of the next block, as many whole rows."""
    if machine.host().registers > 16:
        pytest.skip("elsewhere each pass asks for all rows")
    for rows, high, wide in ((10, 2, 4), (4, 4, 2)):
        q, k = torch.zeros(rows, 128), torch.zeros(256, 128)
        out = torch.zeros(rows, 256), torch.zeros(rows, 128), torch.zeros(rows, 256)
        thread = str(products.lower(q, k, *out, R=rows, N=64, D=128).thread)
        assert thread.count("prefetch %k") == 2 + 128 * 4 // 64  # for scores, for the largest; for sums, a row
        assert thread.count("prefetch %k") == thread.count("near=True") + 128 * 4 // 64
        fused = re.findall(r" fma .*", thread[:thread.index("reduce_each")])
        assert len(fused) == high * wide


@tile.kernel
def scans(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"], N: tile.Const, REVERSE: tile.Const):
    v = tile.load(x, (0, 0), (32, N))
    tile.store(y, (0, 0), tile.cumsum(v, 1, reverse=REVERSE) + 3 * tile.cumprod(v, 1, reverse=REVERSE))


@pytest.mark.parametrize("processor", ["host", "x86-64-v4"])
@pytest.mark.parametrize(("n", "reverse"), [(2, True), (4, False), (16, True), (3, False), (32, False)])
def test_short_rows_of_integers_are_scanned_in_registers(n: int, reverse: bool, processor: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for(processor, monkeypatch, scans)
    x = np.random.default_rng(n).integers(-9, 9, (32, n)).astype(np.int32)
    got, wanted = np.empty_like(x), np.empty_like(x)
    scans(x, got, N=n, REVERSE=reverse)
    scans.reference(x, wanted, N=n, REVERSE=reverse)
    np.testing.assert_array_equal(got, wanted)
    held = machine.host().vector_bytes == 64 and 16 % n == 0
    assert ("lane_lookup" in str(scans.lower(x, got, N=n, REVERSE=reverse).thread)) == held
