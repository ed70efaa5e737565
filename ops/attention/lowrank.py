"""Attention of queries, keys and values that are given as products of two factors (FlashSVD, arXiv 2508.01506).

With q = p_q U_q, k = p_k U_k, v = p_v U_v for each head, scores are p_q (U_q U_k^T) p_k^T and results (P p_v) U_v: a
block of queries is taken to the rank of the keys once, and from the rank of the values once, so that keys and values
of full width exist nowhere, not even by blocks. Between the two it is attention with one key head, of p_k and p_v.
"""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.attention.options import check_head_counts, made, window_sizes
from tilelang.ops.attention.reference import reference as attention_reference
from tilelang.ops.attention.scores import LOG2E, key_range, normalised, visible, weigh
from tilelang.ops.common import block, dtype_of, scale_of


@tile.kernel
def lowrank_kernel(
    q: tile.Tensor[tile.T, "B S Q"],
    up_q: tile.Tensor[tile.T, "H Q D"],
    k: tile.Tensor[tile.T, "B L K"],
    up_k: tile.Tensor[tile.T, "G K D"],
    v: tile.Tensor[tile.T, "B L V"],
    up_v: tile.Tensor[tile.T, "G V E"],
    o: tile.Out[tile.T, "B H S E"],
    scale: tile.f32,
    bias_q: tile.Tensor[tile.T, "H D"] = None,
    bias_v: tile.Tensor[tile.T, "G E"] = None,
    LEFT: tile.Const = None,
    RIGHT: tile.Const = None,
    BM: tile.Const = 64,
    BN: tile.Const = 64,
    BQ: tile.Const = 64,
    BK: tile.Const = 64,
    BV: tile.Const = 64,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
    ROUND: tile.Const = False,
):
    """One block of BM queries of one head for each program; the other extents cover their dimensions. ROUND: operands
    of products are in the tensors' dtype, as tensor cores want them."""
    (B, S), L, H, G = q.shape[:2], k.shape[1], up_q.shape[0], up_k.shape[0]
    b, h, m = tile.grid(B, H, tile.cdiv(S, BM))
    g = h // (H // G)
    query = tile.dot(tile.load(q, (b, m * BM, 0), (BM, BQ)), tile.load(up_q, (h, 0, 0), (BQ, BD)))
    if bias_q is not None:
        query = query + tile.load(bias_q, (h, 0), (BD,)).to(tile.f32)[None, :]
    query = tile.dot(query.to(q.dtype) if ROUND else query, tile.load(up_k, (g, 0, 0), (BK, BD)).T)
    query = query.to(k.dtype) if ROUND else query
    i, shift = m * BM + tile.arange(BM)[:, None], L - S
    top, total = tile.full((BM,), float("-inf"), tile.f32), tile.zeros((BM,), tile.f32)
    acc = tile.zeros((BM, BV), tile.f32)
    lo, hi = key_range(m * BM, BM, L, shift, LEFT, RIGHT, BN)
    for n in tile.range(lo, hi, BN, stages=2):
        x = tile.dot(query, tile.load(k, (b, n, 0), (BN, BK)).T)
        seen = visible(b, h, i, n + tile.arange(BN)[None, :], None, L, shift, LEFT, RIGHT, None)
        p, top, total, acc = weigh(tile.where(seen, x * (scale * LOG2E), float("-inf")), top, total, acc)
        acc = tile.dot(p.to(v.dtype) if ROUND else p, tile.load(v, (b, n, 0), (BN, BV)), acc)
    out = normalised(acc, total)
    out = tile.dot(out.to(v.dtype) if ROUND else out, tile.load(up_v, (g, 0, 0), (BV, BE)))
    if bias_v is not None:
        seen = tile.where(total == 0.0, 0.0, 1.0)[:, None]
        out = out + seen * tile.load(bias_v, (g, 0), (BE,)).to(tile.f32)[None, :]
    tile.store(o, (b, h, m * BM, 0), out.to(o.dtype))


@tile.torch_op("tilelang::lowrank_attention", outputs="o", autocast="lower",
               dims="b S Q, h Q D, b L K, h K D, b L V, h V E, h D, h E -> b h S E")
def _lowrank(q: Any, up_q: Any, k: Any, up_k: Any, v: Any, up_v: Any, bias_q: Any = None, bias_v: Any = None,
             causal: bool = False, scale: float = 1.0, left: int = -1, right: int = -1) -> Any:
    heads, groups, gpu = up_q.shape[0], up_k.shape[0], tile.on_gpu(q, k, v)
    check_head_counts(heads, groups, up_v.shape[0])
    left_keys, right_keys = window_sizes(causal, (left, right))
    wide = [up_q.shape[1], up_k.shape[1], up_v.shape[1], up_q.shape[2], up_v.shape[2]]
    side = 64 if max(wide) <= 128 else 32 if max(wide) <= 256 else 16
    sizes = dict(zip(("BQ", "BK", "BV", "BD", "BE"), (block(n, 1 << 12, 16 if gpu else 8) for n in wide), strict=True))
    bm, bn = (block(q.shape[1], side, 16), block(k.shape[1], side, 16)) if gpu else \
        (block(q.shape[1], 96, 12), block(k.shape[1], 128, 32))
    o = made(q, (q.shape[0], heads, q.shape[1], up_v.shape[2]), dtype_of(q))
    return lowrank_kernel(q, up_q, k, up_k, v, up_v, o, scale, bias_q=bias_q, bias_v=bias_v, LEFT=left_keys,
                          RIGHT=right_keys, BM=bm, BN=bn, ROUND=gpu, **sizes)


def lowrank_attention(q: Any, up_q: Any, k: Any, up_k: Any, v: Any, up_v: Any, causal: bool = False,
                      scale: float | None = None, *, window: Any = None, bias_q: Any = None, bias_v: Any = None
                      ) -> Any:
    """`attention` of queries q @ up_q[h] (+ bias_q[h]), keys k @ up_k[g] and values v @ up_v[g] (+ bias_v[g]) that are
    never computed: q [B, S, Q], k [B, L, K], v [B, L, V] are shared by the heads, whose factors are up_q [H, Q, D],
    up_k [G, K, D], up_v [G, V, E], with H a multiple of G; bias_q [H, D], bias_v [G, E]. A bias of keys would add
    the same to all scores of a query and change nothing. Returns [B, H, S, E].

    f32, f16 or bf16, one dtype for all; `causal`, `window` and `scale` (1 / sqrt(D) unless given) as in `attention`.
    Costs 2 (K + V) operations for each pair and head where full heads cost 2 (D + E). No gradient. Raises
    ValueError."""
    left, right = (-1, -1) if window is None else window
    window_sizes(causal, (left, right))
    return _lowrank(q, up_q, k, up_k, v, up_v, bias_q, bias_v, causal,
                    scale_of(up_q.shape[2], scale), left, right)


def reference(q: Any, up_q: Any, k: Any, up_k: Any, v: Any, up_v: Any, causal: bool = False, bias_q: Any = None,
              bias_v: Any = None, window: Any = None) -> Any:
    """f64, with full queries, keys, values and scores."""
    def full(x: Any, up: Any, bias: Any = None) -> Any:
        wide = np.asarray(x, np.float64)[:, None] @ np.asarray(up, np.float64)
        return wide if bias is None else wide + np.asarray(bias, np.float64)[:, None]
    return attention_reference(full(q, up_q, bias_q), full(k, up_k), full(v, up_v, bias_v), causal, window=window)
