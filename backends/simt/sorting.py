"""Sorting over the registers of many threads, by Batcher's bitonic network (AFIPS 1968).

Along the axis the lowest bits of a place are registers of a thread, the next ones lanes, the highest ones warps.
Partners are registers of one thread or of two lanes; for those in different warps the tile goes through shared memory
to a layout in which the bits of warps are registers, and back for the rest of the merge. Every other run must be in
falling order when it is merged: its keys are complemented, so that all comparisons put the smaller one first.
"""
from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilelang.backends.simt.access import join
from tilelang.backends.simt.exchange import Exchange
from tilelang.backends.simt.registers import Threads
from tilelang.backends.thread.builder import I32, ThreadBuilder
from tilelang.backends.thread.combine import exchanged, less
from tilelang.ir import elementwise as ew
from tilelang.ir import simt
from tilelang.ir.core import Op, Value
from tilelang.layouts import RegisterLayout, blocked

Values = tuple[Value, ...]


def _split(shape: Sequence[int], axis: int, threads: int, warp: int) -> tuple[int, int, int]:
    """(warps, lanes, registers) along the axis, all powers of two: no more threads than leave each two registers, and
    as many as there are warps."""
    n, others = 1 << (shape[axis] - 1).bit_length(), prod(shape) // shape[axis]
    threads //= min(1 << others.bit_length() - 1, threads)
    across = 1
    while across * 4 <= n and across * 2 <= threads and across * across * 4 <= max(n, warp) * warp:
        across *= 2
    lanes = min(across, warp)
    return across // lanes, lanes, n // across


def layout(shape: Sequence[int], axis: int, threads: int, warp: int, far: bool = False) -> RegisterLayout:
    """The layout in which a tile is sorted; `far`: that in which the warps of a place are registers."""
    warps, lanes, registers = _split(shape, axis, threads, warp)
    before, after = ((),) * axis, ((),) * (len(shape) - axis - 1)
    modes = (warps, lanes, registers // warps, warps) if far else (warps, lanes, registers)
    one = RegisterLayout((*before, modes, *after), (3, 1) if far else (0, 1), (0, 2) if far else (2,))
    rest = tuple(1 if d == axis else n for d, n in enumerate(shape))
    return blocked(rest, threads // (warps * lanes), tuple(reversed(range(len(shape))))) * one


class Sorting:
    """Lowers `sort_keys`."""

    def __init__(self, b: ThreadBuilder, threads: Threads, exchange: Exchange, warp: int) -> None:
        self.b, self.threads, self.exchange, self.warp = b, threads, exchange, warp

    def sort(self, op: Op, values: Values) -> Values:
        """The results in the operands' layout, which is `layout(…)`."""
        shape, axis = op.operands[0].shape, op.attrs["axis"]
        warps, lanes, registers = _split(shape, axis, self.threads.count, self.warp)
        near, far = (layout(shape, axis, self.threads.count, self.warp, f) for f in (False, True))
        local, near_bits = registers.bit_length() - 1, (lanes * registers).bit_length() - 1
        top = near_bits + warps.bit_length() - 1
        index = self.threads.index(near, axis)
        values = self._padded(values, index, shape[axis])
        for bits in range(1, top + 1):
            values = self._turned(values, index, bits)
            if bits > near_bits:
                values = self._moved(values, near, far)
                for bit in reversed(range(near_bits, bits)):
                    values = self._registers(values, registers // warps << bit - near_bits)
                values = self._moved(values, far, near)
            for bit in reversed(range(min(bits, near_bits))):
                values = self._registers(values, 1 << bit) if bit < local else \
                    self._lanes(values, 1 << bit - local)
        return values

    def _padded(self, values: Values, index: Value, n: int) -> Values:
        """The largest number in registers past the end."""
        b, count = self.b, index.shape[0]
        if n & (n - 1) == 0:
            return values
        inside = b.pure(ew.Lt, index, b.full(n, I32, count))
        return tuple(b.pure(ew.Where, inside, v, b.full(v.dtype.max, v.dtype, count)) for v in values)

    def _turned(self, values: Values, index: Value, bits: int) -> Values:
        """Complemented where the direction of runs of 2**bits is not that of the half they are in before."""
        b, count = self.b, index.shape[0]
        if bits > 1:  # bit i of this says whether bits i and i + 1 differ
            index = b.pure(ew.Xor, index, b.pure(ew.Shr, index, b.full(1, I32, count)))
        held = b.pure(ew.And, index, b.full(1 << max(bits - 1, 1), I32, count))
        turn = b.pure(ew.Ne, held, b.full(0, I32, count))
        return tuple(b.pure(ew.Where, turn, b.pure(ew.Not, v), v) for v in values)

    def _moved(self, values: Values, source: RegisterLayout, target: RegisterLayout) -> Values:
        return tuple(self.exchange.pass_through(v, v.dtype, source, target, source.shape) for v in values)

    def _registers(self, values: Values, by: int) -> Values:
        """Partners are registers `by` apart."""
        count = values[0].shape[0]
        lower = [i for i in range(count) if not i & by]
        low, high = (tuple(self.b.pure(simt.Take, v, lanes=tuple(i | offset for i in lower)) for v in values)
                     for offset in (0, by))
        pairs = exchanged(self.b, low, high)
        back = tuple(lower.index(i & ~by) + (len(lower) if i & by else 0) for i in range(count))
        return tuple(self.b.pure(simt.Take, join(self.b, pair), lanes=back) for pair in zip(*pairs, strict=True))

    def _lanes(self, values: Values, by: int) -> Values:
        """Partners are the same registers of lanes `by` apart."""
        b = self.b
        other = tuple(b.effect(simt.Shuffle, v, by=by, warp=self.warp).result for v in values)
        upper = b.pure(ew.Ne, b.pure(ew.And, self.threads.thread, b.const(by, I32)), b.const(0, I32))
        takes = b.pure(ew.Xor, less(b, other, values), b.splat(upper, values[0].shape[0]))
        return tuple(b.pure(ew.Where, takes, q, p) for p, q in zip(values, other, strict=True))
