"""The few largest of many: the same elements, positions and bits as the beginning of a stable sort."""
from __future__ import annotations

import re

import numpy as np
import pytest

import tilelang as tile


@tile.kernel
def both(x: tile.Tensor[tile.T, "M N"], v: tile.Out[tile.T, "M K"], i: tile.Out[tile.i32, "M K"],
         w: tile.Out[tile.T, "K M"], j: tile.Out[tile.i32, "K M"], M: tile.Const, N: tile.Const, K: tile.Const):
    """Along either axis."""
    rows = tile.load(x, (0, 0), (M, N))
    values, positions = tile.topk(rows, K)
    tile.store(v, (0, 0), values)
    tile.store(i, (0, 0), positions)
    values, positions = tile.topk(rows.T, K, 0)
    tile.store(w, (0, 0), values)
    tile.store(j, (0, 0), positions)


def numbers(dt: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    if dt.startswith("float"):
        x = rng.integers(-3, 4, (3, 40)).astype(dt)  # many are equal
        x[0, 5:9] = [np.nan, np.inf, -np.inf, np.nan]
        x[1] = np.where(rng.random(40) < 0.5, 0.0, -0.0)
        x[2, :38] = -np.inf  # fewer numbers than are taken
        return x
    info = np.iinfo(dt)
    return rng.choice(np.array([info.min, info.min + 1, 0, 1, info.max], dt), (3, 40))


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("dt", ["float32", "float16", "int32", "uint32", "int8", "uint16"])
def test_the_beginning_of_a_stable_sort(dt: str, target: str) -> None:
    x = numbers(dt)
    keys = np.flip(x, 1)
    order = 39 - np.flip(np.argsort(keys, 1, kind="stable"), 1)[:, :8]
    with tile.target(target):
        v, i, w, j = both(x, K=8)
    np.testing.assert_array_equal(i, order)
    np.testing.assert_array_equal(j, order.T)
    for got in (v, w.T):
        wanted = np.take_along_axis(x, order, 1)
        np.testing.assert_array_equal(got, wanted)
        assert np.array_equal(np.signbit(got.astype(float)), np.signbit(wanted.astype(float)))


def test_rows_of_a_vocabulary_fit_a_gpu() -> None:
    """Sorting 2048 elements by their ranks took 4 MB of shared memory: the kernel was refused."""
    source = both.bind(K=8).lower(np.zeros((1, 2048), np.float32), target="cuda:sm_80").source
    assert max(map(int, re.findall(r"tl::shared<[^>]*>\(smem, 0, (\d+)\)", source)), default=0) <= 2048
