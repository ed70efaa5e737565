"""Products with quantised weights on a GPU: words, copied ahead into shared memory, become operands of matrix
instructions in registers.

Weights are repacked for a target. A block of W is the left operand of a `dot`, which computes W @ x.T; the bits of
each thread's part of it lie in words that it reads 16 bytes at a time, in the order of `tilelang.ir.pairs`, from which
they become f16 by few instructions (the reinterpretation of registers of Tilus, arXiv 2504.12984). Scales, and sums of
x for zeros and minima, are applied to the sums of a block.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from math import gcd, inf
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
from tilelang.ops.activation import finished
from tilelang.ops.common import dtype_of
from tilelang.ops.mpgemm.gemv import gemv_kernel, operand
from tilelang.ops.mpgemm.gpu_plan import GpuPlan, Shape, plan
from tilelang.ops.mpgemm.pack import by_group, grouping, permuted, ranks
from tilelang.ops.streamk import finish_kernel, part, share, slot
from tilelang.quant import QuantTensor

EACH = 128
"""Numbers of a block that one thread holds: 16 bytes and multiples at every width."""
TALLEST = 128
"""Rows of a block at most."""


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
    x: tile.Tensor[tile.T, "M K"], q: tile.Out[tile.Q, "M K"], xscale: tile.Out[tile.f32, "KT M"],
    sums: tile.Out[tile.f32, "KT M"], low: tile.Out[tile.f16, "M K"] = None, *,
    BM: tile.Const, BK: tile.Const, GROUP: tile.Const, TOKEN: tile.Const, DTYPE: tile.Const,
):
    """x as f16 (an f8 DTYPE also as that) times a scale for each row, or each row's GROUP blocks of BK columns; `sums`
    are those of what it then is. DTYPE None: the scale is a power of two that f16's range asks for; f16 keeps 11
    bits, `low`, times 2**-11 of the scale, the next 12. Else values of DTYPE times max |x| / (its largest)."""
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
            half = t.to(q.dtype)
            tile.store(q, (m * BM, k * BK), half)
            tile.store(xscale, (k, m * BM), s)
            tile.store(sums, (k, m * BM), v.sum(1) if DTYPE is None else t.sum(1) * s)
            if low is not None:
                tile.store(low, (m * BM, k * BK), ((t - half.to(tile.f32)) * 2.0 ** 11).to(tile.f16))


@tile.kernel
def product_kernel(
    x: tile.Tensor[tile.X, "M K"], words: tile.Tensor[tile.u32, "KT NT L"], scale: tile.Tensor[tile.f32, "G N"],
    y: tile.Out[tile.Y, "M N"],
    DTYPE: tile.Const, ORDER: tile.Const, SOURCE: tile.Const, LAYOUT: tile.Const, BM: tile.Const, GROUP: tile.Const,
    STAGES: tile.Const, ACT: tile.Const = None, shift: tile.Tensor[tile.f32, "G N"] = None,
    sums: tile.Tensor[tile.f32, "KT M"] = None, bias: tile.Tensor[tile.C, "N"] = None,
    residual: tile.Tensor[tile.R, "M N"] = None, added: tile.Tensor[tile.f32, "M N"] = None,
    low: tile.Tensor[tile.f16, "M K"] = None, xscale: tile.Tensor[tile.f32, "KT M"] = None,
    parts: tile.Out[tile.f32, "P H W"] = None,
):
    """A block of y: (x + 2**-11 low) xscale @ (scale * codes).T + sums @ shift.T, parameters for each GROUP blocks of
    columns; what is absent is 0, or 1 of scales. With `parts` [programs, 2 BM, BN] there are so many programs that do
    the same number of steps each (`ops.streamk`): sums over a part of a block's columns go there, and `finish_kernel`
    adds them up."""
    BN, BK = LAYOUT.shape
    wide, high, deep = tile.cdiv(y.shape[0], BM), tile.cdiv(words.shape[1], SOURCE.shape[0]), words.shape[0]
    if parts is None:
        m, n = tile.grid(wide, high)
        acc = of_columns(x, words, scale, DTYPE, ORDER, SOURCE, LAYOUT, BM, GROUP, STAGES, shift, sums, low, xscale, m,
                         n, 0, deep)
        out = finished(acc, bias, residual, added, m * BM, n * BN, ACT, BM, BN)
        tile.store(y, (m * BM, n * BN), out.to(y.dtype))
    else:
        p = tile.grid(parts.shape[0])
        start, end = share(p, parts.shape[0], wide * high * deep)
        for t in tile.range(start // deep, tile.cdiv(end, deep)):
            m, n = t % wide, t // wide
            first, last = part(t, start, end, deep)
            acc = of_columns(x, words, scale, DTYPE, ORDER, SOURCE, LAYOUT, BM, GROUP, STAGES, shift, sums, low,
                             xscale, m, n, first, last)
            if last - first == deep:
                out = finished(acc, bias, residual, added, m * BM, n * BN, ACT, BM, BN)
                tile.store(y, (m * BM, n * BN), out.to(y.dtype))
            else:
                tile.store(parts, (p, slot(t, start, deep) * BM, 0), acc)


@tile.function
def of_columns(x, words, scale, DTYPE, ORDER, SOURCE, LAYOUT, BM, GROUP, STAGES, shift, sums, low, xscale, m, n, first,
               last):
    """The sum [BM, BN] over blocks of columns from `first` to `last`."""
    BN, BK = LAYOUT.shape
    acc = tile.zeros((BN, BM), tile.f32)
    for k in tile.range(first, last, stages=STAGES):
        by = tile.load(scale, (k // GROUP, n * BN), (BN,))[:, None]  # before products that run beside the threads
        block = tile.load(words, (k, n * SOURCE.shape[0], 0), SOURCE.shape)
        codes = operand(block, x, DTYPE, ORDER, SOURCE, LAYOUT)
        part = tile.dot(codes, tile.load(x, (m * BM, k * BK), (BM, BK)).T)
        if low is not None:
            part += tile.dot(codes, tile.load(low, (m * BM, k * BK), (BM, BK)).T) * 2.0 ** -11
        if xscale is not None:
            part = part * tile.load(xscale, (k, m * BM), (BM,))
        acc += part * by
        if shift is not None:
            acc += tile.load(sums, (k, m * BM), (BM,)) * tile.load(shift, (k // GROUP, n * BN), (BN,))[:, None]
    return acc.T


@dataclass(frozen=True, eq=False)  # made once for each type: known by identity
class Blocks:
    """How a warp holds a block [rows, columns] of codes as the left operand of a product, its words (and in what
    `order` of `tile.view`), and the right operand [columns, rows of x]."""

    order: str
    words: RegisterLayout
    codes: RegisterLayout
    x: RegisterLayout

    @property
    def bk(self) -> int:
        return self.codes.shape[1]

    @property
    def bm(self) -> int:
        """The most rows of x whose sums fit into a thread's registers beside them."""
        return max(16, 64 * self.codes.num_threads // self.codes.shape[0])


@lru_cache(maxsize=256)
def blocks(target: str, dt: tile.DType, group: int, multiplied: tile.DType = tile.f16) -> Blocks:
    """The blocks of a type on a target, for groups of so many columns, a multiple of 16; `multiplied` is the type of
    the operand, f16 or `dt` itself."""
    bk = gcd(group, 128)
    lanes = targets.operand_layouts(target, 64, bk, multiplied)[0].num_threads
    codes, x = targets.operand_layouts(target, min(EACH * lanes // bk, TALLEST), bk, multiplied)
    order = targets.order(target, dt) if multiplied is tile.f16 else "stream"
    if multiplied is tile.f16:
        across = max(len(pairs(dt).places), 1 << (16 // dt.bits).bit_length() - 1)
        codes = codes.innermost([(1, 2), *[(0, 2)] * (min(across, 4).bit_length() - 1)])
    each = codes.local_size * dt.bits // 32
    vector = gcd(each, 4)
    words = layouts.local(1, each // vector) * layouts.spatial(1, lanes) * layouts.local(1, vector)
    return Blocks(order, words, codes, x)


@cache
def below(b: Blocks, warps: int) -> dict[str, Any]:
    """Constants of `product_kernel` for warps whose blocks lie one below the other."""
    return {"ORDER": b.order, "SOURCE": layouts.spatial(warps, 1) * b.words,
            "LAYOUT": layouts.spatial(warps, 1) * b.codes}


@cache
def beside(b: Blocks, warps: int) -> dict[str, Any]:
    """Constants of `gemv_kernel` for warps whose blocks lie side by side."""
    bk, rows = b.x.shape
    x = layouts.spatial(warps).concat(b.x).permute((2, 0, 1)).reshape((rows, warps * bk))
    return {"ORDER": b.order, "SOURCE": layouts.spatial(warps).concat(b.words),
            "LAYOUT": layouts.spatial(warps).concat(b.codes), "ROWS": x}


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
    multiplied: tile.DType

    def times(self, m: int, twice: bool) -> Shape:
        """The product with m rows; `twice`: of two parts each, whose sums stand beside each other."""
        return shape(self.shape, self.blocks, self.group, m, twice)


def shape(of: tuple[int, int], made: Blocks, group: int, m: int, twice: bool = False) -> Shape:
    """The product of m rows with W of a shape in blocks, of which a `group` shares a scale."""
    (n, k), (bn, bk), most = of, made.codes.shape, made.bm
    return Shape(m, n, -(-k // bk), -(-n // bn), 4 * made.words.shape[1], group, bk, made.x.shape[1],
                 min(most, 32) if twice else most, 8 if made.x.num_threads == 32 else 4)


def filled(group: int, k: int) -> int:
    """Columns of a group as blocks have them: one that a whole row shares is filled up."""
    return group if group < k else -(-k // 16) * 16 if k < 128 else -(-k // 128) * 128


def nanoseconds(w: QuantTensor, target: str, m: int) -> float:
    """What the model expects of a product with evenly spaced codes by f16; infinite where there is no kernel."""
    group = filled(grouping(w)[0], w.shape[1])
    if group % 16:
        return inf
    made = blocks(target, tile.dtype(f"u{w.codes.dtype.bits}"), group)  # type: ignore[union-attr]
    return plan(shape(w.shape, made, group // made.bk, m)).nanoseconds


_tiles: dict[tuple[int, str, str, bool], Tiles] = {}


def tiles(w: QuantTensor, target: str, device: str = "cpu", as_is: bool = False) -> Tiles:
    """`w` repacked for a target, as NumPy arrays or as tensors of torch on a device, to be multiplied as f16 or, if
    `as_is`, as what its codes are; kept as long as `w` lives. Corrections are not part of it. Raises TargetError for
    codes that it cannot hold."""
    key = id(w), target, device, as_is
    if key not in _tiles:
        _tiles[key] = _repack(w, target, as_is) if device == "cpu" else _moved(tiles(w, target, "cpu", as_is), device)
        finalize(w, _tiles.pop, key, None)
    return _tiles[key]


def _moved(w: Tiles, device: str) -> Tiles:
    import torch
    words, scale, shift = (None if a is None else torch.from_numpy(a).to(device) for a in (w.words, w.scale, w.shift))
    return replace(w, words=words, scale=scale, shift=shift)


def _repack(w: QuantTensor, target: str, as_is: bool) -> Tiles:
    codes, n, k = w.codes, *w.shape
    if not isinstance(codes, Packed) or codes.dtype.bits > 8:
        got = str(codes.dtype) if isinstance(codes, Packed) else type(codes).__name__
        raise TargetError("`mpgemm` cannot repack these codes", needs="tile.Packed codes of at most 8 bits", got=got,
                          try_="quantise to 8 bits or fewer; multiply the parts of RowParts one by one")
    dt, stored = codes.dtype, codes.codes().astype(np.uint8)
    group, order = grouping(w)
    if order is not None:
        stored = stored[:, order]
    group = filled(group, k)
    if group % 16:
        raise TargetError(f"`mpgemm` has no kernel for groups of {group} columns on a GPU", needs="a multiple of 16",
                          got=str(group), try_="another group, or x on the CPU")
    rank, step, offset = ranks(dt) if not as_is else (None, 1.0, 0.0)
    if rank is not None:
        stored, dt = rank[stored], tile.dtype(f"u{dt.bits}")
    elif not as_is and (dt.exponent_bits > 5 or not representable(dt)[np.unique(stored)].all()):
        raise TargetError(f"f16 cannot represent codes of {dt}", needs="finite numbers in the range of f16",
                          got=str(dt), try_="quantise to numbers that are finite in f16, or put x on the CPU")
    made = blocks(target, dt, group, dt if as_is else tile.f16)
    scale, zero, minimum = by_group(w, group, order)
    shift = (0.0 if minimum is None else minimum) - scale * (zero + step * offset)
    scale, shift = (v.T.astype(np.float32, order="C") for v in (scale * step, shift))
    words = _words(stored, made, _bytes if as_is else pairs(dt, made.order).pack)
    return Tiles(words, scale, shift if shift.any() else None, dt, made, group // made.bk, (n, k), permuted(w, order),
                 dt if as_is else tile.f16)


def _bytes(codes: Any) -> Any:
    return np.ascontiguousarray(codes).view(np.uint32)


def _words(codes: Any, made: Blocks, pack: Callable[[Any], Any]) -> Any:
    """The words of codes [N, K]; beyond them they are zero. `pack` makes those of a lane."""
    (n, k), (bn, bk) = codes.shape, made.codes.shape
    whole = np.zeros((-(-n // bn) * bn, -(-k // bk) * bk), np.uint8)
    whole[:n, :k] = codes
    each = whole.reshape(len(whole) // bn, bn, -1, bk).transpose(2, 0, 1, 3)
    at = made.codes.table()
    held = pack(each[:, :, at[..., 0], at[..., 1]])  # [K blocks, N blocks, lanes, words of a lane]
    out = np.empty((*held.shape[:2], made.words.shape[1]), np.uint32)
    out[:, :, made.words.table()[..., 1]] = held
    return out


def product(x: Any, w: Tiles, y: Any, bias: Any = None, residual: Any = None, activation: str | None = None,
            stages: int = 3, x_dtype: str | None = None, token: bool = True, added: Any = None,
            decomposition: str | None = None, how: GpuPlan | None = None) -> None:
    """act(x [M, K] @ W.T + added + bias) + residual into y [M, N]. f16 is multiplied as it is, other floats and
    quantised x as f16 by scales, f32 as two f16. `how` is by default what `gpu_plan.plan` finds; the
    result depends on it in its last bits, not on timing."""
    if w.permutation is not None:
        x = x[:, w.permutation]
    m, kt, bk = x.shape[0], w.words.shape[0], w.blocks.bk
    low = xscale = sums = None
    if x_dtype is not None or dtype_of(x) is not tile.f16:
        q, xscale, sums = (empty_like(x, shape, dt) for shape, dt in (
            (x.shape, w.multiplied), ((kt, m), tile.f32), ((kt, m), tile.f32)))
        low = empty_like(x, x.shape, tile.f16) if x_dtype is None and dtype_of(x) is tile.f32 else None
        activations_kernel(x, q, xscale, sums, low, BM=16, BK=bk, GROUP=w.group, TOKEN=token,
                           DTYPE=None if x_dtype is None else tile.dtype(x_dtype))
        x = q
    elif w.shift is not None:
        sums = empty_like(x, (kt, m), tile.f32)
        sums_kernel(x, sums, BM=16, BK=bk)
    if how is None:
        how = plan(w.times(m, low is not None), decomposition)
    after = {"bias": bias, "residual": residual, "added": added, "ACT": activation}
    what = {"DTYPE": w.dtype, "GROUP": w.group, "STAGES": stages, "BM": how.rows, "shift": w.shift,
            "sums": sums if w.shift is not None else None, "low": low, "xscale": xscale}
    if how.decomposition == "dequant_gemv":
        gemv_kernel(x, w.words, w.scale, y, **beside(w.blocks, how.warps), **what, **after)
        return
    held = below(w.blocks, how.warps)
    high, parts = held["LAYOUT"].shape[0], None
    if how.programs:
        parts = empty_like(x, (how.programs, 2 * how.rows, high), tile.f32)
    product_kernel(x, w.words, w.scale, y, **held, **what, **after, parts=parts)
    if parts is not None:
        finish_kernel(parts, y, kt, BM=how.rows, BN=high, **after)
