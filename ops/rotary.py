"""Rotary position embedding (Su et al., 2021)."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.common import block


@tile.kernel
def rotary_kernel(x: tile.Tensor[tile.T, "B H S D"], cos: tile.Tensor[tile.U, "C S R"],
                  sin: tile.Tensor[tile.U, "C S R"], y: tile.Out[tile.T, "B H S D"], R: tile.Const, REST: tile.Const,
                  INTERLEAVED: tile.Const, BACK: tile.Const, BS: tile.Const):
    """Turns R pairs of each row by the angles, or BACK, and copies the REST. C is B or 1."""
    B, H, S, _ = x.shape
    bh, s = tile.grid(B * H, tile.cdiv(S, BS))
    b, h = bh // H, bh % H
    at = tile.minimum(b, cos.shape[0] - 1)
    c = tile.load(cos, (at, s * BS, 0), (BS, R)).to(tile.f32)
    t = tile.load(sin, (at, s * BS, 0), (BS, R)).to(tile.f32)
    if BACK:
        t = -t
    if INTERLEAVED:
        pairs = tile.load(x, (b, h, s * BS, 0), (BS, 2 * R)).to(tile.f32).reshape(BS, R, 2)
        p, q = pairs[:, :, 0], pairs[:, :, 1]
        turned = tile.stack([p * c - q * t, q * c + p * t], 2).reshape(BS, 2 * R)
        tile.store(y, (b, h, s * BS, 0), turned.to(y.dtype))
    else:
        p = tile.load(x, (b, h, s * BS, 0), (BS, R)).to(tile.f32)
        q = tile.load(x, (b, h, s * BS, R), (BS, R)).to(tile.f32)
        tile.store(y, (b, h, s * BS, 0), (p * c - q * t).to(y.dtype))
        tile.store(y, (b, h, s * BS, R), (q * c + p * t).to(y.dtype))
    if REST > 0:
        tile.store(y, (b, h, s * BS, 2 * R), tile.load(x, (b, h, s * BS, 2 * R), (BS, REST)))


def _rotary(x: Any, cos: Any, sin: Any, interleaved: bool, back: bool) -> Any:
    r, d = cos.shape[2], x.shape[3]
    if 2 * r > d or cos.shape != sin.shape or cos.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"cos and sin need shape [{x.shape[0]} or 1, {x.shape[2]}, at most {d // 2}], got "
                         f"{list(cos.shape)} and {list(sin.shape)}")
    return rotary_kernel(x, cos, sin, R=r, REST=d - 2 * r, INTERLEAVED=interleaved, BACK=back,
                         BS=block(x.shape[2], 32, 8))


def _backward(dy: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    return _rotary(dy, cos, sin, interleaved, True)


@tile.torch_op("tilelang::rotary", backward=_backward, outputs="y", wrt="x",
               dims="B h s D, B s R, B s R -> B h s D")
def rotary(x: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """Turns pairs of the numbers of x [B, H, S, D] by angles whose cosines and sines are [B, S, R] or [1, S, R], R at
    most D / 2: pairs (i, i + R), or (2 i, 2 i + 1) if `interleaved`; numbers from 2 R on stay. In f32, in the dtype of
    x. Gradient for x. Raises ValueError for shapes that do not fit."""
    return _rotary(x, cos, sin, interleaved, False)


def reference(x: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """f64."""
    x, c, s = (np.asarray(a, np.float64) for a in (x, cos[:, None], sin[:, None]))
    r = c.shape[-1]
    p, q = (x[..., 0:2 * r:2], x[..., 1:2 * r:2]) if interleaved else (x[..., :r], x[..., r:2 * r])
    turned = np.stack([p * c - q * s, q * c + p * s], -1 if interleaved else -2).reshape(*p.shape[:-1], 2 * r)
    return np.concatenate([turned, x[..., 2 * r:]], -1)
