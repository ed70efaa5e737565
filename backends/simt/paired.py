"""Tiles of narrow numbers that lie in registers as pairs (`tilelang.ir.pairs`), and their conversion to f16.

A `view` makes words into pairs. What it is worth as f16 is not computed before somebody asks: a product can take the
pairs as they are, and multiply its sums by the power of two that they lack, which rounds nothing.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import numpy as np

from tilelang.backends.simt.access import constants, join
from tilelang.backends.simt.registers import local_offsets
from tilelang.backends.thread.bits import Halves, codes, recut, unpair
from tilelang.backends.thread.builder import ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir import simt
from tilelang.ir.core import Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.pairs import Pairs, exponents
from tilelang.layouts import RegisterLayout

F16, U32 = dtype("f16"), dtype("u32")
_MAGIC = 0x6400
"""As f16, this with u in the low ten bits is 1024 + u."""


@dataclass(frozen=True)
class Paired:
    """A vector whose lane i is half `lanes[i] % 2` of pair `lanes[i] // 2` of `pairs`, a number of dtype `of`.
    `bytes` are the same but for pairs above others (`Pairs.beneath`), which have those in them."""

    pairs: Value
    bytes: Value
    of: DType
    order: Pairs
    lanes: tuple[int, ...]

    def taken(self, lanes: Sequence[int]) -> Paired:
        """Lanes of the vector, in this order."""
        return replace(self, lanes=tuple(self.lanes[i] for i in lanes))

    @property
    def beneath(self) -> list[tuple[int, float] | None] | None:
        """For each lane that has another beneath it in `bytes`: which, and what that one's number counts in the sum.
        None where one of those is no lane of the vector."""
        order, where = self.order, {lane: i for i, lane in enumerate(self.lanes)}
        out: list[tuple[int, float] | None] = []
        for lane in self.lanes:
            upper = lane // 2 % len(order.steps)
            lower = order.beneath.get(upper)
            if lower is None:
                out.append(None)
                continue
            at = where.get(lane - 2 * (upper - lower))
            if at is None:
                return None
            out.append((at, 2.0 ** (order.place(lower)[0] - order.place(upper)[0])))
        return out

    @property
    def exponents(self) -> tuple[int, ...] | None:
        """For each lane, n such that 2**n times its half, as f16, is the number."""
        known = exponents(self.of)
        return None if known is None else tuple(known[lane // 2 % len(known)] for lane in self.lanes)


@dataclass(frozen=True)
class PairedOperand:
    """Operand `side` (0 left, 1 right) of a product whose sum begins with zero, as pairs as they are: each sum is then
    to be multiplied by the power of two in `scales` (products of f16 by them are far from the limits of f32), and
    those in `beneath` less the sum named there times a factor, because others lie beneath their pairs."""

    pairs: Paired
    side: int
    scales: tuple[float, ...]
    beneath: dict[int, tuple[int, float]]

    def operand(self, b: ThreadBuilder, words: bool) -> Value:
        """What to multiply, as `unscaled` gives it."""
        return unscaled(b, self.pairs, words, bool(self.beneath))

    def finish(self, b: ThreadBuilder, sums: Value) -> Value:
        """The sums of the numbers."""
        n, dt = sums.shape[0], sums.dtype
        out = b.pure(ew.Mul, sums, _table(b, self.scales, dt))
        if not self.beneath:
            return out
        upper = list(self.beneath)
        less = b.pure(ew.Fma, b.pure(simt.Take, out, lanes=tuple(self.beneath[i][0] for i in upper)),
                      _table(b, [-self.beneath[i][1] for i in upper], dt),
                      b.pure(simt.Take, out, lanes=tuple(upper)))
        both = b.pure(sh.Concat, out, less, axis=0)
        return b.pure(simt.Take, both, lanes=tuple(n + upper.index(i) if i in self.beneath else i for i in range(n)))


def _table(b: ThreadBuilder, values: Sequence[float], dt: DType) -> Value:
    return b.full(values[0], dt, len(values)) if len(set(values)) == 1 else \
        b.pure(sh.ConstTile, values=tuple(values), dtype=dt)


def paired_operand(x: Paired, side: int, place: RegisterLayout, layout: RegisterLayout,
                   grain: int) -> PairedOperand | None:
    """Operand `side` in the layout `place` of a product in `layout`, whose rows (columns) are told apart in blocks of
    `grain`; None where numbers of a block lack different powers of two."""
    if x.exponents is None:
        return None
    at, mine = local_offsets(place), local_offsets(layout)
    dim = place.rank - 2 + side
    found: dict[int, set[int]] = {}
    for offset, power in zip(at, x.exponents, strict=True):
        found.setdefault(int(offset[dim]) // grain, set()).add(power)
    if any(len(powers) > 1 for powers in found.values()):
        return None
    scales = tuple(2.0 ** min(found[int(offset[dim]) // grain]) for offset in mine)
    return PairedOperand(x, side, scales, _beneath(x, dim, at, mine, grain))


def _beneath(x: Paired, dim: int, at: Any, mine: Any, grain: int) -> dict[int, tuple[int, float]]:
    """For elements of the sum whose row (column) has pairs with others beneath: the element of the row of those, and
    what its sum counts. Empty unless all pairs with others beneath can be told so."""
    lanes, found = x.beneath, dict[int, set[tuple[int, float] | None]]()
    for offset, lower in zip(at, lanes or (), strict=bool(lanes)):
        apart = None if lower is None else offset - at[lower[0]]
        if apart is not None and np.count_nonzero(apart) > bool(apart[dim]):
            return {}
        found.setdefault(int(offset[dim]) // grain, set()).add(
            None if apart is None or lower is None else (int(apart[dim]), lower[1]))
    if not lanes or any(len(lower) > 1 for lower in found.values()):
        return {}
    where = {tuple(map(int, offset)): i for i, offset in enumerate(mine)}
    out: dict[int, tuple[int, float]] = {}
    for i, offset in enumerate(mine):
        (lower_,) = found[int(offset[dim]) // grain]
        if lower_ is not None:
            place = list(map(int, offset))
            place[dim] -= lower_[0]
            by = where.get(tuple(place))
            if by is None:
                return {}
            out[i] = by, lower_[1]
    return out


class _Instructions(Halves):
    """By instructions of GPUs."""

    def odd_bytes(self, x: Value) -> Value:
        return self.b.pure(simt.OddBytes, x)

    def mad(self, x: Value, factor: int, *added: Value) -> Value:
        return self.b.pure(simt.MadHalves, x, *added, factor=factor)

    def shift(self, x: Value, by: int, signed: bool) -> Value:
        return self.b.pure(simt.ShiftHalves, x, by=by, signed=signed)


def view(b: ThreadBuilder, words: Value, dt: DType, order: Pairs) -> tuple[Value, Paired]:
    """The codes in a thread's words, block after block, and the same as pairs."""
    blocks, each = words.shape[0] // order.words, len(order.steps)
    parts = [take(b, words, range(i, words.shape[0], order.words)) for i in range(order.words)]
    halves = _Instructions(b)
    found = unpair(b, parts, order, halves)

    def in_order(values: Sequence[Value]) -> Value:
        """Block after block; the values of a vector are those of all blocks."""
        return take(b, join(b, values), [j * blocks + i for i in range(blocks) for j in range(len(values))])
    whole = [halves.odd_bytes(parts[order.steps[i][0].word]) if i in order.beneath else pair
             for i, pair in enumerate(found)]
    paired = Paired(in_order(found), in_order(whole), dt, order, tuple(range(2 * each * blocks)))
    return in_order(codes(b, found, order, dt)), paired


def to_f16(b: ThreadBuilder, x: Paired) -> Value | None:
    """The numbers as f16, where pairs are good for that."""
    powers = exponents(x.of)
    if powers is None:
        return None
    n, value = x.pairs.shape[0], x.pairs
    if x.of.kind == "uint":  # 1024 + u * 2**o, by 2**-o, less what is too much
        value = b.pure(ew.Or, value, b.full(_MAGIC * 0x10001, U32, n))
        scales = [2.0 ** (power - 24) for power in powers]
        value = _fma(b, value, scales, [-1024 * scale for scale in scales])
    elif powers != (0,):
        value = _fma(b, value, [2.0 ** power for power in powers], [-0.0])  # a zero keeps its sign
    return _halves(b, value, x.lanes)


def unscaled(b: ThreadBuilder, x: Paired, words: bool, in_bytes: bool) -> Value:
    """f16 numbers that lack the powers of two in `x.exponents`, `in_bytes` with what is beneath them; with `words`,
    where they stand in pairs, words of two."""
    whole, value = _whole(x.lanes), x.bytes if in_bytes else x.pairs
    return take(b, value, whole) if words and whole else _halves(b, value, x.lanes)


def _fma(b: ThreadBuilder, x: Value, factors: Sequence[float], terms: Sequence[float]) -> Value:
    """x * factor + term, where pair i takes entry i modulo their number."""
    def full(values: Sequence[float]) -> Value:
        words = [int(np.float16(v).view(np.uint16)) * 0x10001 for v in values]
        n = x.shape[0]
        return b.full(words[0], U32, n) if len(words) == 1 else \
            constants(b, [words[i % len(words)] for i in range(n)], U32)
    return b.pure(simt.FmaHalves, x, full(factors), full(terms))


def _halves(b: ThreadBuilder, words: Value, lanes: Sequence[int]) -> Value:
    """Halves of words; where they stay together the words are rearranged instead."""
    whole = _whole(lanes)
    if whole:
        return b.pure(simt.Recast, take(b, words, whole), dtype=F16)
    return take(b, b.pure(simt.Recast, words, dtype=F16), lanes)


def _whole(lanes: Sequence[int]) -> list[int]:
    """The pairs whose halves follow one another in `lanes`; none where some do not."""
    pairs = [lane // 2 for lane in lanes[::2]]
    return pairs if list(lanes) == [2 * i + h for i in pairs for h in (0, 1)] else []


def take(b: ThreadBuilder, value: Value, lanes: Sequence[int]) -> Value:
    """Lanes of a vector, in this order."""
    same = list(lanes) == list(range(value.shape[0]))
    return value if same else b.pure(simt.Take, value, lanes=tuple(lanes))


def cut(b: ThreadBuilder, value: Value, dt: DType) -> Value:
    """The bits of a vector as lanes of another dtype."""
    turn = lcm(value.dtype.bits, dt.bits)
    per, count = turn // value.dtype.bits, turn // dt.bits
    turns = value.shape[0] // per
    parts = recut(b, [take(b, value, range(i, turns * per, per)) for i in range(per)], dt)
    return take(b, join(b, parts), [i * turns + t for t in range(turns) for i in range(count)])
