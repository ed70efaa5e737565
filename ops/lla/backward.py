"""Local Linear Attention, backward: one kernel for rows (dq, dlam), one for columns (dk, dv); no atomic additions.

With gamma_ij = do_i.v_j and base_i = sum_j s_ij gamma_ij, the gradient of w (1 - z.rho) is n = (gamma - base) / delta.
A second solve, u = (sum w z z^T + ridge I)^-1 sum w n z, gives that of the ridge, dr = u.rho, and with e = n - z.u
    x = w (e (1 - z.rho) + lam dr)     the gradient of scale q.k  (without lam dr if the ridge is lam itself)
    dz = -w (e rho + (1 - z.rho) u)    that of z = k - q, beside
so that dq_i = sum_j scale x k_j - dz, dk_j = sum_i scale x q_i + dz, dv_j = sum_i s do_i: sums of k, q, rho and u.
"""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.attention.scores import LOG2E, key_block, key_range, put, query_range, span, visible
from tilelang.ops.lla.forward import along, ridge_of, solve, weights


@tile.function
def parts(w, gamma, zr, zu, delta, base, ldr):
    """(s, x, w e, w (1 - z.rho)) of the file's head; `ldr` is lam dr."""
    left = 1.0 - zr
    e = (gamma - base) / delta - zu
    return w * left / delta, w * (e * left + ldr), w * e, w * left


@tile.kernel
def rows_kernel(
    q: tile.Tensor[tile.T, "A H S D"],
    k: tile.Tensor[tile.T, "C G L D"],
    v: tile.Tensor[tile.T, "C G L E"],
    lam: tile.Tensor[tile.f32, "A H S"],
    do: tile.Tensor[tile.T, "A H S E"],
    rho: tile.Tensor[tile.f32, "A H S D"],
    top: tile.Tensor[tile.f32, "A H S"],
    omega: tile.Tensor[tile.f32, "A H S"],
    delta: tile.Tensor[tile.f32, "A H S"],
    dq: tile.Out[tile.T, "A H S D"],
    u: tile.Out[tile.f32, "A H S D"],
    base: tile.Out[tile.f32, "A H S"],
    ldr: tile.Out[tile.f32, "A H S"],
    dlam: tile.Out[tile.f32, "A H S"],
    scale: tile.f32,
    tolerance: tile.f32,
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
    """One block of BM queries of one head for each program: dq and dlam, and u, base and ldr for the columns."""
    H, G = q.shape[1], k.shape[1]
    packed = cu_q is not None
    batches = cu_q.shape[0] - 1 if packed else q.shape[0]
    bh, m = tile.grid(batches * H, tile.cdiv(longest if packed else q.shape[2], BM))
    b, h = bh // H, bh % H
    g = h // (H // G)
    first_q, S = span(b, q.shape[2], cu_q, None)
    first_k, L = span(b, k.shape[2], cu_k, None)
    at = 0 if packed else b
    shift = L - S
    row = first_q + m * BM
    i = m * BM + tile.arange(BM)[:, None]
    lo, hi = key_range(m * BM, BM, L, shift, LEFT, RIGHT, BN)
    if packed:
        hi = tile.where(m * BM < S, hi, lo)
    query, grad = tile.load(q, (at, h, row, 0), (BM, BD)), tile.load(do, (at, h, row, 0), (BM, BE))
    q32, r = query.to(tile.f32), tile.load(rho, (at, h, row, 0), (BM, BD))
    high, w_sum = tile.load(top, (at, h, row), (BM,)), tile.load(omega, (at, h, row), (BM,))
    d = tile.load(delta, (at, h, row), (BM,), fill=1)[:, None]
    rq = along(r, q32)

    c_sum, s_sum = tile.zeros((BM, 1), tile.f32), tile.zeros((BM, 1), tile.f32)
    ck_sum = tile.zeros((BM, BD), tile.f32)
    for n in tile.range(lo, hi, BN, stages=2):
        keys = key_block(k, at, g, n, first_k, L, None, BN, BD, False)
        seen = visible(b, h, i, n + tile.arange(BN)[None, :], None, L, shift, LEFT, RIGHT, None)
        gamma = tile.dot(grad, key_block(v, at, g, n, first_k, L, None, BN, BE, packed).T)
        c = gamma * weights(query, keys, high, scale, seen) / d
        s_sum += (c * (1.0 - (tile.dot(r, keys.T) - rq))).sum(1, keepdims=True)
        c_sum += c.sum(1, keepdims=True)
        ck_sum = tile.dot(c, keys, ck_sum)
    t = tile.where(i < S, ck_sum - c_sum * q32, 0.0)

    factor = tile.load(lam, (at, h, row), (BM,))
    ridge = ridge_of(factor, w_sum, high, RELATIVE)
    y, _steps = solve(t, k, at, g, first_k, b, h, i, L, shift, lo, hi, query, high, ridge, scale, tolerance,
                      ITERATIONS, LEFT, RIGHT, BN)
    y = y - s_sum / d * r  # the solution for gamma / delta becomes that for n
    dr = along(y, r)
    more = factor[:, None] * dr if RELATIVE else tile.zeros((BM, 1), tile.f32)
    yq = along(y, q32)

    out = tile.zeros((BM, BD), tile.f32)
    e_sum, left_sum = tile.zeros((BM, 1), tile.f32), tile.zeros((BM, 1), tile.f32)
    for n in tile.range(lo, hi, BN, stages=2):
        keys = key_block(k, at, g, n, first_k, L, None, BN, BD, False)
        seen = visible(b, h, i, n + tile.arange(BN)[None, :], None, L, shift, LEFT, RIGHT, None)
        gamma = tile.dot(grad, key_block(v, at, g, n, first_k, L, None, BN, BE, packed).T)
        _, x, e, left = parts(weights(query, keys, high, scale, seen), gamma, tile.dot(r, keys.T) - rq,
                              tile.dot(y, keys.T) - yq, d, s_sum, more)
        e_sum += e.sum(1, keepdims=True)
        left_sum += left.sum(1, keepdims=True)
        out = tile.dot(x, keys, out)
    put(dq, at, h, first_q, m * BM, S, (scale * out + e_sum * r + left_sum * y).to(dq.dtype), packed)
    put(u, at, h, first_q, m * BM, S, y, packed)
    put(base, at, h, first_q, m * BM, S, s_sum.reshape(BM), packed)
    put(ldr, at, h, first_q, m * BM, S, more.reshape(BM), packed)
    weight = w_sum if RELATIVE else tile.where(w_sum > 0.0, tile.exp2(-high), 0.0)
    put(dlam, at, h, first_q, m * BM, S, dr.reshape(BM) * weight, packed)


@tile.kernel
def columns_kernel(
    q: tile.Tensor[tile.T, "A H S D"],
    k: tile.Tensor[tile.T, "C G L D"],
    v: tile.Tensor[tile.T, "C G L E"],
    do: tile.Tensor[tile.T, "A H S E"],
    rho: tile.Tensor[tile.f32, "A H S D"],
    u: tile.Tensor[tile.f32, "A H S D"],
    top: tile.Tensor[tile.f32, "A H S"],
    delta: tile.Tensor[tile.f32, "A H S"],
    base: tile.Tensor[tile.f32, "A H S"],
    ldr: tile.Tensor[tile.f32, "A H S"],
    dk: tile.Out[tile.T, "C G L D"],
    dv: tile.Out[tile.T, "C G L E"],
    scale: tile.f32,
    cu_q: tile.Tensor[tile.i32, "B1"] = None,
    cu_k: tile.Tensor[tile.i32, "B1"] = None,
    longest: tile.i32 = 0,
    LEFT: tile.Const = None,
    RIGHT: tile.Const = None,
    BM: tile.Const = 64,
    BN: tile.Const = 64,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
):
    """One block of BN keys of one key head for each program: dk and dv, summed over the queries and over the query
    heads that share the keys. Tiles are [keys, queries]."""
    H, G = q.shape[1], k.shape[1]
    packed = cu_q is not None
    batches = cu_q.shape[0] - 1 if packed else q.shape[0]
    bg, n = tile.grid(batches * G, tile.cdiv(longest if packed else k.shape[2], BN))
    b, g = bg // G, bg % G
    first_q, S = span(b, q.shape[2], cu_q, None)
    first_k, L = span(b, k.shape[2], cu_k, None)
    at = 0 if packed else b
    shift = L - S
    j = n * BN + tile.arange(BN)[:, None]
    lo, hi = query_range(n * BN, BN, S, shift, LEFT, RIGHT, BM)
    if packed:
        hi = tile.where(n * BN < L, hi, lo)
    keys = key_block(k, at, g, n * BN, first_k, L, None, BN, BD, False)
    values = key_block(v, at, g, n * BN, first_k, L, None, BN, BE, packed)
    dk_sum, dv_sum = tile.zeros((BN, BD), tile.f32), tile.zeros((BN, BE), tile.f32)
    for more in tile.range(0, H // G):
        h = g * (H // G) + more
        for m in tile.range(lo, hi, BM, stages=2):
            row, i = first_q + m, m + tile.arange(BM)[None, :]
            query, grad = tile.load(q, (at, h, row, 0), (BM, BD)), tile.load(do, (at, h, row, 0), (BM, BE))
            r, y = tile.load(rho, (at, h, row, 0), (BM, BD)), tile.load(u, (at, h, row, 0), (BM, BD))
            high, d = tile.load(top, (at, h, row), (BM,)), tile.load(delta, (at, h, row), (BM,), fill=1)
            mean, extra = tile.load(base, (at, h, row), (BM,)), tile.load(ldr, (at, h, row), (BM,))
            q32 = query.to(tile.f32)
            seen = visible(b, h, i, j, S, L, shift, LEFT, RIGHT, None)
            scores = tile.dot(keys, query.T) * (scale * LOG2E)
            w = tile.where(seen, tile.exp2(scores - high[None, :]), 0.0)
            zr = tile.dot(keys, r.T) - (r * q32).sum(1)[None, :]
            zu = tile.dot(keys, y.T) - (y * q32).sum(1)[None, :]
            s, x, e, left = parts(w, tile.dot(values, grad.T), zr, zu, d[None, :], mean[None, :], extra[None, :])
            dv_sum = tile.dot(s, grad, dv_sum)
            dk_sum = tile.dot(x * scale, query, dk_sum)
            dk_sum = tile.dot(-e, r, dk_sum)
            dk_sum = tile.dot(-left, y, dk_sum)
    put(dk, at, g, first_k, n * BN, L, dk_sum.to(dk.dtype), packed)
    put(dv, at, g, first_k, n * BN, L, dv_sum.to(dv.dtype), packed)
