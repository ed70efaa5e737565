"""Blocks that cross the edge of a tensor along long vectors: all but the last of these go without masks."""
from __future__ import annotations

import re

import numpy as np
import pytest

import tilelang as tile
from tilelang.backends.cpu import machine, nests

LANES = machine.host().vector_bytes // 4
WIDE = 8 * nests.MANY * LANES


@tile.kernel
def rows(x: tile.Tensor[tile.f32, "M N"], w: tile.Tensor[tile.f32, "K"], t: tile.Tensor[tile.f32, "N"],
         y: tile.Out[tile.f32, "M N"], s: tile.Out[tile.f32, "M"], start: tile.i32, BM: tile.Const, BN: tile.Const):
    """Loads that begin before the tensor, end elsewhere than others or do not vary along the vectors; a sum, a maximum
    and a store of it all."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    v = tile.load(x, (m * BM, start), (BM, BN), fill=-1.0) + tile.load(w, (0,), (BN,), fill=3.0)
    v = v * tile.load(t, (m * BM,), (BM,), fill=2.0)[:, None]
    top = v.max(1, keepdims=True)
    tile.store(s, (m * BM,), (v - top).sum(1))
    tile.store(y, (m * BM, start), v - top)


@pytest.mark.parametrize("start", [0, 5, -3])
@pytest.mark.parametrize(("n", "k"), [(WIDE, WIDE), (WIDE - 3, WIDE), (WIDE, WIDE - 2 * LANES - 1), (LANES - 1, 1),
                                      (3 * LANES * 4, 5 * LANES * 4), (WIDE - 8 * LANES, WIDE + 7)])
def test_blocks_across_edges(n: int, k: int, start: int) -> None:
    rng = np.random.default_rng(n + k)
    x, w, t = (rng.integers(-9, 9, shape).astype(np.float32) for shape in ((3, n), (k,), (n,)))
    args = x, w, t, *(np.full(shape, 7, np.float32) for shape in ((3, n), (3,)))
    want = tuple(np.array(a) for a in args)
    rows(*args, start, BM=2, BN=WIDE)
    rows.reference(*want, start, BM=2, BN=WIDE)
    for got, exact in zip(args[3:], want[3:], strict=True):
        np.testing.assert_array_equal(got, exact)


@tile.kernel
def columns(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "N"], BM: tile.Const, BN: tile.Const):
    n = tile.grid(tile.cdiv(x.shape[1], BN))
    tile.store(y, (n * BN,), tile.load(x, (0, n * BN), (BM, BN)).sum(0))


@pytest.mark.parametrize("m", [3, 6])  # the block may cross the other edge, too
def test_sums_across_vectors(m: int) -> None:
    x = np.random.default_rng(m).integers(-9, 9, (m, WIDE + 37)).astype(np.float32)
    y = np.empty(x.shape[1], np.float32)
    columns(x, y, BM=4, BN=WIDE)
    np.testing.assert_array_equal(y, x[:4].sum(0))


def test_only_long_vectors_get_code_of_their_own() -> None:
    x, y = np.zeros((4, WIDE), np.float32), np.zeros(WIDE, np.float32)
    plain = [len(re.findall(r"ld %x, %\d+ {", str(columns.lower(x, y, BM=4, BN=n).thread))) for n in (WIDE, WIDE // 8)]
    assert plain[0] == 2 * plain[1]
