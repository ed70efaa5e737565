"""Attention of a few queries to a long cache of keys, which several programs share (split-KV, Flash-Decoding)."""
from __future__ import annotations

import math
from typing import Any

import tilelang as tile
from tilelang.jit import only_allocates
from tilelang.ops.attention.options import Options, check_batch, check_heads, fitting, made, options, page_block
from tilelang.ops.attention.scores import (
    LOG2E,
    biased,
    key_block,
    key_range,
    normalised,
    rescale,
    score,
    visible,
    weigh,
)
from tilelang.ops.attention.sparse import WORD, expanded
from tilelang.ops.common import block, dtype_of, scale_of


@tile.kernel
def decode_kernel(
    q: tile.Tensor[tile.T, "B G R D"],
    k: tile.Tensor[tile.K, "C G L K"],
    v: tile.Tensor[tile.V, "C G L V"],
    o: tile.Out[tile.O, "N B G R E"],
    lse: tile.Out[tile.f32, "N B G R"],
    scale: tile.f32,
    queries: tile.i32,
    k_scale: tile.Tensor[tile.f32, "B G D"] = None,
    k_zero: tile.Tensor[tile.f32, "B G D"] = None,
    v_scale: tile.Tensor[tile.f32, "C G L"] = None,
    v_zero: tile.Tensor[tile.f32, "C G L"] = None,
    k_bits: tile.Tensor[tile.i32, "C G L X"] = None,
    v_bits: tile.Tensor[tile.i32, "C G L Y"] = None,
    alibi: tile.Tensor[tile.f32, "B H"] = None,
    sinks: tile.Tensor[tile.f32, "H"] = None,
    bias: tile.Tensor[tile.A, "B G R M"] = None,
    used_k: tile.Tensor[tile.i32, "B"] = None,
    table: tile.Tensor[tile.i32, "B P"] = None,
    LEFT: tile.Const = None,
    RIGHT: tile.Const = None,
    CAP: tile.Const = None,
    MOD: tile.Const = None,
    MASK: tile.Const = None,
    BM: tile.Const = 16,
    BN: tile.Const = 64,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
    ROUND: tile.Const = False,
    SHARED: tile.Const = False,
):
    """Part n of N of the keys, for BM of the R rows of a key head: its query heads, `queries` rows each. Codes of keys
    stand for k_scale (code - k_zero), of values for v_scale (code - v_zero): the scales of keys go into the queries,
    those of values into the weights, so that products are of codes. With `k_bits`, `v_bits` rows are
    packed (`sparse.py`). SHARED: values are the first columns of keys, which are read once."""
    N, B, G, R = o.shape[0], q.shape[0], k.shape[1], q.shape[2]
    part, bg, m = tile.grid(N, B * G, tile.cdiv(R, BM))
    b, g = bg // G, bg % G
    at_k = b
    L = k.shape[2] if table is None else k.shape[2] * table.shape[1]
    if used_k is not None:
        L = tile.minimum(tile.load(used_k, (b,), ()), L)
    shift = L - queries
    rows = m * BM + tile.arange(BM)
    heads = g * (R // queries) + rows // queries
    i, h = (rows % queries)[:, None], heads[:, None]
    query = tile.load(q, (b, g, m * BM, 0), (BM, BD))
    offset = None
    if k_scale is not None:
        scaled = query.to(tile.f32) * tile.load(k_scale, (b, g, 0), (BD,))[None, :]
        if k_zero is not None:
            offset = (scaled * tile.load(k_zero, (b, g, 0), (BD,))[None, :]).sum(1)[:, None]
        query = scaled.to(q.dtype)
    slope = tile.gather(alibi, (tile.zeros((BM,), tile.i32) + b, heads))[:, None] if alibi is not None else None
    plain = CAP is None and alibi is None and MOD is None and bias is None
    lo, hi = key_range(0, queries, L, shift, LEFT, RIGHT, BN)
    share = tile.cdiv(tile.cdiv(tile.maximum(hi - lo, 0), N), BN) * BN
    lo = lo + part * share
    hi = tile.minimum(hi, lo + share)
    top = tile.full((BM,), float("-inf"), tile.f32)
    total = tile.zeros((BM,), tile.f32)
    acc = tile.zeros((BM, BE), tile.f32)
    for n in tile.range(lo, hi, BN, stages=2):
        if k_bits is None:
            keys = key_block(k, at_k, g, n, 0, L, table, BN, BD, SHARED and used_k is not None)
        else:
            keys = expanded(k, k_bits, at_k, g, n, L, table, BN, BD, False)
        x = tile.dot(query, keys.to(q.dtype).T)
        if offset is not None:
            x = x - offset
        j = n + tile.arange(BN)[None, :]
        seen = visible(b, h, i, j, None, L, shift, LEFT, RIGHT, MASK)
        if plain:
            x = x * (scale * LOG2E)
        else:
            x = score(x * scale, b, h, i, j, shift, slope, CAP, MOD)
            x, seen = biased(x, seen, bias, b, g, m * BM, n)
            x = x * LOG2E
        x = tile.where(seen, x, float("-inf"))
        p, top, total, acc = weigh(x, top, total, acc)
        if v_scale is not None:
            p = p * token_block(v_scale, at_k, g, n, L, table, BN)[None, :]
            if v_zero is not None:
                acc = acc - (p * token_block(v_zero, at_k, g, n, L, table, BN)[None, :]).sum(1)[:, None]
        if v_bits is not None:
            values = expanded(v, v_bits, at_k, g, n, L, table, BN, BE, used_k is not None)
        else:
            values = keys[:, :BE] if SHARED else key_block(v, at_k, g, n, 0, L, table, BN, BE, used_k is not None)
        acc = tile.dot(p.to(q.dtype) if ROUND else p, values.to(q.dtype), acc)
    if sinks is not None:
        sink = tile.where(part == 0, tile.gather(sinks, (heads,)) * LOG2E, float("-inf"))
        top, base, keep = rescale(top, sink)
        total = total * keep + tile.exp2(sink - base)
        acc = acc * keep[:, None]
    tile.store(o, (part, b, g, m * BM, 0), normalised(acc, total).to(o.dtype), (None, None, None, BM, BE))
    sums = tile.where(total == 0.0, float("inf"), (top + tile.log2(total)) * math.log(2.0))
    tile.store(lse, (part, b, g, m * BM), sums)


@tile.function
def token_block(x, b, g, n, length, table, ROWS):
    """[ROWS] of x [C, G, L] from token n of sequence b, 0 from `length` on."""
    if table is not None:
        page = x.shape[2]
        block = tile.load(x, (tile.load(table, (b, n // page), ()), g, n % page), (ROWS,))
    else:
        block = tile.load(x, (b, g, n), (ROWS,))
    return tile.where(n + tile.arange(ROWS) < length, block, 0.0)


@tile.kernel
def combine_kernel(
    parts: tile.Tensor[tile.f32, "N B G R E"],
    sums: tile.Tensor[tile.f32, "N B G R"],
    o: tile.Out[tile.T, "B G R E"],
    lse: tile.Out[tile.f32, "B G R"],
    BN: tile.Const,
    BE: tile.Const,
):
    """o = sum of exp(sums - lse) parts, lse = log(sum of exp(sums)); a part whose sum is +inf has seen nothing."""
    B, G, R = o.shape[0], o.shape[1], o.shape[2]
    b, g, r = tile.grid(B, G, R)
    x = tile.load(sums, (0, b, g, r), (BN, None, None, None), fill=float("inf"))
    x = tile.where(x == float("inf"), float("-inf"), x)
    top = x.max(0)
    base = tile.where(top == float("-inf"), 0.0, top)
    weight = tile.exp(x - base)
    total = weight.sum(0)
    weight = weight * tile.where(total == 0.0, 0.0, 1.0 / total)
    out = (tile.load(parts, (0, b, g, r, 0), (BN, None, None, None, BE)) * weight[:, None]).sum(0)
    tile.store(o, (b, g, r, 0), out.to(o.dtype))
    tile.store(lse, (b, g, r), tile.where(total == 0.0, float("inf"), base + tile.log(total)))


def attention_decode(q: Any, k: Any, v: Any, causal: bool = True, scale: float | None = None, *,
                     seqused_k: Any = None, block_table: Any = None, window: Any = None, softcap: float | None = None,
                     alibi: Any = None, sinks: Any = None, score_mod: Any = None, mask_mod: Any = None,
                     k_scale: Any = None, k_zero: Any = None, v_scale: Any = None, v_zero: Any = None,
                     k_bits: Any = None, v_bits: Any = None, splits: int | None = None, return_lse: bool = False
                     ) -> Any:
    """`attention` of a few queries q [B, H, S, D] to a cache k [B, G, L, D] and v [B, G, L, E], of which the first
    seqused_k[b] (i32 [B]) rows are valid. With `block_table`, i32 [B, P], the cache lies in pages: k [pages, G, page,
    D] and v [pages, G, page, E], and key n of sequence b is row n % page of page block_table[b, n // page]. Returns
    [B, H, S, E] in q's dtype, and with `return_lse` the LSE f32 [B, H, S], too.

    k and v may have another dtype than q, or be `tilelang.Packed` of fewer than 8 bits. Their elements are then codes:
    a key is k_scale (code - k_zero), with parameters f32 [B, G, D] for each channel; a value is v_scale (code -
    v_zero), with parameters f32 [B, G, L] ([pages, G, page]) for each token; see `quantize_kv`. With the bitmaps
    `k_bits` and `v_bits` their rows are packed; see `compress_kv`.

    `splits` programs share the keys of a head, by default enough of them to occupy the machine. The last bits of the
    result depend on `splits`, but not on timing. Raises ValueError."""
    check_heads(q, k, v)
    if block_table is not None and seqused_k is None:
        raise ValueError("with a block_table, seqused_k must give the lengths")
    if (k_zero is not None and k_scale is None) or (v_zero is not None and v_scale is None):
        raise ValueError("a zero point needs a scale")
    if (k_bits is None) != (v_bits is None) or (k_bits is not None and (k_scale is not None or v_scale is not None)):
        raise ValueError("k_bits and v_bits come together, and without scales")
    opts = options(q, causal, scale, window, softcap, alibi, sinks, None, score_mod, mask_mod, q.shape[0], 0)
    o, lse = run(q, k, v, opts, seqused_k, block_table, splits, k_scale=k_scale, k_zero=k_zero, v_scale=v_scale,
                  v_zero=v_zero, k_bits=k_bits, v_bits=v_bits)
    return (o, lse) if return_lse else o


def few(q: Any, k: Any) -> bool:
    """Whether so few rows of queries q [B, H, S, D] share each of the keys k [B, G, L, D] that these kernels are the
    faster ones for whole sequences, too. What they give has the same shape, which is all that is asked of `shapes`."""
    return not only_allocates() and q.shape[2] <= (4 if q.shape[1] == k.shape[1] else 16)


def run(q: Any, k: Any, v: Any, opts: Options, seqused_k: Any, block_table: Any = None, splits: int | None = None,
        **given: Any) -> tuple[Any, Any]:
    """(result, LSE) by the kernels; `given` are further arguments of the first."""
    batch, heads, queries, d = q.shape
    groups, e = k.shape[1], v.shape[3]
    if block_table is None:
        check_batch(batch, k)
    elif len(block_table.shape) != 2:
        raise ValueError(f"block_table needs shape [{batch}, pages of a sequence], got {list(block_table.shape)}")
    if splits is not None and splits < 0:
        raise ValueError(f"splits must be a count, got {splits}")
    if given.get("k_bits") is not None:
        d_k, e = (WORD * given[name].shape[3] for name in ("k_bits", "v_bits"))
    else:
        d_k = k.shape[3]
    if d_k != d:
        raise ValueError(f"queries and keys need equally many channels, got {d} and {d_k}")
    rows, longest = heads // groups * queries, k.shape[2] * (1 if block_table is None else block_table.shape[1])
    gpu = tile.on_gpu(q)
    deep = 16 if gpu else 8
    if gpu:
        bm, bn = fitting(q, max(d, e), block(rows, 64, 16), block(longest, 64, 16))
    else:  # up to 12 rows keys are not packed; so few more are worth reading them twice rather than filling up 24
        bm = -(-rows // 2) if 12 < rows <= 18 else block(rows, 96, 1 if rows < 12 else 12)
        expanded = bm < 12 and given.get("k_bits") is not None  # rows stay in the first level of the caches
        bn = block(longest, 64 if expanded else 256 if rows < 12 else 128, 32)
    if block_table is not None:
        bn = page_block(k.shape[2], bn)
    programs = max(batch * groups * -(-rows // bm), 1)
    wanted = splits or -(-(264 if gpu else 2 * tile.get_num_threads()) // programs)
    parts = wanted if splits else max(min(wanted, longest // 512), 1)
    shape = (parts, batch, groups, rows)
    o = made(q, (*shape, e), dtype_of(q) if parts == 1 else tile.dtype("f32"))
    lse = made(q, shape, tile.dtype("f32"))
    sizes = {"BD": block(d, 1 << 12, deep), "BE": block(e, 1 << 12, deep)}
    tensors = dict(opts.tensors)
    if "bias" in tensors:
        tensors["bias"] = tensors["bias"].reshape(batch, groups, rows, longest)
    decode_kernel(q.reshape(batch, groups, rows, d), k, v, o, lse, opts.scale, queries, sinks=opts.sinks,
                  used_k=seqused_k, table=block_table, **tensors, **opts.consts, **sizes, **given, BM=bm, BN=bn,
                  ROUND=gpu)
    if parts > 1:
        partial, sums = o, lse
        o, lse = made(q, (*shape[1:], e), dtype_of(q)), made(q, shape[1:], tile.dtype("f32"))
        combine_kernel(partial, sums, o, lse, BN=block(parts, 1 << 12, deep), BE=sizes["BE"])
    return o.reshape(batch, heads, queries, e), lse.reshape(batch, heads, queries)


@tile.torch_op("tilelang::mla_decode", outputs="o lse", autocast="lower",
               dims="b h S D, N L D, b, b P -> b h S E, b h S")
def _mla(q: Any, cache: Any, seqused: Any = None, block_table: Any = None, columns: int = 512, causal: bool = True,
         scale: float = 1.0, splits: int | None = None) -> tuple[Any, Any]:
    k = cache[:, None]
    check_heads(q, k, k)
    if cache.shape[2] != q.shape[3] or not 0 < columns <= q.shape[3]:
        raise ValueError(f"the cache needs as many columns as the queries, {q.shape[3]}, of which the first {columns} "
                         f"are the values, got {cache.shape[2]}")
    if block_table is not None and seqused is None:
        raise ValueError("with a block_table, seqused must give the lengths")
    opts = options(q, causal, scale, None, None, None, None, None, None, None, q.shape[0], 0)
    return run(q, k, k[..., :columns], opts, seqused, block_table, splits, SHARED=True)


def mla_decode(q: Any, cache: Any, causal: bool = True, scale: float | None = None, *, columns: int = 512,
               seqused: Any = None, block_table: Any = None, splits: int | None = None, return_lse: bool = False
               ) -> Any:
    """Latent attention (DeepSeek-V2, arXiv 2405.04434) of a few queries with absorbed projections: q [B, H, S, D]
    attends to one cache [B, L, D] that all heads share and whose first `columns` columns are also the values (512 of
    576: the last 64 are the rotary part of the keys). Cache rows are read once. Returns [B, H, S, columns] in q's
    dtype, and with `return_lse` the LSE f32 [B, H, S], too.

    As in `attention_decode`: `seqused` i32 [B], `block_table` i32 [B, P] of pages [pages, page, D], `splits`; `causal`
    is bottom-right aligned. `scale` defaults to 1 / sqrt(D), which is not the scale of the heads before absorption.
    Raises ValueError."""
    if len(q.shape) != 4 or len(cache.shape) != 3:
        raise ValueError(f"mla_decode needs q of 4 dimensions and a cache of 3, got {list(q.shape)} and "
                         f"{list(cache.shape)}")
    o, lse = _mla(q, cache, seqused, block_table, columns, causal, scale_of(q.shape[3], scale), splits)
    return (o, lse) if return_lse else o
