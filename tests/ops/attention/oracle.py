"""Attention by torch with the whole score matrix, in any precision and with gradients; and bounds on errors."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tilelang as tile

EPS = {torch.float32: 2.0 ** -24, torch.float16: 2.0 ** -11, torch.bfloat16: 2.0 ** -8}
"""Half a unit in the last place, relative."""


@tile.function
def wavy(s, b, h, i, j):
    return s + 0.1 * tile.sin(s) * (h + 1).to(tile.f32) - 0.01 * (i + b).to(tile.f32)


@tile.function
def two_of_three(b, h, i, j):
    return (i + j + b) % 3 != 0


MODS: dict[Any, Callable[..., Any]] = {
    wavy: lambda s, b, h, i, j: s + 0.1 * torch.sin(s) * (h + 1) - 0.01 * (i + b),
    two_of_three: lambda b, h, i, j: (i + j + b) % 3 != 0}


def scores(q: torch.Tensor, k: torch.Tensor, causal: bool = False, scale: float | None = None,
           window: Any = (-1, -1), softcap: Any = None, alibi: Any = None, bias: Any = None, score_mod: Any = None,
           mask_mod: Any = None) -> Any:
    """(scores, what is seen) of [B, H, S, D] and [B, G, L, D]."""
    k = k.repeat_interleave(q.shape[1] // max(k.shape[1], 1), 1)
    s = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in s.shape), indexing="ij")
    place = i + s.shape[-1] - s.shape[-2]
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if alibi is not None:
        s = s - alibi.to(s.dtype).expand(s.shape[:2])[..., None, None] * (place - j).abs()
    if score_mod is not None:
        s = MODS.get(score_mod, score_mod)(s, b, h, i, j)
    seen = torch.ones(s.shape, dtype=torch.bool)
    if window[0] >= 0:
        seen &= j >= place - window[0]
    if causal or window[1] >= 0:
        seen &= j <= place + (0 if causal else window[1])
    if mask_mod is not None:
        seen &= MODS.get(mask_mod, mask_mod)(b, h, i, j)
    if bias is not None and bias.dtype == torch.bool:
        seen = seen & bias
    elif bias is not None:
        s = s + bias.to(s.dtype)
    return s, seen & (s > -torch.inf)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: Any = None, **options: Any) -> Any:
    """(o, lse) in the precision of the operands; the LSE of a row that sees nothing is 0 here."""
    s, seen = scores(q, k, **options)
    s = s.masked_fill(~seen, -torch.inf)
    every = s if sinks is None else torch.cat([s, sinks.to(s.dtype)[None, :, None, None].expand(*s.shape[:3], 1)], -1)
    none = (every == -torch.inf).all(-1)
    lse = torch.logsumexp(every.masked_fill(none[..., None], 0), -1).masked_fill(none, 0)
    return torch.exp(s - lse[..., None]) @ v.repeat_interleave(q.shape[1] // max(v.shape[1], 1), 1), lse


def doubled(options: dict[str, Any]) -> dict[str, Any]:
    """Options with sinks in f64."""
    return {n: x.double() if n == "sinks" else x for n, x in options.items()}


def bounds(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, products: float = 2.0 ** -24,
           sizes: Any = None, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the result and the LSE may lie from their f64 values `out`, [B, H, S, E] and [B, H, S].

    A score is a sum of D products and at most 24 further operations in f32, none of which takes an error more than 1.4
    times as large: error t <= (D + 24) u (|q| |k| scale + |s|) 1.4 each. Weights then err by a factor of exp(2 t),
    sums of L terms by (L + 16) u, and the result is rounded once. `products` is how weights are rounded before the
    second product; `sizes` how large the terms of k and v are, where those are sums of larger ones."""
    q, k, v = q.double(), k.double(), v.double()
    repeat = q.shape[1] // max(k.shape[1], 1)
    terms, size = (x.abs().repeat_interleave(repeat, 1) for x in sizes or (k, v))
    u = 2.0 ** -24
    sinks = options.pop("sinks", None)
    scale = abs(options.get("scale") or q.shape[-1] ** -0.5)
    s, seen = scores(q, k, **options)
    t = 1.4 * (q.shape[-1] + 24) * u * (q.abs() @ terms.transpose(-1, -2) * scale + s.abs()).masked_fill(~seen, 0)
    t = t.amax(-1) if t.shape[-1] else torch.zeros(t.shape[:-1], dtype=torch.float64)
    sums = (k.shape[-2] + 16) * u
    size, _ = attention(q, k.repeat_interleave(repeat, 1), size, sinks=None if sinks is None else sinks.double(),
                        **options)
    return (torch.expm1(2 * t + sums + products)[..., None] * size + out.abs() * 2.0 ** -23, t + sums + 2.0 ** -20)
