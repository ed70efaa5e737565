"""Programs that share the steps of all blocks of a product evenly (stream-K, arXiv 2301.03598).

Block t of the result takes `deep` steps along the columns, t * deep and those after it, and each program does as many
steps as any other, one after the other. Sums over a part of a block's steps, at most the first and the last of a
program, go to `parts` [programs, 2 BM, BN], and a second kernel adds them up, in a fixed order: the same programs give
the same bits. Blocks that several programs share evenly (split-K) are the special case of a multiple of the blocks.
"""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.activation import finished

PROCESSORS = 132
"""Multiprocessors of an H100 or H200; an MI300X has 304 of half the throughput."""
BANDWIDTH = 4000.0
"""Bytes a nanosecond that they read from memory."""
CACHE = 5500.0
"""Bytes a nanosecond that they read from the second-level cache."""
OF_ONE = 60.0
"""Bytes a nanosecond that one processor can ask for."""
LAUNCH = 2000.0
"""Nanoseconds between a kernel and one that needs its results."""


@tile.function
def quota(programs, steps):
    """How many steps a program does; the last ones may have fewer."""
    return tile.cdiv(steps, programs)


@tile.function
def share(p, programs, steps):
    """(first, end) of the steps of program p."""
    start = p * quota(programs, steps)
    return start, tile.minimum(start + quota(programs, steps), steps)


@tile.function
def part(t, start, end, deep):
    """(first, end) of the steps of block t, counted from its own first, that are between `start` and `end`."""
    return tile.maximum(start - t * deep, 0), tile.minimum(end - t * deep, deep)


@tile.function
def slot(t, start, deep):
    """Where a program that begins with step `start` puts its part of block t: 0 of its first block, 1 of its last."""
    return tile.minimum(t - start // deep, 1)


@tile.kernel
def finish_kernel(
    parts: tile.Tensor[tile.f32, "P H W"], y: tile.Out[tile.Y, "M N"], deep: tile.i32, BM: tile.Const,
    BN: tile.Const, ACT: tile.Const = None, bias: tile.Tensor[tile.C, "N"] = None,
    residual: tile.Tensor[tile.R, "M N"] = None, added: tile.Tensor[tile.f32, "M N"] = None,
):
    """The blocks of y that several programs have parts of, added up in the order of the programs; `deep` steps make up
    a block."""
    wide, high = tile.cdiv(y.shape[0], BM), tile.cdiv(y.shape[1], BN)
    m, n = tile.grid(wide, high)
    t, each = n * wide + m, quota(parts.shape[0], wide * high * deep)
    first, last = t * deep // each, (t * deep + deep - 1) // each
    if first < last:
        acc = tile.zeros((BM, BN), tile.f32)
        for p in tile.range(first, last + 1):
            acc += tile.load(parts, (p, slot(t, p * each, deep) * BM, 0), (BM, BN))
        out = finished(acc, bias, residual, added, m * BM, n * BN, ACT, BM, BN)
        tile.store(y, (m * BM, n * BN), out.to(y.dtype))
