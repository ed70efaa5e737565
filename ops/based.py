"""BASED linear attention (Arora et al., 2024, arXiv 2402.18668): causal attention whose weights are those of softmax's
exponential by its second-order Taylor series, w(s) = 1 + s + s^2 / 2 of scores s = scale q.k, which is a product of
feature maps phi(x) = [1, x, x x^T / sqrt(2)], and so a state of 1 + D + D^2 rows instead of all keys. Of the last
`window` keys, where the series is least good, weights are exp(s) itself; both kinds are normalised by one sum.

Sequences go by chunks. Of chunks before the window a query sees the state [x, w] = sums of w, x^T w, (x x^T)^T w over
keys x = k with w = [v, 1], the last column of which sums weights; chunks from the window on it sees key by key. In the
backward, keys see the queries behind them as the same kind of state, of x = scale q and w = exp(-lse) [do, -do.o].
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.attention.options import check_heads
from tilelang.ops.attention.scores import LOG2E, rescale
from tilelang.ops.common import block, dtype_of, scale_of

F32 = tile.dtype("f32")


@tile.function
def squares(x):
    """[M, D * D] of x [M, D]: products of all pairs."""
    return (x[:, :, None] * x[:, None, :]).reshape(x.shape[0], x.shape[1] * x.shape[1])


@tile.function
def fold(state, x, w):
    """The state with rows x [M, D], w [M, E] taken in."""
    zero, one, two = state
    return zero + w.sum(0), tile.dot(x.T, w, one), tile.dot(squares(x).T, w, two)


@tile.function
def seen_through(state, x):
    """sum over the state's rows of (1 + s + s^2 / 2) w, s their product with x [M, D]."""
    zero, one, two = state
    return zero[None, :] + tile.dot(x, one) + tile.dot(squares(x), two) * 0.5


@tile.function
def slope_through(state, x, g):
    """The gradient of `seen_through` by x for the gradient g [M, E]."""
    _, one, two = state
    pairs = tile.dot(g, two.T).reshape(x.shape[0], x.shape[1], x.shape[1])
    return tile.dot(g, one.T) + (pairs * x[:, None, :]).sum(2)


@tile.function
def weights(s, i, j, length, less, WINDOW, SLOPE):
    """Weights by exp(less), to base 2, of scores s of queries i and keys j; SLOPE: their derivatives by s."""
    far = (1.0 + s if SLOPE else 1.0 + s * (1.0 + 0.5 * s)) * tile.exp2(-less)
    out = far if WINDOW == 0 else tile.where(i - j < WINDOW, tile.exp2(s * LOG2E - less), far)
    return tile.where((j <= i) & (j < length), out, 0.0)


@tile.function
def rows_of(x, b, h, n, C, BD):
    """Rows n … n + C - 1 in f32, zeros outside the sequence."""
    return tile.load(x, (b, h, n, 0), (C, BD)).to(tile.f32)


@tile.function
def with_ones(v, E):
    """v [C, BE] with a last column of ones."""
    return tile.where(tile.arange(v.shape[1])[None, :] == E, 1.0, v)


@tile.function
def counted(x, n, length):
    """Rows of x, zero outside the sequence's steps 0 … length - 1, row 0 being step n."""
    step = n + tile.arange(x.shape[0])[:, None]
    return tile.where((step >= 0) & (step < length), x, 0.0)


@tile.function
def empty_state(BD, BE):
    return tile.zeros((BE,)), tile.zeros((BD, BE)), tile.zeros((BD * BD, BE))


@tile.function
def gradients(do, o, b, h, n, C, BE, E):
    """[do, -do.o] of rows n … n + C - 1."""
    g = rows_of(do, b, h, n, C, BE)
    return tile.where(tile.arange(BE)[None, :] == E, -(g * rows_of(o, b, h, n, C, BE)).sum(1)[:, None], g)


@tile.function
def base_two(lse, b, h, n, C):
    """[C, 1]; outside the sequence +inf, where weights are 0."""
    return tile.load(lse, (b, h, n), (C,), fill=float("inf"))[:, None] * LOG2E


@tile.kernel
def based_kernel(q: tile.Tensor[tile.T, "B H S D"], k: tile.Tensor[tile.T, "B H S D"],
                 v: tile.Tensor[tile.T, "B H S E"], o: tile.Out[tile.T, "B H S E"],
                 lse: tile.Out[tile.f32, "B H S"], scale: tile.f32, WINDOW: tile.Const = 0, LAG: tile.Const = 0,
                 C: tile.Const = 64, BD: tile.Const = 16, BE: tile.Const = 64):
    """One head of one sequence for each program; chunks of C steps, of which the last LAG before a query's own reach
    into its window; BE > E."""
    B, H, S, E = v.shape
    b, h = tile.grid(B, H)
    zero, one, two = empty_state(BD, BE)
    for m in tile.range(0, S, C):
        gone = m - (LAG + 1) * C
        zero, one, two = fold((zero, one, two), rows_of(k, b, h, gone, C, BD),
                              counted(with_ones(rows_of(v, b, h, gone, C, BE), E), gone, S))
        x, i = rows_of(q, b, h, m, C, BD) * scale, m + tile.arange(C)[:, None]
        top, acc = tile.zeros((C,)), tile.zeros((C, BE))
        for n in tile.range(tile.maximum(m - LAG * C, 0), m + 1, C):
            j = n + tile.arange(C)[None, :]
            s = tile.dot(x, rows_of(k, b, h, n, C, BD).T)
            if WINDOW > 0:
                near = (j <= i) & (j < S) & (i - j < WINDOW)
                top, _, keep = rescale(top, tile.where(near, s * LOG2E, float("-inf")).max(1))
                acc = acc * keep[:, None]
            acc = tile.dot(weights(s, i, j, S, top[:, None], WINDOW, False),
                           with_ones(rows_of(v, b, h, n, C, BE), E), acc)
        acc = acc + seen_through((zero, one, two), x) * tile.exp2(-top)[:, None]
        total = tile.where(tile.arange(BE)[None, :] == E, acc, 0.0).sum(1)
        tile.store(o, (b, h, m, 0), (acc / total[:, None]).to(o.dtype))
        tile.store(lse, (b, h, m), (top + tile.log2(total)) * math.log(2.0))


@tile.kernel
def based_dq_kernel(q: tile.Tensor[tile.T, "B H S D"], k: tile.Tensor[tile.T, "B H S D"],
                    v: tile.Tensor[tile.T, "B H S E"], o: tile.Tensor[tile.T, "B H S E"],
                    lse: tile.Tensor[tile.f32, "B H S"], do: tile.Tensor[tile.T, "B H S E"],
                    dq: tile.Out[tile.T, "B H S D"], scale: tile.f32, WINDOW: tile.Const = 0, LAG: tile.Const = 0,
                    C: tile.Const = 64, BD: tile.Const = 16, BE: tile.Const = 64):
    """Programs and chunks as in the forward."""
    B, H, S, E = v.shape
    b, h = tile.grid(B, H)
    zero, one, two = empty_state(BD, BE)
    for m in tile.range(0, S, C):
        gone = m - (LAG + 1) * C
        zero, one, two = fold((zero, one, two), rows_of(k, b, h, gone, C, BD),
                              counted(with_ones(rows_of(v, b, h, gone, C, BE), E), gone, S))
        x, i = rows_of(q, b, h, m, C, BD) * scale, m + tile.arange(C)[:, None]
        less, g = base_two(lse, b, h, m, C), gradients(do, o, b, h, m, C, BE, E)
        dx = slope_through((zero, one, two), x, g * tile.exp2(-less))
        for n in tile.range(tile.maximum(m - LAG * C, 0), m + 1, C):
            keys, j = rows_of(k, b, h, n, C, BD), n + tile.arange(C)[None, :]
            ds = weights(tile.dot(x, keys.T), i, j, S, less, WINDOW, True) * \
                tile.dot(g, with_ones(rows_of(v, b, h, n, C, BE), E).T)
            dx = tile.dot(ds, keys, dx)
        tile.store(dq, (b, h, m, 0), (dx * scale).to(dq.dtype))


@tile.kernel
def based_dkdv_kernel(q: tile.Tensor[tile.T, "B H S D"], k: tile.Tensor[tile.T, "B H S D"],
                      v: tile.Tensor[tile.T, "B H S E"], o: tile.Tensor[tile.T, "B H S E"],
                      lse: tile.Tensor[tile.f32, "B H S"], do: tile.Tensor[tile.T, "B H S E"],
                      dk: tile.Out[tile.T, "B H S D"], dv: tile.Out[tile.T, "B H S E"], scale: tile.f32,
                      WINDOW: tile.Const = 0, LAG: tile.Const = 0, C: tile.Const = 64, BD: tile.Const = 16,
                      BE: tile.Const = 64):
    """The same from the last chunk to the first: the state is that of queries behind."""
    B, H, S, E = v.shape
    b, h = tile.grid(B, H)
    zero, one, two = empty_state(BD, BE)
    chunks = tile.cdiv(S, C)
    for r in tile.range(0, chunks):
        n = (chunks - 1 - r) * C
        gone = n + (LAG + 1) * C
        far = gradients(do, o, b, h, gone, C, BE, E) * tile.exp2(-base_two(lse, b, h, gone, C))
        zero, one, two = fold((zero, one, two), rows_of(q, b, h, gone, C, BD) * scale, far)
        keys, j = rows_of(k, b, h, n, C, BD), n + tile.arange(C)[:, None]
        values = with_ones(rows_of(v, b, h, n, C, BE), E)
        sum_k, sum_v = slope_through((zero, one, two), keys, values), seen_through((zero, one, two), keys)
        for m in tile.range(n, n + LAG * C + 1, C):
            x, g = rows_of(q, b, h, m, C, BD) * scale, gradients(do, o, b, h, m, C, BE, E)
            s, i, less = tile.dot(keys, x.T), m + tile.arange(C)[None, :], base_two(lse, b, h, m, C).T
            sum_v = tile.dot(weights(s, i, j, S, less, WINDOW, False), g, sum_v)
            sum_k = tile.dot(weights(s, i, j, S, less, WINDOW, True) * tile.dot(values, g.T), x, sum_k)
        tile.store(dk, (b, h, n, 0), sum_k.to(dk.dtype))
        tile.store(dv, (b, h, n, 0), sum_v.to(dv.dtype))


@tile.kernel
def based_step_kernel(state: tile.InOut[tile.f32, "B H F W"], keys: tile.InOut[tile.T, "B H R D"],
                      values: tile.InOut[tile.T, "B H R E"], used: tile.Tensor[tile.i32, "B"],
                      q: tile.Tensor[tile.T, "B H D"], k: tile.Tensor[tile.T, "B H D"],
                      v: tile.Tensor[tile.T, "B H E"], o: tile.Out[tile.T, "B H E"], scale: tile.f32,
                      WINDOW: tile.Const, BR: tile.Const, D: tile.Const, BE: tile.Const):
    """One head of one sequence for each program. `keys` and `values` are a ring of the WINDOW last ones: what the new
    one takes the place of goes into the state, whose rows are those of zero, one and two of `fold`."""
    b, h = tile.grid(q.shape[0], q.shape[1])
    E, place = v.shape[2], tile.load(used, (b,), ())
    old_k, old_v = tile.load(k, (b, h, 0), (D,)), tile.load(v, (b, h, 0), (BE,))
    if WINDOW > 0:
        slot = place % WINDOW
        new_k, new_v = old_k, old_v
        old_k, old_v = tile.load(keys, (b, h, slot, 0), (D,)), tile.load(values, (b, h, slot, 0), (BE,))
        tile.store(keys, (b, h, slot, 0), new_k)
        tile.store(values, (b, h, slot, 0), new_v)
    full = place >= WINDOW
    x = tile.where(full, old_k.to(tile.f32), 0.0)
    w = tile.where(full, tile.where(tile.arange(BE) == E, 1.0, old_v.to(tile.f32)), 0.0)
    zero = tile.load(state, (b, h, 0, 0), (BE,)) + w
    one = tile.load(state, (b, h, 1, 0), (D, BE)) + x[:, None] * w[None, :]
    pairs = (x[:, None] * x[None, :]).reshape(D * D)
    two = tile.load(state, (b, h, 1 + D, 0), (D * D, BE)) + pairs[:, None] * w[None, :]
    tile.store(state, (b, h, 0, 0), zero)
    tile.store(state, (b, h, 1, 0), one)
    tile.store(state, (b, h, 1 + D, 0), two)
    y = tile.load(q, (b, h, 0), (D,)).to(tile.f32) * scale
    squared = (y[:, None] * y[None, :]).reshape(D * D)
    acc = zero + (y[:, None] * one).sum(0) + (squared[:, None] * two).sum(0) * 0.5
    if WINDOW > 0:
        near = tile.arange(BR) < tile.minimum(place + 1, WINDOW)
        ring = tile.where(near[:, None], tile.load(keys, (b, h, 0, 0), (BR, D)).to(tile.f32), 0.0)
        s = tile.where(near, (ring * y[None, :]).sum(1), float("-inf"))
        top = tile.maximum(s.max(0), 0.0)
        p = tile.exp(s - top)
        tokens = tile.where(near[:, None], with_ones(tile.load(values, (b, h, 0, 0), (BR, BE)).to(tile.f32), E), 0.0)
        acc = acc * tile.exp(-top) + (p[:, None] * tokens).sum(0)
    total = tile.where(tile.arange(BE) == E, acc, 0.0).sum(0)
    tile.store(o, (b, h, 0), (acc / total).to(o.dtype))


_step = tile.torch_op("tilelang::based_step")(based_step_kernel)


def _sizes(q: Any, v: Any, window: int) -> dict[str, int]:
    deep, chunk = (16, 32) if tile.on_gpu(q, v) else (8, 64)
    chunk = block(q.shape[2], chunk, 16)
    return {"WINDOW": window, "LAG": -(-max(window - 1, 0) // chunk), "C": chunk, "BD": block(q.shape[3], 64, deep),
            "BE": block(v.shape[3] + 1, 1 << 12, deep)}


def _backward(do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, window: int, scale: float) -> tuple[Any, Any, Any]:
    dq, dk, dv = (empty_like(x, tuple(x.shape), dtype_of(x)) for x in (q, k, v))
    sizes = _sizes(q, v, window)
    based_dq_kernel(q, k, v, o, lse, do, dq, scale, **sizes)
    based_dkdv_kernel(q, k, v, o, lse, do, dk, dv, scale, **sizes)
    return dq, dk, dv


@tile.torch_op("tilelang::based", backward=_backward, outputs="o lse", wrt="q k v",
               dims="b h S D, b h S D, b h S E -> b h S E, b h S", autocast="lower")
def _forward(q: Any, k: Any, v: Any, window: int, scale: float) -> tuple[Any, Any]:
    check_heads(q, k, v)
    if tuple(k.shape) != tuple(q.shape) or tuple(v.shape[:3]) != tuple(q.shape[:3]) or q.shape[3] > 64 or window < 0:
        raise ValueError(f"q and k need one shape [B, H, S, D] with D at most 64, v [B, H, S, E] and window a count, "
                         f"got {list(q.shape)}, {list(k.shape)}, {list(v.shape)} and {window}")
    o, lse = empty_like(q, tuple(v.shape), dtype_of(q)), empty_like(q, tuple(q.shape[:3]), F32)
    based_kernel(q, k, v, o, lse, scale, **_sizes(q, v, window))
    return o, lse


def based(q: Any, k: Any, v: Any, window: int = 0, scale: float | None = None) -> Any:
    """BASED linear attention, causal, of q, k [B, H, S, D] and v [B, H, S, E]: weights 1 + s + s^2 / 2 of scores
    s = scale q.k, but exp(s) for the last `window` keys of each query (itself among them), by their sum. D is at most
    64, and small (16 in the paper): states have 1 + D + D^2 rows. `scale` is 1 / sqrt(D) unless given. In f32; gives
    [B, H, S, E] in the dtype of q. Gradients for q, k and v, deterministic. Raises ValueError."""
    return _forward(q, k, v, window, scale_of(q.shape[3], scale))[0]


def based_state(like: Any, batch: int, heads: int, d: int, e: int, window: int = 0) -> tuple[Any, Any, Any]:
    """The state of `based_step` before the first step: (sums f32 [batch, heads, 1 + d + d^2, e + 1], and the last keys
    [batch, heads, window, d] and values [batch, heads, window, e] in the dtype of `like`), zeros, beside `like`."""
    state = empty_like(like, (batch, heads, 1 + d + d * d, e + 1), F32)
    rings = [empty_like(like, (batch, heads, max(window, 1), n), dtype_of(like)) for n in (d, e)]
    for x in (state, *rings):
        x[...] = 0
    return state, rings[0], rings[1]


def based_step(state: tuple[Any, Any, Any], used: Any, q: Any, k: Any, v: Any, window: int = 0,
               scale: float | None = None) -> Any:
    """One step of `based`: takes k [B, H, D] and v [B, H, E] into `state` (of `based_state`, with the same window) and
    gives [B, H, E] for q [B, H, D]. `used` i32 [B]: how many steps each sequence has taken before; it is left as it
    is. No gradient. Raises ValueError for a state of another window."""
    d, e = q.shape[2], v.shape[2]
    if window < 0 or state[1].shape[2] != max(window, 1):
        raise ValueError(f"the state has the last {state[1].shape[2]} keys, the window is {window}: both functions "
                         "take the same")
    return _step(*state, used, q, k, v, scale=scale_of(d, scale), WINDOW=window,
                 BR=block(window, 1 << 12, 16), D=d, BE=block(e + 1, 1 << 12, 16))


def reference(q: Any, k: Any, v: Any, window: int = 0, scale: float | None = None) -> Any:
    """f64, with the whole matrix of weights."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    s = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    away = np.arange(s.shape[-2])[:, None] - np.arange(s.shape[-1])[None, :]
    w = np.where(away < 0, 0.0, np.where(away < window, np.exp(np.where(away < 0, 0.0, s)), 1.0 + s + 0.5 * s * s))
    return w @ v / w.sum(-1, keepdims=True)
