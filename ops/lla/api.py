"""Calls of Local Linear Attention: checks, block extents, the operator and its gradient."""
from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like, is_torch
from tilelang.jit import architecture
from tilelang.ops.attention.options import (
    check_batch,
    check_heads,
    check_longest,
    check_ranks,
    fitting,
    spread,
    window_sizes,
)
from tilelang.ops.common import block, dtype_of, scale_of
from tilelang.ops.lla.backward import columns_kernel, rows_kernel
from tilelang.ops.lla.forward import forward_kernel

RIDGES = ("rel", "abs")
F32 = tile.dtype("f32")


BLOCKS: tuple[tuple[str, str, float, tuple[int, int]], ...] = (
    ("cuda", "forward", 64, (64, 32)),
    ("cuda:sm_90a", "forward", 128, (64, 32)),  # `wgmma` takes 64 rows
    ("cuda", "rows", 64, (64, 16)),
    ("cuda", "columns", 64, (8, 64)),
    ("hip", "columns", 128, (16, 64)),
    ("hip", "", 64, (64, 64)),
    ("", "", inf, (32, 32)),
)
"""Targets, a kernel of them or all, the widest rows, and the queries and keys of a block: of the extents tried, those
whose threads spill least (they have 255 registers on NVIDIA, 512 on AMD). The first that applies is taken."""


def constants(q: Any, k: Any, v: Any, left: int | None, right: int | None, queries: int, keys: int,
              kernel: str = "forward") -> dict[str, Any]:
    """What a kernel is compiled for."""
    d, e = q.shape[3], v.shape[3]
    if tile.on_gpu(q, k, v):
        arch = architecture(q, k, v)
        bm, bn = next(extents for target, name, widest, extents in BLOCKS
                      if arch.startswith(target) and name in ("", kernel) and max(d, e) <= widest)
        times = 1 if kernel == "forward" else 2
        if arch == "cuda:sm_75" and dtype_of(q).name == "bf16":
            times *= 3  # shared memory holds f32, too, which is multiplied
        bm, bn = fitting(q, max(d, e), block(queries, bm, 16), block(keys, bn, 16), times)
        deep = 16
    else:
        bm, bn, deep = block(queries, 96, 12), block(keys, 128, 32), 8
    return {"LEFT": left, "RIGHT": right, "BM": bm, "BN": bn, "BD": block(d, 1 << 12, deep),
            "BE": block(e, 1 << 12, deep)}


def _backward(q: Any, k: Any, v: Any, lam: Any, do: Any, rho: Any, top: Any, omega: Any, delta: Any, scale: float,
              ridge: str, left: int | None, right: int | None, iterations: int | None, tolerance: float | None,
              cu_q: Any = None, cu_k: Any = None, longest_q: int = 0, longest_k: int = 0) -> tuple[Any, Any, Any, Any]:
    """(dq, dk, dv, dlam)"""
    dq, dk, dv = (empty_like(x, tuple(x.shape), dtype_of(x)) for x in (q, k, v))
    u = empty_like(q, tuple(q.shape), F32)
    base, ldr, dlam = (empty_like(q, tuple(q.shape[:3]), F32) for _ in range(3))
    packed = {"cu_q": cu_q, "cu_k": cu_k}
    rows, columns = (constants(q, k, v, left, right, longest_q or q.shape[2], longest_k or k.shape[2], kernel)
                     for kernel in ("rows", "columns"))
    steps, tolerance = limits(q, iterations, tolerance)
    rows_kernel(q, k, v, lam, do, rho, top, omega, delta, dq, u, base, ldr, dlam, scale, tolerance, longest=longest_q,
                RELATIVE=ridge == "rel", ITERATIONS=steps, **packed, **rows)
    columns_kernel(q, k, v, do, rho, u, top, delta, base, ldr, dk, dv, scale, longest=longest_k, **packed, **columns)
    return dq, dk, dv, dlam


@tile.torch_op("tilelang::lla", backward=_backward, outputs="o rho top omega delta", wrt="q k v lam",
               autocast="lower q k v",
               dims="b h S D, b h L D, b h L E, b h S, N, N -> b h S E, b h S D, b h S, b h S, b h S")
def _forward(q: Any, k: Any, v: Any, lam: Any, scale: float, ridge: str, left: int | None, right: int | None,
             iterations: int | None, tolerance: float | None, cu_q: Any = None, cu_k: Any = None, longest_q: int = 0,
             longest_k: int = 0) -> tuple[Any, Any, Any, Any, Any]:
    """The result, and what the backward needs: rho, top, omega and delta of `forward.py`."""
    check(q, k, v, ridge)
    steps, tolerance = limits(q, iterations, tolerance)
    o = empty_like(q, (*q.shape[:3], v.shape[3]), dtype_of(q))
    rho = empty_like(q, tuple(q.shape), F32)
    top, omega, delta = (empty_like(q, tuple(q.shape[:3]), F32) for _ in range(3))
    forward_kernel(q, k, v, lam, o, scale, tolerance, rho=rho, top=top, omega=omega, delta=delta, cu_q=cu_q, cu_k=cu_k,
                   longest=longest_q, RELATIVE=ridge == "rel", ITERATIONS=steps,
                   **constants(q, k, v, left, right, longest_q or q.shape[2], longest_k or k.shape[2]))
    return o, rho, top, omega, delta


def check(q: Any, k: Any, v: Any, ridge: str, rank: int = 4) -> None:
    """Raises ValueError for dtypes, shapes and ridges that do not fit."""
    check_heads(q, k, v, rank)
    check_batch(q.shape[0], k)
    if ridge not in RIDGES:
        raise ValueError(f"ridge must be 'rel' or 'abs', got {ridge!r}")


def step(x: Any) -> float:
    """The distance from 1 to the next number of a dtype."""
    return 2.0 ** -{"float32": 23, "float16": 10, "bfloat16": 7}[str(x.dtype).removeprefix("torch.")]


def limits(q: Any, iterations: int | None, tolerance: float | None) -> tuple[int, float]:
    """Of the solver: rounding costs some steps more than D, which the early end saves where they are not needed.
    Raises ValueError for a negative number of steps."""
    if iterations is not None and iterations < 0:
        raise ValueError(f"iterations must be a count, got {iterations}")
    return 2 * q.shape[3] + 8 if iterations is None else iterations, step(q) / 4 if tolerance is None else tolerance


def per_query(lam: Any, q: Any, shape: tuple[int, ...]) -> Any:
    """lam in f32 beside q, broadcast to a shape without memory for what it does not depend on. Raises ValueError for a
    number below 0 or NaN."""
    if isinstance(lam, int | float) and not lam >= 0:
        raise ValueError(f"lam must be a number from 0 on, got {lam}")
    if not is_torch(q):
        return spread(np.asarray(lam, np.float32), shape)
    given = lam.float() if is_torch(lam) else q.new_full((), lam).float()
    try:
        return spread(given, shape)
    except RuntimeError:
        raise ValueError(f"lam must broadcast to {list(shape)}, its shape is {list(given.shape)}") from None


def lla(q: Any, k: Any, v: Any, lam: Any = 1.0, causal: bool = False, scale: float | None = None, *,
        ridge: str = "rel", window: Any = None, iterations: int | None = None, tolerance: float | None = None) -> Any:
    """Local Linear Attention (arXiv 2510.01450) of q [B, H, S, D], k [B, G, L, D] and v [B, G, L, E], where H is a
    multiple of G.

    For each query an affine function is fitted to the pairs (key, value), weighted by exp(scale q.k), with a ridge
    penalty on its slope; the result [B, H, S, E] is its value at the query. The ridge is `lam` > 0, a number or an
    array that broadcasts to [B, H, S], times the sum of the weights ("rel": independent of a shift of the scores), or
    lam itself ("abs"). As lam grows to infinity, the result becomes that of softmax attention. `scale` defaults to
    1 / sqrt(D).

    Which keys a query i sees, its own place being i + L - S: with `causal`, none behind its place; with `window`
    (left, right), at most so many before and behind it, -1 for all. Queries that see no key give 0.

    Inputs are f32, f16 or bf16; the fits are computed in f32, by conjugate gradients of at most `iterations` steps (by
    default enough for f32; in exact arithmetic D steps would be). They end as soon as the residuals of all queries of
    a block have fallen to `tolerance` (by default a quarter of the distance from 1 to the dtype's next number).
    Normalised queries and keys with lam from 0.1 on ("abs": from a tenth of the sum of the weights on) take few steps;
    for smaller lam use f32. Gradients for q, k, v and lam. Raises ValueError for what does not fit together."""
    check_ranks(4, q, k, v)
    return _forward(q, k, v, per_query(lam, q, tuple(q.shape[:3])), *_options(q, causal, scale, ridge, window),
                    iterations, tolerance)[0]


def lla_varlen(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
               lam: Any = 1.0, causal: bool = False, scale: float | None = None, *, ridge: str = "rel",
               window: Any = None, iterations: int | None = None, tolerance: float | None = None) -> Any:
    """`lla` of packed sequences: q [T, H, D], k [U, G, D], v [U, G, E]; `cu_seqlens_q`, `cu_seqlens_k` i32 [N + 1] say
    where each of N sequences begins, and where the last ends; `max_seqlen_q` and `max_seqlen_k` are at least the
    longest. `lam` broadcasts to [1, H, T]. Returns [T, H, E]."""
    check_longest(q.shape[0], k.shape[0], max_seqlen_q, max_seqlen_k)
    q, k, v = (x.swapaxes(0, 1)[None] for x in (q, k, v))
    out = _forward(q, k, v, per_query(lam, q, tuple(q.shape[:3])), *_options(q, causal, scale, ridge, window),
                   iterations, tolerance, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)[0]
    return out[0].swapaxes(0, 1)


def _options(q: Any, causal: bool, scale: float | None, ridge: str, window: Any) -> tuple[Any, ...]:
    return scale_of(q.shape[3], scale), ridge, *window_sizes(causal, window)
