"""Local Linear Attention, forward, in blocks: linear memory, matrix-free conjugate gradients (arXiv 2510.01450).

For query i over its visible keys j: z_j = k_j - q_i, w_j = exp(scale q_i.k_j - top_i), omega = sum w, mu = sum w z,
rho = (sum w z z^T + ridge I)^-1 mu, delta = sum w (1 - z.rho), o_i = sum_j w_j (1 - z_j.rho) v_j / delta.
z.x is k.x - q.x, so z is never formed.
"""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.attention.scores import LOG2E, check_span, key_block, key_range, put, rescale, span, visible


@tile.function
def weights(query, keys, top, scale, seen):
    """w of a block of keys: exp to base 2 of the scores less `top`."""
    s = tile.dot(query, keys.T) * (scale * LOG2E)
    return tile.where(seen, tile.exp2(s - top[:, None]), 0.0)


@tile.function
def ridge_of(lam, omega, top, RELATIVE):
    """What is added to the diagonal: lam omega, or lam itself in units of exp(-top)."""
    return lam * omega if RELATIVE else lam * tile.exp2(-top)


@tile.function
def along(x, y):
    """Products of rows, as a column."""
    return (x * y).sum(1)[:, None]


@tile.function
def solve(y, k, at_k, g, first_k, b, h, i, L, shift, lo, hi, query, top, ridge, scale, tolerance, ITERATIONS, LEFT,
          RIGHT, BN):
    """(x with (sum w z z^T + ridge I) x = y in each row, steps taken) by conjugate gradients from 0. A row rests when
    its residual has fallen to `tolerance` of y; when all do, or after ITERATIONS steps, it ends."""
    x, r, p = tile.zeros(y.shape, tile.f32), y, y
    q = query.to(tile.f32)
    rr = along(r, r)
    goal = rr * (tolerance * tolerance)
    busy = rr > goal
    steps = 0
    while tile.any(busy) & (steps < ITERATIONS):
        pq = along(p, q)
        acc, total = tile.zeros(y.shape, tile.f32), tile.zeros((y.shape[0], 1), tile.f32)
        for n in tile.range(lo, hi, BN, stages=2):
            keys = key_block(k, at_k, g, n, first_k, L, None, BN, y.shape[1], False)
            seen = visible(b, h, i, n + tile.arange(BN)[None, :], None, L, shift, LEFT, RIGHT, None)
            wz = weights(query, keys, top, scale, seen) * (tile.dot(p, keys.T) - pq)
            total += wz.sum(1, keepdims=True)
            acc = tile.dot(wz, keys, acc)
        ap = acc - total * q + ridge[:, None] * p
        pap = along(p, ap)
        alpha = tile.where(busy & (pap > 0.0), rr / pap, 0.0)
        x = x + alpha * p
        r = r - alpha * ap
        new = along(r, r)
        p = tile.where(busy, r + (new / rr) * p, p)
        rr = tile.where(busy, new, rr)
        busy = busy & (rr > goal) & (pap > 0.0)
        steps += 1
    return x, steps


@tile.kernel
def forward_kernel(
    q: tile.Tensor[tile.T, "A H S D"],
    k: tile.Tensor[tile.T, "C G L D"],
    v: tile.Tensor[tile.T, "C G L E"],
    lam: tile.Tensor[tile.f32, "A H S"],
    o: tile.Out[tile.T, "A H S E"],
    scale: tile.f32,
    tolerance: tile.f32,
    rho: tile.Out[tile.f32, "A H S D"] = None,
    top: tile.Out[tile.f32, "A H S"] = None,
    omega: tile.Out[tile.f32, "A H S"] = None,
    delta: tile.Out[tile.f32, "A H S"] = None,
    steps: tile.Out[tile.i32, "B H M"] = None,
    cu_q: tile.Tensor[tile.i32, "B1"] = None,
    cu_k: tile.Tensor[tile.i32, "B1"] = None,
    longest: tile.i32 = 0,
    RELATIVE: tile.Const = True,
    ITERATIONS: tile.Const = 64,
    LEFT: tile.Const = None,
    RIGHT: tile.Const = None,
    BM: tile.Const = 64,
    BN: tile.Const = 64,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
):
    """One block of BM queries of one head for each program; BD >= D, BE >= E. The optional outputs are what the
    backward needs, and how many steps the solver of each block took. Exponentials, and `top`, are to base 2."""
    H, G = q.shape[1], k.shape[1]
    packed = cu_q is not None
    batches = cu_q.shape[0] - 1 if packed else q.shape[0]
    bh, m = tile.grid(batches * H, tile.cdiv(longest if packed else q.shape[2], BM))
    b, h = bh // H, bh % H
    g = h // (H // G)
    first_q, S = span(b, q.shape[2], cu_q, None)
    first_k, L = span(b, k.shape[2], cu_k, None)
    if packed:
        check_span(first_q, S, q.shape[2], longest)
        check_span(first_k, L, k.shape[2], k.shape[2])
    at = 0 if packed else b
    if RIGHT is not None and not packed:
        m = tile.cdiv(S, BM) - 1 - m  # the longest rows begin first
    shift = L - S
    query = tile.load(q, (at, h, first_q + m * BM, 0), (BM, BD))
    i = m * BM + tile.arange(BM)[:, None]
    lo, hi = key_range(m * BM, BM, L, shift, LEFT, RIGHT, BN)
    if packed:
        hi = tile.where(m * BM < S, hi, lo)

    high = tile.full((BM,), float("-inf"), tile.f32)
    w_sum, wk_sum = tile.zeros((BM,), tile.f32), tile.zeros((BM, BD), tile.f32)
    for n in tile.range(lo, hi, BN, stages=2):
        keys = key_block(k, at, g, n, first_k, L, None, BN, BD, False)
        s = tile.dot(query, keys.T) * (scale * LOG2E)
        s = tile.where(visible(b, h, i, n + tile.arange(BN)[None, :], None, L, shift, LEFT, RIGHT, None), s,
                       float("-inf"))
        high, base, keep = rescale(high, s.max(1))
        w = tile.exp2(s - base[:, None])
        w_sum = w_sum * keep + w.sum(1)
        wk_sum = tile.dot(w, keys, wk_sum * keep[:, None])
    high = tile.where(w_sum == 0.0, 0.0, high)

    ridge = ridge_of(tile.load(lam, (at, h, first_q + m * BM), (BM,)), w_sum, high, RELATIVE)
    mu = tile.where(i < S, wk_sum - w_sum[:, None] * query.to(tile.f32), 0.0)
    x, taken = solve(mu, k, at, g, first_k, b, h, i, L, shift, lo, hi, query, high, ridge, scale, tolerance,
                     ITERATIONS, LEFT, RIGHT, BN)

    xq = along(x, query.to(tile.f32))
    acc, s_sum = tile.zeros((BM, BE), tile.f32), tile.zeros((BM,), tile.f32)
    for n in tile.range(lo, hi, BN, stages=2):
        keys = key_block(k, at, g, n, first_k, L, None, BN, BD, False)
        seen = visible(b, h, i, n + tile.arange(BN)[None, :], None, L, shift, LEFT, RIGHT, None)
        s = weights(query, keys, high, scale, seen) * (1.0 - (tile.dot(x, keys.T) - xq))
        s_sum += s.sum(1)
        acc = tile.dot(s, key_block(v, at, g, n, first_k, L, None, BN, BE, packed), acc)
    s_sum = tile.where(w_sum == 0.0, 1.0, s_sum)  # sums to delta, whatever x is: the weights of v sum to 1
    put(o, at, h, first_q, m * BM, S, (acc / s_sum[:, None]).to(o.dtype), packed)
    if rho is not None:
        put(rho, at, h, first_q, m * BM, S, x, packed)
        put(top, at, h, first_q, m * BM, S, high, packed)
        put(omega, at, h, first_q, m * BM, S, w_sum, packed)
        put(delta, at, h, first_q, m * BM, S, s_sum, packed)
    if steps is not None:
        tile.store(steps, (b, h, m), taken)
