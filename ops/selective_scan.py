"""The selective scan of Mamba (Gu and Dao, 2023), forward, backward and one step at a time.

For each channel, with t = softplus(delta + delta_bias) (or without softplus) and a state h of N numbers in f32:
h_s = exp(t_s A) h_(s-1) + t_s u_s B_s;  y_s = C_s . h_s + D u_s, times silu(z_s).

A chunk of steps is one associative scan of pairs (decay, gain); the states between chunks are kept for the backward,
which computes each chunk's states again. Its own recurrence, dh_s = C_s dy_s + decay_(s+1) dh_(s+1), is another scan.
Tiles are [steps, N, channels]. Channels [D] stand as [G, D / G], for each group that shares B and C.
"""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.activation import silu, softplus
from tilelang.ops.common import block, check_floats, dtype_of
from tilelang.ops.reduction import sum_rows

F32 = tile.dtype("f32")


@tile.function
def compose(first, second):
    """Two steps h -> decay h + gain as one, `first` before `second`."""
    return first[0] * second[0], second[0] * first[1] + second[1]


@tile.function
def step_size(x, bias, SOFTPLUS):
    """(what the step size is taken of, the step size)"""
    x = x.to(tile.f32) if bias is None else x.to(tile.f32) + bias.to(tile.f32)
    return x, softplus(x) if SOFTPLUS else x


@tile.function
def channels(x, g, d, BD):
    """[BD] of a tensor [G, D], or None"""
    return None if x is None else tile.load(x, (g, d), (BD,))


@tile.function
def along(x, b, g, d, s, BS, BD):
    """[steps, channels] of x [B, G, D, S] in f32."""
    return tile.load(x, (b, g, d, s), (BD, BS)).to(tile.f32).T


@tile.function
def sizes_of(delta, bias, b, g, d, s, SOFTPLUS, BS, BD):
    """(what step sizes are taken of, step sizes [steps, channels]); 0 behind the last step, where a state stays."""
    inside = s + tile.arange(BS)[:, None] < delta.shape[3]
    raw, t = step_size(tile.load(delta, (b, g, d, s), (BD, BS)).T, channels(bias, g, d, BD), SOFTPLUS)
    return tile.where(inside, raw, 0.0), tile.where(inside, t, 0.0)


@tile.function
def states_of(t, x, rates, wide, h):
    """(decay, gain, state after each step) [steps, N, channels] of a chunk that begins in state h [N, channels], from
    step sizes t and inputs x [steps, channels], A as rates [N, channels] and B as wide [steps, N]."""
    decay = tile.exp(t[:, None, :] * rates[None, :, :])
    gain = (t * x)[:, None, :] * wide[:, :, None]
    first = tile.arange(t.shape[0])[:, None, None] == 0
    _, after = tile.associative_scan((decay, tile.where(first, decay * h[None, :, :] + gain, gain)), 0, compose)
    return decay, gain, after


@tile.kernel
def scan_kernel(
    u: tile.Tensor[tile.T, "Z G D S"],
    delta: tile.Tensor[tile.T, "Z G D S"],
    A: tile.Tensor[tile.f32, "G D N"],
    B: tile.Tensor[tile.T, "Z G N S"],
    C: tile.Tensor[tile.T, "Z G N S"],
    y: tile.Out[tile.T, "Z G D S"],
    states: tile.Out[tile.f32, "Z G K N D"],
    last: tile.Out[tile.f32, "Z G D N"],
    D: tile.Tensor[tile.f32, "G D"] = None,
    z: tile.Tensor[tile.T, "Z G D S"] = None,
    delta_bias: tile.Tensor[tile.f32, "G D"] = None,
    initial: tile.Tensor[tile.f32, "Z G D N"] = None,
    SOFTPLUS: tile.Const = False,
    BN: tile.Const = 16,
    BS: tile.Const = 32,
    BD: tile.Const = 16,
):
    """A block of channels of one sequence for each program. states[k] is that before chunk k; BN >= N."""
    b, g, d = tile.grid(u.shape[0], u.shape[1], tile.cdiv(u.shape[2], BD))
    d, S = d * BD, u.shape[3]
    rates, skip = tile.load(A, (g, d, 0), (BD, BN)).T, channels(D, g, d, BD)
    h = tile.zeros((BN, BD)) if initial is None else tile.load(initial, (b, g, d, 0), (BD, BN)).T
    for k in tile.range(0, tile.cdiv(S, BS)):
        s = k * BS
        tile.store(states, (b, g, k, 0, d), h)
        _, t = sizes_of(delta, delta_bias, b, g, d, s, SOFTPLUS, BS, BD)
        x = along(u, b, g, d, s, BS, BD)
        _, _, after = states_of(t, x, rates, along(B, b, g, 0, s, BS, BN), h)
        out = (after * along(C, b, g, 0, s, BS, BN)[:, :, None]).sum(1)
        out = out if skip is None else out + x * skip
        out = out if z is None else out * silu(along(z, b, g, d, s, BS, BD))
        tile.store(y, (b, g, d, s), out.T.to(y.dtype))
        h = after[BS - 1]
    tile.store(last, (b, g, d, 0), h.T)


@tile.kernel
def scan_backward_kernel(
    u: tile.Tensor[tile.T, "Z G D S"],
    delta: tile.Tensor[tile.T, "Z G D S"],
    A: tile.Tensor[tile.f32, "G D N"],
    B: tile.Tensor[tile.T, "Z G N S"],
    C: tile.Tensor[tile.T, "Z G N S"],
    states: tile.Tensor[tile.f32, "Z G K N D"],
    dy: tile.Tensor[tile.T, "Z G D S"],
    dlast: tile.Tensor[tile.f32, "Z G D N"],
    du: tile.Out[tile.T, "Z G D S"],
    ddelta: tile.Out[tile.T, "Z G D S"],
    dA: tile.Out[tile.f32, "Z G D N"],
    dB: tile.Out[tile.f32, "P Z G N S"],
    dC: tile.Out[tile.f32, "P Z G N S"],
    dinitial: tile.Out[tile.f32, "Z G D N"],
    D: tile.Tensor[tile.f32, "G D"] = None,
    z: tile.Tensor[tile.T, "Z G D S"] = None,
    delta_bias: tile.Tensor[tile.f32, "G D"] = None,
    dD: tile.Out[tile.f32, "Z G D"] = None,
    dz: tile.Out[tile.T, "Z G D S"] = None,
    ddelta_bias: tile.Out[tile.f32, "Z G D"] = None,
    SOFTPLUS: tile.Const = False,
    BN: tile.Const = 16,
    BS: tile.Const = 32,
    BD: tile.Const = 16,
):
    """The same programs, from the last chunk to the first. What channels or sequences share gets one part of its
    gradient from each, to be added up: dB and dC for each block of channels, dA, dD and ddelta_bias for each b."""
    b, g, p = tile.grid(u.shape[0], u.shape[1], tile.cdiv(u.shape[2], BD))
    d, S = p * BD, u.shape[3]
    rates, skip = tile.load(A, (g, d, 0), (BD, BN)).T, channels(D, g, d, BD)
    dh = tile.load(dlast, (b, g, d, 0), (BD, BN)).T  # of the state behind the chunk
    sum_A, sum_D, sum_bias = tile.zeros((BN, BD)), tile.zeros((BD,)), tile.zeros((BD,))
    chunks = tile.cdiv(S, BS)
    for r in tile.range(0, chunks):
        k = chunks - 1 - r
        s = k * BS
        raw, t = sizes_of(delta, delta_bias, b, g, d, s, SOFTPLUS, BS, BD)
        x, wide, out = along(u, b, g, d, s, BS, BD), along(B, b, g, 0, s, BS, BN), along(C, b, g, 0, s, BS, BN)
        h = tile.load(states, (b, g, k, 0, d), (None, None, None, BN, BD))
        decay, gain, after = states_of(t, x, rates, wide, h)
        grad = along(dy, b, g, d, s, BS, BD)
        if z is not None:
            gate = along(z, b, g, d, s, BS, BD)
            value = (after * out[:, :, None]).sum(1)
            value = value if skip is None else value + x * skip
            tile.store(dz, (b, g, d, s), (grad * value * tile.derivative(silu(gate), gate)).T.to(dz.dtype))
            grad = grad * silu(gate)
        tile.store(dC, (p, b, g, 0, s), (after * grad[:, None, :]).sum(2).T, (None, None, None, BN, BS))
        late = tile.arange(BS)[:, None, None] == BS - 1
        direct = out[:, :, None] * grad[:, None, :]
        direct = tile.where(late, direct + dh[None, :, :], direct)
        later = tile.concatenate((decay[1:], tile.full((1, BN, BD), 1.0)), 0)
        _, dstate = tile.associative_scan((later, direct), 0, compose, reverse=True)
        kept = dstate * (after - gain)  # by log(decay): gain is what decay h(s - 1) is less than h(s)
        sum_A += (kept * t[:, None, :]).sum(0)
        dinput = (dstate * wide[:, :, None]).sum(1)
        tile.store(dB, (p, b, g, 0, s), (dstate * (t * x)[:, None, :]).sum(2).T, (None, None, None, BN, BS))
        dt = (kept * rates[None, :, :]).sum(1) + x * dinput
        if SOFTPLUS:
            dt = dt * tile.sigmoid(raw)
        dx = t * dinput
        if skip is not None:
            dx = dx + grad * skip
            sum_D += (grad * x).sum(0)
        tile.store(du, (b, g, d, s), dx.T.to(du.dtype))
        tile.store(ddelta, (b, g, d, s), dt.T.to(ddelta.dtype))
        sum_bias += tile.where(s + tile.arange(BS)[:, None] < S, dt, 0.0).sum(0)
        dh = decay[0] * dstate[0]
    tile.store(dA, (b, g, d, 0), sum_A.T)
    tile.store(dinitial, (b, g, d, 0), dh.T)
    if dD is not None:
        tile.store(dD, (b, g, d), sum_D)
    if ddelta_bias is not None:
        tile.store(ddelta_bias, (b, g, d), sum_bias)


@tile.kernel
def scan_step_kernel(
    state: tile.InOut[tile.f32, "Z G D N"],
    u: tile.Tensor[tile.T, "Z G D"],
    delta: tile.Tensor[tile.T, "Z G D"],
    A: tile.Tensor[tile.f32, "G D N"],
    B: tile.Tensor[tile.T, "Z G N"],
    C: tile.Tensor[tile.T, "Z G N"],
    y: tile.Out[tile.T, "Z G D"],
    D: tile.Tensor[tile.f32, "G D"] = None,
    z: tile.Tensor[tile.T, "Z G D"] = None,
    delta_bias: tile.Tensor[tile.f32, "G D"] = None,
    SOFTPLUS: tile.Const = False,
    BN: tile.Const = 16,
    BD: tile.Const = 64,
):
    """A block of channels of one sequence for each program; BN >= N."""
    b, g, d = tile.grid(u.shape[0], u.shape[1], tile.cdiv(u.shape[2], BD))
    d = d * BD
    _, t = step_size(tile.load(delta, (b, g, d), (BD,)), channels(delta_bias, g, d, BD), SOFTPLUS)
    x = tile.load(u, (b, g, d), (BD,)).to(tile.f32)
    decay = tile.exp(t[:, None] * tile.load(A, (g, d, 0), (BD, BN)))
    h = decay * tile.load(state, (b, g, d, 0), (BD, BN)) + \
        (t * x)[:, None] * tile.load(B, (b, g, 0), (BN,)).to(tile.f32)[None, :]
    tile.store(state, (b, g, d, 0), h)
    out = (h * tile.load(C, (b, g, 0), (BN,)).to(tile.f32)[None, :]).sum(1)
    out = out if D is None else out + x * tile.load(D, (g, d), (BD,))
    out = out if z is None else out * silu(tile.load(z, (b, g, d), (BD,)).to(tile.f32))
    tile.store(y, (b, g, d), out.to(y.dtype))


_step = tile.torch_op("tilelang::selective_scan_step")(scan_step_kernel)


def _grouped(x: Any, groups: int, at: int = 0) -> Any:
    """Dimension `at`, of channels, as [groups, channels of each]; a view. None stays None."""
    return None if x is None else x.reshape(*x.shape[:at], groups, x.shape[at] // groups, *x.shape[at + 1:])


def _extents(u: Any, n: int) -> dict[str, int]:
    """Extents of blocks: the second-level cache of a CPU, the registers of a GPU."""
    steps, channels = (16, 8) if tile.on_gpu(u) else (32, 16)
    return {"BN": block(n, 1 << 12, 16), "BS": steps, "BD": channels}


def _arguments(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any) -> dict[str, Any]:
    """By name, as kernels take them. Raises ValueError."""
    check_floats("selective_scan", u, 2)
    groups, wide = B.shape[1], {"u": u, "delta": delta, "z": z}
    fits = groups > 0 and u.shape[1] % groups == 0 and tuple(C.shape) == tuple(B.shape)
    if not fits or tuple(A.shape) != (u.shape[1], B.shape[2]):
        raise ValueError(f"for {u.shape[1]} channels A needs shape [{u.shape[1]}, N], and B and C one shape [batch, "
                         f"groups, N, ...] with groups that divide the channels, got {list(A.shape)}, {list(B.shape)} "
                         f"and {list(C.shape)}")
    return {**{n: _grouped(x, groups, 1) for n, x in wide.items()}, "B": B, "C": C,
            **{n: _grouped(x, groups) for n, x in {"A": A, "D": D, "delta_bias": delta_bias}.items()}}


def _backward(u: Any, delta: Any, A: Any, B: Any, C: Any, states: Any, dy: Any, dlast: Any, D: Any = None,
              z: Any = None, delta_bias: Any = None, initial: Any = None, delta_softplus: bool = False
              ) -> tuple[Any, Any, Any, Any, Any, Any, Any, Any, Any]:
    """(du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial); those of what is absent are empty."""
    given, groups = _arguments(u, delta, A, B, C, D, z, delta_bias), B.shape[1]
    batch, each, extents = u.shape[0], u.shape[1] // groups, _extents(u, A.shape[1])
    parts = -(-each // extents["BD"])
    du, ddelta = (empty_like(u, tuple(u.shape), dtype_of(u)) for _ in range(2))
    dz = None if z is None else empty_like(u, tuple(u.shape), dtype_of(u))
    dA, dinitial = (empty_like(u, (batch, groups, each, A.shape[1]), F32) for _ in range(2))
    dB, dC = (empty_like(u, (parts, *B.shape), F32) for _ in range(2))
    dD, dbias = (None if x is None else empty_like(u, (batch, groups, each), F32) for x in (D, delta_bias))
    scan_backward_kernel(states=states, dy=_grouped(dy, groups, 1), dlast=_grouped(dlast, groups, 1),
                         du=_grouped(du, groups, 1), ddelta=_grouped(ddelta, groups, 1), dz=_grouped(dz, groups, 1),
                         dA=dA, dB=dB, dC=dC, dinitial=dinitial, dD=dD, ddelta_bias=dbias, SOFTPLUS=delta_softplus,
                         **extents, **given)

    def summed(parts: Any, like: Any) -> Any:
        if like is None:
            return empty_like(u, (0,), F32)
        return sum_rows(parts, like).reshape(like.shape)
    return (du, ddelta, summed(dA, A), summed(dB, B), summed(dC, C), summed(dD, D),
            summed(None, None) if dz is None else dz, summed(dbias, delta_bias),
            dinitial.reshape(batch, u.shape[1], A.shape[1]))


@tile.torch_op("tilelang::selective_scan", backward=_backward, outputs="y last states",
               wrt="u delta A B C D z delta_bias initial",
               dims="b D S, b D S, D N, b G N S, b G N S, D, b D S, D, b D N -> b D S, b D N, b G K N D")
def _forward(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, z: Any = None, delta_bias: Any = None,
             initial: Any = None, delta_softplus: bool = False) -> tuple[Any, Any, Any]:
    given, groups = _arguments(u, delta, A, B, C, D, z, delta_bias), B.shape[1]
    each, n, extents = u.shape[1] // groups, A.shape[1], _extents(u, A.shape[1])
    y, last = empty_like(u, tuple(u.shape), dtype_of(u)), empty_like(u, (u.shape[0], u.shape[1], n), F32)
    states = empty_like(u, (u.shape[0], groups, -(-u.shape[2] // extents["BS"]), n, each), F32)
    scan_kernel(y=_grouped(y, groups, 1), last=_grouped(last, groups, 1), states=states,
                initial=_grouped(initial, groups, 1), SOFTPLUS=delta_softplus, **extents, **given)
    return y, last, states


def selective_scan(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, z: Any = None, delta_bias: Any = None,
                   delta_softplus: bool = False, return_last_state: bool = False, *, initial_state: Any = None) -> Any:
    """The selective scan of u, delta, z [batch, D, S] with A f32 [D, N], B and C [batch, G, N, S] (or [batch, N, S]),
    G a divisor of D, and D, delta_bias f32 [D]; as mamba_ssm's `selective_scan_fn`. Returns y [batch, D, S] in the
    dtype of u, and with `return_last_state` also the state f32 [batch, D, N] behind the last step; `initial_state` is
    that before the first, 0 unless given. u, delta, B, C and z have one dtype; computed in f32. Gradients for all of
    them, deterministic. Raises ValueError for what does not fit together."""
    B, C = (x[:, None] if len(x.shape) == 3 else x for x in (B, C))
    y, last, _ = _forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    return (y, last) if return_last_state else y


def selective_scan_step(state: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, z: Any = None,
                        delta_bias: Any = None, delta_softplus: bool = False) -> Any:
    """One step of `selective_scan`: writes the new state into `state` f32 [batch, D, N], gives y [batch, D], of u,
    delta and z [batch, D], B and C [batch, G, N] (or [batch, N]). Raises ValueError."""
    B, C = (x[:, None] if len(x.shape) == 2 else x for x in (B, C))
    given, groups = _arguments(u, delta, A, B, C, D, z, delta_bias), B.shape[1]
    y = _step(_grouped(state, groups, 1), SOFTPLUS=delta_softplus, BN=block(A.shape[1], 1 << 12, 16), **given)
    return y.reshape(u.shape)


def reference(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, z: Any = None, delta_bias: Any = None,
              delta_softplus: bool = False, initial: Any = None) -> tuple[Any, Any]:
    """(y, last state), f64, step by step; B and C [batch, G, N, S]."""
    u, t, A = (np.asarray(x, np.float64) for x in (u, delta, A))
    B, C = (np.repeat(np.asarray(x, np.float64), u.shape[1] // x.shape[1], 1) for x in (B, C))
    t = t if delta_bias is None else t + np.asarray(delta_bias, np.float64)[:, None]
    t = np.logaddexp(t, 0.0) if delta_softplus else t
    h = np.zeros((*u.shape[:2], A.shape[1])) if initial is None else np.asarray(initial, np.float64)
    y = np.zeros(u.shape)
    for s in range(u.shape[2]):
        h = np.exp(t[:, :, s, None] * A) * h + (t * u)[:, :, s, None] * B[..., s]
        y[:, :, s] = (C[..., s] * h).sum(-1)
    y = y if D is None else y + np.asarray(D, np.float64)[:, None] * u
    z = None if z is None else np.asarray(z, np.float64)
    return (y if z is None else y * z / (1.0 + np.exp(-z))), h
