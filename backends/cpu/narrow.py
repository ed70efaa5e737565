"""Nests whose last dimension is short, as the parts of complex numbers are: vectors run along the dimension before it.

Where rows follow one another in memory they are loaded as whole vectors, which shuffles take apart, and stored
interleaved.
"""
from __future__ import annotations

from collections.abc import Callable

from tilelang.backends.cpu.buffers import ZERO, Ix
from tilelang.backends.cpu.elements import Position
from tilelang.backends.cpu.reductions import At, Reductions
from tilelang.ir import elementwise as ew
from tilelang.ir import thread as th
from tilelang.ir.core import Op, TensorType, Value

WIDTHS = (2, 4)
"""Extents that count as short."""
ROWS = 8
"""The fewest rows worth it."""


class Narrow(Reductions):
    """What a nest does where its last dimension is short."""

    yields: list[tuple[Value, Value]]
    effects: list[Op]
    dense: dict[Op, int] = {}
    """Loads whose rows follow one another in memory, and how long these are."""

    def maybe_narrow(self, write: Callable[[], None]) -> None:
        """`write`, which knows nothing of rows, or the same by whole rows where they follow one another."""
        if not self._short():
            write()
            return
        b, floor = self.b, self.b.floor
        dense = {op: width for op in self.region.ops if (width := self._width(op))}
        follow = [b.const(1, ew.I1), *(self._follow(op, width) for op, width in dense.items())]
        with b.branch(b.all_of(follow)) as branch:
            b.floor = len(b.levels) - 1
            self.dense = dense
            self._by_rows()
            self.dense = {}
            branch.otherwise()
            b.epoch += 1
            b.floor = len(b.levels) - 1
            write()
        b.floor = floor

    def _short(self) -> bool:
        """Whether the nest only computes and stores elements of short rows."""
        last = len(self.shape) - 1
        return (last > 0 and self.shape[last] in WIDTHS and self.shape[last - 1] >= ROWS and self.vector == last
                and not self.reduces and all(op.name == "store" and self._width(op) for op in self.effects)
                and all(t.row_major and t.shape == self.shape for t in self.targets.values()))

    def _width(self, op: Op) -> int:
        """The length of the rows that an operation loads or stores, 0 where they cannot follow one another."""
        if op.name not in ("load", "store"):
            return 0
        memory, shape, axes = op.operands[0].type, (op.results or op.operands[-1:])[0].shape, op.attrs["axes"]
        fits = isinstance(memory, TensorType) and not memory.dtype.packed and len(shape) > 1 and shape[-1] in WIDTHS \
            and axes[-1] < len(memory.unit) and memory.unit[axes[-1]]
        return shape[-1] if fits else 0

    def _follow(self, op: Op, width: int) -> Value:
        """Whether each row begins where the one before it ends."""
        stride = self._stride(op.operands[0], op.attrs["axes"][-2])
        return self.b.pure(ew.Eq, self.b.index(stride), self.b.index(width))

    def _by_rows(self) -> None:
        b, last = self.b, len(self.shape) - 1
        extent, width = self.shape[last - 1], self.shape[last]
        lanes = max(self._lanes(extent * width) // width, 1)
        full = extent // lanes * lanes

        def rows(at: At) -> None:
            with b.loop(0, full, lanes) as loop:
                self._rows_at({**at, last - 1: Ix(loop.i, lanes)})
            if extent > full:
                self._rows_at({**at, last - 1: Ix(full, extent - full)})

        def outer(dims: list[int], at: At) -> None:
            if not dims:
                rows(at)
                return
            with b.loop(0, self.shape[dims[0]]) as loop:
                outer(dims[1:], {**at, dims[0]: Ix(loop.i)})
        outer([d for d in range(last - 1) if self.shape[d] > 1], {})

    def _rows_at(self, at: At) -> None:
        b, last = self.b, len(self.shape) - 1
        places = [self._position({**at, last: Ix(i)}) for i in range(self.shape[last])]
        lanes = at[last - 1].lanes
        self.made = {}

        def joined(v: Value) -> Value:
            return b.pure(th.Interleave, *(b.splat(self.at(v, place), lanes) for place in places))
        for v, _ in self.yields:
            target = self.targets[v]
            b.store(target.memory, target.address(b, places[0])[0], joined(v))
        for op in self.effects:
            offset, *_ = self._window(op, op.operands[1:-1], places[0])
            b.store(self.memory(op), offset, joined(op.operands[-1]))

    def _at_load(self, op: Op, where: Position) -> Value:
        width = self.dense.get(op)
        if width is None or where[-2].lanes is None or where[-2].step != 1 or not isinstance(where[-1].base, int):
            return super()._at_load(op, where)
        offset, *_ = self._window(op, op.operands[1:], (*where[:-1], ZERO))
        row = self.b.load(self.memory(op), offset, where[-2].lanes * width)
        return self.b.pure(th.Lanes, row, lanes=tuple(range(where[-1].base, row.shape[0], width)))
