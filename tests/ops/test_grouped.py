"""Products of groups of rows, forward and backward, within the bound of their sums."""
from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import ops
from tilelang.errors import AssertFailed

grouped = import_module("tilelang.ops.grouped")
EPS = 2.0 ** -23


@pytest.mark.parametrize("target", ["cpu", "reference", "emulate:cuda:sm_80"])
@pytest.mark.parametrize(("offsets", "k", "n"), [([0, 5, 5, 30, 41], 33, 20), ([0, 1], 1, 1), ([2, 2, 9, 9], 8, 40)])
def test_grouped_matmul(offsets: list[int], k: int, n: int, target: str) -> None:
    """Empty groups, rows before the first and after the last, NaN in another group's gradient."""
    m, e = offsets[-1] + 2, len(offsets) - 1
    x, w = torch.randn(m, k, requires_grad=True), torch.randn(e, k, n, requires_grad=True)
    where, dy = torch.tensor(offsets, dtype=torch.int32), torch.randn(m, n)
    with tile.target(target):
        y = ops.grouped_matmul(x, w, where)
        dx, dw = torch.autograd.grad(y, (x, w), dy)
    a, b, d = (t.detach().double().numpy() for t in (x, w, dy))
    assert (abs(y.detach().numpy() - grouped.reference(a, b, offsets))
            <= k * EPS * grouped.reference(abs(a), abs(b), offsets)).all()
    turned = b.swapaxes(1, 2)
    assert (abs(dx.numpy() - grouped.reference(d, turned, offsets))
            <= n * EPS * grouped.reference(abs(d), abs(turned), offsets)).all()
    for i in range(e):
        rows = slice(offsets[i], offsets[i + 1])
        assert (abs(dw[i].numpy() - a[rows].T @ d[rows]) <= m * EPS * (abs(a[rows]).T @ abs(d[rows]))).all()


@pytest.mark.parametrize("dt", [torch.float16, torch.bfloat16])
def test_half_precision(dt: torch.dtype) -> None:
    """Sums in f32, rounded once, forward and backward."""
    offsets, step = [0, 7, 7, 41], torch.finfo(dt).eps
    x, w = torch.randn(41, 33).to(dt).requires_grad_(), torch.randn(3, 33, 20).to(dt).requires_grad_()
    dy = torch.randn(41, 20).to(dt)
    y = ops.grouped_matmul(x, w, torch.tensor(offsets, dtype=torch.int32))
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    a, b, d = (t.detach().double().numpy() for t in (x, w, dy))
    turned, parts = b.swapaxes(1, 2), [slice(*offsets[e:e + 2]) for e in range(3)]
    for got, want, size, terms in (
            (y, grouped.reference(a, b, offsets), grouped.reference(abs(a), abs(b), offsets), 33),
            (dx, grouped.reference(d, turned, offsets), grouped.reference(abs(d), abs(turned), offsets), 20),
            (dw, np.stack([a[r].T @ d[r] for r in parts]), np.stack([abs(a[r]).T @ abs(d[r]) for r in parts]), 41)):
        assert got.dtype is dt
        error = abs(got.detach().double().numpy() - want)
        assert (error <= terms * EPS * size + step / 2 * abs(want) + 2.0 ** -25).all()


def test_what_other_groups_hold_has_no_effect() -> None:
    x, w = torch.randn(9, 4), torch.randn(2, 4, 3)
    where = torch.tensor([0, 5, 9], dtype=torch.int32)
    dy = torch.randn(9, 3)
    dirty = dy.clone()
    dirty[5:] = float("nan")
    clean, spoilt = (grouped._backward(x, w, where, d) for d in (dy, dirty))
    assert torch.equal(clean[0][:5], spoilt[0][:5]) and torch.equal(clean[1][0], spoilt[1][0])
    assert torch.isnan(spoilt[1][1]).all()


def test_operator() -> None:
    x, w = torch.randn(9, 4, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    where = torch.tensor([0, 5, 9], dtype=torch.int32)
    assert ops.grouped_matmul._ready()
    result = torch.library.opcheck(torch.ops.tilelang.grouped_matmul.default, (x, w, where))
    assert set(result.values()) == {"SUCCESS"}
    with pytest.raises(ValueError, match="2 matrices need 3 offsets, got 2"):
        ops.grouped_matmul(np.zeros((1, 4)), np.zeros((2, 4, 3)), np.zeros(2, np.int32))


@pytest.mark.parametrize("offsets", [[0, 5, 10], [0, 7, 5], [-1, 5, 9]])
def test_groups_outside_of_the_rows(offsets: list[int]) -> None:
    with pytest.raises(AssertFailed, match="offsets do not ascend, or end behind the rows"):
        ops.grouped_matmul(torch.ones(9, 4), torch.ones(2, 4, 3), torch.tensor(offsets, dtype=torch.int32))
