"""Gathers and scatters of rows that an index chooses: whole vectors, with what lies outside left out."""
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


@tile.kernel
def parts(x: tile.Tensor[tile.T, "N"], start: tile.Tensor[tile.i32, "S"], y: tile.InOut[tile.T, "N"],
          z: tile.InOut[tile.T, "N 2"]):
    """Rows of any lengths, one after the other, written in blocks whose ends belong to others; beside it, columns."""
    s = tile.grid(start.shape[0])
    lo, hi = tile.load(start, s, ()), tile.load(start, s + 1, (), fill=205)
    for i in tile.range(lo, hi, 32):
        at = i + tile.arange(32)
        here = tile.gather(x, at, mask=at < hi, fill=3)
        tile.scatter(y, at, here + s.to(x.dtype), mask=at < hi)
        tile.scatter(z, (at, 1), here, mask=at < hi)


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


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_scattered(dtype: Any) -> None:
    x, start = np.arange(200).astype(dtype), np.array([-5, 0, 1, 40, 40, 90, 197], np.int32)
    for source in (x, np.repeat(x, 2)[::2]):
        got, wanted = ([np.zeros(200, dtype), np.zeros((200, 2), dtype)] for _ in range(2))
        parts(source, start, *got)
        parts.reference(source, start, *wanted)
        assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
    text = str(parts.lower(x, start, x, np.zeros((200, 2), dtype)).thread)
    assert "st_scatter %z" in text and "st_scatter %y" not in text and "ld_gather" not in text
