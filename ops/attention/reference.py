"""What attention means, in f64 with the whole score matrix."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def reference(q: Any, k: Any, v: Any, causal: bool = False, scale: float | None = None, *, window: Any = None,
              softcap: float | None = None, alibi: Any = None, sinks: Any = None, bias: Any = None,
              score_mod: Callable[..., Any] | None = None, mask_mod: Callable[..., Any] | None = None,
              return_lse: bool = False) -> Any:
    """As `tilelang.ops.attention`, of NumPy arrays; the mods are functions of NumPy arrays."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    s = q @ k.swapaxes(-1, -2) * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    b, h, i, j = np.ogrid[tuple(slice(n) for n in s.shape)]
    place = i + s.shape[-1] - s.shape[-2]
    if softcap:
        s = softcap * np.tanh(s / softcap)
    if alibi is not None:
        slope = np.broadcast_to(np.asarray(alibi, np.float64), s.shape[:2])[:, :, None, None]
        s = s - slope * np.abs(place - j)
    if score_mod is not None:
        s = score_mod(s, b, h, i, j)
    left, right = (-1, -1) if window is None else window
    seen = np.ones(s.shape, bool)
    if left >= 0:
        seen &= j >= place - left
    if causal or right >= 0:
        seen &= j <= place + (0 if causal else right)
    if mask_mod is not None:
        seen &= mask_mod(b, h, i, j)
    if bias is not None:
        bias = np.asarray(bias)
        seen, s = (seen & bias, s) if bias.dtype == bool else (seen, s + bias)
    s = np.where(seen, s, -np.inf)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        sink = np.asarray(sinks, np.float64)[None, :, None, None]
        top = np.maximum(top, sink)
    top = np.where(np.isinf(top), 0.0, top)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True) + (np.exp(sink - top) if sinks is not None else 0.0)
    out = np.divide(e, total, out=np.zeros_like(e), where=total != 0) @ v
    with np.errstate(divide="ignore"):
        lse = np.where(total == 0, np.inf, np.log(total) + top)[..., 0]
    return (out, lse) if return_lse else out
