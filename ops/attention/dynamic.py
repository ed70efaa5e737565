"""Dynamic mask attention (arXiv 2508.02124): every query attends to those of its keys whose biases are largest.

A key loses its place among the `keep` largest of all keys seen so far as soon as so many larger ones have come, and
never gets it back. So the mask of all queries is one number for each key: the place `until` which it is seen. Counting
larger biases finds it exactly, ties going to the earlier key, without sorting.
"""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.attention import api
from tilelang.ops.attention.blockmask import listed
from tilelang.ops.attention.options import Options, blocks, check_batch, check_heads, check_ranks, made, window_sizes
from tilelang.ops.attention.reference import reference as attention_reference
from tilelang.ops.common import block, dtype_of, scale_of

NEVER = -(1 << 30)
CHOSEN_AT_ONCE = 32
"""Keys of a block where they are chosen one by one: the last block is seldom full."""


@tile.kernel
def until_kernel(
    bias: tile.Tensor[tile.W, "B G L"],
    until: tile.Out[tile.i32, "B G L"],
    keep: tile.i32,
    CAUSAL: tile.Const,
    BI: tile.Const = 64,
    BN: tile.Const = 64,
):
    """BN keys for each program, beside BI others at a time [BI, BN]. Without CAUSAL a key is seen from everywhere or
    nowhere."""
    B, G, L = bias.shape
    b, g, m = tile.grid(B, G, tile.cdiv(L, BN))
    own = tile.load(bias, (b, g, m * BN), (BN,)).to(tile.f32)[None, :]
    j = m * BN + tile.arange(BN)[None, :]
    ahead = tile.zeros((BN,), tile.i32)  # that keep a key back: earlier ones as large, later ones larger
    for n in tile.range(0, tile.minimum(L, (m + 1) * BN) if CAUSAL else L, BI):
        i, other = n + tile.arange(BI)[:, None], tile.load(bias, (b, g, n), (BI,)).to(tile.f32)[:, None]
        larger = (i < j) & (other >= own)
        if not CAUSAL:
            larger = larger | (i > j) & (i < L) & (other > own)
        ahead += larger.to(tile.i32).sum(0)
    if CAUSAL:
        last, n = m * BN + tile.arange(BN) + tile.where(ahead < keep, 1, 0), m * BN
        waiting = (ahead < keep).any()
        while (n < L) & waiting:
            i, other = n + tile.arange(BI)[:, None], tile.load(bias, (b, g, n), (BI,)).to(tile.f32)[:, None]
            later = (i > j) & (i < L)
            larger = tile.cumsum((later & (other > own)).to(tile.i32), 0) + ahead[None, :]
            last = last + (later & (larger < keep)).to(tile.i32).sum(0)
            ahead = larger[BI - 1]
            waiting = (ahead < keep).any()
            n = n + BI
    else:
        last = tile.where(ahead < keep, L, NEVER)
    tile.store(until, (b, g, m * BN), last)


@tile.kernel
def chosen_kernel(
    until: tile.Tensor[tile.i32, "B G L"],
    counts: tile.Out[tile.i32, "B H M"],
    keys: tile.Out[tile.i32, "B H M C"],
    queries: tile.i32,
    CAUSAL: tile.Const,
    BM: tile.Const,
    BN: tile.Const = 128,
):
    """Which keys, ascending, any of each BM queries sees, and how many. Each query sees one at most that the one
    before it does not, so that there are fewer than `keep` + BM."""
    (B, G, L), H, most = until.shape, counts.shape[1], keys.shape[3]
    b, h, m = tile.grid(B, H, counts.shape[2])
    first, end = m * BM + L - queries, tile.minimum((m + 1) * BM, queries) + L - queries  # places of its queries
    count = 0
    for n in tile.range(0, tile.minimum(L, end) if CAUSAL else L, BN):
        j = n + tile.arange(BN)
        last = tile.load(until, (b, h // (H // G), n), (BN,), fill=NEVER)
        seen = (j < end) & (tile.maximum(j, first) < last) if CAUSAL else first < last
        place = tile.cumsum(seen.to(tile.i32)) + count
        tile.scatter(keys, (b, h, m, place - 1), j, seen)
        count = place[BN - 1]
    tile.store(counts, (b, h, m), tile.minimum(count, most))


def _chosen(q: Any, until: Any, keep: int, causal: bool, bm: int) -> dict[str, Any]:
    """Arguments of the forward kernel by which it visits the keys that a block of `bm` queries sees, and no others."""
    (batch, heads, queries, _), keys, i32 = q.shape, until.shape[2], tile.dtype("i32")
    counts = empty_like(q, (batch, heads, -(-queries // bm)), i32)
    chosen = empty_like(q, (*counts.shape, max(min(keys, keep + bm), 1)), i32)
    chosen_kernel(until, counts, chosen, queries, CAUSAL=causal, BM=bm)
    return {"counts": counts, "blocks": chosen, "CHOSEN": True, "BM": bm, "BN": CHOSEN_AT_ONCE}


def _options(q: Any, k: Any, v: Any, bias: Any, until: Any, causal: bool, scale: float) -> Options:
    sizes = blocks(q, k, v, q.shape[2], k.shape[2])
    right = window_sizes(causal, None)[1]
    mask = listed(q, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]), sizes["BM"], sizes["BN"], until=until,
                  RIGHT=right)
    return Options(scale, {"key_bias": bias, "until": until}, {"LEFT": None, "RIGHT": right}, None, mask)


def _backward(do: Any, dlse: Any, q: Any, k: Any, v: Any, bias: Any, o: Any, lse: Any, until: Any, keep: int,
              causal: bool, scale: float) -> tuple[Any, Any, Any, Any]:
    """(dq, dk, dv, dbias)"""
    opts = _options(q, k, v, bias, until, causal, scale)
    packing = dict.fromkeys(("used_q", "used_k", "cu_q", "cu_k"))
    dq, dk, dv, dbias = api.backward(do, q, k, v, o, lse, opts, dlse, q.shape[2], k.shape[2], packing)
    return dq, dk, dv, dbias


@tile.torch_op("tilelang::dynamic_mask_attention", backward=_backward, outputs="o lse until", wrt="q k v bias",
               dims="b h S D, b h L D, b h L E, b h L -> b h S E, b h S, b h L", autocast="lower q k v")
def _forward(q: Any, k: Any, v: Any, bias: Any, keep: int, causal: bool, scale: float) -> tuple[Any, Any, Any]:
    check_heads(q, k, v)
    check_batch(q.shape[0], k)
    if tuple(bias.shape) != tuple(k.shape[:3]) or keep < 1:
        raise ValueError(f"bias needs shape {list(k.shape[:3])} and keep a count of at least 1, got "
                         f"{list(bias.shape)} and {keep}")
    until = empty_like(q, tuple(bias.shape), tile.dtype("i32"))
    side = block(bias.shape[2], 64, 16)
    until_kernel(bias, until, keep, CAUSAL=causal, BI=side, BN=side)
    o, lse = made(q, (*q.shape[:3], v.shape[3]), dtype_of(q)), made(q, tuple(q.shape[:3]), tile.dtype("f32"))
    if tile.on_gpu(q):
        opts, chosen = _options(q, k, v, bias, until, causal, scale), dict[str, Any]()
    else:
        opts = Options(scale, {"key_bias": bias, "until": until}, {"LEFT": None, "RIGHT": 0 if causal else None})
        chosen = _chosen(q, until, keep, causal, blocks(q, k, v, q.shape[2], k.shape[2])["BM"])
    api.forward(q, k, v, opts, lse, o, q.shape[2], k.shape[2], **chosen)
    return o, lse, until


def dynamic_mask_attention(q: Any, k: Any, v: Any, bias: Any, keep: int, causal: bool = True,
                           scale: float | None = None, *, return_lse: bool = False) -> Any:
    """softmax(scale q k^T + bias | mask) v for q [B, H, S, D], k [B, G, L, D] and v [B, G, L, E], where H is a
    multiple of G. bias [B, G, L] is added to the scores of each key, and of the keys up to its own place i + L - S (of
    all without `causal`) each query sees the `keep` with the largest biases, the earlier among equal ones. The paper
    computes the bias from the values, A softplus(delta v). Blocks of keys that no query of a block sees are not read;
    the forward pass on a CPU reads only keys that at least one of 96 queries sees.

    Returns [B, H, S, E] in the dtype of q, and with `return_lse` the LSE f32 [B, H, S], too; a query that sees no key
    has the result 0 and an LSE of +inf. Gradients for q, k, v and bias, deterministic; they take the choice of keys as
    constant. Raises ValueError for arguments that do not fit together."""
    check_ranks(4, q, k, v)
    o, lse, _ = _forward(q, k, v, bias, keep, causal, scale_of(q.shape[3], scale))
    return (o, lse) if return_lse else o


def kept(bias: Any, queries: int, keep: int, causal: bool = True) -> Any:
    """Which keys [B, G, queries, L] the mask leaves, by sorting the biases that each query sees."""
    bias = np.asarray(bias, np.float64)
    keys = bias.shape[-1]
    place = np.arange(queries)[:, None] + keys - queries
    seen = (np.arange(keys)[None, :] <= place) | (not causal)
    ordered = np.argsort(np.where(seen, -bias[..., None, :], np.inf), -1, kind="stable")
    rank = np.argsort(ordered, -1)
    return seen & (rank < keep)


def reference(q: Any, k: Any, v: Any, bias: Any, keep: int, causal: bool = True, scale: float | None = None) -> Any:
    """f64, with the whole score matrix."""
    repeat = q.shape[1] // k.shape[1]
    added = np.where(kept(bias, q.shape[2], keep, causal), np.asarray(bias, np.float64)[:, :, None, :], -np.inf)
    return attention_reference(q, k, v, scale=scale, bias=np.repeat(added, repeat, 1))
