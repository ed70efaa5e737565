"""Caches of which each token keeps its largest channels (Mustafar, arXiv 2505.22913): packed values and a bitmap.

Every row of a cache keeps the same number of channels, those of largest magnitude, of equal ones the first. So its
values are a row of a smaller tensor, and channel c, where its bit is set, is as many values in as bits are set before
it. Rows are loaded packed and computed with in full width.
"""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.common import block, check_floats, dtype_of

WORD = 32
I32 = tile.dtype("i32")


@tile.kernel
def compress_kernel(
    x: tile.Tensor[tile.T, "B G L D"],
    values: tile.Out[tile.T, "B G L N"],
    bits: tile.Out[tile.i32, "B G L W"],
    BN: tile.Const = 16,
    WORDS: tile.Const = 2,
):
    """BN rows for each program. A channel's rank is the number of larger ones, found by comparing it with each."""
    (B, G, L, D), KEEP = x.shape, values.shape[3]
    b, g, m = tile.grid(B, G, tile.cdiv(L, BN))
    c = tile.arange(WORDS * WORD)[None, :]
    rows = tile.load(x, (b, g, m * BN, 0), (BN, WORDS * WORD))
    size, rank = tile.abs(rows.to(tile.f32)), tile.zeros((BN, WORDS * WORD), tile.i32)
    for d in tile.range(0, D):
        other = tile.abs(tile.load(x, (b, g, m * BN, d), (None, None, BN, None)).to(tile.f32))[:, None]
        rank += ((other > size) | ((other == size) & (d < c))).to(tile.i32)
    kept = rank < KEEP
    place = tile.cumsum(kept.to(tile.i32), 1) - 1
    zero = tile.zeros((BN, WORDS * WORD), tile.i32)
    tile.scatter(values, (zero + b, zero + g, zero + m * BN + tile.arange(BN)[:, None], place), rows, kept)
    word = tile.where(kept, tile.full((BN, WORDS * WORD), 1, tile.u32) << (c % WORD).to(tile.u32), 0)
    tile.store(bits, (b, g, m * BN, 0), tile.bitcast(word.reshape(BN, WORDS, WORD).sum(2), tile.i32))


@tile.function
def expanded(values, bits, b, g, n, length, table, ROWS, COLUMNS, ZERO):
    """`key_block` of rows that `compress_kernel` packed: COLUMNS, a multiple of a word's bits, in full."""
    entry, first = b, n
    if table is not None:
        page = values.shape[2]
        entry, first = tile.load(table, (b, n // page), ()), n % page
    words = tile.load(bits, (entry, g, first, 0), (ROWS, COLUMNS // WORD))
    if ZERO:
        words = tile.where(n + tile.arange(ROWS)[:, None] < length, words, 0)
    return tile.expand_load(values, (entry, g, first, 0), words)


def compress_kv(k: Any, v: Any, keep: float = 0.5) -> tuple[Any, Any, dict[str, Any]]:
    """(packed k [B, G, L, D], packed v [B, G, L, E], bitmaps as arguments of `attention_decode`): of each token the
    share `keep` of the channels of k and of v, those of largest magnitude. D and E are multiples of 32. A row of D
    channels of f16 takes 2 keep D + D / 8 bytes. Raises ValueError."""
    if not 0.0 < keep <= 1.0 or any(x.shape[3] % WORD for x in (k, v)):
        raise ValueError(f"keep must be a fraction above 0, and the channels of k and v multiples of {WORD}, got "
                         f"{keep}, {k.shape[3]} and {v.shape[3]}")
    check_floats("compress_kv", k, 4)
    packed, bitmaps = [], []
    for x in (k, v):
        batch, groups, length, d = x.shape
        values = empty_like(x, (batch, groups, length, max(1, round(keep * d))), dtype_of(x))
        bits = empty_like(x, (batch, groups, length, d // WORD), I32)
        compress_kernel(x, values, bits, BN=block(length, 16, 4), WORDS=d // WORD)
        packed.append(values)
        bitmaps.append(bits)
    return packed[0], packed[1], {"k_bits": bitmaps[0], "v_bits": bitmaps[1]}


def pruned(x: Any, keep: float = 0.5) -> Any:
    """x [..., D] as the packed form means it: 0 but for the channels of each row that it keeps, by sorting."""
    x = np.asarray(x)
    order = np.argsort(-abs(x.astype(np.float64)), -1, kind="stable")
    rank = np.argsort(order, -1)
    return np.where(rank < max(1, round(keep * x.shape[-1])), x, 0)
