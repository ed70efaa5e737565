"""Gradients of softmax attention: programs add up in an order of their own, so that results do not depend on timing.

With y the scores after all changes, p = exp(y - lse), delta = rowsum(do * o) - dlse (Dao, 2023, algorithm 2):
dv = p^T do;  dy = p * (do v^T - delta);  dx = dy * dy/dx;  dq = scale dx k;  dk = scale dx^T q;  dbias = dy;
dslope = sum of dy * dy/dslope.
"""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.attention.scores import (
    LOG2E,
    biased,
    key_block,
    key_range,
    per_key,
    put,
    query_range,
    score,
    span,
    visible,
)


@tile.kernel
def delta_kernel(
    do: tile.Tensor[tile.T, "A H S E"],
    o: tile.Tensor[tile.T, "A H S E"],
    delta: tile.Out[tile.f32, "A H S"],
    dlse: tile.Tensor[tile.f32, "A H S"] = None,
    BM: tile.Const = 64,
    BE: tile.Const = 64,
):
    """rowsum(do * o) - dlse."""
    b, h, m = tile.grid(do.shape[0], do.shape[1], tile.cdiv(do.shape[2], BM))
    at = (b, h, m * BM, 0)
    rows = (tile.load(do, at, (BM, BE)).to(tile.f32) * tile.load(o, at, (BM, BE)).to(tile.f32)).sum(1)
    if dlse is not None:
        rows = rows - tile.load(dlse, (b, h, m * BM), (BM,))
    tile.store(delta, (b, h, m * BM), rows)


@tile.kernel
def sinks_kernel(
    sinks: tile.Tensor[tile.f32, "H"],
    lse: tile.Tensor[tile.f32, "A H S"],
    delta: tile.Tensor[tile.f32, "A H S"],
    dsinks: tile.Out[tile.f32, "H"],
    BN: tile.Const = 1024,
):
    """- sum of exp(sink - lse) * delta over the rows of a head."""
    h = tile.grid(sinks.shape[0])
    sink = tile.load(sinks, (h,), ())
    total = tile.zeros((BN,), tile.f32)
    for a in tile.range(0, lse.shape[0]):
        for s in tile.range(0, lse.shape[2], BN):
            p = tile.exp(sink - tile.load(lse, (a, h, s), (BN,), fill=float("inf")))
            total = total - tile.where(p == 0.0, 0.0, p * tile.load(delta, (a, h, s), (BN,)))  # delta may be NaN there
    tile.store(dsinks, (h,), total.sum(0))


@tile.function
def slopes(x, seen, b, h, i, j, shift, slope, bias, scale, CAP, MOD):
    """(scores to base 2 with what is not visible at -inf, dy/dx or None where it is 1, dy/dslope or None where `slope`
    is no tile) of products x."""
    if CAP is None and slope is None and MOD is None and bias is None:
        return tile.where(seen, x * (scale * LOG2E), float("-inf")), None, None
    x = x * scale
    y = score(x, b, h, i, j, shift, slope, CAP, MOD)
    dy = None if CAP is None and MOD is None else tile.where(seen, tile.derivative(y, x), 0.0)
    dslope = None if slope is None or slope.shape == () else tile.where(seen, tile.derivative(y, slope), 0.0)
    if bias is not None:
        y = y + bias
    return tile.where(seen, y * LOG2E, float("-inf")), dy, dslope


@tile.function
def added(bias, each):
    """The sum of two biases of scores, each of which may be None."""
    if each is None:
        return bias
    return each.to(tile.f32) if bias is None else bias + each.to(tile.f32)


@tile.kernel
def dkdv_kernel(
    q: tile.Tensor[tile.T, "A H S D"],
    k: tile.Tensor[tile.T, "C G L D"],
    v: tile.Tensor[tile.T, "C G L E"],
    do: tile.Tensor[tile.T, "A H S E"],
    lse: tile.Tensor[tile.f32, "A H S"],
    delta: tile.Tensor[tile.f32, "A H S"],
    dk: tile.Out[tile.T, "C G L D"],
    dv: tile.Out[tile.T, "C G L E"],
    scale: tile.f32,
    dkey_bias: tile.Out[tile.W, "C G L"] = None,
    dq: tile.InOut[tile.f32, "P A H D S"] = None,
    alibi: tile.Tensor[tile.f32, "B H"] = None,
    bias: tile.Tensor[tile.U, "A H S L"] = None,
    key_bias: tile.Tensor[tile.W, "C G L"] = None,
    until: tile.Tensor[tile.i32, "C G L"] = None,
    counts: tile.Tensor[tile.i32, "A H N"] = None,
    blocks: tile.Tensor[tile.i32, "A H N M"] = None,
    cu_q: tile.Tensor[tile.i32, "B1"] = None,
    cu_k: tile.Tensor[tile.i32, "B1"] = None,
    used_q: tile.Tensor[tile.i32, "B"] = None,
    used_k: tile.Tensor[tile.i32, "B"] = None,
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
):
    """One block of BN keys of one key head for each program, over all queries of its query heads. Scores stand
    transposed, [BN, BM], so that they are left operands as they come.

    With `dq`, which begins with zeros, program p of P for a key head takes blocks p, p + P, … of it and adds what they
    give to the gradient of the queries, but for `scale`: five products then do what takes seven where dq_kernel makes
    scores once more. `dq` is transposed because dx as it stands is a right operand."""
    H, G = q.shape[1], k.shape[1]
    ragged_q, ragged_k = used_q is not None or cu_q is not None, used_k is not None or cu_k is not None
    batches = q.shape[0] if cu_q is None else cu_q.shape[0] - 1
    count = tile.cdiv(k.shape[2] if cu_k is None else longest, BN)
    bg, start = tile.grid(batches * G, count if dq is None else dq.shape[0])
    b, g = bg // G, bg % G
    first_q, S = span(b, q.shape[2], cu_q, used_q)
    first_k, L = span(b, k.shape[2], cu_k, used_k)
    at_q, at_k = (b if cu_q is None else 0), (b if cu_k is None else 0)
    for block in (start,) if dq is None else tile.range(start, count, dq.shape[0]):
        n, shift = block * BN, L - S
        keys = key_block(k, at_k, g, n, first_k, L, None, BN, BD, ragged_k)
        values = key_block(v, at_k, g, n, first_k, L, None, BN, BE, ragged_k)
        j = n + tile.arange(BN)[:, None]
        sum_k, sum_v = tile.zeros((BN, BD), tile.f32), tile.zeros((BN, BE), tile.f32)
        sum_bias = tile.zeros((BN,), tile.f32)
        for r in tile.range(0, H // G):
            h = g * (H // G) + r
            slope = tile.load(alibi, (b, h), ()) if alibi is not None else None
            if counts is None:
                lo, hi = query_range(n, BN, S, shift, LEFT, RIGHT, BM)
            else:
                lo, hi = 0, tile.load(counts, (at_q, h, block), ()) * BM
            if ragged_k:
                hi = tile.where(n < L, hi, lo)
            for at in tile.range(lo, hi, BM, stages=2):
                m = at if counts is None else tile.load(blocks, (at_q, h, block, at // BM), ()) * BM
                rows = key_block(q, at_q, h, m, first_q, S, None, BM, BD, ragged_q)
                grads = key_block(do, at_q, h, m, first_q, S, None, BM, BE, ragged_q)
                i = m + tile.arange(BM)[None, :]
                seen = visible(b, h, i, j, S if ragged_q else None, L, shift, LEFT, RIGHT, MASK,
                               per_key(until, at_k, g, n, j))
                extra = None
                if bias is not None:
                    extra, seen = biased(tile.zeros((BM, BN), tile.f32), seen.T, bias, at_q, h, m, n)
                    extra, seen = extra.T, seen.T
                extra = added(extra, per_key(key_bias, at_k, g, n, j))
                y, dy = slopes(tile.dot(keys, rows.T), seen, b, h, i, j, shift, slope, extra, scale, CAP, MOD)[:2]
                top = tile.load(lse, (at_q, h, first_q + m), (BM,), fill=float("inf")) * LOG2E
                p = tile.exp2(y - top[None, :])
                sum_v = tile.dot(p.to(v.dtype) if ROUND else p, grads, sum_v)
                part = tile.load(delta, (at_q, h, first_q + m), (BM,))
                if ragged_q:  # whatever `do` holds there
                    part = tile.where(m + tile.arange(BM) < S, part, 0.0)
                dx = p * (tile.dot(values, grads.T) - part[None, :])
                if dkey_bias is not None:
                    sum_bias += dx.sum(1)
                if dy is not None:
                    dx = dx * dy
                dx = dx.to(k.dtype) if ROUND else dx
                sum_k = tile.dot(dx, rows, sum_k)
                if dq is not None:
                    so_far = tile.load(dq, (start, at_q, h, 0, m), (BD, BM))
                    tile.store(dq, (start, at_q, h, 0, m), so_far + tile.dot(keys.T, dx))
        put(dk, at_k, g, first_k, n, L, (sum_k * scale).to(dk.dtype), ragged_k)
        put(dv, at_k, g, first_k, n, L, sum_v.to(dv.dtype), ragged_k)
        if dkey_bias is not None:
            tile.store(dkey_bias, (at_k, g, n), sum_bias.to(dkey_bias.dtype))


@tile.kernel
def dq_sum_kernel(
    parts: tile.Tensor[tile.f32, "P A H D S"],
    dq: tile.Out[tile.T, "A H S D"],
    scale: tile.f32,
    BM: tile.Const = 64,
    BD: tile.Const = 64,
):
    """dq = scale * the sum of `parts` as dkdv_kernel gives them."""
    a, h, m = tile.grid(dq.shape[0], dq.shape[1], tile.cdiv(dq.shape[2], BM))
    total = tile.zeros((BD, BM), tile.f32)
    for p in tile.range(0, parts.shape[0]):
        total += tile.load(parts, (p, a, h, 0, m * BM), (BD, BM))
    tile.store(dq, (a, h, m * BM, 0), (total * scale).T.to(dq.dtype))


@tile.kernel
def dq_kernel(
    q: tile.Tensor[tile.T, "A H S D"],
    k: tile.Tensor[tile.T, "C G L D"],
    v: tile.Tensor[tile.T, "C G L E"],
    do: tile.Tensor[tile.T, "A H S E"],
    lse: tile.Tensor[tile.f32, "A H S"],
    delta: tile.Tensor[tile.f32, "A H S"],
    dq: tile.Out[tile.T, "A H S D"],
    scale: tile.f32,
    dslopes: tile.Out[tile.f32, "M B H"] = None,
    alibi: tile.Tensor[tile.f32, "B H"] = None,
    bias: tile.Tensor[tile.U, "A H S L"] = None,
    key_bias: tile.Tensor[tile.W, "C G L"] = None,
    until: tile.Tensor[tile.i32, "C G L"] = None,
    counts: tile.Tensor[tile.i32, "A H M"] = None,
    blocks: tile.Tensor[tile.i32, "A H M N"] = None,
    cu_q: tile.Tensor[tile.i32, "B1"] = None,
    cu_k: tile.Tensor[tile.i32, "B1"] = None,
    used_q: tile.Tensor[tile.i32, "B"] = None,
    used_k: tile.Tensor[tile.i32, "B"] = None,
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
):
    """One block of BM queries of one head for each program; `dslopes` is each block's part of ALiBi's gradient."""
    H, G = q.shape[1], k.shape[1]
    ragged_q, ragged_k = used_q is not None or cu_q is not None, used_k is not None or cu_k is not None
    batches = q.shape[0] if cu_q is None else cu_q.shape[0] - 1
    bh, block = tile.grid(batches * H, tile.cdiv(q.shape[2] if cu_q is None else longest, BM))
    b, h = bh // H, bh % H
    g = h // (H // G)
    first_q, S = span(b, q.shape[2], cu_q, used_q)
    first_k, L = span(b, k.shape[2], cu_k, used_k)
    at_q, at_k = (b if cu_q is None else 0), (b if cu_k is None else 0)
    if RIGHT is not None and not ragged_q:
        block = tile.cdiv(S, BM) - 1 - block  # the longest rows begin first
    m, shift = block * BM, L - S
    rows = tile.load(q, (at_q, h, first_q + m, 0), (BM, BD))
    grads = tile.load(do, (at_q, h, first_q + m, 0), (BM, BE))
    top = tile.load(lse, (at_q, h, first_q + m), (BM,), fill=float("inf")) * LOG2E
    part = tile.load(delta, (at_q, h, first_q + m), (BM,))
    slope = tile.load(alibi, (b, h), ()) if alibi is not None else None
    i = m + tile.arange(BM)[:, None]
    total = tile.zeros((BM, BD), tile.f32)
    if dslopes is not None:
        slope = tile.full((BM, BN), slope)
        steep = tile.zeros((BM,), tile.f32)
    if counts is None:
        lo, hi = key_range(m, BM, L, shift, LEFT, RIGHT, BN)
    else:
        lo, hi = 0, tile.load(counts, (at_q, h, block), ()) * BN
    if ragged_q:
        hi = tile.where(m < S, hi, lo)
    for at in tile.range(lo, hi, BN, stages=2):
        n = at if counts is None else tile.load(blocks, (at_q, h, block, at // BN), ()) * BN
        keys = key_block(k, at_k, g, n, first_k, L, None, BN, BD, ragged_k)
        values = key_block(v, at_k, g, n, first_k, L, None, BN, BE, ragged_k)
        j = n + tile.arange(BN)[None, :]
        seen = visible(b, h, i, j, None if dslopes is None else S, L, shift, LEFT, RIGHT, MASK,
                       per_key(until, at_k, g, n, j))
        extra = None
        if bias is not None:
            extra, seen = biased(tile.zeros((BM, BN), tile.f32), seen, bias, at_q, h, m, n)
        extra = added(extra, per_key(key_bias, at_k, g, n, j))
        y, dy, dslope = slopes(tile.dot(rows, keys.T), seen, b, h, i, j, shift, slope, extra, scale, CAP, MOD)
        dx = tile.exp2(y - top[:, None]) * (tile.dot(grads, values.T) - part[:, None])
        if dslopes is not None:
            steep = steep + (dx * dslope).sum(1)
        if dy is not None:
            dx = dx * dy
        total = tile.dot(dx.to(k.dtype) if ROUND else dx, keys, total)
    put(dq, at_q, h, first_q, m, S, (total * scale).to(dq.dtype), ragged_q)
    if dslopes is not None:
        tile.store(dslopes, (block, b, h), steep.sum(0))


@tile.kernel
def dbias_kernel(
    q: tile.Tensor[tile.T, "A H S D"],
    k: tile.Tensor[tile.T, "A G L D"],
    v: tile.Tensor[tile.T, "A G L E"],
    do: tile.Tensor[tile.T, "A H S E"],
    lse: tile.Tensor[tile.f32, "A H S"],
    delta: tile.Tensor[tile.f32, "A H S"],
    dbias: tile.Out[tile.U, "A0 H0 S0 L0"],
    scale: tile.f32,
    alibi: tile.Tensor[tile.f32, "A H"] = None,
    bias: tile.Tensor[tile.U, "A H S L"] = None,
    used_q: tile.Tensor[tile.i32, "A"] = None,
    used_k: tile.Tensor[tile.i32, "A"] = None,
    LEFT: tile.Const = None,
    RIGHT: tile.Const = None,
    CAP: tile.Const = None,
    MOD: tile.Const = None,
    MASK: tile.Const = None,
    BM: tile.Const = 64,
    BN: tile.Const = 64,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
    ROWS: tile.Const = True,
    COLUMNS: tile.Const = True,
):
    """One block of the gradient for each program, over all scores that its elements were added to. Extents of `dbias`
    are those of the scores or 1; ROWS, COLUMNS: it has all S and L. `bias` is broadcast."""
    A0, H0, S0, L0 = dbias.shape[0], dbias.shape[1], dbias.shape[2], dbias.shape[3]
    ah, block_m, block_n = tile.grid(A0 * H0, tile.cdiv(S0, BM), tile.cdiv(L0, BN))
    a, r = ah // H0, ah % H0
    share = q.shape[1] // k.shape[1]
    total = tile.zeros((BM, BN), tile.f32)
    for b in tile.range(a, tile.where(A0 == 1, q.shape[0], a + 1)):
        S = span(b, q.shape[2], None, used_q)[1]
        L = span(b, k.shape[2], None, used_k)[1]
        shift = L - S
        for h in tile.range(r, tile.where(H0 == 1, q.shape[1], r + 1)):
            slope = tile.load(alibi, (b, h), ()) if alibi is not None else None
            for m in tile.range(block_m * BM, tile.minimum(S, (block_m + 1) * BM) if ROWS else S, BM):
                rows, grads = (key_block(x, b, h, m, 0, S, None, BM, BX, used_q is not None)
                               for x, BX in ((q, BD), (do, BE)))
                top = tile.load(lse, (b, h, m), (BM,), fill=float("inf")) * LOG2E
                part = tile.load(delta, (b, h, m), (BM,))
                i = m + tile.arange(BM)[:, None]
                lo, hi = key_range(m, BM, L, shift, LEFT, RIGHT, BN)
                if COLUMNS:
                    lo, hi = tile.maximum(lo, block_n * BN), tile.minimum(hi, (block_n + 1) * BN)
                for n in tile.range(lo, hi, BN):
                    keys, values = (key_block(x, b, h // share, n, 0, L, None, BN, BX, used_k is not None)
                                    for x, BX in ((k, BD), (v, BE)))
                    j = n + tile.arange(BN)[None, :]
                    seen = visible(b, h, i, j, S, L, shift, LEFT, RIGHT, MASK)
                    extra, seen = biased(tile.zeros((BM, BN), tile.f32), seen, bias, b, h, m, n)
                    y = slopes(tile.dot(rows, keys.T), seen, b, h, i, j, shift, slope, extra, scale, CAP, MOD)[0]
                    dy = tile.exp2(y - top[:, None]) * (tile.dot(grads, values.T) - part[:, None])
                    total = total + tile.where(seen, dy, 0.0)
    if not ROWS:
        total = total.sum(0)[None, :]
    if not COLUMNS:
        total = total.sum(1)[:, None]
    tile.store(dbias, (a, r, block_m * BM, block_n * BN), total.to(dbias.dtype))
