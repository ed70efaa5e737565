"""Which blocks of the score matrix a mask leaves anything of, so that kernels visit no others."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tilelang as tile
from tilelang.args import empty_like
from tilelang.lang.expressions import Function
from tilelang.ops.attention.scores import per_key, visible


@tile.kernel
def block_mask_kernel(
    like: tile.Tensor[tile.i32, "B H"],
    counts: tile.Out[tile.i32, "B H M"],
    blocks: tile.Out[tile.i32, "B H M N"],
    queries: tile.i32,
    keys: tile.i32,
    MASK: tile.Const,
    BM: tile.Const,
    BN: tile.Const,
    COLUMNS: tile.Const = False,
    RIGHT: tile.Const = None,
    until: tile.Tensor[tile.i32, "C G L"] = None,
):
    """For each row of blocks how many see anything, and their numbers, ascending. COLUMNS: of columns of blocks."""
    B, H = like.shape
    M, N = blocks.shape[2], blocks.shape[3]
    b, h, m = tile.grid(B, H, M)
    count = 0
    for n in tile.range(0, N):
        row, column = (n, m) if COLUMNS else (m, n)
        i, j = row * BM + tile.arange(BM)[:, None], column * BN + tile.arange(BN)[None, :]
        last = None if until is None else per_key(until, b, h // (H // until.shape[1]), column * BN, j)
        seen = visible(b, h, i, j, queries, keys, keys - queries, None, RIGHT, MASK, last).any()
        tile.store(blocks, (b, h, m, count), n)  # overwritten by the next unless it counts
        count = count + seen.to(tile.i32)
    tile.store(counts, (b, h, m), count)


@dataclass(frozen=True)
class BlockMask:
    """The blocks BM x BN of a [B, H, S, L] score matrix that a mask leaves anything of: by rows `row_counts` i32
    [B, H, M] and `row_blocks` [B, H, M, N], by columns `column_counts` [B, H, N] and `column_blocks` [B, H, N, M]."""

    mask_mod: Function | None
    shape: tuple[int, int, int, int]
    BM: int
    BN: int
    row_counts: Any
    row_blocks: Any
    column_counts: Any
    column_blocks: Any


def block_mask(like: Any, mask_mod: Function, batch: int, heads: int, queries: int, keys: int,
               block_q: int | None = None, block_k: int | None = None) -> BlockMask:
    """The blocks of a mask, as `block_mask` of `attention` and `attention_backward` takes them, on the device of the
    tensor `like`. `batch` or `heads` of 1 serve all. Blocks are 64 x 64 on a GPU and 96 x 128 on a CPU unless given; a
    GPU wants multiples of 16. Raises ValueError."""
    if not isinstance(mask_mod, Function):
        raise ValueError(f"mask_mod(b, h, i, j) must be a function marked @tile.function, got {mask_mod!r}")
    gpu = tile.on_gpu(like)
    return listed(like, (batch, heads, queries, keys), block_q or (64 if gpu else 96), block_k or (64 if gpu else 128),
                  mask_mod)


def listed(like: Any, shape: tuple[int, int, int, int], bm: int, bn: int, mask_mod: Function | None = None,
           **given: Any) -> BlockMask:
    """The blocks of a mask of scores [batch, heads, queries, keys]; `given` are further arguments of the kernel."""
    batch, heads, queries, keys = shape
    m, n, i32 = -(-queries // bm), -(-keys // bn), tile.dtype("i32")
    out = []
    for columns, (rows, others) in ((False, (m, n)), (True, (n, m))):
        counts = empty_like(like, (batch, heads, rows), i32)
        blocks = empty_like(like, (batch, heads, rows, others), i32)
        block_mask_kernel(empty_like(like, (batch, heads), i32), counts, blocks, queries, keys, MASK=mask_mod, BM=bm,
                          BN=bn, COLUMNS=columns, **given)
        out += [counts, blocks]
    return BlockMask(mask_mod, shape, bm, bn, *out)
