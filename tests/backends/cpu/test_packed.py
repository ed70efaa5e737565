"""Vectors of neighbours in a bit stream, whether rows begin on bytes or between them."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile


@tile.kernel
def unpack(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.S, "M N"], BN: tile.Const = 32):
    m, n = tile.grid(tile.cdiv(x.shape[0], 2), tile.cdiv(x.shape[1], BN))
    tile.store(y, (m * 2, n * BN), tile.load(x, (m * 2, n * BN), (2, BN)).to(y.dtype))


@pytest.mark.parametrize("name", ["u1", "i2", "u3", "u4", "i5", "f4e2m1", "u7", "u9", "i24", "u26", "i57", "u60"])
def test_every_width(name: str) -> None:
    """Columns end inside of a block; padding between rows is 0, 3 or so many bits that they begin on bytes."""
    dt, rng = tile.dtype(name), np.random.default_rng(0)
    kind = np.float32 if dt.kind == "float" else np.int64 if dt.kind == "int" else np.uint64
    codes = rng.integers(0, 1 << dt.bits, (5, 75), dtype=np.uint64)
    for padding in (0, 3, -75 * dt.bits % 8):
        x = tile.Packed.from_codes(codes, dt, 75 * dt.bits + padding)
        y = np.zeros((5, 75), kind)
        unpack(x, y)
        np.testing.assert_array_equal(y, x.values().astype(kind))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_no_elements(shape: tuple[int, int]) -> None:
    """No byte holds them, whatever strides say."""
    for rows in (20, 40):
        y = np.zeros(shape, np.uint64)
        unpack(tile.Packed.from_codes(np.zeros(shape, np.uint64), tile.u4, rows), y)
        assert y.shape == shape
