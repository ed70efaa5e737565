"""A persistent grid has as many programs as its kernel is told that there are workers."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile


@tile.kernel
def increment(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    for i in tile.persistent(tile.cdiv(x.shape[0], 64)):
        tile.store(y, i * 64, tile.load(x, i * 64, 64) + 1)


@pytest.mark.parametrize("n", [1, 64, 65, 300, 1000])
def test_every_block_is_computed(n: int) -> None:
    x = np.arange(n, dtype=np.float32)
    with tile.target("emulate:cuda:sm_80"):
        y = increment(x)
    np.testing.assert_array_equal(y, x + 1)
