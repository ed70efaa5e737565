"""Gathers of rows that an index chooses: whole vectors, with what lies outside left out."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile


@tile.kernel
def rows(x: tile.Tensor[tile.T, "N D"], i: tile.Tensor[tile.i32, "K"], y: tile.Out[tile.T, "K E"],
         SHIFT: tile.Const = 0):
    n = tile.grid(tile.cdiv(i.shape[0], 8))
    row = tile.load(i, n * 8, 8)[:, None] + tile.zeros((8, 64), tile.i32)
    column = tile.arange(64)[None, :] + SHIFT + tile.zeros((8, 64), tile.i32)
    tile.store(y, (n * 8, 0), tile.gather(x, (row, column), mask=row != 3, fill=7))


@tile.kernel
def products(x: tile.Tensor[tile.f32, "N D"], i: tile.Tensor[tile.i32, "K"], w: tile.Tensor[tile.f32, "M D"],
             y: tile.Out[tile.f32, "M K"]):
    """The rows are packed for `dot`, turned."""
    row = tile.load(i, 0, 32)[:, None]
    chosen = tile.gather(x, (row, tile.arange(64)[None, :] - 1 + 1))
    tile.store(y, (0, 0), tile.dot(tile.load(w, (0, 0), (24, 64)), chosen.T))


@tile.kernel
def upwards(x: tile.Tensor[tile.f32, "N D"], i: tile.Tensor[tile.i32, "K"], y: tile.Out[tile.f32, "L E"]):
    """Not rows: the columns differ from one to the next."""
    row = tile.load(i, 0, 8)[:, None]
    tile.store(y, (0, 0), tile.gather(x, (row, tile.arange(32)[None, :] * 2 - row)))


CHOSEN = np.array([5, 0, -1, 3, 9, 3, 8, 2**31 - 1, -2**31, 1, 2], np.int32)


def check(kernel: Any, *inputs: Any, shape: tuple[int, int], **consts: Any) -> None:
    got, wanted = (np.empty(shape, inputs[0].dtype) for _ in range(2))
    kernel(*inputs, got, **consts)
    kernel.reference(*inputs, wanted, **consts)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("shift", [0, -3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_rows(dtype: Any, shift: int) -> None:
    """Of 50 columns, read from before the first, and beyond the last one."""
    x = np.arange(450).reshape(9, 50).astype(dtype)
    check(rows, x, CHOSEN, shape=(11, 64), SHIFT=shift)
    check(rows, x[:, ::2], CHOSEN, shape=(11, 64), SHIFT=shift)


def test_others() -> None:
    x, w = (np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32) for shape in ((9, 50), (24, 50)))
    chosen = np.resize(CHOSEN, 32)
    check(products, x, chosen, w, shape=(24, 32))
    check(upwards, x, CHOSEN, shape=(8, 32))
    rowwise = rows.lower(x, CHOSEN, np.empty((11, 64), np.float32)), products.lower(x, chosen, w)
    assert not any("ld_gather" in str(lowered.thread) for lowered in rowwise)
    assert "ld_gather" in str(upwards.lower(x, CHOSEN, np.empty((8, 32), np.float32)).thread)
