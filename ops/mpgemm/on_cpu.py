"""`mpgemm` on a CPU: what is made of x for a plan, and the kernels that take it."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ir import codec
from tilelang.native import exported
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
def _of(kernel: tile.Kernel, *optional: str, **consts: Any) -> tile.Kernel:
    """A kernel with these constants and optional tensors, which all weights of a kind share."""
    return kernel.bind(**consts).taking(*optional)


Operands = tuple[tuple[Any, ...], tuple[Any, ...]]
"""What the kernel of a product takes before the weight, and what behind y."""


def product(chosen: Plan, w: Panels, m: int, activation: str | None, x_dtype: str | None, token: bool,
            after: Sequence[str]) -> Callable[..., None]:
    """What runs a plan: a function of x [m, K], y [m, N] and the tensors that `after` names, of bias, residual and
    added in this order, which the kernels add."""
    parameters = {name: a for name, a in (("zero", w.zero if w.zeros else None), ("minimum", w.minimum))
                  if a is not None}
    consts = {"BITS": w.bits, "DEPTH": w.depth, "ZERO": None if w.zeros else w.zero, "ACT": activation}

    def bound(kernel: tile.Kernel, *optional: str, **own: Any) -> tile.Kernel:
        return _of(kernel, *optional, *parameters, *after, **consts, **own)
    dt = None if x_dtype is None else tile.dtype(x_dtype)

    def made() -> tuple[tile.Kernel, Callable[[Any], Operands]]:
        if chosen.decomposition in WHOLE and dt is not None and dt.kind != "float":
            return _of_integers(chosen, w, m, dt, token, bound)
        return _of_floats(chosen, w, m, dt, token, bound)
    (kernel, operands), permutation = made(), w.permutation
    weight = tuple(map(exported, (w.planes if chosen.decomposition in BY_BITS else w.words, w.scale)))
    rest = tuple(map(exported, parameters.values()))
    free = _free(chosen.decomposition, chosen.rows, m, dt, token, w.shape, w.group, w.groups, w.bits, w.dtype)
    keep = m * w.shape[1] <= LITTLE
    if keep and not free:
        free.append(operands)

    def run(x: Any, y: Any, *others: Any) -> None:
        try:
            own = free.pop()
        except IndexError:
            own = made()[1]
        first, behind = own(x if permutation is None else x[:, permutation])
        kernel(*first, *weight, y, *behind, *rest, *others)
        if keep:
            free.append(own)
    return run


LITTLE = 1 << 15
"""Numbers of x up to which what is made of them is made in the same memory by the next product."""


@lru_cache(maxsize=64)
def _free(*kind: Any) -> list[Callable[[Any], Operands]]:
    """What makes operands in memory of its own, of x for all weights of a kind, and no thread is using. It keeps none
    of the weights."""
    return []


def _quantised(w: Panels, m: int, dt: tile.DType, token: bool) -> tuple[Callable[[Any], Any], tuple[Any, ...]]:
    """What writes x [m, K] to (q [m, groups, depth], scale, sums) as `quantize_kernel` has them, and these."""
    kernel = _of(quantize_kernel, GROUP=w.group, DEPTH=w.depth, DTYPE=dt, TOKEN=token)
    shape = m, w.groups, w.depth
    found = (np.empty(shape, np.float32 if dt.kind == "float" else np.int8), np.empty(shape[:2], np.float32),
             np.empty(shape[:2], np.float32))
    into = tuple(map(exported, found))
    return lambda x: kernel(x, *into), found


def _of_floats(chosen: Plan, w: Panels, m: int, dt: tile.DType | None, token: bool,
               bound: Callable[..., tile.Kernel]) -> tuple[tile.Kernel, Callable[[Any], Operands]]:
    """The kernel of a product of numbers x, and its operands."""
    how, blocks, g, depth = chosen.decomposition, w.words.shape[1], w.groups, w.depth
    quantise, found = (None, (None,) * 3) if dt is None else _quantised(w, m, dt, token)
    q, scale, sums = found  # None where x is multiplied as it is
    if how == "bf16_dot":
        pairs_of = _of(pairs_kernel, GROUP=w.group if dt is None else depth, DEPTH=depth)
        pairs = np.zeros((m, blocks, 8, 2), np.uint32)
        into = exported(pairs), exported(np.empty((m, g), np.float32))
        made = (exported(pairs.reshape(m, blocks, 16)), into[1]), () if dt is None else (exported(scale),)
        values = None if dt is None else exported(q.reshape(m, g * depth))

        def by_pairs(x: Any) -> Operands:
            if quantise is not None:
                quantise(x)
            pairs_of(x if values is None else values, *into)
            return made
        return bound(dot_gemv_kernel, *(() if dt is None else ("xscale",)), ROWS=chosen.rows, DTYPE=w.dtype,
                     TABLES=w.dtype is not None), by_pairs
    shifted = how == "dequant_fma" and w.dtype is None  # codes stay where they stand in their words
    spread_of = _of(spread_kernel, GROUP=w.group, DEPTH=depth, BITS=w.bits if shifted else 0)
    places = np.array(WEIGHTS[w.bits], np.float32)
    if dt is None:
        room = exported(np.zeros((m, blocks, 32), np.float32)), exported(np.empty((m, g), np.float32))

    def spread(x: Any) -> tuple[Any, Any]:
        if quantise is None:
            spread_of(x, *room)
            return room
        quantise(x)
        x = (q * scale[..., None]).reshape(m, blocks, 32)
        return x * places if shifted else x, sums * scale
    if how == "dequant_fma":
        return bound(dot_gemv_kernel, ROWS=chosen.rows, DTYPE=w.dtype, TABLES=by_bytes(w)), lambda x: (spread(x), ())
    if how == "bucket_sum":
        values = (np.arange(1 << w.bits) if w.dtype is None else codec.values_of(w.dtype)).astype(np.float32)
        return bound(bucket_kernel), lambda x: ((*spread(x), values), ())

    def tables(x: Any) -> Operands:
        x, sums = spread(x)
        if how == "lut_act":
            made = np.empty((m, blocks, 8, 16), np.float32)
            tables_kernel(x, made)
            return (made, sums), ()
        bytes_, steps = np.empty((m, blocks, 2, 64), np.int8), np.empty((m, g), np.float32)
        _of(byte_tables_kernel, "steps", DEPTH=depth, EXACT=False)(x, bytes_, steps)
        return (bytes_, steps, sums), ()
    own = {"ROWS": chosen.rows, "EXACT": False}
    return bound(lut_gemv_kernel) if how == "lut_act" else bound(lut_bytes_kernel, **own), tables


def _of_integers(chosen: Plan, w: Panels, m: int, dt: tile.DType, token: bool,
                 bound: Callable[..., tile.Kernel]) -> tuple[tile.Kernel, Callable[[Any], Operands]]:
    """The kernel of a product of whole numbers, and its operands."""
    how, blocks, rows = chosen.decomposition, w.words.shape[1], chosen.rows
    quantise, (q, *rest) = _quantised(w, m, dt, token)
    q, bits = q.reshape(m, blocks, 32), {"XBITS": dt.bits, "BIPOLAR": dt.kind == "bipolar"}
    if how == "int_dot":
        scale, sums = map(exported, rest)
        operands = (exported(q.view(np.int32)), sums), (scale,)

        def fours(x: Any) -> Operands:
            quantise(x)
            return operands
        return bound(dot_gemv_kernel, "xscale", ROWS=rows, DTYPE=None, TABLES=False), fours
    if how == "lut_act_i8":
        tables_of = _of(byte_tables_kernel, DEPTH=w.depth, EXACT=True)

        def tables(x: Any) -> Operands:
            quantise(x)
            made = np.empty((m, blocks, 2, 64), np.int8)
            tables_of(q.astype(np.float32), made)
            return (made, *rest), ()
        return bound(lut_bytes_kernel, ROWS=rows, EXACT=True), tables
    if how == "bitplane_popc":
        planes_of = _of(planes_kernel, **bits)

        def planes(x: Any) -> Operands:
            quantise(x)
            made = np.empty((m, blocks, dt.bits), np.uint32)
            planes_of(q, made)
            return (made, *rest), ()
        return bound(popcount_gemv_kernel, ROWS=rows, GROUP=w.group, K=w.shape[1], **bits), planes
    nibbles_of, room = _of(nibbles_kernel, **bits), (len(w.words), -(-m // rows), 16, LANES)

    def nibbles(x: Any) -> Operands:
        quantise(x)
        made = np.empty((m, blocks, 8, dt.bits), np.int32)
        nibbles_of(q, made)
        return (made, *rest, np.zeros(room, np.int32)), ()
    return bound(lut_weight_kernel, ROWS=rows, **bits), nibbles
