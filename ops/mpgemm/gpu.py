"""Products with quantised weights on a GPU: words, copied ahead into shared memory, become operands of matrix
instructions in registers.

Weights are repacked for a target. A block of columns and rows of x @ W.T is the right operand of a `dot`; the bits of
each thread's part of it lie in words that it reads 16 bytes at a time, in the order of `tilelang.ir.pairs`, from which
they become f16 by few instructions (the reinterpretation of registers of Tilus, arXiv 2504.12984). Scales, and sums of
x for zeros and minima, are applied to the sums of a block.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from typing import Any
from weakref import finalize

import numpy as np

import tilelang as tile
from tilelang import layouts, targets
from tilelang.args import empty_like
from tilelang.errors import TargetError
from tilelang.ir.packed import Packed
from tilelang.ir.pairs import pairs, representable
from tilelang.layouts import RegisterLayout
from tilelang.ops.common import dtype_of
from tilelang.ops.mpgemm.cpu import finished
from tilelang.ops.mpgemm.pack import grouping, ranks
from tilelang.quant import QuantTensor

WARPS = 4
EACH = 128
"""Numbers of a block that one thread holds: 16 bytes and multiples at every width."""
WIDEST = 512
PROGRAMS = 264
"""Programs that occupy a machine: two for each multiprocessor of an H100."""


@tile.kernel
def sums_kernel(x: tile.Tensor[tile.T, "M K"], sums: tile.Out[tile.f32, "KT M"], BM: tile.Const, BK: tile.Const):
    """Of BK columns of `x` each."""
    m, k = tile.grid(tile.cdiv(x.shape[0], BM), sums.shape[0])
    tile.store(sums, (k, m * BM), tile.load(x, (m * BM, k * BK), (BM, BK)).to(tile.f32).sum(1))


@tile.function
def largest_of(x, m, first, last, BM, BK):
    """max |x| of each of BM rows, blocks of columns from `first` to `last`."""
    out = tile.zeros((BM,), tile.f32)
    for k in tile.range(first, last):
        out = tile.maximum(out, tile.abs(tile.load(x, (m * BM, k * BK), (BM, BK)).to(tile.f32)).max(1))
    return out


@tile.function
def power_of_two(largest):
    """s with largest / s from 2**14 to 2**15; 2**-126 at least."""
    exponent = tile.maximum((largest.bitcast(tile.u32) >> 23).bitcast(tile.i32), 15)
    return ((exponent - 14) << 23).bitcast(tile.f32)


@tile.kernel
def activations_kernel(
    x: tile.Tensor[tile.T, "M K"], q: tile.Out[tile.f16, "M K"], xscale: tile.Out[tile.f32, "KT M"],
    sums: tile.Out[tile.f32, "KT M"], low: tile.Out[tile.f16, "M K"] = None, *,
    BM: tile.Const, BK: tile.Const, GROUP: tile.Const, TOKEN: tile.Const, DTYPE: tile.Const,
):
    """x as f16 times a scale for each row, or each row's GROUP blocks of BK columns; `sums` are those of what it then
    is. DTYPE None: the scale is a power of two that f16's range asks for; f16 keeps 11 bits, `low`, times
    2**-11 of the scale, the next 12. Else values of DTYPE times max |x| / (its largest)."""
    m, KT = tile.grid(tile.cdiv(x.shape[0], BM)), xscale.shape[0]
    whole = largest_of(x, m, 0, KT, BM, BK) if TOKEN else tile.zeros((BM,), tile.f32)
    for g in tile.range(0, KT, GROUP):
        last = tile.minimum(g + GROUP, KT)
        largest = whole if TOKEN else largest_of(x, m, g, last, BM, BK)
        s = power_of_two(largest) if DTYPE is None else largest / float(DTYPE.max)
        inverse = tile.where(s == 0.0, 1.0, s)[:, None]
        for k in tile.range(g, last):
            v = tile.load(x, (m * BM, k * BK), (BM, BK)).to(tile.f32)
            t = v / inverse
            if DTYPE is not None:
                t = tile.round(t) if DTYPE.kind == "int" else t.to(DTYPE).to(tile.f32)
            half = t.to(tile.f16)
            tile.store(q, (m * BM, k * BK), half)
            tile.store(xscale, (k, m * BM), s)
            tile.store(sums, (k, m * BM), v.sum(1) if DTYPE is None else t.sum(1) * s)
            if low is not None:
                tile.store(low, (m * BM, k * BK), ((t - half.to(tile.f32)) * 2.0 ** 11).to(tile.f16))


@tile.kernel
def product_kernel(
    x: tile.Tensor[tile.f16, "M K"], words: tile.Tensor[tile.u32, "KT NT L"], scale: tile.Tensor[tile.f32, "G N"],
    y: tile.Out[tile.Y, "M N"],
    DTYPE: tile.Const, SOURCE: tile.Const, LAYOUT: tile.Const, BM: tile.Const, SIZE: tile.Const, GROUP: tile.Const,
    STAGES: tile.Const, ACT: tile.Const = None, SPLITS: tile.Const = 1, shift: tile.Tensor[tile.f32, "G N"] = None,
    sums: tile.Tensor[tile.f32, "KT M"] = None, bias: tile.Tensor[tile.C, "N"] = None,
    residual: tile.Tensor[tile.R, "M N"] = None, added: tile.Tensor[tile.f32, "M N"] = None,
    low: tile.Tensor[tile.f16, "M K"] = None, xscale: tile.Tensor[tile.f32, "KT M"] = None,
    parts: tile.Out[tile.f32, "SPLITS M N"] = None,
):
    """A block of y: (x + 2**-11 low) xscale @ (scale * codes).T + sums @ shift.T, parameters for each GROUP blocks of
    columns; what is absent is 0, or 1 of scales. With SPLITS programs to a block, each writes the sum over its
    columns to `parts`, which `finish_kernel` adds up."""
    BK, BN = LAYOUT.shape
    m, n, split = tile.grid(tile.cdiv(y.shape[0], BM), words.shape[1], SPLITS)
    each = tile.cdiv(words.shape[0], SPLITS)
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(split * each, tile.minimum(split * each + each, words.shape[0]), stages=STAGES):
        codes = tile.view(tile.load(words, (k, n, 0), (SIZE,)), DTYPE, SOURCE, LAYOUT, order="pairs").to(tile.f16)
        part = tile.dot(tile.load(x, (m * BM, k * BK), (BM, BK)), codes)
        if low is not None:
            part += tile.dot(tile.load(low, (m * BM, k * BK), (BM, BK)), codes) * 2.0 ** -11
        if xscale is not None:
            part = part * tile.load(xscale, (k, m * BM), (BM,))[:, None]
        acc += part * tile.load(scale, (k // GROUP, n * BN), (BN,))
        if shift is not None:
            acc += tile.load(sums, (k, m * BM), (BM,))[:, None] * tile.load(shift, (k // GROUP, n * BN), (BN,))
    if SPLITS > 1:
        tile.store(parts, (split, m * BM, n * BN), acc)
    else:
        out = finished(acc, bias, residual, added, m * BM, n * BN, ACT, BM, BN)
        tile.store(y, (m * BM, n * BN), out.to(y.dtype))


@tile.kernel
def finish_kernel(
    parts: tile.Tensor[tile.f32, "S M N"], y: tile.Out[tile.Y, "M N"], BM: tile.Const, BN: tile.Const,
    ACT: tile.Const = None, bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None,
):
    """The parts of a product, added up in their order."""
    m, n = tile.grid(tile.cdiv(y.shape[0], BM), tile.cdiv(y.shape[1], BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for s in tile.range(0, parts.shape[0]):
        acc += tile.load(parts, (s, m * BM, n * BN), (BM, BN))
    out = finished(acc, bias, residual, added, m * BM, n * BN, ACT, BM, BN)
    tile.store(y, (m * BM, n * BN), out.to(y.dtype))


@dataclass(frozen=True)
class Blocks:
    """How threads hold a block [BK, BN] of codes as words [size] and as the operand of a product."""

    bn: int
    bk: int
    source: RegisterLayout
    layout: RegisterLayout

    @property
    def size(self) -> int:
        """Words of a block."""
        return int(self.source.shape[0])

    @property
    def bm(self) -> int:
        """The most rows of x whose sums fit into a thread's registers beside them."""
        return max(16, 64 * self.layout.num_threads // self.bn)


@lru_cache(maxsize=256)
def blocks(target: str, dt: tile.DType, group: int) -> Blocks:
    """The blocks of a type on a target, for groups of so many columns, a multiple of 16."""
    bk = gcd(group, 128)
    threads = targets.operand_layout(target, bk, 64 * WARPS, WARPS).num_threads
    bn = min(EACH * threads // bk, WIDEST)
    plain = targets.operand_layout(target, bk, bn, WARPS)
    across = max(len(pairs(dt).places), 1 << (16 // dt.bits).bit_length() - 1)
    layout = plain.innermost([(0, 2), (1, min(across, 4))])
    each = layout.local_size * dt.bits // 32
    vector = gcd(each, 4)
    source = layouts.local(each // vector) * layouts.spatial(threads) * layouts.local(vector)
    return Blocks(bn, bk, source, layout)


@dataclass(frozen=True, eq=False)
class Tiles:
    """A matrix (N, K) repacked for a target: `words` u32 [K blocks, N blocks, words of a block], `scale` and `shift`
    (None: zero) f32 [groups, N]. `group` counts blocks. `permutation`: column j is `x[:, permutation[j]]`."""

    words: Any
    scale: Any
    shift: Any
    dtype: tile.DType
    blocks: Blocks
    group: int
    shape: tuple[int, int]
    permutation: Any


_tiles: dict[tuple[int, str, str], Tiles] = {}


def tiles(w: QuantTensor, target: str, device: str = "cpu") -> Tiles:
    """`w` repacked for a target, as NumPy arrays or as tensors of torch on a device; kept as long as `w` lives.
    Corrections are not part of it. Raises TargetError for codes that it cannot hold."""
    key = id(w), target, device
    if key not in _tiles:
        _tiles[key] = _repack(w, target) if device == "cpu" else _moved(tiles(w, target), device)
        finalize(w, _tiles.pop, key, None)
    return _tiles[key]


def _moved(w: Tiles, device: str) -> Tiles:
    import torch
    words, scale, shift = (None if a is None else torch.from_numpy(a).to(device) for a in (w.words, w.scale, w.shift))
    return replace(w, words=words, scale=scale, shift=shift)


def _repack(w: QuantTensor, target: str) -> Tiles:
    codes, n, k = w.codes, *w.shape
    if not isinstance(codes, Packed) or codes.dtype.bits > 8:
        got = str(codes.dtype) if isinstance(codes, Packed) else type(codes).__name__
        raise TargetError("`mpgemm` cannot repack these codes", needs="tile.Packed codes of at most 8 bits", got=got,
                          try_="quantise to 8 bits or fewer; multiply the parts of RowParts one by one")
    dt, stored = codes.dtype, codes.codes().astype(np.uint8)
    group, order = grouping(w)
    if order is not None:
        stored = stored[:, order]
    if group >= k:
        group = -(-k // 16) * 16 if k < 128 else -(-k // 128) * 128
    if group % 16:
        raise TargetError(f"`mpgemm` has no kernel for groups of {group} columns on a GPU", needs="a multiple of 16",
                          got=str(group), try_="another group, or x on the CPU")
    rank, step, offset = ranks(dt)
    if rank is not None:
        stored, dt = rank[stored], tile.dtype(f"u{dt.bits}")
    elif dt.exponent_bits > 5 or not representable(dt)[np.unique(stored)].all():
        raise TargetError(f"f16 has no numbers for codes of {dt}", needs="finite numbers in the range of f16",
                          got=str(dt), try_="quantise to numbers that are finite in f16, or put x on the CPU")
    made = blocks(target, dt, group)
    values = [p.expand(w.shape)[:, order if order is not None else slice(None)][:, ::group].T.astype(np.float64)
              if p is not None else np.full((-(-k // group), n), fill)
              for p, fill in ((w.scale, 1.0), (w.zero, 0.0), (w.minimum, 0.0))]
    shift = values[2] - values[0] * (values[1] + step * offset)
    permutation = w.permutation if order is None else order if w.permutation is None else \
        np.asarray(w.permutation)[order]
    scale, shift = (v.astype(np.float32, order="C") for v in (values[0] * step, shift))
    return Tiles(_words(stored, dt, made), scale, shift if shift.any() else None, dt, made, group // made.bk, (n, k),
                 permutation)


def _words(codes: Any, dt: tile.DType, made: Blocks) -> Any:
    """The words of codes [N, K]; beyond them they are zero."""
    (n, k), layout, bn, bk = codes.shape, made.layout, made.bn, made.bk
    whole = np.zeros((-(-n // bn) * bn, -(-k // bk) * bk), np.uint8)
    whole[:n, :k] = codes
    each = whole.reshape(len(whole) // bn, bn, -1, bk).transpose(2, 0, 3, 1)
    at = layout.table()
    held = pairs(dt).pack(each[:, :, at[..., 0], at[..., 1]])  # [K blocks, N blocks, threads, words of a thread]
    where = made.source.table()[..., 0]
    out = np.empty((*held.shape[:2], made.size), np.uint32)
    out[:, :, where] = held
    return out


def product(x: Any, w: Tiles, y: Any, bias: Any = None, residual: Any = None, activation: str | None = None,
            stages: int = 3, x_dtype: str | None = None, token: bool = True, added: Any = None,
            splits: int | None = None) -> None:
    """act(x [M, K] @ W.T + added + bias) + residual into y [M, N]. f16 is multiplied as it is, other floats and
    quantised x as f16 by scales, f32 as two f16. `splits`: how many programs share a block's columns, enough to occupy
    a machine by default; the result depends on it in its last bits, not on timing."""
    if w.permutation is not None:
        x = x[:, w.permutation]
    m, (kt, nt) = x.shape[0], w.words.shape[:2]
    low = xscale = sums = None
    bm, bk, n = min(w.blocks.bm, -(-m // 16) * 16), w.blocks.bk, w.shape[0]
    if x_dtype is not None or dtype_of(x) is not tile.f16:
        q, xscale, sums = (empty_like(x, shape, dt) for shape, dt in (
            (x.shape, tile.f16), ((kt, m), tile.f32), ((kt, m), tile.f32)))
        low = empty_like(x, x.shape, tile.f16) if x_dtype is None and dtype_of(x) is tile.f32 else None
        activations_kernel(x, q, xscale, sums, low, BM=16, BK=bk, GROUP=w.group, TOKEN=token,
                           DTYPE=None if x_dtype is None else tile.dtype(x_dtype))
        x = q
    elif w.shift is not None:
        sums = empty_like(x, (kt, m), tile.f32)
        sums_kernel(x, sums, BM=16, BK=bk)
    bm = bm if low is None else min(bm, 32)  # a second sum beside the first
    if splits is None:
        splits = max(1, min(PROGRAMS // (-(-m // bm) * nt), kt // 4))
    after = {"bias": bias, "residual": residual, "added": added, "ACT": activation}
    parts = empty_like(x, (splits, m, n), tile.f32) if splits > 1 else None
    product_kernel(x, w.words, w.scale, y, DTYPE=w.dtype, SOURCE=w.blocks.source, LAYOUT=w.blocks.layout, BM=bm,
                   SIZE=w.blocks.size, GROUP=w.group, STAGES=stages, SPLITS=splits, shift=w.shift,
                   sums=sums if w.shift is not None else None, low=low, xscale=xscale, parts=parts,
                   **(after if splits == 1 else {}))
    if splits > 1:
        finish_kernel(parts, y, BM=16, BN=64, **after)
