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
    top-left, as torch's is. `attn_mask`, boolean (true takes part) or added, has no gradient. Raises ValueError."""
    _without(dropout_p=dropout_p)
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
    _without(dropout_p=dropout_p)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = ops.attention(q, k, v, causal, softmax_scale, window=window_size, softcap=softcap,
                             alibi=alibi_slopes, return_lse=True)
    out = out.transpose(1, 2)
    return (out, lse, None) if return_attn_probs else out


def _four(x: Any) -> Any:
    """[..., H, S, D] as [B, H, S, D]."""
    return x.reshape(-1, *x.shape[-3:]) if x.ndim > 2 else x[None, None]


def _without(**options: Any) -> None:
    for name, value in options.items():
        if value is not None and value != 0.0:
            raise ValueError(f"`{name}` is not supported: leave it out")
