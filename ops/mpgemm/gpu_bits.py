"""Products with quantised weights on a GPU by counting bits: planes of bits of W times planes of bits of x.

Codes of weights and of x are whole numbers u from 0 on, so bit r of one and bit s of the other count 2**(r + s) where
both are set: common bits of words for every pair of planes, its sum doubled from one weight of the pairs to the next
(ABQ-LLM, arXiv 2408.08554). What x is, in two's complement u - 2**(bits - 1) and bipolar 2 u - (2**bits - 1), is put
right by the sums of codes of a group, one number for each row of W. So bipolar x needs no exclusive or (APT-LLM, arXiv
2409.17870), which sm_90 has only as two counts of common bits. Sums of a group are exact; they are scaled by the
operations, and in the order, of `cpu.dot_gemv_kernel`.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from typing import Any
from weakref import finalize

import numpy as np

import tilelang as tile
from tilelang import layouts, targets
from tilelang.args import empty_like
from tilelang.errors import TargetError
from tilelang.layouts import RegisterLayout
from tilelang.ops.activation import finished
from tilelang.ops.mpgemm.gpu import nanoseconds
from tilelang.ops.mpgemm.gpu_plan import Bits, GpuPlan, bit_plan
from tilelang.ops.mpgemm.pack import by_group, grouping, permuted, ranks, repackable
from tilelang.ops.mpgemm.plan import QUANTISED, beyond
from tilelang.quant import QuantTensor

BIT = tile.dtype("u1")
ROWS = 128
"""Of W, of a program that counts in words."""


@tile.function
def columns_of(x, m, start, last, MASKED, COUNT, BM):
    """[BM, COUNT] elements of x from column `start` as f32; where MASKED, 0 from `last` on."""
    v = tile.load(x, (m * BM, start), (BM, COUNT)).to(tile.f32)
    return tile.where((start + tile.arange(COUNT))[None, :] < last, v, 0.0) if MASKED else v


@tile.function
def step_of(x, m, first, last, MASKED, COUNT, BM, DTYPE):
    """The scale [BM] of columns from `first` to `last`, as `cpu.quantize_kernel` has it."""
    out, mean = tile.zeros((BM,), tile.f32), DTYPE.name == "s1"
    for k in tile.range(first, last, COUNT):
        v = tile.abs(columns_of(x, m, k, last, MASKED, COUNT, BM))
        out = out + v.sum(1) if mean else tile.maximum(out, v.max(1))
    return out / (tile.minimum(last, x.shape[1]) - first).to(tile.f32) if mean else out / float(DTYPE.max)


@tile.kernel
def bits_kernel(
    x: tile.Tensor[tile.T, "M K"], planes: tile.Out[tile.u32, "X M W"], xscale: tile.Out[tile.f32, "G M"],
    sums: tile.Out[tile.f32, "G M"], BM: tile.Const, GROUP: tile.Const, DEPTH: tile.Const, COUNT: tile.Const,
    APART: tile.Const, TOKEN: tile.Const, DTYPE: tile.Const,
):
    """x as values of DTYPE times a scale for each row, or each row's GROUP columns, and their sums; `planes` are the
    bits of their codes, groups DEPTH columns apart. Of COUNT columns, a step of the product, words that lie side by
    side are APART: those that a thread takes one after the other, or neighbours."""
    m, G = tile.grid(tile.cdiv(x.shape[0], BM)), xscale.shape[0]
    half, ragged = 1 << DTYPE.bits - 1, GROUP % COUNT != 0
    token = step_of(x, m, 0, x.shape[1], False, COUNT, BM, DTYPE) if TOKEN else tile.zeros((BM,), tile.f32)
    for g in tile.range(0, G):
        first, last = g * GROUP, (g + 1) * GROUP
        s = token if TOKEN else step_of(x, m, first, last, ragged, COUNT, BM, DTYPE)
        inverse, total = tile.where(s == 0.0, 1.0, s)[:, None], tile.zeros((BM,), tile.f32)
        for c in tile.range(0, DEPTH, COUNT):
            t = columns_of(x, m, first + c, last, ragged, COUNT, BM) / inverse
            if DTYPE.kind == "bipolar":
                u = tile.minimum(tile.maximum(tile.floor(t * 0.5) + float(half), 0.0), float(2 * half - 1))
                end = tile.minimum(last, x.shape[1])
                total += tile.where((first + c + tile.arange(COUNT))[None, :] < end, 2.0 * u - DTYPE.max, 0.0).sum(1)
            else:
                whole = tile.round(t)
                u, total = whole + float(half), total + whole.sum(1)
            code = u.to(tile.i32).reshape(BM, COUNT // (32 * APART), APART, 32)
            for r in tile.static_range(DTYPE.bits):
                words = ((code >> r & 1) << tile.arange(32)).sum(3).permute((0, 2, 1)).reshape(BM, COUNT // 32)
                tile.store(planes, (r, m * BM, (g * DEPTH + c) // 32), words.bitcast(tile.u32))
        tile.store(xscale, (g, m * BM), s)
        tile.store(sums, (g, m * BM), total)


@tile.kernel
def bitplane_kernel(
    x: tile.Tensor[tile.u32, "X M W"], words: tile.Tensor[tile.u32, "b KT NT L"], codes: tile.Tensor[tile.i32, "G N"],
    xscale: tile.Tensor[tile.f32, "G M"], sums: tile.Tensor[tile.f32, "G M"], scale: tile.Tensor[tile.f32, "G N"],
    y: tile.Out[tile.Y, "M N"],
    zero: tile.Tensor[tile.f32, "G N"] = None, minimum: tile.Tensor[tile.f32, "G N"] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    SOURCE: tile.Const, LAYOUT: tile.Const, TAKEN: tile.Const, XBITS: tile.Const, BITS: tile.Const, BM: tile.Const,
    GROUP: tile.Const, STAGES: tile.Const, BIPOLAR: tile.Const, ZERO: tile.Const, ACT: tile.Const,
):
    """A block of y. `words` are the planes of codes as threads hold them, `codes` the sums of a group's; GROUP steps
    of columns have the same parameters, each taken off or multiplied as `cpu.folded` does."""
    BN = LAYOUT.shape[0]
    m, n = tile.grid(tile.cdiv(y.shape[0], BM), tile.cdiv(words.shape[2], SOURCE.shape[0]))
    acc = tile.zeros((BN, BM), tile.f32)
    for g in tile.range(0, scale.shape[0], stages=STAGES if GROUP == 1 else 1):
        part = tile.zeros((BN, BM), tile.i32)
        if GROUP == 1:
            part = counted(part, x, words, m, n, g, SOURCE, LAYOUT, TAKEN, XBITS, BITS, BM)
        else:
            for k in tile.range(g * GROUP, (g + 1) * GROUP, stages=STAGES):
                part = counted(part, x, words, m, n, k, SOURCE, LAYOUT, TAKEN, XBITS, BITS, BM)
        less = tile.load(codes, (g, n * BN), (BN,))[:, None]
        part = part + part - less * ((1 << XBITS) - 1) if BIPOLAR else part - less * (1 << XBITS - 1)
        total, out = tile.load(sums, (g, m * BM), (BM,)), part.to(tile.f32)
        if zero is not None:
            out = out - tile.load(zero, (g, n * BN), (BN,))[:, None] * total
        elif ZERO != 0:
            out = out - ZERO * total
        out = out * tile.load(scale, (g, n * BN), (BN,))[:, None]
        if minimum is not None:
            out = out + tile.load(minimum, (g, n * BN), (BN,))[:, None] * total
        acc = acc + tile.load(xscale, (g, m * BM), (BM,)) * out
    out = finished(acc.T, bias, residual, added, m * BM, n * BN, ACT, BM, BN)
    tile.store(y, (m * BM, n * BN), out.to(y.dtype))


@tile.function
def counted(part, x, words, m, n, k, SOURCE, LAYOUT, TAKEN, XBITS, BITS, BM):
    """`part` and the sum of products of codes over the columns of step k."""
    BN, COUNT = LAYOUT.shape
    if TAKEN is None:
        return counted_in_words(part, x, words, m, n, k, XBITS, BITS, BM, BN, COUNT)
    ws = tuple([tile.view(tile.load(words, (r, k, n * SOURCE.shape[0], 0), SOURCE.shape), tile.u32, SOURCE, LAYOUT)
                for r in tile.static_range(BITS)])
    xs = tuple([tile.load(x, (s, m * BM, k * COUNT), (BM, COUNT)) for s in tile.static_range(XBITS)])
    if TAKEN.load is not None:
        xs = tuple([tile.view(tile.pin(v, TAKEN.load), tile.u32, TAKEN.source, TAKEN.operand) for v in xs])
    if BITS * XBITS == 1:
        return tile.dot_bits(ws[0], xs[0].T, part)
    sum = tile.dot_bits(ws[BITS - 1], xs[XBITS - 1].T)
    for d in tile.static_range(BITS + XBITS - 3, -1, -1):
        sum = sum + sum
        for r in tile.static_range(max(d - XBITS + 1, 0), min(d, BITS - 1) + 1):
            sum = tile.dot_bits(ws[r], xs[d - r].T, sum)
    return part + sum


@tile.function
def counted_in_words(part, x, words, m, n, k, XBITS, BITS, BM, BN, COUNT):
    """The same on processors without products of bits: a thread has words of a row of W, and counts. A loop over the
    planes of x keeps the text short, and within a cache of instructions."""
    ws = tuple([tile.load(words, (i // COUNT, k, n, i % COUNT * BN), (BN,))[:, None]
                for i in tile.static_range(BITS * COUNT)])
    for s in tile.range(0, XBITS):
        xs = tuple([tile.load(x, (s, m * BM, k * COUNT + j), (BM, 1)).reshape(1, BM)
                    for j in tile.static_range(COUNT)])
        for r in tile.static_range(BITS):
            sum = tile.popcount(ws[r * COUNT] & xs[0])
            for j in tile.static_range(1, COUNT):
                sum = sum + tile.popcount(ws[r * COUNT + j] & xs[j])
            part = part + (sum.bitcast(tile.i32) << r + s)
    return part


@dataclass(frozen=True, eq=False)  # made once for each width: known by identity
class Lanes:
    """How a warp holds a plane of a block of W, [rows, columns], and its words in memory; `products` of bits take them
    so. On processors without those a thread has a row, whose words are those of a block's rows apart."""

    codes: RegisterLayout
    words: RegisterLayout
    products: bool


@cache
def lanes(target: str, columns: int) -> Lanes:
    try:
        codes, _ = targets.operand_layouts(target, max(4096 // columns, 16), columns, BIT, tile.i32)
    except TargetError:
        return Lanes(layouts.spatial(ROWS, 1) * layouts.local(1, columns),
                     layouts.local(1, columns // 32) * layouts.spatial(1, ROWS), False)
    each = codes.local_size // 32
    vector = gcd(each, 4)
    return Lanes(codes, layouts.local(1, each // vector) * layouts.spatial(1, 32) * layouts.local(1, vector), True)


@dataclass(frozen=True)
class Taken:
    """How products take words of x: from shared memory, or (`load`) loaded row by row and taken in the order of
    instructions (`source`, as `operand`), so that a thread loads 16 bytes at a time."""

    load: RegisterLayout | None = None
    source: RegisterLayout | None = None
    operand: RegisterLayout | None = None

    @property
    def apart(self) -> int:
        """`bits_kernel`'s APART."""
        return 1 if self.load is None else 4


@cache
def held(target: str, columns: int, warps: int, rows: int) -> dict[str, Any]:
    """Constants of `bitplane_kernel` for programs of so many warps, one below the other, and rows of x, where products
    are instructions. Those of several warps take words of x from shared memory."""
    of, word, x = lanes(target, columns), layouts.local(1, 32), Taken()
    if not of.products:
        return {"SOURCE": of.words, "LAYOUT": of.codes / word, "TAKEN": None, "BM": 8}
    if together(target, columns) == 1:
        operand = targets.operand_layouts(target, 16, columns, BIT, tile.i32, rows)[1].permute((1, 0)) / word
        halves = min(columns // 128, 2)
        source = RegisterLayout(((rows // 8, 8), (4, columns // 128 // halves, halves)), (1, 2), (3, 0, 4))
        load = layouts.local(rows // 8, 1) * layouts.spatial(8, 4) * layouts.local(1, columns // 128)
        x = Taken(load, source, operand)
    return {"SOURCE": layouts.spatial(warps, 1) * of.words, "LAYOUT": layouts.spatial(warps, 1) * (of.codes / word),
            "TAKEN": x, "BM": rows}


def together(target: str, columns: int) -> int:
    """How many warps make a product of so many columns together."""
    return max(targets.counts_bits(target), 1) if columns % 256 == 0 else 1


_chosen: dict[tuple[Any, ...], GpuPlan | None] = {}


def chosen(w: QuantTensor, target: str, x_dtype: str | None, m: int, named: bool) -> GpuPlan | None:
    """The plan for counting bits where it was `named`, is the only one (x bipolar), or is cheaper than by f16; else
    None. Raises TargetError where it was named and x or W are no whole numbers, or i32 does not hold their sums."""
    key = id(w), target, x_dtype, m, named
    if key not in _chosen:
        _chosen[key] = _choose(w, target, x_dtype, m, named)
        finalize(w, _chosen.pop, key, None)
    return _chosen[key]


def _choose(w: QuantTensor, target: str, x_dtype: str | None, m: int, named: bool) -> GpuPlan | None:
    try:
        found = bit_plan(_bits(w, target, x_dtype, m))
    except TargetError:
        if named:
            raise
        return None
    alone = named or str(x_dtype).startswith("s")
    cheap = targets.counts_bits(target) and found.nanoseconds < nanoseconds(w, target, m)
    return found if alone or cheap else None


def _bits(w: QuantTensor, target: str, x_dtype: str | None, m: int) -> Bits:
    """The product by bits. Raises TargetError where it is none."""
    def refused(wrong: tuple[str, str, str]) -> TargetError:
        return TargetError("`bitplane_popc` cannot compute this product", needs=wrong[0], got=wrong[1], try_=wrong[2])
    if x_dtype not in QUANTISED:
        raise refused(("activations in whole numbers", str(x_dtype), 'pass x_dtype="i4"'))
    if not repackable(w):
        raise refused(("one code of at most 8 bits for each weight", str(w.codes), "leave it out"))
    x, of = tile.dtype(x_dtype), w.codes.dtype  # type: ignore[union-attr]
    rank, *_ = ranks(of)
    if rank is None:
        raise refused(("weights that are whole multiples of a step", str(of), "leave it out"))
    group, largest = grouping(w)[0], int(x.max) * int(rank.max())
    if wrong := beyond(group, (2 ** 31 - 1) // max(largest, 1), f"{x.max} * {rank.max()}"):
        raise refused(wrong)
    depth, columns = steps(group, of.bits, target)
    return Bits(m, w.shape[0], x.bits, of.bits, -(-w.shape[1] // group), depth // columns, columns,
                together(target, columns))


@dataclass(frozen=True, eq=False)
class Planes:
    """A matrix (N, K) by bits: `words` u32 [bits, steps, N blocks, words of a block]; of each group the sum of `codes`
    i32, `scale`, `zero` (a number for all or an array) and `minimum` (None: 0) f32 [groups, N]. A step is `columns`,
    of which a group takes `depth`. `permutation`: column j is `x[:, permutation[j]]`."""

    words: Any
    codes: Any
    scale: Any
    zero: Any
    minimum: Any
    shape: tuple[int, int]
    group: int
    depth: int
    columns: int
    permutation: Any


_planes: dict[tuple[int, str, str], Planes] = {}


def planes(w: QuantTensor, target: str, device: str = "cpu") -> Planes:
    """`w` by bits for a target, as NumPy arrays or as tensors of torch on a device; kept as long as `w` lives.
    Corrections are not part of it."""
    key = id(w), target, device
    if key not in _planes:
        _planes[key] = _repack(w, target) if device == "cpu" else _moved(planes(w, target), device)
        finalize(w, _planes.pop, key, None)
    return _planes[key]


def _moved(w: Planes, device: str) -> Planes:
    import torch
    names = "words", "codes", "scale", "zero", "minimum"
    return replace(w, **{name: torch.from_numpy(a).to(device) for name in names
                         if isinstance(a := getattr(w, name), np.ndarray)})


def steps(group: int, bits: int, target: str) -> tuple[int, int]:
    """(columns that a group takes, columns of a step of them): deep steps of products, unless they are filled up with
    too much."""
    choices = (512, 256, 128)[bits > 4:] if lanes(target, 128).products else (128,)
    columns = min(choices, key=lambda c: -(-group // c) * (c + 64))
    return -(-group // columns) * columns, columns


def stages(planes: int) -> int:
    """Steps that are copied ahead, and the one multiplied: fewer of many planes, each of which has barriers of its
    own where blocks go by TMA."""
    return min(max(32 // planes, 2), 4)


def _repack(w: QuantTensor, target: str) -> Planes:
    (n, k), dt = w.shape, w.codes.dtype  # type: ignore[union-attr]
    group, order = grouping(w)
    rank, step, offset = ranks(dt)
    stored = rank[w.codes.codes()]  # type: ignore[union-attr]
    if order is not None:
        stored = stored[:, order]
    depth, columns = steps(group, dt.bits, target)
    groups, of = -(-k // group), lanes(target, columns)
    flat = np.zeros((n, groups * group), np.uint8)
    flat[:, :k] = stored
    spread = flat.reshape(n, groups, group)
    bn = of.codes.shape[0]
    whole = np.zeros((-(-n // bn) * bn, groups, depth), np.uint8)
    whole[:n, :, :group] = spread
    each = whole.reshape(len(whole) // bn, bn, -1, columns).transpose(2, 0, 1, 3)
    at = of.codes.table()
    mine = each[:, :, at[..., 0], at[..., 1]]
    words = np.empty((dt.bits, *each.shape[:2], of.words.shape[1]), np.uint32)
    for r in range(dt.bits):
        plane = np.packbits(mine >> r & 1, axis=-1, bitorder="little")
        words[r][..., of.words.table()[..., 1]] = plane.view(np.uint32)
    scale, zero, minimum = by_group(w, group, order)
    zero = zero / step + offset
    scale, zeros, lows = (None if v is None else v.T.astype(np.float32, order="C")
                          for v in (scale * step, zero, minimum))
    return Planes(words, spread.sum(2, dtype=np.int32).T.copy(), scale,
                  float(zero.flat[0]) if (zero == zero.flat[0]).all() else zeros, lows, (n, k), group, depth, columns,
                  permuted(w, order))


def product(x: Any, w: Planes, y: Any, target: str, how: GpuPlan, x_dtype: tile.DType, token: bool = True,
            bias: Any = None, residual: Any = None, activation: str | None = None, added: Any = None) -> None:
    """act(x [M, K] @ W.T + added + bias) + residual into y [M, N], x in values of `x_dtype`."""
    if w.permutation is not None:
        x = x[:, w.permutation]
    m, (bits, deep, *_), groups = x.shape[0], w.words.shape, w.scale.shape[0]
    quantised, xscale, sums = (empty_like(x, shape, dt) for shape, dt in (
        ((x_dtype.bits, m, deep * w.columns // 32), tile.u32), ((groups, m), tile.f32), ((groups, m), tile.f32)))
    zeros, how_held = not isinstance(w.zero, float), held(target, w.columns, how.warps, how.rows)
    bits_kernel(x, quantised, xscale, sums, BM=4, GROUP=w.group, DEPTH=w.depth, COUNT=w.columns,
                APART=(how_held["TAKEN"] or Taken()).apart, TOKEN=token, DTYPE=x_dtype)
    bitplane_kernel(quantised, w.words, w.codes, xscale, sums, w.scale, y, **how_held, XBITS=x_dtype.bits, BITS=bits,
                    GROUP=w.depth // w.columns, STAGES=stages(bits + x_dtype.bits), BIPOLAR=x_dtype.kind == "bipolar",
                    zero=w.zero if zeros else None, ZERO=None if zeros else w.zero, minimum=w.minimum, bias=bias,
                    residual=residual, added=added, ACT=activation)
