"""`ops.attention` behind the signatures of other libraries, for programs and tests written against them.

What a signature has that `ops.attention` does not (dropout) raises ValueError where it is asked for.
"""
from __future__ import annotations

from typing import Any

from tilelang import ops


def scaled_dot_product_attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
                                 is_causal: bool = False, scale: float | None = None,
                                 enable_gqa: bool = False) -> Any:
    """torch.nn.functional's: [..., H, S, D], [..., G, L, D], [..., G, L, E] to [..., H, S, E]; `is_causal` is aligned
    top-left, as torch's is. `attn_mask`, boolean (true takes part) or added. Raises ValueError."""
    _without(dropout_p=dropout_p or None)
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask and is_causal exclude each other: pass one of them")
    if not enable_gqa and query.ndim > 2 and query.shape[-3] != key.shape[-3]:
        raise ValueError(f"{query.shape[-3]} query heads and {key.shape[-3]} key heads need enable_gqa=True")
    shape = query.shape
    q, k, v = (_four(x) for x in (query, key, value))
    window = None
    if is_causal:  # at most S - L keys behind the place at the end is the place at the beginning
        behind = shape[-2] - key.shape[-2]
        if behind < 0:
            k, v = k[:, :, :shape[-2]], v[:, :, :shape[-2]]
        elif behind:
            window = (-1, behind)
    mask = attn_mask if attn_mask is None or attn_mask.ndim <= 4 else attn_mask.reshape(-1, *attn_mask.shape[-3:])
    out = ops.attention(q, k, v, is_causal and window is None, scale, window=window, bias=mask)
    return out.reshape(*shape[:-1], value.shape[-1])


def flash_attn_func(q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: float | None = None,
                    causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
                    alibi_slopes: Any = None, deterministic: bool = False, return_attn_probs: bool = False) -> Any:
    """flash-attn's: q [B, S, H, D], k [B, L, G, D], v [B, L, G, E] to [B, S, H, E]; with `return_attn_probs` (result,
    LSE [B, H, S], None). Always deterministic. Raises ValueError."""
    _without(dropout_p=dropout_p or None)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = ops.attention(q, k, v, causal, softmax_scale, window=window_size, softcap=softcap,
                             alibi=alibi_slopes, return_lse=True)
    out = out.transpose(1, 2)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int,
                           max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
                           causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
                           alibi_slopes: Any = None, deterministic: bool = False, return_attn_probs: bool = False,
                           block_table: Any = None) -> Any:
    """flash-attn's: q [T, H, D], k [U, G, D], v [U, G, E], or pages [pages, page, G, D] with `block_table`, to
    [T, H, E]; with `return_attn_probs` (result, LSE [H, T], None). Raises ValueError."""
    _without(dropout_p=dropout_p or None)
    out, lse = ops.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal,
                                    softmax_scale, window=window_size, softcap=softcap, alibi=alibi_slopes,
                                    block_table=block_table, return_lse=True)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, rotary_cos: Any = None,
                            rotary_sin: Any = None, cache_seqlens: Any = None, cache_batch_idx: Any = None,
                            cache_leftpad: Any = None, block_table: Any = None, softmax_scale: float | None = None,
                            causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
                            rotary_interleaved: bool = True, alibi_slopes: Any = None, num_splits: int = 0,
                            return_softmax_lse: bool = False) -> Any:
    """flash-attn's: q [B, S, H, D] to caches [B, L, G, D] and [B, L, G, E], of which `cache_seqlens` (i32 [B], or one
    number) are valid; those of sequence b are entry cache_batch_idx[b], or pages [pages, page, G, D] with
    `block_table` i32 [B, P]. k and v [B, N, G, D] are appended before, in place, and turned by `rotary_cos` and
    `rotary_sin` [places, F] as the queries are, whose places go on from `cache_seqlens` with `causal` or a window and
    are all that one without. Gives [B, S, H, E], with `return_softmax_lse` the LSE [B, H, S] too. No gradients.
    Raises ValueError."""
    _without(cache_leftpad=cache_leftpad)
    if block_table is not None and cache_batch_idx is not None:
        raise ValueError("cache_batch_idx and block_table exclude each other: pass one of them")
    if cache_seqlens is None and any(x is not None for x in (k, rotary_cos, block_table)):
        raise ValueError("k, rotary_cos and block_table need cache_seqlens: pass i32 [B] or a number")
    batch, new, heads, d = q.shape
    q, keys, values = (x.transpose(1, 2) for x in (q, k_cache, v_cache))
    used = cache_seqlens
    if cache_batch_idx is not None:  # an entry of the cache is a page
        block_table = cache_batch_idx[:, None].int()
        used = k_cache.shape[1] if used is None else used
    if isinstance(used, int):
        used = q.new_zeros(batch).int() + used
    cos, sin = (x if x is None else x.float() for x in (rotary_cos, rotary_sin))
    if cos is not None:
        together = not causal and tuple(window_size) == (-1, -1)
        turned = q.reshape(batch, heads * new, 1, d) if together else q
        q = ops.rotate(turned, cos, sin, used, rotary_interleaved).reshape(batch, heads, new, d)
    if k is not None:
        ops.append_kv(keys, values, k.transpose(1, 2), v.transpose(1, 2), used, cos=cos, sin=sin,
                      interleaved=rotary_interleaved, block_table=block_table)
        used = used + k.shape[1]
    out, lse = ops.attention_decode(q, keys, values, causal, softmax_scale, seqused_k=used, block_table=block_table,
                                    window=window_size, softcap=softcap, alibi=alibi_slopes,
                                    splits=num_splits or None, return_lse=True)
    out = out.transpose(1, 2)
    return (out, lse) if return_softmax_lse else out


def _four(x: Any) -> Any:
    """[..., H, S, D] as [B, H, S, D]."""
    return x.reshape(-1, *x.shape[-3:]) if x.ndim > 2 else x[None, None]


def _without(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"`{name}` is not supported: leave it out")
