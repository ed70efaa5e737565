"""What a call of attention may ask for, checked, in the form in which the kernels take it."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.jit import architecture, only_allocates
from tilelang.lang.expressions import Function
from tilelang.ops.attention.blockmask import BlockMask
from tilelang.ops.common import block, check_floats, dtype_of, even, scale_of
from tilelang.ops.matmul import packed_size
from tilelang.ops.streamk import PROCESSORS
from tilelang.targets import shared_bytes

WIDTHS = {64, 96, 128}
"""Of heads: columns that one `wgmma` has, of which 128 x 128 scores and sums fit into registers."""


@dataclass(frozen=True)
class Options:
    """`tensors` and `consts` are arguments of the kernels."""

    scale: float
    tensors: dict[str, Any] = field(default_factory=dict)
    consts: dict[str, Any] = field(default_factory=dict)
    sinks: Any = None
    blocks: BlockMask | None = None

    def visited(self, q: Any, columns: bool = False) -> dict[str, Any]:
        """The blocks that kernels visit, by rows of queries or by columns of keys, and their extents."""
        mask = self.blocks
        if mask is None:
            return {}
        counts, blocks = (mask.column_counts, mask.column_blocks) if columns else (mask.row_counts, mask.row_blocks)
        return {"counts": spread(counts, (*q.shape[:2], *counts.shape[2:])),
                "blocks": spread(blocks, (*q.shape[:2], *blocks.shape[2:])), "BM": mask.BM, "BN": mask.BN}


def window_sizes(causal: bool, window: Any) -> tuple[int | None, int | None]:
    """(LEFT, RIGHT): how many keys before and behind its own place a query sees; None for all. Raises ValueError."""
    given = (-1, -1) if window is None else tuple(window) if isinstance(window, list | tuple) else ()
    if len(given) != 2 or not all(isinstance(n, int) and n >= -1 for n in given):
        raise ValueError(f"window must be a pair of counts (left, right), -1 for all, got {window!r}")
    left, right = given[0], 0 if causal else given[1]
    return None if left < 0 else left, None if right < 0 else right


def spread(x: Any, shape: tuple[int, ...]) -> Any:
    """x broadcast to a shape, without a copy."""
    if hasattr(x, "expand"):
        return x.expand(shape)
    fits = np.broadcast_to(x, shape)
    return np.lib.stride_tricks.as_strided(x, shape, fits.strides)  # writable, as exchange by DLPack wants it


def options(q: Any, causal: bool, scale: float | None, window: Any, softcap: float | None, alibi: Any, sinks: Any,
            bias: Any, score_mod: Any, mask_mod: Any, batch: int, keys: int,
            block_mask: BlockMask | None = None) -> Options:
    """Checks the options of a call with queries q [A, H, S, D]. Raises ValueError."""
    heads = q.shape[1]
    if block_mask is not None:
        full = (q.shape[0], heads, q.shape[2], keys)
        if mask_mod is not None:
            raise ValueError("block_mask has its own mask_mod: pass only one of them")
        if not all(a == b or (a == 1 and n < 2) for n, (a, b) in enumerate(zip(block_mask.shape, full, strict=True))):
            raise ValueError(f"block_mask is for scores {list(block_mask.shape)}, those of the call are {list(full)}")
        mask_mod = block_mask.mask_mod
    left, right = window_sizes(causal, window)
    consts: dict[str, Any] = {"LEFT": left, "RIGHT": right}
    tensors: dict[str, Any] = {}
    if softcap:
        if not 0 < softcap < math.inf:
            raise ValueError(f"softcap must be positive and finite, got {softcap}")
        consts["CAP"] = float(softcap)
    for name, mod, what in (("MOD", score_mod, "score_mod(score, b, h, i, j)"),
                            ("MASK", mask_mod, "mask_mod(b, h, i, j)")):
        if mod is not None:
            if not isinstance(mod, Function):
                raise ValueError(f"{what} must be a function marked @tile.function, got {mod!r}")
            consts[name] = mod
    if alibi is not None:
        if tuple(alibi.shape) not in ((heads,), (batch, heads)):
            raise ValueError(f"alibi needs shape [{heads}] or [{batch}, {heads}], got {list(alibi.shape)}")
        tensors["alibi"] = spread(alibi, (batch, heads))
    if sinks is not None and tuple(sinks.shape) != (heads,):
        raise ValueError(f"sinks needs shape [{heads}], got {list(sinks.shape)}")
    if bias is not None:
        try:
            tensors["bias"] = spread(bias, (q.shape[0], heads, q.shape[2], keys))
        except (RuntimeError, ValueError):
            raise ValueError(f"bias must broadcast to {[q.shape[0], heads, q.shape[2], keys]}, its shape is "
                             f"{list(bias.shape)}") from None
    return Options(scale_of(q.shape[3], scale), tensors, consts, sinks, block_mask)


def check_heads(q: Any, k: Any, v: Any, rank: int = 4) -> None:
    """Raises ValueError for dtypes, numbers of dimensions (of q; those of k and v are 4) and head counts that do not
    fit."""
    check_floats("attention", q)
    if len(q.shape) != rank or len(k.shape) != 4 or len(v.shape) != 4:
        raise ValueError(f"attention needs q of {rank} dimensions, k and v of 4, got {list(q.shape)}, "
                         f"{list(k.shape)}, {list(v.shape)}")
    check_head_counts(q.shape[1], k.shape[1], v.shape[1])


def check_batch(batch: int, keys: Any = None, *used: Any) -> None:
    """Raises ValueError unless there are keys and lengths `used` for just so many sequences: a kernel takes what it
    does not find for 0. None stands for what is not given; kernels refuse what is no tensor."""
    for name, x in (("keys", keys), *(("lengths", n) for n in used)):
        if hasattr(x, "shape") and x.shape[0] != batch:
            raise ValueError(f"{batch} sequences need {name} of as many, got those of {x.shape[0]}")


def check_longest(queries: int, keys: int | None, max_seqlen_q: int, max_seqlen_k: int) -> None:
    """Raises ValueError where there are rows of packed sequences, but none that may be as long: all would be left
    out. `keys` is None where they lie in pages, whose table tells."""
    for name, longest, rows in (("max_seqlen_q", max_seqlen_q, queries), ("max_seqlen_k", max_seqlen_k, keys)):
        if rows is not None and longest <= 0 and (longest < 0 or rows > 0):
            raise ValueError(f"{name} must be at least the longest sequence, got {longest} for {rows} rows")


def check_ranks(rank: int, *tensors: Any) -> None:
    """Raises ValueError unless q, k and v have so many dimensions."""
    if any([len(x.shape) != rank for x in tensors]):
        raise ValueError(f"attention needs q, k and v of {rank} dimensions, got "
                         f"{', '.join([str(list(x.shape)) for x in tensors])}")


def check_head_counts(queries: int, keys: int, values: int) -> None:
    """Raises ValueError unless each key head serves as many query heads, and there are as many value heads as key
    heads."""
    if keys == 0 or queries % keys or values != keys:
        raise ValueError(f"the number of query heads, {queries}, must be a multiple of the number of key heads, "
                         f"{keys}, and the number of value heads, {values}, must equal that")


def made(like: Any, shape: tuple[int, ...], dt: tile.DType, filled: float | None = None) -> Any:
    """A new tensor of the kind of another, filled where a kernel may leave elements out."""
    out = empty_like(like, shape, dt)
    if filled is not None:
        out[...] = filled
    return out


def page_block(page: int, limit: int = 128) -> int:
    """The largest number of keys up to `limit` that divides a page. Raises ValueError for one of none."""
    if page == 0:
        raise ValueError("a page must hold a key at least, got pages of 0")
    return next(n for n in range(min(page, limit), 0, -1) if page % n == 0)


def fitting(q: Any, width: int, m: int, n: int, times: int = 1) -> tuple[int, int]:
    """Extents of blocks of queries and of keys for a GPU: m and n, halved until `times` as many rows of a `width` fit
    into its shared memory, beside scores where they are wide. NVIDIA's may have twice as much there (the next blocks,
    or on sm_75 operands without matrix instructions): where it is small, or rows take over 2 KiB."""
    name, size, scores = architecture(q), dtype_of(q).storage.itemsize, width > 128
    room = shared_bytes(name) // size
    if name.startswith("cuda") and (shared_bytes(name) < 128 << 10 or width * size > 2048):
        room //= 2
    while (m + n) * width * times + m * n * scores > room:
        m, n = (m, n // 2) if n >= m else (m // 2, n)
    return max(m, 1), max(n, 1)


def blocks(q: Any, k: Any, v: Any, queries: int, keys: int, kernel: str = "") -> dict[str, Any]:
    """Block extents for a kernel: registers and shared memory of a GPU, the second-level cache of a CPU. "forward" on
    sm_90a takes blocks of 128 x 128 (as FlashAttention-3 for a width of 128, arXiv:2407.08608) where `wgmma` has the
    widths and every processor a block. At a width of 128 their loop has 1.9 instructions for a product, of 64 x 64
    2.9; one fills shared memory, so that other warps copy for it. Kernels of the backward pass sum up over blocks of
    "queries" (two sums; a thread of NVIDIA's has 255 registers, of AMD's 512) or of "keys" (one). `wgmma` has 64 rows
    to a group of four warps, so that eight warps take 128 keys.
    On a CPU the fewest rows beyond the last query count: 114 suits powers of two. Blocks of keys are alike, so that
    few columns lie beyond the last key."""
    d, e = q.shape[3], v.shape[3]
    if only_allocates():
        return {"BM": 1, "BN": 1, "BD": 1, "BE": 1, "ROUND": False}
    if not tile.on_gpu(q, k, v):
        return {**_cpu_blocks(d, e, queries, keys, kernel), "ROUND": packed_size(dtype_of(q)) == 2}
    side = 64 if max(d, e) <= 128 else 32 if max(d, e) <= 256 else 16
    m, n, name = side, side, architecture(q, k, v)
    if kernel == "forward" and name == "cuda:sm_90a" and {d, e} <= WIDTHS and dtype_of(q).bits == 16 \
            and min(queries, keys) >= 128 and q.shape[0] * q.shape[1] * -(-q.shape[2] // 128) >= PROCESSORS:
        m, n = 128, 128
    elif kernel == "queries" and name == "cuda:sm_90a" and 64 < max(d, e) <= 128:
        m, n = 32, 128
    elif kernel == "queries" and name.startswith("cuda") and max(d, e) > 64:
        m = max(side // 4, 16)
    elif kernel == "keys" and max(d, e) > 64:
        n = max(side // 2, 16)
    m, n = fitting(q, max(d, e), block(queries, m, 16), block(keys, n, 16), 1 if kernel == "forward" else 2)
    return {"BM": m, "BN": n, "BD": block(d, 1 << 12, 16), "BE": block(e, 1 << 12, 16), "ROUND": True}


@lru_cache(maxsize=1024)
def _cpu_blocks(d: int, e: int, queries: int, keys: int, kernel: str) -> dict[str, int]:
    m = min((96, 114), key=lambda rows: -(-queries // rows) * rows) if kernel == "forward" else 96
    return {"BM": block(queries, m, 12), "BN": even(keys, 128, 32), "BD": block(d, 1 << 12, 8),
            "BE": block(e, 1 << 12, 8)}
