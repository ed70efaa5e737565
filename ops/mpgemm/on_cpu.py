"""`mpgemm` on a CPU: what is made of x for a plan, and the kernels that take it."""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ir import codec
from tilelang.ops.mpgemm import blocks
from tilelang.ops.mpgemm.bits import planes_kernel, popcount_gemv_kernel
from tilelang.ops.mpgemm.cpu import WEIGHTS, dot_gemv_kernel, pairs_kernel, quantize_kernel, spread_kernel
from tilelang.ops.mpgemm.lut import (
    bucket_kernel,
    byte_tables_kernel,
    lut_bytes_kernel,
    lut_gemv_kernel,
    lut_weight_kernel,
    nibbles_kernel,
    tables_kernel,
)
from tilelang.ops.mpgemm.pack import LANES, Panels, depth_of
from tilelang.ops.mpgemm.plan import Plan, by_bytes
from tilelang.quant import QuantTensor

BY_BITS = ("bitplane_popc", "lut_act", "lut_act_i8")
"""Decompositions that read `Panels.planes`."""
WHOLE = ("bitplane_popc", "int_dot", "lut_act_i8", "lut_weight")
"""Decompositions that sum whole numbers exactly where x is quantised to such."""


def rounded(x: Any, w: QuantTensor, dt: tile.DType, token: bool) -> Any:
    """x [M, K] in f32 as values of `dt` times the scales of tokens, or of the groups of columns that `w` has."""
    (m, k), group = x.shape, blocks.source(w, str(getattr(x, "device", "cpu"))).group
    group = k if token or not group else min(group, k)
    groups, depth = -(-k // group), depth_of(group)
    q = empty_like(x, (m, groups, depth), tile.f32 if dt.kind == "float" else tile.i8)
    scale, sums = (empty_like(x, (m, groups), tile.f32) for _ in range(2))
    quantize_kernel(x, q, scale, sums, GROUP=group, DEPTH=depth, DTYPE=dt, TOKEN=token)
    return (q * scale[..., None])[:, :, :group].reshape(m, -1)[:, :k]


@lru_cache(maxsize=None, typed=True)
def _of(kernel: tile.Kernel, **consts: Any) -> tile.Kernel:
    """A kernel with these constants, which its calls then need not be told apart by."""
    return kernel.bind(**consts)


def product(chosen: Plan, x: Any, w: Panels, y: Any, activation: str | None, x_dtype: str | None, token: bool,
            **after: Any) -> None:
    """Runs a plan on x [M, K] into y [M, N]; `after`: what the kernels add, bias, residual and added."""
    m, blocks, g, how = x.shape[0], w.words.shape[1], w.groups, chosen.decomposition
    if w.permutation is not None:
        x = x[:, w.permutation]
    shifted = how == "dequant_fma" and w.dtype is None  # codes stay where they stand in their words
    sums = np.empty((m, g), np.float32)
    weight = (w.planes if how in BY_BITS else w.words, w.scale, y)
    one = {"BITS": w.bits, "DEPTH": w.depth, "ZERO": None if w.zeros else w.zero, "ACT": activation}
    consts = {**one, "ROWS": chosen.rows}
    also = {"zero": w.zero if w.zeros else None, "minimum": w.minimum, **after}
    also = {name: array for name, array in also.items() if array is not None}
    if how == "bf16_dot" and x_dtype is None:
        _by_pairs(x, w.group, sums, weight, w, consts, also)
        return
    if x_dtype is None:
        spread = np.zeros((m, blocks, 32), np.float32)
        _of(spread_kernel, GROUP=w.group, DEPTH=w.depth, BITS=w.bits if shifted else 0)(x, spread, sums)
    else:
        dt = tile.dtype(x_dtype)
        q = np.empty((m, g, w.depth), np.float32 if dt.kind == "float" else np.int8)
        scale = np.empty((m, g), np.float32)
        _of(quantize_kernel, GROUP=w.group, DEPTH=w.depth, DTYPE=dt, TOKEN=token)(x, q, scale, sums)
        if how == "bf16_dot":
            _by_pairs(q.reshape(m, g * w.depth), w.depth, sums, weight, w, consts, {"xscale": scale, **also})
            return
        if how in WHOLE and dt.kind != "float":
            _whole(how, dt, q.reshape(m, blocks, 32), (scale, sums, *weight), w, consts, also)
            return
        spread, sums = (q * scale[..., None]).reshape(m, blocks, 32), sums * scale
        if shifted:
            spread *= np.array(WEIGHTS[w.bits], np.float32)
    if how == "lut_act_i8":
        bytes_, steps = np.empty((m, blocks, 2, 64), np.int8), np.empty((m, g), np.float32)
        _of(byte_tables_kernel, DEPTH=w.depth, EXACT=False)(spread, bytes_, steps)
        _of(lut_bytes_kernel, EXACT=False, **consts)(bytes_, steps, sums, *weight, **also)
    elif how == "lut_act":
        tables = np.empty((m, blocks, 8, 16), np.float32)
        tables_kernel(spread, tables)
        _of(lut_gemv_kernel, **one)(tables, sums, *weight, **also)
    elif how == "bucket_sum":
        values = np.arange(1 << w.bits) if w.dtype is None else codec.values_of(w.dtype)
        _of(bucket_kernel, **one)(spread, sums, values.astype(np.float32), *weight, **also)
    else:
        _of(dot_gemv_kernel, DTYPE=w.dtype, TABLES=by_bytes(w), **consts)(spread, sums, *weight, **also)


def _by_pairs(x: Any, group: int, sums: Any, weight: tuple[Any, ...], w: Panels, consts: dict[str, Any],
              also: dict[str, Any]) -> None:
    """A product of numbers x [M, groups of so many columns] that bf16 holds."""
    pairs = np.zeros((len(x), w.words.shape[1], 8, 2), np.uint32)
    _of(pairs_kernel, GROUP=group, DEPTH=w.depth)(x, pairs, sums)
    _of(dot_gemv_kernel, DTYPE=w.dtype, TABLES=w.dtype is not None, **consts)(
        pairs.reshape(len(x), -1, 16), sums, *weight, **also)


def _whole(how: str, dt: tile.DType, q: Any, of: tuple[Any, ...], w: Panels, consts: dict[str, Any],
           also: dict[str, Any]) -> None:
    """A product of whole numbers q i8 [M, blocks, 32] of `dt`; `of`: their scales and sums, then weights and y."""
    (m, blocks, _), bipolar = q.shape, dt.kind == "bipolar"
    bits = {"XBITS": dt.bits, "BIPOLAR": bipolar}
    if how == "int_dot":
        scale, *rest = of
        _of(dot_gemv_kernel, DTYPE=None, TABLES=False, **consts)(q.view(np.int32), *rest, xscale=scale, **also)
    elif how == "lut_act_i8":
        tables = np.empty((m, blocks, 2, 64), np.int8)
        _of(byte_tables_kernel, DEPTH=w.depth, EXACT=True)(q.astype(np.float32), tables)
        _of(lut_bytes_kernel, EXACT=True, **consts)(tables, *of, **also)
    elif how == "bitplane_popc":
        planes = np.empty((m, blocks, dt.bits), np.uint32)
        _of(planes_kernel, **bits)(q, planes)
        _of(popcount_gemv_kernel, GROUP=w.group, K=w.shape[1], **bits, **consts)(planes, *of, **also)
    else:
        nibbles = np.empty((m, blocks, 8, dt.bits), np.int32)
        _of(nibbles_kernel, **bits)(q, nibbles)
        room = np.zeros((len(w.words), -(-m // consts["ROWS"]), 16, LANES), np.int32)
        _of(lut_weight_kernel, **bits, **consts)(nibbles, *of[:2], room, *of[2:], **also)
