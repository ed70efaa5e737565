"""Tiles whose last dimension is short: whole rows, rows apart in memory, and edges give the interpreter's results."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile


@tile.kernel
def product(x: tile.Tensor[tile.T, "M N 2"], y: tile.Tensor[tile.T, "M N 2"], z: tile.Out[tile.T, "M N 2"],
            B: tile.Const = 40):
    """Complex numbers, as one writes it."""
    m, n = tile.grid(tile.cdiv(x.shape[0], 2), tile.cdiv(x.shape[1], B))
    a = tile.load(x, (m * 2, n * B, 0), (2, B, 2))
    b = tile.load(y, (m * 2, n * B, 0), (2, B, 2))
    re = a[:, :, 0] * b[:, :, 0] - a[:, :, 1] * b[:, :, 1]
    im = a[:, :, 0] * b[:, :, 1] + a[:, :, 1] * b[:, :, 0]
    tile.store(z, (m * 2, n * B, 0), tile.concatenate([re[:, :, None], im[:, :, None]], 2))


@tile.kernel
def turned(x: tile.Tensor[tile.T, "N 4"], scale: tile.Tensor[tile.T, "N"], z: tile.Out[tile.T, "N 4"],
           total: tile.Out[tile.T, "N 4"], B: tile.Const = 24):
    """Places of a row exchanged, with and without a stop in memory."""
    n = tile.grid(tile.cdiv(x.shape[0], B))
    a = tile.load(x, (n * B, 0), (B, 4))
    s = tile.load(scale, n * B, B)[:, None]
    b = tile.concatenate([a[:, 3:4] * s, a[:, 0:1], a[:, 2:3], a[:, 1:2]], 1)
    tile.store(z, (n * B, 0), b)
    tile.store(total, (n * B, 0), tile.reshape(tile.reshape(b + a, (4 * B,)) * 2, (B, 4)))


def integers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(-9, 9, shape).astype(np.float32)


@pytest.mark.parametrize("n", [80, 77])
def test_rows_of_two_and_four(n: int) -> None:
    x, y, wide, s = integers(3, n, 2), integers(3, n + 1, 2)[:, 1:], integers(3, n, 7), integers(n)
    for a, b in ((x, x + 1), (x, y), (wide[:, :, 3:5], x)):
        np.testing.assert_array_equal(product(a, b), product.reference(a, b))
    for a in (integers(n, 4), integers(n, 9)[:, 2:6], integers(4, n).T):
        for got, wanted in zip(turned(a, s), turned.reference(a, s), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_whole_rows_are_loaded_and_nothing_is_stored_twice() -> None:
    x = integers(2, 80, 2)
    names = [op.name for op in product.lower(x, x).thread.walk()]
    assert names.count("lanes") == 2 * names.count("interleave") * 2 > 0  # both parts of both factors
    assert not {"alloc", "st_scatter"} & {*names}
