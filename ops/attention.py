"""Softmax attention, forward, without the score matrix in memory (Dao et al., 2022)."""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.common import block


@tile.kernel
def attention_kernel(
    q: tile.Tensor[tile.T, "B H S D"],
    k: tile.Tensor[tile.T, "B G L D"],
    v: tile.Tensor[tile.T, "B G L E"],
    o: tile.Out[tile.T, "B H S E"],
    scale: tile.f32,
    CAUSAL: tile.Const,
    BM: tile.Const,
    BN: tile.Const,
    BD: tile.Const,
    BE: tile.Const,
    ROUND: tile.Const = False,
):
    """One block of BM queries of one head for each program; BD >= D, BE >= E. Exponentials are taken to base 2. ROUND:
    probabilities take part in the second product in v's dtype, as tensor cores want them."""
    B, H, S, _ = q.shape
    G, L = k.shape[1], k.shape[2]
    bh, m = tile.grid(B * H, tile.cdiv(S, BM))
    b, h = bh // H, bh % H
    g = h // (H // G)
    query = tile.load(q, (b, h, m * BM, 0), (BM, BD))
    top = tile.full((BM,), float("-inf"), tile.f32)
    total = tile.zeros((BM,), tile.f32)
    acc = tile.zeros((BM, BE), tile.f32)
    row = m * BM + tile.arange(BM)[:, None] + (L - S)  # the last key a causal query sees
    end = tile.minimum(L, (m + 1) * BM + (L - S)) if CAUSAL else L
    for n in tile.range(0, end, BN, stages=2):
        s = tile.dot(query, tile.load(k, (b, g, n, 0), (BN, BD)).T) * (scale * math.log2(math.e))
        column = n + tile.arange(BN)[None, :]
        seen = (column < L) & (column <= row) if CAUSAL else column < L
        s = tile.where(seen, s, float("-inf"))
        new = tile.maximum(top, s.max(1))
        base = tile.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing stays at zero
        p = tile.exp2(s - base[:, None])
        keep = tile.exp2(top - base)
        total = total * keep + p.sum(1)
        acc = tile.dot(p.to(v.dtype) if ROUND else p, tile.load(v, (b, g, n, 0), (BN, BE)), acc * keep[:, None])
        top = new
    inverse = tile.where(total == 0.0, 0.0, 1.0 / total)
    tile.store(o, (b, h, m * BM, 0), (acc * inverse[:, None]).to(o.dtype))


def attention(q: Any, k: Any, v: Any, causal: bool = False, scale: float | None = None, out: Any = None) -> Any:
    """softmax(scale q k^T) v of q [B, H, S, D], k [B, G, L, D], v [B, G, L, E] with H a multiple of G.

    `causal` lets query i see keys up to i + L - S (bottom-right aligned); rows that see nothing are 0. `scale` is
    1 / sqrt(D) unless given. f32, f16 or bf16; computed in f32, but for probabilities, which a GPU multiplies in v's
    dtype. The result is written into `out` [B, H, S, E] where one is given, which may have any strides. Raises
    ValueError for head counts that do not fit."""
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the {q.shape[1]} query heads must be a multiple of the {k.shape[1]} key heads")
    d, e = q.shape[3], v.shape[3]
    if tile.on_gpu(q, k, v):
        bm, bn, deep = block(q.shape[2], 64, 16), block(k.shape[2], 64, 16), 16
    else:
        bm, bn, deep = block(q.shape[2], 96, 12), block(k.shape[2], 128, 32), 8
    return attention_kernel(q, k, v, out, 1.0 / math.sqrt(d) if scale is None else scale, CAUSAL=causal, BM=bm, BN=bn,
                            BD=block(d, 1 << 12, deep), BE=block(e, 1 << 12, deep), ROUND=tile.on_gpu(q, k, v))


def reference(q: Any, k: Any, v: Any, causal: bool = False, scale: float | None = None) -> Any:
    """f64, with the whole score matrix."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    s = q @ k.swapaxes(-1, -2) * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        rows, columns = np.arange(s.shape[-2])[:, None], np.arange(s.shape[-1])[None, :]
        s = np.where(columns <= rows + s.shape[-1] - s.shape[-2], s, -np.inf)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isinf(top), 0.0, top))
    total = e.sum(-1, keepdims=True)
    return np.divide(e, total, out=np.zeros_like(e), where=total != 0) @ v
