"""Attention of packed sequences of several lengths, and of keys that lie in pages."""
from __future__ import annotations

from typing import Any

import tilelang as tile
from tilelang.ops.attention.api import backward, forward
from tilelang.ops.attention.options import check_batch, check_heads, check_longest, made, options
from tilelang.ops.common import dtype_of


def heads_first(x: Any) -> Any:
    """[T, H, D] as [1, H, T, D], and [T, H] as [1, H, T]: views."""
    return x.transpose(0, 1)[None] if hasattr(x, "data_ptr") else x.swapaxes(0, 1)[None]


def pages(x: Any) -> Any:
    """[pages, page, G, D] as [pages, G, page, D]: a view."""
    return x.transpose(1, 2) if hasattr(x, "data_ptr") else x.swapaxes(1, 2)


def attention_varlen(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int,
                     max_seqlen_k: int, causal: bool = False, scale: float | None = None, *, window: Any = None,
                     softcap: float | None = None, alibi: Any = None, sinks: Any = None, score_mod: Any = None,
                     mask_mod: Any = None, seqused_q: Any = None, seqused_k: Any = None, block_table: Any = None,
                     return_lse: bool = False, out: Any = None) -> Any:
    """`attention` of sequences packed one after the other: q [T, H, D], k [U, G, D], v [U, G, E], result [T, H, E] and
    LSE f32 [H, T]. Sequence b is rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] of q, cu_seqlens_k[b] to
    cu_seqlens_k[b + 1] of k and v (i32 [B + 1]), and of those the first seqused_q[b] and seqused_k[b] where given;
    `max_seqlen_q` and `max_seqlen_k` are at least the longest. Rows that belong to no sequence are 0 (in `out` what
    they were).

    With `block_table` i32 [B, P] keys lie in pages: k [pages, page, G, D], v [pages, page, G, E]; key n of sequence b
    is row n % page of page block_table[b, n // page], and cu_seqlens_k or seqused_k gives its length (one of them may
    be None). The other options are those of `attention`. Raises ValueError."""
    batch = len(cu_seqlens_q) - 1
    check_longest(q.shape[0], None if block_table is not None else k.shape[0], max_seqlen_q, max_seqlen_k)
    if block_table is None and cu_seqlens_k is None:
        raise ValueError("cu_seqlens_k is needed where there is no block_table")
    if block_table is not None and cu_seqlens_k is None and seqused_k is None:
        raise ValueError("with a block_table, cu_seqlens_k or seqused_k must give the lengths")
    q, k, v = heads_first(q), *((heads_first(x) if block_table is None else pages(x)) for x in (k, v))
    check_heads(q, k, v)
    check_batch(batch, block_table, seqused_q, seqused_k)
    opts = options(q, causal, scale, window, softcap, alibi, sinks, None, score_mod, mask_mod, batch, 0)
    o = made(q, (q.shape[2], q.shape[1], v.shape[3]), dtype_of(q), 0) if out is None else out
    lse = made(q, (1, *q.shape[1:3]), tile.dtype("f32"), float("inf")) if return_lse else None
    forward(q, k, v, opts, lse, heads_first(o), max_seqlen_q, max_seqlen_k if block_table is None else k.shape[2],
            block_table, cu_q=cu_seqlens_q, cu_k=cu_seqlens_k, used_q=seqused_q, used_k=seqused_k,
            longest=max_seqlen_q)
    return o if lse is None else (o, lse[0])


def attention_varlen_backward(do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, cu_seqlens_q: Any, cu_seqlens_k: Any,
                              max_seqlen_q: int, max_seqlen_k: int, causal: bool = False, scale: float | None = None,
                              *, window: Any = None, softcap: float | None = None, alibi: Any = None,
                              sinks: Any = None, score_mod: Any = None, mask_mod: Any = None, seqused_q: Any = None,
                              seqused_k: Any = None, dlse: Any = None, needs_alibi: bool = False) -> Any:
    """(dq, dk, dv), then dsinks where there are `sinks` and with `needs_alibi` the gradient f32 [B, H] of the slopes,
    of a call of `attention_varlen` without pages, in the layouts of its arguments. Rows that belong to no sequence
    are 0. Raises as `attention_backward`."""
    check_longest(q.shape[0], k.shape[0], max_seqlen_q, max_seqlen_k)
    q, k, v, do, o = (heads_first(x) for x in (q, k, v, do, o))
    check_heads(q, k, v)
    batch = len(cu_seqlens_q) - 1
    check_batch(batch, None, seqused_q, seqused_k)
    opts = options(q, causal, scale, window, softcap, alibi, sinks, None, score_mod, mask_mod, batch, 0)
    dq, dk, dv, *rest = backward(
        do, q, k, v, o, lse[None], opts, None if dlse is None else dlse[None], max_seqlen_q, max_seqlen_k,
        {"cu_q": cu_seqlens_q, "cu_k": cu_seqlens_k, "used_q": seqused_q, "used_k": seqused_k},
        (max_seqlen_q, max_seqlen_k), needs_alibi=needs_alibi)
    return (*(x[0].swapaxes(0, 1) for x in (dq, dk, dv)), *rest)
