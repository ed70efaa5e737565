"""What stands before the grid, and what its extents may follow from."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang import errors

X = tile.Tensor[tile.i32, "N"]
Y = tile.Out[tile.i32, "N"]


@tile.kernel
def late(x: X, y: Y):
    """y = x + x[1] + 3"""
    assert x.shape[0] >= 2
    more = tile.load(x, 1, ())
    for _ in tile.range(3):
        more += 1
    tile.print("of", x.shape[0], "numbers", more)
    n = tile.grid(tile.cdiv(x.shape[0], 4)) * 4
    tile.store(y, n, tile.load(x, n, 4) + more)


@pytest.mark.parametrize("target", ["reference", "cpu", "emulate:cuda:sm_80"])
def test_every_program_runs_what_stands_before_the_grid(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Machine code took a kernel of which anything but arithmetic stood there for one program."""
    x = np.arange(10, dtype=np.int32)
    with tile.target(target):
        np.testing.assert_array_equal(late(x), x + 4)
    assert capsys.readouterr().out == "of 10 numbers 4\n" * 3


@tile.kernel
def loaded(x: X, y: Y):
    tile.store(y, tile.grid(tile.load(x, 0, ())), 1)


@tile.kernel
def chosen(x: X, y: Y):
    block = 4
    if x.shape[0] > 8:
        block = 8
    tile.store(y, tile.grid(tile.cdiv(x.shape[0], block)), 1)


@tile.kernel
def nested(x: X, y: Y):
    if x.shape[0] > 1:
        tile.store(y, tile.grid(x.shape[0]), 1)


@tile.kernel
def written(x: X, y: Y):
    tile.store(y, 0, tile.zeros(4, tile.i32))
    tile.store(y, tile.grid(x.shape[0]), 1)


@tile.kernel
def real(x: X, y: Y):
    tile.store(y, tile.grid(x.shape[0] / 4), 1)


@pytest.mark.parametrize(("kernel", "error", "message"), [
    (loaded, errors.UnsupportedSyntax, "needs: dimensions, scalar parameters and constants\n  got:   `load`"),
    (chosen, errors.UnsupportedSyntax, "got:   `if`"), (nested, errors.UnsupportedSyntax, "in a loop or a branch"),
    (written, errors.UnsupportedSyntax, "a write before the grid"), (real, errors.DTypeMismatch, "tile.cdiv"),
])
def test_what_the_caller_cannot_evaluate_is_refused(kernel: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kernel(np.arange(10, dtype=np.int32))


@pytest.mark.parametrize("target", ["reference", "cpu", "emulate:cuda:sm_80"])
def test_a_loop_without_a_step_is_no_endless_loop(target: str) -> None:
    @tile.kernel
    def every(x: X, step: tile.i32, y: Y):
        for i in tile.range(0, x.shape[0], step):
            tile.store(y, i, 1)

    y = np.zeros(7, np.int32)
    with tile.target(target):
        every(y.copy(), 3, y)
        assert y.tolist() == [1, 0, 0, 1, 0, 0, 1]
        with pytest.raises(errors.AssertFailed, match="the step of a loop must be positive"):
            every(y.copy(), 0, y)


def test_races_between_programs_name_the_tensor() -> None:
    @tile.kernel
    def sums(x: X, part: tile.InOut[tile.i32, "N"], y: Y):
        n = tile.grid(x.shape[0])
        tile.store(part, n, tile.load(x, n, ()))
        tile.store(y, n, tile.load(part, 0, 4).sum())

    x = np.arange(4, dtype=np.int32)
    with tile.target("emulate:cuda:sm_80"), pytest.raises(errors.CheckError, match="race-global.*byte 0 of `part`"):
        sums(x, x.copy())
