"""Softmax attention, forward, without the score matrix in memory (Dao et al., 2022)."""
from __future__ import annotations

import math

import tilelang as tile
from tilelang.ops.attention.scores import (
    LOG2E,
    biased,
    check_span,
    chosen_rows,
    key_block,
    key_range,
    normalised,
    per_key,
    put,
    rescale,
    score,
    span,
    visible,
    weigh,
)


@tile.kernel
def forward_kernel(
    q: tile.Tensor[tile.T, "A H S D"],
    k: tile.Tensor[tile.T, "C G L D"],
    v: tile.Tensor[tile.T, "C G L E"],
    o: tile.Out[tile.T, "A H S E"],
    scale: tile.f32,
    lse: tile.Out[tile.f32, "A H S"] = None,
    alibi: tile.Tensor[tile.f32, "B H"] = None,
    sinks: tile.Tensor[tile.f32, "H"] = None,
    bias: tile.Tensor[tile.U, "A H S L"] = None,
    key_bias: tile.Tensor[tile.W, "C G L"] = None,
    until: tile.Tensor[tile.i32, "C G L"] = None,
    counts: tile.Tensor[tile.i32, "A H M"] = None,
    blocks: tile.Tensor[tile.i32, "A H M N"] = None,
    cu_q: tile.Tensor[tile.i32, "B1"] = None,
    cu_k: tile.Tensor[tile.i32, "B1"] = None,
    used_q: tile.Tensor[tile.i32, "B"] = None,
    used_k: tile.Tensor[tile.i32, "B"] = None,
    table: tile.Tensor[tile.i32, "B P"] = None,
    longest: tile.i32 = 0,
    LEFT: tile.Const = None,
    RIGHT: tile.Const = None,
    CAP: tile.Const = None,
    MOD: tile.Const = None,
    MASK: tile.Const = None,
    BM: tile.Const = 64,
    BN: tile.Const = 64,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
    ROUND: tile.Const = False,
    POSITIVE: tile.Const = False,
    CHOSEN: tile.Const = False,
):
    """One block of BM queries of one head for each program; BD >= D, BE >= E. Exponentials are taken to base 2. ROUND:
    probabilities take part in the second product in v's dtype, as tensor cores want them, and fast products of bf16.
    POSITIVE: `scale` is, so that the largest score is that of the largest product, and scores need not be scaled
    before it is known. CHOSEN: `blocks` are numbers of single keys."""
    H, G = q.shape[1], k.shape[1]
    ragged = used_q is not None or cu_q is not None
    batches = q.shape[0] if cu_q is None else cu_q.shape[0] - 1
    bh, m = tile.grid(batches * H, tile.cdiv(q.shape[2] if cu_q is None else longest, BM))
    b, h = bh // H, bh % H
    g = h // (H // G)
    first_q, S = span(b, q.shape[2], cu_q, used_q)
    extent = k.shape[2] if table is None else k.shape[2] * table.shape[1]
    first_k, L = span(b, extent, cu_k, used_k)
    if cu_q is not None:
        check_span(first_q, S, q.shape[2], longest)
    if cu_k is not None and table is None:
        check_span(first_k, L, extent, extent)
    at_q, at_k = (b if cu_q is None else 0), (b if cu_k is None or table is not None else 0)
    if RIGHT is not None and not ragged:
        m = tile.cdiv(S, BM) - 1 - m  # the longest rows begin first
    shift = L - S
    query = tile.load(q, (at_q, h, first_q + m * BM, 0), (BM, BD))
    slope = tile.load(alibi, (b, h), ()) if alibi is not None else None
    plain = CAP is None and alibi is None and MOD is None and bias is None and key_bias is None
    factor = scale * LOG2E if plain and POSITIVE else None
    i = m * BM + tile.arange(BM)[:, None]
    top = tile.full((BM,), float("-inf"), tile.f32)
    total = tile.zeros((BM,), tile.f32)
    acc = tile.zeros((BM, BE), tile.f32)
    if counts is None:
        lo, hi = key_range(m * BM, BM, L, shift, LEFT, RIGHT, BN)
    else:
        lo, hi = 0, tile.load(counts, (at_q, h, m), ()) * (1 if CHOSEN else BN)
    if ragged:
        hi = tile.where(m * BM < S, hi, lo)
    for at in tile.range(lo, hi, BN, stages=2):
        if CHOSEN:
            n, place = 0, at + tile.arange(BN)
            j = tile.where(place < hi, tile.load(blocks, (at_q, h, m, at), (BN,)), L)[None, :]
            ours = chosen_rows(k, at_k, g, j, BD)
        else:
            n = at if counts is None else tile.load(blocks, (at_q, h, m, at // BN), ()) * BN
            j = n + tile.arange(BN)[None, :]
            ours = key_block(k, at_k, g, n, first_k, L, table, BN, BD, False)
        x = tile.dot(query, ours.T)
        seen = visible(b, h, i, j, None, L, shift, LEFT, RIGHT, MASK, per_key(until, at_k, g, n, j, CHOSEN))
        if plain:
            x = x if POSITIVE else x * (scale * LOG2E)
        else:
            x = score(x * scale, b, h, i, j, shift, slope, CAP, MOD)
            x, seen = biased(x, seen, bias, at_q, h, m * BM, n)
            if key_bias is not None:
                x = x + per_key(key_bias, at_k, g, n, j, CHOSEN).to(tile.f32)
            x = x * LOG2E
        x = tile.where(seen, x, float("-inf"))
        p, top, total, acc = weigh(x, top, total, acc, factor)
        if CHOSEN:
            values = chosen_rows(v, at_k, g, j, BE)
        else:
            values = key_block(v, at_k, g, n, first_k, L, table, BN, BE, used_k is not None or cu_k is not None)
        acc = tile.dot(p.to(v.dtype) if ROUND else p, values, acc)
    if sinks is not None:
        sink = tile.load(sinks, (h,), ()) * LOG2E
        top, base, keep = rescale(top, sink)
        total = total * keep + tile.exp2(sink - base)
        acc = acc * keep[:, None]
    put(o, at_q, h, first_q, m * BM, S, normalised(acc, total).to(o.dtype), ragged)
    if lse is not None:
        value = tile.where(total == 0.0, float("inf"), (top + tile.log2(total)) * math.log(2.0))
        put(lse, at_q, h, first_q, m * BM, S, value, ragged)
