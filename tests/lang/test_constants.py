"""Constants named as dimensions are their extents."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang import errors


@tile.kernel
def heads(q: tile.Tensor[tile.f32, "H D"], y: tile.Out[tile.f32, "H"], z: tile.Out[tile.i32, "H W"], D: tile.Const,
          W: tile.Const = 2):
    h = tile.grid(q.shape[0])
    tile.store(y, (h,), tile.load(q, (h, 0), (D,)).sum())
    tile.store(z, (h, 0), tile.arange(W) * D)


def numbers(h: int, d: int) -> Any:
    return np.arange(h * d, dtype=np.float32).reshape(h, d)


@pytest.mark.parametrize("target", ["cpu", "reference", "emulate:cuda:sm_80"])
def test_a_call_need_not_give_what_its_tensors_tell(target: str) -> None:
    """Sums are of whole rows, of whatever length; outputs that only a constant sizes are allocated."""
    with tile.target(target):
        for d, w in ((8, 2), (5, 2), (5, 3), (8, 2)):
            for _ in range(2):  # the second call goes the short way
                y, z = heads(numbers(3, d), **({} if w == 2 else {"W": w}))
                np.testing.assert_array_equal(y, numbers(3, d).sum(1))
                np.testing.assert_array_equal(z, np.tile(np.arange(w) * d, (3, 1)))
        np.testing.assert_array_equal(heads(numbers(3, 8), D=8)[0], numbers(3, 8).sum(1))
    fn = heads.lower(numbers(3, 8)).tile
    assert fn.params[0].type.dims == ("H", 8) and fn.params[2].type.dims == ("H", 2)


@pytest.mark.parametrize("first", [8, 4])
def test_other_tensors_are_refused(first: int) -> None:
    """Also where a call before it fits: half a row would be summed silently."""
    if first == 4:
        heads(numbers(3, 4), D=4)
    with pytest.raises(errors.DimMismatch) as caught:
        heads(numbers(3, 8), D=4)
    assert str(caught.value).partition("\n  needs")[2] == """: D = 4 (from the constant)
  got:   8 in q of shape [3, 8]
  try:   pass tensors whose shapes agree"""
    with pytest.raises(errors.DimMismatch, match=r"W = 2 \(from the constant\)"):
        heads(numbers(3, 8), z=np.zeros((3, 5), np.int32))


def test_a_constant_that_nothing_tells_is_missing() -> None:
    @tile.kernel
    def made(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N K"], K: tile.Const):
        tile.store(y, (0, 0), tile.zeros((1, K)))
    with pytest.raises(errors.ArgumentCount, match="needs: K"):
        made(np.zeros(3, np.float32))
    assert made(np.zeros(3, np.float32), K=4).shape == (3, 4)
    assert made(np.zeros(3, np.float32), y=np.zeros((3, 2), np.float32)).shape == (3, 2)


def test_an_absent_tensor_is_no_extent() -> None:
    """It is None in the kernel, and may have the name of a dimension, too."""
    @tile.kernel
    def skip(u: tile.Tensor[tile.f32, "D"], y: tile.Out[tile.f32, "D"], D: tile.Tensor[tile.f32, "D"] = None):
        d = tile.grid(u.shape[0])
        x = tile.load(u, (d,), (1,))
        if D is not None:
            x = x + tile.load(D, (d,), (1,))
        tile.store(y, (d,), x)
    u = np.arange(5, dtype=np.float32)
    assert np.array_equal(skip(u), u) and np.array_equal(skip(u, D=u), 2 * u)


def test_the_fuzzer_draws_their_extents() -> None:
    tile.testing.fuzz(heads, lambda q: (q.sum(1), np.tile(np.arange(2) * q.shape[1], (len(q), 1))))
