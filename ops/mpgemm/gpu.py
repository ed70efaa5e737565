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
from tilelang.ops.mpgemm.cpu import finished
from tilelang.ops.mpgemm.pack import grouping, ranks
from tilelang.quant import QuantTensor

WARPS = 4
EACH = 128
"""Numbers of a block that one thread holds: 16 bytes and multiples at every width."""
WIDEST = 512


@tile.kernel
def sums_kernel(x: tile.Tensor[tile.T, "M K"], sums: tile.Out[tile.f32, "KT M"], BM: tile.Const, BK: tile.Const):
    """Of BK columns of `x` each."""
    m, k = tile.grid(tile.cdiv(x.shape[0], BM), sums.shape[0])
    tile.store(sums, (k, m * BM), tile.load(x, (m * BM, k * BK), (BM, BK)).to(tile.f32).sum(1))


@tile.kernel
def product_kernel(
    x: tile.Tensor[tile.f16, "M K"], words: tile.Tensor[tile.u32, "KT NT L"], scale: tile.Tensor[tile.f32, "G N"],
    y: tile.Out[tile.Y, "M N"],
    DTYPE: tile.Const, SOURCE: tile.Const, LAYOUT: tile.Const, BM: tile.Const, SIZE: tile.Const, GROUP: tile.Const,
    STAGES: tile.Const, ACT: tile.Const = None, shift: tile.Tensor[tile.f32, "G N"] = None,
    sums: tile.Tensor[tile.f32, "KT M"] = None, bias: tile.Tensor[tile.C, "N"] = None,
    residual: tile.Tensor[tile.R, "M N"] = None,
):
    """A block of y: x @ (scale * codes + shift).T, with parameters for each GROUP blocks of columns."""
    BK, BN = LAYOUT.shape
    m, n = tile.grid(tile.cdiv(y.shape[0], BM), words.shape[1])
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, words.shape[0], stages=STAGES):
        codes = tile.view(tile.load(words, (k, n, 0), (SIZE,)), DTYPE, SOURCE, LAYOUT, order="pairs")
        part = tile.dot(tile.load(x, (m * BM, k * BK), (BM, BK)), codes.to(tile.f16))
        acc += part * tile.load(scale, (k // GROUP, n * BN), (BN,))
        if shift is not None:
            acc += tile.load(sums, (k, m * BM), (BM,))[:, None] * tile.load(shift, (k // GROUP, n * BN), (BN,))
    out = finished(acc, bias, residual, None, m * BM, n * BN, ACT, BM, BN)
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
            stages: int = 3) -> None:
    """act(x [M, K] @ W.T + bias) + residual into y [M, N]; x is f16."""
    if w.permutation is not None:
        x = x[:, w.permutation]
    m, sums = x.shape[0], None
    if w.shift is not None:
        sums = empty_like(x, (len(w.words), m), tile.f32)
        sums_kernel(x, sums, BM=16, BK=w.blocks.bk)
    product_kernel(x, w.words, w.scale, y, DTYPE=w.dtype, SOURCE=w.blocks.source, LAYOUT=w.blocks.layout,
                   BM=min(w.blocks.bm, -(-m // 16) * 16), SIZE=w.blocks.size, GROUP=w.group, STAGES=stages,
                   ACT=activation, shift=w.shift, sums=sums, bias=bias, residual=residual)
