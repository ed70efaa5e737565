"""Attention of whole sequences: forward and backward, of equal lengths and packed."""
from __future__ import annotations

from typing import Any

import tilelang as tile
from tilelang.ops.attention.backward import (
    dbias_kernel,
    delta_kernel,
    dkdv_kernel,
    dq_kernel,
    dq_sum_kernel,
    sinks_kernel,
)
from tilelang.ops.attention.blockmask import BlockMask
from tilelang.ops.attention.decode import few, run
from tilelang.ops.attention.forward import forward_kernel
from tilelang.ops.attention.options import Options, blocks, check_batch, check_heads, made, options, page_block
from tilelang.ops.common import dtype_of
from tilelang.ops.reduction import sum_rows

SMALLEST = 2.0 ** -126
"""Of the normal numbers of f32: times it, -inf is -inf."""
PARTS = 4
"""Of the gradient of the queries at most, each as large as that in f32: who would need more takes another kernel."""


def forward(q: Any, k: Any, v: Any, opts: Options, lse: Any, o: Any, queries: int, keys: int, table: Any = None,
            **packing: Any) -> None:
    """Runs the kernel for at most so many queries and keys of a sequence; a block of keys lies in one page. `packing`
    are further arguments of it."""
    sizes = {**blocks(q, k, v, queries, keys, "forward"), **opts.visited(q)}
    if table is not None:
        sizes["BN"] = page_block(k.shape[2], sizes["BN"])
    forward_kernel(q, k, v, o, opts.scale, lse=lse, sinks=opts.sinks, table=table, **opts.tensors, **opts.consts,
                   **{**sizes, **packing}, POSITIVE=opts.scale >= SMALLEST)


def backward(do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, opts: Options, dlse: Any, queries: int, keys: int,
              packing: dict[str, Any], longest: tuple[int, int] = (0, 0), bias: Any = None, needs_alibi: bool = False
              ) -> tuple[Any, ...]:
    """Runs the kernels of the backward pass; `longest` is the most queries and keys of packed sequences. Gradients of
    the keys' bias, of the sinks, of `bias` and of ALiBi's slopes follow where there is one to give. On a CPU one
    kernel gives dk, dv and parts of dq, as many as let all threads take part, if these are few."""
    partly = [packing["cu_q"] is not None or packing["used_q"] is not None] + \
        [packing["cu_k"] is not None or packing["used_k"] is not None] * 2
    delta = made(q, tuple(q.shape[:3]), tile.dtype("f32"))
    sizes = blocks(q, k, v, queries, keys)
    delta_kernel(do, o, delta, dlse=dlse, BM=sizes["BM"], BE=sizes["BE"])
    dq, dk, dv = (made(x, tuple(x.shape), dtype_of(x), 0 if some else None)
                  for x, some in zip((q, k, v), partly, strict=True))
    given = {**opts.tensors, **packing, **opts.consts}
    key_bias = opts.tensors.get("key_bias")
    of_keys = None if key_bias is None else made(key_bias, tuple(key_bias.shape), dtype_of(key_bias))
    on_columns = {**given, **blocks(q, k, v, queries, keys, "queries"), **opts.visited(q, True)}
    dq_parts = parts = None
    if not (tile.on_gpu(q, k, v) or packing["cu_q"] is not None or needs_alibi):
        programs = -(-2 * tile.get_num_threads() // max(k.shape[0] * k.shape[1], 1))
        count = max(min(programs, -(-keys // on_columns["BN"])), 1)
        if count <= PARTS:
            dq_parts = made(q, (count, *q.shape[:2], q.shape[3], q.shape[2]), tile.dtype("f32"), 0)
    dkdv_kernel(q, k, v, do, lse, delta, dk, dv, opts.scale, dkey_bias=of_keys, dq=dq_parts, longest=longest[1],
                **on_columns)
    if dq_parts is not None:
        dq_sum_kernel(dq_parts, dq, opts.scale, BM=sizes["BM"], BD=sizes["BD"])
    else:
        on_rows = {**given, **blocks(q, k, v, queries, keys, "keys"), **opts.visited(q)}
        if needs_alibi:
            parts = made(q, (-(-queries // on_rows["BM"]), *opts.tensors["alibi"].shape), tile.dtype("f32"))
        dq_kernel(q, k, v, do, lse, delta, dq, opts.scale, dslopes=parts, longest=longest[0], **on_rows)
    more = [] if of_keys is None else [of_keys]
    if opts.sinks is not None:
        more.append(sinks_kernel(opts.sinks, lse, delta))
    if bias is not None:
        shape = (1,) * (4 - len(bias.shape)) + tuple(bias.shape)
        dbias = made(q, shape, dtype_of(bias))
        used = {name: packing[name] for name in ("used_q", "used_k")}
        sizes.pop("ROUND")
        dbias_kernel(q, k, v, do, lse, delta, dbias, opts.scale, **opts.tensors, **opts.consts, **used, **sizes,
                     ROWS=shape[2] == queries, COLUMNS=shape[3] == keys)
        more.append(dbias.reshape(tuple(bias.shape)))
    if parts is not None:
        more.append(sum_rows(parts, parts))
    return dq, dk, dv, *more


def attention(q: Any, k: Any, v: Any, causal: bool = False, scale: float | None = None, *, window: Any = None,
              softcap: float | None = None, alibi: Any = None, sinks: Any = None, bias: Any = None,
              score_mod: Any = None, mask_mod: Any = None, block_mask: BlockMask | None = None, seqused_q: Any = None,
              seqused_k: Any = None, return_lse: bool = False, out: Any = None) -> Any:
    """softmax(scale q k^T) v for q [B, H, S, D], k [B, G, L, D] and v [B, G, L, E], where H is a multiple of G.

    q, k and v are f32, f16 or bf16, with any strides. Everything is computed in f32, except that a GPU multiplies
    probabilities in v's dtype, and a CPU with fast products of bf16 in bf16. Returns the result [B, H, S, E],
    written into `out` where one is given; with `return_lse` also log(sum(exp(scores))) f32 [B, H, S]. A query that
    sees no key has the result 0 and an LSE of +inf. `scale` defaults to 1 / sqrt(D). Calls with up to 4 queries, or
    up to 16 where heads share keys, run the kernels of `attention_decode`.

    Which keys a query i sees, its own place being i + L - S (bottom-right aligned): with `causal`, none behind its
    place; with `window` (left, right), at most so many before and behind it, -1 for all; those that
    `mask_mod(b, h, i, j)`, a `@tile.function`, allows; and those where a boolean `bias` is true. A `block_mask` is a
    `mask_mod` whose empty blocks are skipped. `seqused_q` and `seqused_k`, i32 [B], say how much of each sequence is
    valid: memory beyond that has no effect, and results there are 0 (unchanged in `out`).

    Scores are modified in this order: `softcap` c replaces s by c tanh(s / c); `alibi` slopes f32 [H] or [B, H]
    subtract slope * |i + L - S - j| (Press et al., 2022); `score_mod(s, b, h, i, j)`, a `@tile.function` of
    elementwise operations, replaces s; `bias`, broadcast to [B, H, S, L], is added. `sinks` f32 [H] are scores
    without a value that take part in each softmax and in the LSE.

    Scores may be as large as 2^27. One operation scales a product and takes the largest score of its row from it,
    which is rounded to f32: from 2^28 (f16 on a GPU) or 2^31 on the difference leaves the range of exponentials, and
    results may be wrong, infinite or NaN. Gradients start from the LSE, whose rounding changes weights by a factor of
    up to exp(2^-24 |score|). Raises ValueError for arguments that do not fit together."""
    check_heads(q, k, v)
    check_batch(q.shape[0], k, seqused_q, seqused_k)
    opts = options(q, causal, scale, window, softcap, alibi, sinks, bias, score_mod, mask_mod, q.shape[0], k.shape[2],
                   block_mask)
    alike = dtype_of(q) is dtype_of(k) is dtype_of(v)  # which caches need not be
    if out is None and block_mask is None and seqused_q is None and alike and few(q, k):
        o, lse = run(q, k, v, opts, seqused_k)
        return (o, lse) if return_lse else o
    all_written = seqused_q is None
    o = made(q, (*q.shape[:3], v.shape[3]), dtype_of(q), None if all_written else 0) if out is None else out
    lse = made(q, tuple(q.shape[:3]), tile.dtype("f32"), None if all_written else float("inf")) if return_lse else None
    forward(q, k, v, opts, lse, o, q.shape[2], k.shape[2], used_q=seqused_q, used_k=seqused_k)
    return o if lse is None else (o, lse)


def attention_backward(do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, causal: bool = False,
                       scale: float | None = None, *, window: Any = None, softcap: float | None = None,
                       alibi: Any = None, sinks: Any = None, bias: Any = None, score_mod: Any = None,
                       mask_mod: Any = None, block_mask: BlockMask | None = None, seqused_q: Any = None,
                       seqused_k: Any = None, dlse: Any = None, needs_bias: bool = False, needs_alibi: bool = False
                       ) -> Any:
    """The gradients of a call of `attention` with these options that returned `o` and `lse`, for the gradients `do` of
    its result and `dlse` of its LSE: (dq, dk, dv), then dsinks where there are `sinks`, then with `needs_bias` the
    gradient of the bias, in its shape, then with `needs_alibi` that of the slopes, f32 [B, H]. Deterministic. Raises
    ValueError, and UnsupportedSyntax for a `score_mod` without a derivative."""
    check_heads(q, k, v)
    check_batch(q.shape[0], k, seqused_q, seqused_k)
    opts = options(q, causal, scale, window, softcap, alibi, sinks, bias, score_mod, mask_mod, q.shape[0], k.shape[2],
                   block_mask)
    return backward(do, q, k, v, o, lse, opts, dlse, q.shape[2], k.shape[2],
                    {"used_q": seqused_q, "used_k": seqused_k, "cu_q": None, "cu_k": None},
                    bias=bias if needs_bias else None, needs_alibi=needs_alibi)
