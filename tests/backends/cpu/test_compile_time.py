"""Values that are used several times: compiling takes no longer than there are operations."""
from __future__ import annotations

import numpy as np

import tilelang as tile


@tile.kernel
def chain(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], z: tile.Out[tile.f32, "1"], TIMES: tile.Const):
    a = tile.load(x, 0, 64)
    for _ in tile.static_range(TIMES):
        a = a * a + a * 0.5 - a
    tile.store(y, 0, a)
    tile.store(z, 0, (a * a).sum())


def test_a_chain_of_values_that_are_used_four_times_each() -> None:
    """Placement and emission once followed every path to the tensor: 4^8 took 14 seconds, and 4^60 never ended."""
    x = np.linspace(0, 1, 64, dtype=np.float32)
    assert chain.lower(x, TIMES=60).source.count("fmul") < 1000
    y, _ = chain(x, TIMES=20)
    np.testing.assert_array_equal(y, chain.reference(x, TIMES=20)[0])


@tile.kernel
def line(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], TIMES: tile.Const):
    a = tile.load(x, 0, 64)
    for i in tile.static_range(TIMES):
        a = tile.minimum(a * 1.5 + i, 7.0)
    tile.store(y, 0, a)


def test_a_chain_longer_than_pythons_stack() -> None:
    x = np.linspace(0, 1, 64, dtype=np.float32)
    np.testing.assert_array_equal(line(x, TIMES=500), line.reference(x, TIMES=500))
