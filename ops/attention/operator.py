"""Attention as an operator of PyTorch, with gradients; NumPy arrays and calls with `out` go round the operator."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang import locks
from tilelang.args import is_torch
from tilelang.ops.attention import api, decode, varlen
from tilelang.ops.attention.blockmask import BlockMask
from tilelang.ops.attention.mods import name_of
from tilelang.ops.attention.options import check_ranks, made, options
from tilelang.quant.nodes import to_torch
from tilelang.quant.structure import flatten, unflatten
from tilelang.torch_ops import no_gradient

_DIMS = "b h S D, b h L D, b h L E, b h, h, b h S L, b, b, V W X, V W X Y, V W Y, V W Y X -> b h S E, b h S"
_VARLEN_DIMS = "T h D, U h D, U h E, N, N, B h, h, B, B -> T h E, h T"
_DECODE_DIMS = ("B h S D, C h L D, C h L E, B, B P, B h, h, B h D, B h D, C h L, C h L, C h L X, C h L Y"
                " -> B h S E, B h S")


def _whole(name: str, score_mod: Any, mask_mod: Any) -> Any:
    """The operator of `attention` with these functions, which no schema can hold."""

    def mods(q: Any, k: Any, bm: int, bn: int, *blocks: Any) -> dict[str, Any]:
        if blocks[0] is None:
            return {"score_mod": score_mod, "mask_mod": mask_mod}
        shape = (*blocks[0].shape[:2], q.shape[2], k.shape[2])
        return {"score_mod": score_mod, "block_mask": BlockMask(mask_mod, shape, bm, bn, *blocks)}

    def backward(do: Any, dlse: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, causal: bool, scale: float, left: int,
                 right: int, softcap: float, alibi: Any = None, sinks: Any = None, bias: Any = None,
                 seqused_q: Any = None, seqused_k: Any = None, row_counts: Any = None, row_blocks: Any = None,
                 column_counts: Any = None, column_blocks: Any = None, bm: int = 0, bn: int = 0,
                 needs_bias: bool = False, needs_alibi: bool = False) -> tuple[Any, Any, Any, Any, Any, Any]:
        grads = api.attention_backward(
            do, q, k, v, o, lse, causal, scale, window=(left, right), softcap=softcap, alibi=alibi, sinks=sinks,
            bias=bias, seqused_q=seqused_q, seqused_k=seqused_k, dlse=dlse, needs_bias=needs_bias,
            needs_alibi=needs_alibi, **mods(q, k, bm, bn, row_counts, row_blocks, column_counts, column_blocks))
        return (*grads[:3], *_rest(q, grads[3:], sinks is not None, needs_bias, needs_alibi))

    @tile.torch_op(name, backward=backward, outputs="o lse",
                   wrt="q k v sinks bias alibi", dims=_DIMS, autocast="lower q k v")
    def attention(q: Any, k: Any, v: Any, causal: bool, scale: float, left: int, right: int, softcap: float,
                  alibi: Any = None, sinks: Any = None, bias: Any = None, seqused_q: Any = None,
                  seqused_k: Any = None, row_counts: Any = None, row_blocks: Any = None, column_counts: Any = None,
                  column_blocks: Any = None, bm: int = 0, bn: int = 0) -> tuple[Any, Any]:
        return api.attention(
            q, k, v, causal, scale, window=(left, right), softcap=softcap, alibi=alibi, sinks=sinks, bias=bias,
            seqused_q=seqused_q, seqused_k=seqused_k, return_lse=True,
            **mods(q, k, bm, bn, row_counts, row_blocks, column_counts, column_blocks))
    return attention


def _packed(name: str, score_mod: Any, mask_mod: Any) -> Any:
    """The operator of `attention_varlen` with these functions."""
    mods = {"score_mod": score_mod, "mask_mod": mask_mod}

    def backward(do: Any, dlse: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, cu_q: Any, cu_k: Any, max_q: int,
                 max_k: int, causal: bool, scale: float, left: int, right: int, softcap: float, alibi: Any = None,
                 sinks: Any = None, seqused_q: Any = None, seqused_k: Any = None, needs_alibi: bool = False
                 ) -> tuple[Any, Any, Any, Any, Any]:
        grads = varlen.attention_varlen_backward(
            do, q, k, v, o, lse, cu_q, cu_k, max_q, max_k, causal, scale, window=(left, right), softcap=softcap,
            alibi=alibi, sinks=sinks, seqused_q=seqused_q, seqused_k=seqused_k, dlse=dlse,
            needs_alibi=needs_alibi, **mods)
        dq, dk, dv = (x.contiguous() if hasattr(x, "contiguous") else x for x in grads[:3])
        return dq, dk, dv, *_rest(q, grads[3:], sinks is not None, needs_alibi)

    @tile.torch_op(name, backward=backward, outputs="o lse",
                   wrt="q k v sinks alibi", dims=_VARLEN_DIMS, autocast="lower q k v")
    def attention_varlen(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, causal: bool,
                         scale: float, left: int, right: int, softcap: float, alibi: Any = None, sinks: Any = None,
                         seqused_q: Any = None, seqused_k: Any = None) -> tuple[Any, Any]:
        return varlen.attention_varlen(q, k, v, cu_q, cu_k, max_q, max_k, causal, scale, window=(left, right),
                                       softcap=softcap, alibi=alibi, sinks=sinks, seqused_q=seqused_q,
                                       seqused_k=seqused_k, return_lse=True, **mods)
    return attention_varlen


def _rest(q: Any, grads: Any, *there: bool) -> Any:
    """The gradients, which are those that are there, with empty tensors for the others."""
    found = iter(grads)
    return (next(found) if is_there else made(q, (0,), tile.dtype("f32")) for is_there in there)


def _decode(name: str, score_mod: Any, mask_mod: Any) -> Any:
    """The operator of `attention_decode` with these functions. Caches come as memory and a description."""

    @tile.torch_op(name, outputs="o lse", dims=_DECODE_DIMS)
    def attention_decode(q: Any, k: Any, v: Any, k_packed: str, v_packed: str, causal: bool, scale: float, left: int,
                         right: int, softcap: float, seqused_k: Any = None, block_table: Any = None, alibi: Any = None,
                         sinks: Any = None, k_scale: Any = None, k_zero: Any = None, v_scale: Any = None,
                         v_zero: Any = None, k_bits: Any = None, v_bits: Any = None, splits: int = 0
                         ) -> tuple[Any, Any]:
        return decode.attention_decode(
            q, unpacked(k, k_packed), unpacked(v, v_packed), causal, scale, seqused_k=seqused_k,
            block_table=block_table, window=(left, right), softcap=softcap, alibi=alibi, sinks=sinks,
            score_mod=score_mod, mask_mod=mask_mod, k_scale=k_scale, k_zero=k_zero, v_scale=v_scale, v_zero=v_zero,
            k_bits=k_bits, v_bits=v_bits, splits=splits or None, return_lse=True)
    return attention_decode


def memory(x: Any) -> tuple[Any, str]:
    """(tensor, what makes it the cache again): a `tilelang.Packed` is its bytes, anything else itself."""
    if not isinstance(x, tile.Packed):
        return x, ""
    description, [(_, buffer)] = flatten(x)
    return to_torch(buffer, "cpu") if isinstance(buffer, np.ndarray) else buffer, description


def unpacked(x: Any, description: str) -> Any:
    return unflatten(description, [x]) if description else x


_MAKE = {"attention": _whole, "attention_varlen": _packed, "attention_decode": _decode}
_operators: dict[str, Any] = {}


def _made(name: str, score_mod: Any = None, mask_mod: Any = None) -> str:
    """The key of the operator of that name with these functions."""
    key = f"tilelang::{name}{name_of(score_mod, mask_mod)}"
    if key not in _operators:
        with locks.registering:
            if key not in _operators:
                _operators[key] = _MAKE[name](key, score_mod, mask_mod)
    return key


# torch.compile calls it, once for each pair of functions, instead of looking into it
_made._dynamo_marked_constant = True  # type: ignore[attr-defined]
for _plain in _MAKE:
    _made(_plain)  # which saved programs name


def register_mods(score_mod: Any = None, mask_mod: Any = None) -> None:
    """Makes attention with these functions known to torch, as a call does, where a saved program that contains it is
    loaded: operators are named by what the functions are called and mean."""
    for name in _MAKE:
        _made(name, score_mod, mask_mod)


def attention(q: Any, k: Any, v: Any, causal: bool = False, scale: float | None = None, *, window: Any = None,
              softcap: float | None = None, alibi: Any = None, sinks: Any = None, bias: Any = None,
              score_mod: Any = None, mask_mod: Any = None, block_mask: BlockMask | None = None, seqused_q: Any = None,
              seqused_k: Any = None, return_lse: bool = False, out: Any = None) -> Any:
    if out is not None:
        no_gradient("`attention` with `out`", q, k, v, alibi, sinks, bias, out)
        return api.attention(q, k, v, causal, scale, window=window, softcap=softcap, alibi=alibi, sinks=sinks,
                             bias=bias, score_mod=score_mod, mask_mod=mask_mod, block_mask=block_mask,
                             seqused_q=seqused_q, seqused_k=seqused_k, return_lse=return_lse, out=out)
    check_ranks(4, q, k, v)
    opts = options(q, causal, scale, window, softcap, alibi, sinks, bias, score_mod, mask_mod, q.shape[0], k.shape[2],
                   block_mask)
    blocks: tuple[Any, ...] = ()
    if block_mask is not None:
        mask_mod, blocks = block_mask.mask_mod, (
            block_mask.row_counts, block_mask.row_blocks, block_mask.column_counts, block_mask.column_blocks,
            block_mask.BM, block_mask.BN)
    op = _operators[_made("attention", score_mod, mask_mod)]
    left, right = (-1, -1) if window is None else window
    o, lse = op(q, k, v, causal, opts.scale, left, right, softcap or 0.0, opts.tensors.get("alibi"), sinks,
                bias if bias is None else bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape)), seqused_q,
                seqused_k, *blocks)
    return (o, lse) if return_lse else o


def attention_varlen(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int,
                     max_seqlen_k: int, causal: bool = False, scale: float | None = None, *, window: Any = None,
                     softcap: float | None = None, alibi: Any = None, sinks: Any = None, score_mod: Any = None,
                     mask_mod: Any = None, seqused_q: Any = None, seqused_k: Any = None, block_table: Any = None,
                     return_lse: bool = False, out: Any = None) -> Any:
    if out is not None or block_table is not None or cu_seqlens_k is None:
        no_gradient("`attention_varlen` with `out` or of keys in pages", q, k, v, alibi, sinks, out)
        return varlen.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale,
                                       window=window, softcap=softcap, alibi=alibi, sinks=sinks, score_mod=score_mod,
                                       mask_mod=mask_mod, seqused_q=seqused_q, seqused_k=seqused_k,
                                       block_table=block_table, return_lse=return_lse, out=out)
    check_ranks(3, q, k, v)
    batch = len(cu_seqlens_q) - 1
    opts = options(varlen.heads_first(q), causal, scale, window, softcap, alibi, sinks, None, score_mod, mask_mod,
                   batch, 0)
    op = _operators[_made("attention_varlen", score_mod, mask_mod)]
    left, right = (-1, -1) if window is None else window
    o, lse = op(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal,
                opts.scale, left, right, softcap or 0.0, opts.tensors.get("alibi"), sinks, seqused_q, seqused_k)
    return (o, lse) if return_lse else o


def attention_decode(q: Any, k: Any, v: Any, causal: bool = True, scale: float | None = None, *,
                     seqused_k: Any = None, block_table: Any = None, window: Any = None, softcap: float | None = None,
                     alibi: Any = None, sinks: Any = None, score_mod: Any = None, mask_mod: Any = None,
                     k_scale: Any = None, k_zero: Any = None, v_scale: Any = None, v_zero: Any = None,
                     k_bits: Any = None, v_bits: Any = None, splits: int | None = None, return_lse: bool = False
                     ) -> Any:
    given = {"seqused_k": seqused_k, "block_table": block_table, "k_scale": k_scale, "k_zero": k_zero,
             "v_scale": v_scale, "v_zero": v_zero, "k_bits": k_bits, "v_bits": v_bits}
    if not is_torch(q):
        return decode.attention_decode(
            q, k, v, causal, scale, window=window, softcap=softcap, alibi=alibi, sinks=sinks, score_mod=score_mod,
            mask_mod=mask_mod, splits=splits, return_lse=return_lse, **given)
    check_ranks(4, q, k, v)
    opts = options(q, causal, scale, window, softcap, alibi, sinks, None, score_mod, mask_mod, q.shape[0], 0)
    op = _operators[_made("attention_decode", score_mod, mask_mod)]
    left, right = (-1, -1) if window is None else window
    (k, k_packed), (v, v_packed) = memory(k), memory(v)
    o, lse = op(q, k, v, k_packed, v_packed, causal, opts.scale, left, right, softcap or 0.0,
                alibi=opts.tensors.get("alibi"), sinks=sinks, splits=splits or 0, **given)
    return (o, lse) if return_lse else o


attention_decode.__doc__ = decode.attention_decode.__doc__
attention.__doc__, attention_varlen.__doc__ = api.attention.__doc__, varlen.attention_varlen.__doc__
