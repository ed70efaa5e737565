"""Sorting in memory by Batcher's bitonic network (AFIPS 1968), in the form in which every comparison puts the smaller
number at the lower place: a merge of two sorted runs compares i with size - 1 - i, then i with i + d for d = size / 4,
size / 8, … 1.

An axis is padded to a power of two with the largest number, which nothing moves; runs that are padding only are left
out. A vector is a *unit* of several neighbours along the axis, or of one place along it for many neighbours along the
last dimension. Steps within a block of a few units happen in registers, the others in loops over memory whose
distances are numbers of the run-time, so that the code is short whatever the length.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from tilelang.backends.cpu.buffers import Buffer, new_buffer
from tilelang.backends.thread.builder import I32, Index, ThreadBuilder
from tilelang.backends.thread.combine import exchanged
from tilelang.ir import elementwise as ew
from tilelang.ir import thread as th
from tilelang.ir.core import Value
from tilelang.layouts import shared

BLOCK = 8
"""Units in registers at most."""
WIDEST = 128
"""Places in registers at most: code for each step of so many is long."""
Unit = tuple[Value, ...]
"""The same places of every operand."""


def sort(b: ThreadBuilder, sources: Sequence[Buffer], axis: int, vector_bytes: int,
         copy: Callable[[Buffer, Buffer], None]) -> list[Buffer]:
    """Buffers with the elements of the sources in order, by the first source, then by the second."""
    shape = sources[0].shape
    n, inner = shape[axis], prod(shape[axis + 1:])
    padded = 1 << (n - 1).bit_length()
    place = shared(shape, strides=[prod(shape[d + 1:]) * (padded if d < axis else n) // n for d in range(len(shape))])
    buffers = []
    for s in sources:
        memory = b.alloc(s.dtype, (prod(shape) // n * padded,))
        buffers.append(Buffer(memory, shape, s.dtype, place))
        copy(s, buffers[-1])
    if n == 1:
        return buffers
    lanes = min(vector_bytes // s.dtype.storage.itemsize for s in sources)
    with b.loop(0, prod(shape[:axis])) as outer:
        base = b.mul(outer.i, padded * inner)
        if inner == 1:
            lanes = min(lanes, padded // 2)
            _Line(b, buffers, n, padded, base, lanes, lanes, lanes).run()
        else:
            full = inner // lanes * lanes
            with b.loop(0, full, lanes) as loop:
                _Line(b, buffers, n, padded, b.add(base, loop.i), inner, lanes, 1).run()
            if inner > full:
                _Line(b, buffers, n, padded, b.add(base, full), inner, inner - full, 1).run()
    if padded == n:
        return buffers
    out = [new_buffer(b, shape, s.dtype) for s in sources]
    for buffer, target in zip(buffers, out, strict=True):
        copy(buffer, target)
    return out


class _Line:
    """One sort: units of `lanes`, `pitch` elements apart from `base` on, each of `within` places along the axis."""

    def __init__(self, b: ThreadBuilder, buffers: Sequence[Buffer], n: int, padded: int, base: Index, pitch: int,
                 lanes: int, within: int) -> None:
        self.b, self.buffers, self.n, self.base, self.pitch = b, buffers, n, base, pitch
        self.lanes, self.within = lanes, within
        self.units, self.padded = -(-n // within), padded // within
        self.block = min(BLOCK, WIDEST // within, self.padded)

    # -- memory -------------------------------------------------------------------------------------------------------
    def _at(self, unit: Index) -> Index:
        return self.b.add(self.base, self.b.mul(unit, self.pitch))

    def load(self, unit: Index) -> Unit:
        return tuple(self.b.load(x.memory, self._at(unit), self.lanes) for x in self.buffers)

    def store(self, unit: Index, values: Unit) -> None:
        for x, v in zip(self.buffers, values, strict=True):
            self.b.store(x.memory, self._at(unit), v)

    def _fresh(self) -> None:
        """What was read may have been overwritten."""
        self.b.floor = len(self.b.levels) - 1
        self.b.epoch += 1

    # -- loops --------------------------------------------------------------------------------------------------------
    def run(self) -> None:
        b, floor = self.b, self.b.floor
        self._pad()
        top = (self.block * self.within).bit_length() - 1
        self._blocks([mask for bits in range(1, top + 1) for mask in merge(bits)])
        first, last = self.block.bit_length(), self.padded.bit_length()
        if first < last:
            with b.loop(first, last) as stage:
                size = b.pure(ew.Shl, b.index(1), stage.i)
                self._pairs(size, flip=True)
                with b.loop(first, stage.i) as step:
                    left = b.index(b.add(b.sub(stage.i, step.i), first - 1))
                    self._pairs(b.pure(ew.Shl, b.index(1), left), flip=False)
                self._blocks([1 << bit for bit in reversed(range(top))])
        b.floor = floor

    def _pad(self) -> None:
        """The largest number wherever a run that is sorted reaches past the end."""
        b = self.b
        self._fresh()
        last = self.n // self.within
        if self.n % self.within:
            held = b.pure(ew.Lt, b.iota(self.lanes), b.full(self.n % self.within, I32, self.lanes))
            self.store(last, tuple(b.pure(ew.Where, held, v, b.full(v.dtype.max, v.dtype, self.lanes))
                                   for v in self.load(last)))
            last += 1
        with b.loop(last, self.padded) as loop:
            self.store(loop.i, tuple(b.full(x.dtype.max, x.dtype, self.lanes) for x in self.buffers))

    def _pairs(self, size: Value, flip: bool) -> None:
        """Compares units half of `size` apart, or mirrored, in every run of `size` units that is not all padding."""
        b = self.b
        half = b.pure(ew.Shr, size, b.index(1))
        with b.loop(0, self.units, size) as run, b.loop(run.i, b.add(run.i, half)) as loop:
            self._fresh()
            last = b.add(b.add(run.i, run.i), b.sub(size, 1))
            other = b.sub(last, loop.i) if flip else b.add(loop.i, half)
            low, high = exchanged(b, self.load(loop.i), self._turned(self.load(other), flip))
            self.store(loop.i, low)
            self.store(other, self._turned(high, flip))

    def _turned(self, unit: Unit, flip: bool) -> Unit:
        if not flip or self.within == 1:
            return unit
        return tuple(self.b.pure(th.Lanes, v, lanes=tuple(reversed(range(self.lanes)))) for v in unit)

    def _blocks(self, masks: Sequence[int]) -> None:
        """Steps that stay within blocks."""
        with self.b.loop(0, self.units, self.block) as loop:
            self._fresh()
            places = [self.b.add(loop.i, i) for i in range(self.block)]
            for place, unit in zip(places, self.network([self.load(place) for place in places], masks), strict=True):
                self.store(place, unit)

    # -- registers ----------------------------------------------------------------------------------------------------
    def network(self, units: Sequence[Unit], masks: Sequence[int]) -> list[Unit]:
        """The places i and i ^ mask compared, for one mask after the other. Partners within a unit are brought to
        equal lanes of two: the bit of the place in which they differ changes places with that which tells even units
        from odd ones, and stays there until another must."""
        inside = self.within.bit_length() - 1  # bits of a place that say the lane
        bits = [1 << i for i in range(inside + self.block.bit_length() - 1)]
        at = {u * self.within + lane: (unit, lane) for u, unit in enumerate(units) for lane in range(self.within)}

        def numbered(unit: int) -> list[int]:
            """The places of a unit's lanes."""
            return [sum(bit for i, bit in enumerate(bits) if (unit << inside | lane) >> i & 1)
                    for lane in range(self.within)]

        def gathered(places: Sequence[int]) -> Unit:
            if self.within == 1:
                return at[places[0]][0]
            whole = list(dict.fromkeys(at[p][0] for p in places))
            lanes = tuple(whole.index(at[p][0]) * self.lanes + at[p][1] for p in places)
            if lanes == tuple(range(self.lanes)):
                return whole[0]
            return tuple(self.b.pure(th.Lanes, *vectors, lanes=lanes) for vectors in zip(*whole, strict=True))
        for mask in masks:
            top = 1 << mask.bit_length() - 1
            where = bits.index(top)
            if where < inside:
                bits[where], bits[inside] = bits[inside], bits[where]
            for unit in range(self.block):
                places = numbered(unit)
                if not places[0] & top:
                    others = [p ^ mask for p in places]
                    low, high = exchanged(self.b, gathered(places), gathered(others))
                    at.update({p: (low, lane) for lane, p in enumerate(places)})
                    at.update({p: (high, lane) for lane, p in enumerate(others)})
        return [gathered(range(u * self.within, (u + 1) * self.within)) for u in range(self.block)]


def merge(bits: int) -> list[int]:
    """The masks of the steps that merge two runs into one of 2**bits."""
    return [(1 << bits) - 1, *(1 << bit for bit in reversed(range(bits - 1)))]
