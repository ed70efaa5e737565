"""Masks by blocks: what they list, and that results are those of the mask alone."""
from __future__ import annotations

from typing import Any

import pytest
import torch

import tilelang as tile
from tests.ops.attention.oracle import two_of_three
from tilelang import ops


@tile.function
def documents(b, h, i, j):
    """Three documents of 70 tokens; later heads see one less before their own."""
    return (i // 70 == j // 70) & (j <= i) & (i - j < 40 + h)


def listed(counts: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """[.., M, N] of whether a block is listed; each once, ascending."""
    out = torch.zeros(blocks.shape, dtype=torch.bool)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in counts.shape)).tolist():
        numbers = blocks[tuple(at)][:counts[tuple(at)]]
        assert (numbers.diff() > 0).all()
        out[tuple(at)][numbers.long()] = True
    return out


@pytest.mark.parametrize("mask", [documents, two_of_three])
def test_blocks(mask: Any) -> None:
    got = ops.block_mask(torch.empty(0), mask, 2, 3, 200, 150, 16, 32)
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, 3, 208, 160)), indexing="ij")
    seen = ((i // 70 == j // 70) & (j <= i) & (i - j < 40 + h) if mask is documents else (i + j + b) % 3 != 0)
    seen &= (i < 200) & (j < 150)
    want = seen.reshape(2, 3, 13, 16, 5, 32).any(5).any(3)
    assert torch.equal(listed(got.row_counts, got.row_blocks), want)
    assert torch.equal(listed(got.column_counts, got.column_blocks), want.transpose(2, 3))


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80"])
def test_results(target: str) -> None:
    torch.manual_seed(0)
    s = 210 if target == "cpu" else 80
    q, k, v, do = (torch.randn(1, h, s, 16) for h in (2, 1, 1, 2))
    with tile.target(target):
        blocks = ops.block_mask(q, documents, 1, 2, s, s, 32, 32)
        o, lse = ops.attention(q, k, v, block_mask=blocks, return_lse=True)
        got = o, lse, *ops.attention_backward(do, q, k, v, o, lse, block_mask=blocks)
    o, lse = ops.attention(q, k, v, mask_mod=documents, return_lse=True)
    want = o, lse, *ops.attention_backward(do, q, k, v, o, lse, mask_mod=documents)
    for a, b in zip(got, want, strict=True):  # sums in another order: of at most 210 terms
        assert ((a - b).abs() <= 210 * 2.0 ** -23 * b.abs().max()).all()


def test_mistakes() -> None:
    x = torch.zeros(1, 2, 64, 16)
    blocks = ops.block_mask(x, documents, 1, 2, 64, 64)
    with pytest.raises(ValueError, match="those of the call are"):
        ops.attention(x[:, :, :32], x, x, block_mask=blocks)
    with pytest.raises(ValueError, match="its own mask_mod"):
        ops.attention(x, x, x, block_mask=blocks, mask_mod=documents)
    with pytest.raises(ValueError, match="@tile.function"):
        ops.block_mask(x, lambda b, h, i, j: i >= j, 1, 1, 8, 8)
