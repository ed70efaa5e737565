"""Local Linear Attention of one query for each sequence, in a single pass over its keys and values.

Each split of the keys gives sums over its keys, with z = k - q and w = exp(scale q.k - top): omega = sum w,
mu = sum w z, a = sum w v, sigma = sum w z z^T, cross = sum w v z^T. Splits add up after rescaling by exp(top_s - top);
then rho = (sigma + ridge I)^-1 mu and o = (a - cross rho) / (omega - mu.rho).
"""
from __future__ import annotations

from typing import Any

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.attention.scores import LOG2E, key_block
from tilelang.ops.common import block, dtype_of, scale_of
from tilelang.ops.lla.api import F32, check, per_query
from tilelang.ops.lla.forward import ridge_of


@tile.kernel
def split_kernel(
    q: tile.Tensor[tile.T, "B H D"],
    k: tile.Tensor[tile.T, "B G L D"],
    v: tile.Tensor[tile.T, "B G L E"],
    top: tile.Out[tile.f32, "B H P"],
    omega: tile.Out[tile.f32, "B H P"],
    mu: tile.Out[tile.f32, "B H P D"],
    a: tile.Out[tile.f32, "B H P E"],
    sigma: tile.Out[tile.f32, "B H P D D"],
    cross: tile.Out[tile.f32, "B H P E D"],
    scale: tile.f32,
    used: tile.Tensor[tile.i32, "B"] = None,
    LEFT: tile.Const = None,
    BN: tile.Const = 64,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
):
    """The sums of one split of one head's keys for each program; exponentials, and `top`, are to base 2."""
    H, G, P = q.shape[1], k.shape[1], top.shape[2]
    bh, p = tile.grid(q.shape[0] * H, P)
    b, h = bh // H, bh % H
    g = h // (H // G)
    L = k.shape[2]
    if used is not None:
        L = tile.minimum(tile.load(used, (b,), ()), L)
    first = 0 if LEFT is None else tile.maximum(L - 1 - LEFT, 0)
    each = tile.cdiv(tile.cdiv(L - first, P), BN) * BN
    lo, hi = first + p * each, tile.minimum(L, first + (p + 1) * each)
    query = tile.load(q, (b, h, 0), (BD,)).to(tile.f32)[None, :]
    high = tile.full((1, 1), float("-inf"), tile.f32)
    w_sum = tile.zeros((1, 1), tile.f32)
    wz_sum, wv_sum = tile.zeros((1, BD), tile.f32), tile.zeros((1, BE), tile.f32)
    zz_sum, vz_sum = tile.zeros((BD, BD), tile.f32), tile.zeros((BE, BD), tile.f32)
    for n in tile.range(lo, hi, BN, stages=2):
        # what memory holds beyond the sequence has no effect
        keys = key_block(k, b, g, n, 0, L, None, BN, BD, used is not None).to(tile.f32)
        values = key_block(v, b, g, n, 0, L, None, BN, BE, used is not None).to(tile.f32)
        s = (keys * query).sum(1, keepdims=True) * (scale * LOG2E)
        s = tile.where(n + tile.arange(BN)[:, None] < hi, s, float("-inf"))
        new = tile.maximum(high, s.max(0, keepdims=True))
        w, keep = tile.exp2(s - new), tile.exp2(high - new)
        z = keys - query
        wz = w * z
        w_sum = w_sum * keep + w.sum(0, keepdims=True)
        wz_sum = wz_sum * keep + wz.sum(0, keepdims=True)
        wv_sum = wv_sum * keep + (w * values).sum(0, keepdims=True)
        zz_sum = tile.dot(wz.T, z, zz_sum * keep)
        vz_sum = tile.dot(values.T, wz, vz_sum * keep)
        high = new
    tile.store(top, (b, h, p), high.reshape(1))
    tile.store(omega, (b, h, p), w_sum.reshape(1))
    tile.store(mu, (b, h, p, 0), wz_sum.reshape(BD))
    tile.store(a, (b, h, p, 0), wv_sum.reshape(BE))
    tile.store(sigma, (b, h, p, 0, 0), zz_sum)
    tile.store(cross, (b, h, p, 0, 0), vz_sum)


@tile.kernel
def merge_kernel(
    top: tile.Tensor[tile.f32, "B H P"],
    omega: tile.Tensor[tile.f32, "B H P"],
    mu: tile.Tensor[tile.f32, "B H P D"],
    a: tile.Tensor[tile.f32, "B H P E"],
    sigma: tile.Tensor[tile.f32, "B H P D D"],
    cross: tile.Tensor[tile.f32, "B H P E D"],
    lam: tile.Tensor[tile.f32, "B H"],
    o: tile.Out[tile.T, "B H E"],
    RELATIVE: tile.Const = True,
    BP: tile.Const = 8,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
):
    """Adds up the splits of one head for each program, and solves by elimination: the matrix is symmetric and positive
    definite, so the pivots are, and none need be sought. BP >= P."""
    H, P = top.shape[1], top.shape[2]
    bh = tile.grid(top.shape[0] * H)
    b, h = bh // H, bh % H
    high = tile.load(top, (b, h, 0), (BP,), fill=float("-inf")).max(0)
    base = tile.where(high == float("-inf"), 0.0, high)
    w_sum = tile.zeros((), tile.f32)
    wz_sum, wv_sum = tile.zeros((BD,), tile.f32), tile.zeros((BE,), tile.f32)
    matrix, vz_sum = tile.zeros((BD, BD), tile.f32), tile.zeros((BE, BD), tile.f32)
    for p in tile.range(0, P):
        share = tile.exp2(tile.load(top, (b, h, p), ()) - base)
        w_sum += share * tile.load(omega, (b, h, p), ())
        wz_sum += share * tile.load(mu, (b, h, p, 0), (BD,))
        wv_sum += share * tile.load(a, (b, h, p, 0), (BE,))
        matrix += share * tile.load(sigma, (b, h, p, 0, 0), (BD, BD))
        vz_sum += share * tile.load(cross, (b, h, p, 0, 0), (BE, BD))
    ridge = ridge_of(tile.load(lam, (b, h), ()), w_sum, base, RELATIVE)
    ridge = tile.where(w_sum == 0.0, 1.0, ridge)
    row, column = tile.arange(BD)[:, None], tile.arange(BD)[None, :]
    matrix = tile.where(row == column, matrix + ridge, matrix)
    rho = wz_sum[:, None]
    for j in tile.range(0, mu.shape[3]):  # Gauss and Jordan: row j is taken off all others
        line = tile.where(row == j, matrix, 0.0).sum(0)[None, :]
        pivot = tile.where(column == j, line, 0.0).sum()
        factor = tile.where(column == j, matrix, 0.0).sum(1)[:, None] * (1.0 / pivot)
        factor = tile.where(row == j, 1.0 - 1.0 / pivot, factor)
        matrix = matrix - factor * line
        rho = rho - factor * tile.where(row == j, rho, 0.0).sum()
    solved = rho.reshape(1, BD)
    total = w_sum - (wz_sum * solved.reshape(BD)).sum()
    out = (wv_sum - (vz_sum * solved).sum(1)) / tile.where(w_sum == 0.0, 1.0, total)
    tile.store(o, (b, h, 0), out.to(o.dtype))


@tile.torch_op("tilelang::lla_decode", dims="b h D, b h L D, b h L E, b h, b -> b h E", outputs="o", autocast="lower")
def _decode(q: Any, k: Any, v: Any, lam: Any, used: Any, scale: float, ridge: str, left: int | None,
            splits: int | None) -> Any:
    check(q, k, v, ridge, 3)
    if splits is None:
        programs = -(-2 * tile.get_num_threads() // max(1, q.shape[0] * q.shape[1]))
        splits = max(1, min(-(-k.shape[2] // 512), programs))
    (b, h, d), e = q.shape, v.shape[3]
    sums = [empty_like(q, (b, h, splits, *more), F32) for more in ((), (), (d,), (e,), (d, d), (e, d))]
    deep = 16 if tile.on_gpu(q, k, v) else 8
    wide = {"BD": block(d, 1 << 12, deep), "BE": block(e, 1 << 12, deep)}
    split_kernel(q, k, v, *sums, scale, used=used, LEFT=left, BN=block(k.shape[2], 32 if deep == 16 else 128, 16),
                 **wide)
    o = empty_like(q, (b, h, e), dtype_of(q))
    return merge_kernel(*sums, lam, o, RELATIVE=ridge == "rel", BP=block(splits, 1 << 12, 8), **wide)


def lla_decode(q: Any, k: Any, v: Any, lam: Any = 1.0, scale: float | None = None, *, seqused: Any = None,
               ridge: str = "rel", window: int | None = None, splits: int | None = None) -> Any:
    """`lla` of one query [B, H, D] for each sequence, the last of its keys [B, G, L, D], with values [B, G, L, E]:
    [B, H, E]. `seqused` i32 [B] says how much of each sequence is valid; of a `window` of n only the last n + 1 keys
    count. Reads keys and values once, in `splits` parts at a time (by the number of threads unless given); solves
    exactly. No gradient. `lam` broadcasts to [B, H]. Raises ValueError for what does not fit together."""
    for name, count in (("window", window), ("splits", splits)):
        if count is not None and count < 0:
            raise ValueError(f"{name} must be a count, got {count}: leave it out, or pass None, for all keys and "
                             "as many splits as there are threads")
    scale = scale_of(q.shape[2], scale)
    return _decode(q, k, v, per_query(lam, q, tuple(q.shape[:2])), seqused, scale, ridge, window, splits)
