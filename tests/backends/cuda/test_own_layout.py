"""Shared memory in a layout of the user's own: vectors begin where they may."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile
from tilelang import layouts


@tile.kernel
def transposed(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"], z: tile.Out[tile.T, "M N"], L: tile.Const):
    p = tile.grid(1)
    s, t = tile.shared((32, 32), x.dtype, L), tile.shared((32, 32), x.dtype, L)
    tile.copy_async(x, s, (p, p))
    tile.commit()
    tile.store(t, (0, 0), tile.load(x, (p, p), (32, 32)))
    tile.wait()
    tile.barrier()
    tile.store(y, (p, p), tile.load(s, (0, 0), (32, 32)).T)
    tile.store(z, (p, p), tile.gather(t, (tile.arange(32)[None, :], tile.arange(32)[:, None])))


@pytest.mark.parametrize("layout, dtype", [
    (layouts.shared([32, 32], [33, 1]), np.float32), (layouts.shared([32, 32], [34, 1]), np.float16),
    (layouts.shared([32, 32], [1, 33]), np.float16), (layouts.shared([32, (2, 16)], [17, (600, 1)]), np.float32),
    (layouts.shared([32, 32], swizzle=(5, 0, 5)), np.float32)], ids=str)
def test_rows_of_any_stride(layout: layouts.SharedLayout, dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal((32, 32)).astype(dtype)
    for target in ("emulate:cuda:sm_80", "emulate:hip:gfx942", "cpu"):
        with tile.target(target):
            y, z = transposed(x, L=layout)
        np.testing.assert_array_equal(y, x.T)
        np.testing.assert_array_equal(z, x.T)
