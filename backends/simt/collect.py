"""Reductions and scans over the registers of many threads.

A reduction walks the digits of its axis from the least significant: a local digit combines registers, a digit of the
lane shuffles, a digit of the warp goes through shared memory. Every step joins neighbouring runs, so that a
combination need only be associative. Registers outside the tile hold the identity, or, under a user's combination,
are marked as empty.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod

import numpy as np

from tilelang.backends.simt.access import join
from tilelang.backends.simt.exchange import Exchange
from tilelang.backends.simt.registers import Threads, thread_digits
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.backends.thread.combine import COMBINE, inline_region
from tilelang.ir import elementwise as ew
from tilelang.ir import simt
from tilelang.ir import thread as th
from tilelang.ir.core import Op, Value
from tilelang.ir.reduction import identity
from tilelang.layouts import RegisterLayout, shared

Values = list[Value]
Combine = Callable[[Values, Values], Values]


class Collect:
    """Lowers `reduce` and `scan`."""

    def __init__(self, b: ThreadBuilder, threads: Threads, exchange: Exchange, of: dict[Value, Value],
                 target: SimtTarget) -> None:
        self.b, self.threads, self.exchange, self.of, self.target = b, threads, exchange, of, target

    # -- combinations -------------------------------------------------------------------------------------------------
    def _combine(self, op: Op) -> Combine:
        b, kind = self.b, op.attrs["kind"]
        if kind != "custom":
            return lambda x, y: [b.apply(COMBINE[kind], [x[0], y[0]], {})]

        def custom(x: Values, y: Values) -> Values:
            lanes = x[0].shape[0] if x[0].shape else None
            out = inline_region(b, op.regions[0], [*x, *y], self.of)
            return [b.splat(v, lanes) for v in out]
        return custom

    def _with_empty(self, inner: Combine) -> Combine:
        """The same on values whose last member says whether they count."""
        b = self.b

        def combine(x: Values, y: Values) -> Values:
            both = inner(x[:-1], y[:-1])
            out = [b.pure(ew.Where, x[-1], b.pure(ew.Where, y[-1], j, p), q)
                   for j, p, q in zip(both, x[:-1], y[:-1], strict=True)]
            return [*out, b.pure(ew.Or, x[-1], y[-1])]
        return combine

    def _prepare(self, op: Op, layout: RegisterLayout) -> tuple[Values, Combine]:
        """The operands with registers beyond the axis neutralised, and the combination that knows it."""
        b, axis, shape = self.b, op.attrs["axis"], op.operands[0].shape
        values, combine = [self.of[v] for v in op.operands], self._combine(op)
        if layout.shape[axis] == shape[axis]:
            return values, combine
        n = layout.local_size
        inside = b.pure(ew.Lt, self.threads.index(layout, axis), b.full(shape[axis], simt.I32, n))
        if op.attrs["kind"] == "custom":
            return [*values, inside], self._with_empty(combine)
        dt = op.operands[0].dtype
        return [b.pure(ew.Where, inside, values[0], b.full(identity(op.attrs["kind"], dt), dt, n))], combine

    # -- reduce -------------------------------------------------------------------------------------------------------
    def reduce(self, op: Op) -> Values:
        """The results, in the layout `source.reduce([axis])`."""
        layout, axis = op.operands[0].tile.layout, op.attrs["axis"]
        assert isinstance(layout, RegisterLayout)
        layout = layout.canonical
        values, combine = self._prepare(op, layout)
        modes = [i for i in range(len(layout.extents)) if self._dim_of(layout, i) == axis]
        local = list(layout.local)
        if op.attrs["kind"] != "custom":  # order does not matter: registers first, to shuffle less
            values = self._registers(layout, modes, values, combine, 3 if op.attrs["kind"] in ("max", "min") else 2)
            modes = [m for m in modes if m not in local]
        for m in reversed(modes):
            if m in local:
                values = self._fold(layout, local, m, values, combine)
                local.remove(m)
            else:
                values = self._across(layout, m, values, combine, op.attrs["kind"] == "custom")
        return values[:len(op.operands)]

    @staticmethod
    def _dim_of(layout: RegisterLayout, mode: int) -> int:
        for d, dim in enumerate(layout.modes):
            if mode < len(dim):
                return d
            mode -= len(dim)
        raise IndexError(mode)

    def _fold(self, layout: RegisterLayout, local: Sequence[int], mode: int, values: Values,
              combine: Combine) -> Values:
        """Combines the registers that differ in one local digit, pairwise in order."""
        sizes = [layout.extents[m] for m in local]
        at = list(local).index(mode)
        minor, extent = prod(sizes[at + 1:]), sizes[at]
        major = prod(sizes[:at])

        def slot(i: int) -> Values:
            lanes = tuple((o * extent + i) * minor + j for o in range(major) for j in range(minor))
            return [self.b.pure(simt.Take, v, lanes=lanes) for v in values]
        parts = [slot(i) for i in range(extent)]
        while len(parts) > 1:
            joined = [combine(parts[i], parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
            parts = joined + parts[len(parts) & ~1:]
        return parts[0]

    def _registers(self, layout: RegisterLayout, modes: Sequence[int], values: Values, combine: Combine,
                   ways: int) -> Values:
        """Combines all registers that differ in local digits of the axis only, in any order: runs of neighbours,
        `ways` at once, for which some machines have one instruction."""
        inside = [m for m in modes if m in layout.local]
        sets: dict[tuple[int, ...], list[int]] = {}
        for register, digits in enumerate(np.ndindex(*(layout.extents[m] for m in layout.local))):
            at = dict(zip(layout.local, digits, strict=True))
            sets.setdefault(tuple(at[m] for m in inside), []).append(register)
        n, each = len(sets), layout.local_size // len(sets)

        def run(first: int, count: int) -> Values:
            lanes = tuple(range(first * each, (first + count) * each))
            return [self.b.pure(simt.Take, v, lanes=lanes) for v in values]
        values = [self.b.pure(simt.Take, v, lanes=tuple(i for lanes in sets.values() for i in lanes)) for v in values]
        while n > 1:
            parts = min(ways, n)
            count, left = divmod(n, parts)
            joined = reduce(combine, [run(i * count, count) for i in range(parts)])
            values = [join(self.b, pair) for pair in zip(joined, run(n - left, left), strict=True)] if left else joined
            n = count + left
        return values

    def _across(self, layout: RegisterLayout, mode: int, values: Values, combine: Combine, ordered: bool) -> Values:
        """Combines over one digit of the thread number; `ordered` where a combination may not commute."""
        place = len(layout.spatial) - 1 - list(reversed(layout.spatial)).index(mode)
        d = thread_digits(layout)[place]
        if d.extent & (d.extent - 1) or d.stride & (d.stride - 1):
            return self._through_memory(d.stride, d.extent, values, combine)
        stride, end = d.stride, d.stride * d.extent
        while stride < min(end, self.target.warp):
            values = self._shuffled(stride, values, combine, ordered)
            stride *= 2
        if stride < end:
            values = self._through_memory(stride, end // stride, values, combine)
        return values

    def _shuffled(self, stride: int, values: Values, combine: Combine, ordered: bool) -> Values:
        b = self.b
        if not ordered and stride not in self.target.swaps:
            return combine(values, [b.effect(simt.Shuffle, v, by=stride, warp=self.target.warp).result
                                    for v in values])
        both = [b.effect(simt.Swap, v, v, by=stride).results for v in values]
        return combine([lower for lower, _ in both], [upper for _, upper in both])

    def _through_memory(self, stride: int, extent: int, values: Values, combine: Combine) -> Values:
        """Every thread writes its part and reads those of the threads that differ in one digit."""
        b, count, lanes = self.b, self.threads.count, values[0].shape[0]
        x = self.exchange
        place = shared((lanes, count))
        thread = b.to_index(self.threads.thread)
        digit = b.mod(b.div(thread, stride), extent)
        start = b.sub(thread, b.mul(digit, stride))
        buffers = [x.alloc(v.dtype, place.size) for v in values]
        x.begin()
        for v, memory in zip(values, buffers, strict=True):
            for i in range(lanes):
                offset = b.index(b.add(thread, i * count))
                x.note(b.effect(th.St, memory, offset, b.pure(th.Extract, v, lane=i)))
        x.begin()

        def part(k: int) -> Values:
            out = []
            for memory in buffers:
                row = [x.note(b.effect(th.Ld, memory, b.index(b.add(start, i * count + k * stride)),
                                       lanes=None)).result for i in range(lanes)]
                out.append(join(b, row))
            return out
        total = part(0)
        for k in range(1, extent):
            total = combine(total, part(k))
        return total

    # -- scan ---------------------------------------------------------------------------------------------------------
    def scan(self, op: Op) -> Values:
        """Hillis and Steele (1986): in round r every element takes in the one 2**r before it."""
        b, x, axis, shape = self.b, self.exchange, op.attrs["axis"], op.operands[0].shape
        layout = op.operands[0].tile.layout
        assert isinstance(layout, RegisterLayout)
        values, combine = [self.of[v] for v in op.operands], self._combine(op)
        place = shared(shape)
        index = self.threads.index(layout, axis)
        n, lanes = shape[axis], layout.local_size
        step = 1
        while step < n:
            buffers = [x.alloc(v.dtype, place.size) for v in values]
            x.begin()
            for v, memory in zip(values, buffers, strict=True):
                x.write(v, v.dtype, layout, shape, memory, place)
            x.begin()
            back = -step if not op.attrs["reverse"] else step

            def earlier(at: tuple[Index, ...], back: int = back) -> tuple[Index, ...]:
                shifted = b.clamp(b.add(at[axis], back), 0, n - 1)
                return tuple(shifted if d == axis else i for d, i in enumerate(at))
            other = [x.read(v.dtype, layout, shape, memory, place, earlier)
                     for v, memory in zip(values, buffers, strict=True)]
            limit = b.full(step if back < 0 else n - step, simt.I32, lanes)
            takes = b.pure(ew.Ge, index, limit) if back < 0 else b.pure(ew.Lt, index, limit)
            joined = combine(other, values)
            values = [b.pure(ew.Where, takes, j, v) for j, v in zip(joined, values, strict=True)]
            step *= 2
        return values
