"""The micro-kernel of `dot`: a register block of accumulators that runs over k (Goto and van de Geijn, 2008)."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tilelang.backends.cpu.buffers import Buffer, Ix
from tilelang.backends.cpu.dots import Blocking, DotRow
from tilelang.backends.cpu.machine import LINE
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import thread as th
from tilelang.ir.core import Value
from tilelang.ir.dtypes import dtype

NEAR = 32 << 10
"""Bytes of a first-level cache."""
Vectors = Mapping[tuple[Ix, ...], Value]
"""Accumulators of a register block by their positions in the result."""


@dataclass
class Dot:
    """c = a @ p (+ c where `add`, which may be an i1 known only at run time) over the first `depth` k, for packed
    a [*batch, M, K] and p [*batch, K, N]. Where `taken` holds, `take` gets the accumulators instead of c."""

    b: ThreadBuilder
    row: DotRow
    block: Blocking
    a: Buffer
    p: Buffer
    c: Buffer
    add: bool | Value
    depth: Index
    taken: Value | None = None
    take: Callable[[Vectors], None] | None = None

    def emit(self) -> None:
        """All register blocks of the product."""
        *batch, _, n = self.c.shape

        def over(dims: list[int], index: tuple[Ix, ...]) -> None:
            if dims:
                with self.b.loop(0, dims[0]) as loop:
                    over(dims[1:], (*index, Ix(loop.i)))
                return
            columns = self.block.columns
            full = n // columns * columns
            if full:
                with self.b.loop(0, full, columns) as panel:
                    self._panel(index, panel.i, columns)
            if n > full:
                self._panel(index, full, n - full)
        over(batch, ())

    def _widths(self, columns: int) -> list[tuple[int, int]]:
        """(start, lanes) of the vectors that cover a panel."""
        lanes = self.block.lanes
        return [(s, min(lanes, columns - s)) for s in range(0, columns, lanes)]

    def _panel(self, batch: tuple[Ix, ...], column: Index, columns: int) -> None:
        m, rows = self.c.shape[-2], self.block.rows
        bias = self._bias(batch, column, columns) if self.row.bias else []
        full = m // rows * rows
        if full:
            with self.b.loop(0, full, rows) as loop:
                self._block(batch, loop.i, rows, column, columns, bias)
        if m > full:
            self._block(batch, full, m - full, column, columns, bias)

    def _step(self, acc: Value, x: Value, y: Value) -> Value:
        """acc + x * y for one k (or one group of k)."""
        b = self.b
        if self.row.group > 1:
            return b.pure(th.DotGroups, acc, x, y)
        if dtype(self.row.acc).kind == "float":
            return b.pure(ew.Fma, x, y, acc)
        return b.pure(ew.Add, acc, b.pure(ew.Mul, x, y))

    def _row_vectors(self, batch: tuple[Ix, ...], k: Index, column: Index, columns: int) -> list[Value]:
        """The vectors of one row (group of rows) of a panel."""
        out = []
        for start, lanes in self._widths(columns):
            offset, _ = self.p.address(self.b, (*batch, Ix(k), Ix(self.b.add(column, start))))
            out.append(self.b.load(self.p.memory, offset, lanes * self.row.group))
        return out

    def _bias(self, batch: tuple[Ix, ...], column: Index, columns: int) -> list[Value]:
        """bias * the column sums of a panel: what the biased operand adds too much."""
        b, row, widths = self.b, self.row, self._widths(columns)
        inits = [b.full(0, dtype(row.acc), lanes) for _, lanes in widths]
        with b.loop(0, self.depth, row.group, inits) as k:
            vectors = self._row_vectors(batch, k.i, column, columns)
            k.yield_([self._step(s, b.full(row.bias, dtype(row.a), lanes * row.group), v)
                      for s, v, (_, lanes) in zip(k.carried, vectors, widths, strict=True)])
        return k.results

    def _block(self, batch: tuple[Ix, ...], first: Index, rows: int, column: Index, columns: int,
               bias: list[Value]) -> None:
        b, row, widths = self.b, self.row, self._widths(columns)
        b.epoch += 1  # accumulators change between blocks: reads are not shared
        floor, b.floor = b.floor, len(b.levels) - 1
        cells = [(*batch, Ix(b.add(first, i)), Ix(b.add(column, start), lanes))
                 for i in range(rows) for start, lanes in widths]
        self._fetch_cells(cells, rows)
        zeros = [b.full(0, dtype(row.acc), at[-1].lanes) for at in cells]
        with b.loop(0, self.depth, row.group * self.block.steps, zeros) as loop:
            out = list(loop.carried)
            self._fetch_rows(batch, b.add(first, rows), rows, loop.i, row.group * self.block.steps)
            for k in (b.add(loop.i, row.group * step) for step in range(self.block.steps)):
                vectors = self._row_vectors(batch, k, column, columns)
                for i in range(rows):
                    offset, _ = self.a.address(b, (*batch, Ix(b.add(first, i)), Ix(k)))
                    for j, (y, (_, lanes)) in enumerate(zip(vectors, widths, strict=True), i * len(widths)):
                        if row.group == 1:
                            x = b.splat(b.load(self.a.memory, offset, None), lanes)
                        else:
                            x = b.pure(th.Repeat, b.load(self.a.memory, offset, row.group), times=lanes)
                        out[j] = self._step(out[j], x, y)
            loop.yield_(out)
        results = [b.pure(ew.Sub, v, bias[i % len(widths)]) for i, v in enumerate(loop.results)] if bias else \
            loop.results
        self._put(dict(zip(cells, self._added(cells, results), strict=True)))
        b.floor = floor

    def _added(self, cells: list[tuple[Ix, ...]], results: list[Value]) -> list[Value]:
        """The sums of a block and of what c held before."""
        b = self.b
        if self.add is False:
            return results

        def sums() -> list[Value]:
            return [b.pure(ew.Add, self.c.load(b, at), v) for at, v in zip(cells, results, strict=True)]
        if self.add is True:
            return sums()
        with b.branch(self.add) as branch:
            b.floor += 1
            branch.yield_(sums())
            b.floor -= 1
            branch.otherwise()
            branch.yield_(results)
        return branch.results

    def _fetch_cells(self, cells: list[tuple[Ix, ...]], rows: int) -> None:
        """Asks for what the sums are added to."""
        if self.block.fetches and self.add is not False:
            for at in cells[::len(cells) // rows]:
                self.b.hint(th.Prefetch, self.c.memory, self.b.index(self.c.address(self.b, at)[0]), near=True)

    def _fetch_rows(self, batch: tuple[Ix, ...], first: Index, rows: int, k: Index, depth: int) -> None:
        """Asks for the part of the next block's rows, which follow each other in memory, that k has come to."""
        b, size = self.b, self.a.dtype.storage.itemsize
        if not self.block.fetches or self.a.layout.size * size <= NEAR:
            return
        start, _ = self.a.address(b, (*batch, Ix(first), Ix(0)))
        for line in range(0, rows * depth * size, LINE):
            at = b.add(b.add(start, b.mul(k, rows)), line // size)
            b.hint(th.Prefetch, self.a.memory, b.index(at), near=True)

    def _put(self, vectors: Vectors) -> None:
        b = self.b
        if self.take is None or self.taken is None:
            for at, vector in vectors.items():
                self.c.store(b, at, vector)
            return
        with b.branch(self.taken) as branch:
            self.take(vectors)
            branch.otherwise()
            for at, vector in vectors.items():
                self.c.store(b, at, vector)
