"""The micro-kernel of `dot`: a register block of accumulators that runs over k (Goto and van de Geijn, 2008)."""
from __future__ import annotations

from collections.abc import Iterator

from tilelang.backends.cpu.buffers import Buffer, Ix
from tilelang.backends.cpu.dots import Blocking, DotRow
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import thread as th
from tilelang.ir.core import Value
from tilelang.ir.dtypes import dtype


def emit_dot(b: ThreadBuilder, row: DotRow, block: Blocking, a: Buffer, p: Buffer, c: Buffer, add: bool | Value,
             depth: Index) -> None:
    """c = a @ p (+ c where `add`, which may be an i1 known only at run time) over the first `depth` k, for packed
    a [*batch, M, K] and p [*batch, K, N]."""
    *batch, m, _ = a.shape
    n = p.shape[-1]

    def over(dims: list[int], index: tuple[Ix, ...]) -> None:
        if dims:
            with b.loop(0, dims[0]) as loop:
                over(dims[1:], (*index, Ix(loop.i)))
            return
        full = n // block.columns
        if full:
            with b.loop(0, full * block.columns, block.columns) as panel:
                _panel(b, row, block, a, p, c, add, depth, index, panel.i, block.columns, m)
        if n % block.columns:
            _panel(b, row, block, a, p, c, add, depth, index, full * block.columns, n % block.columns, m)
    over(batch, ())


def _widths(columns: int, lanes: int) -> list[tuple[int, int]]:
    """(start, lanes) of the vectors that cover a panel."""
    return [(s, min(lanes, columns - s)) for s in range(0, columns, lanes)]


def _panel(b: ThreadBuilder, row: DotRow, block: Blocking, a: Buffer, p: Buffer, c: Buffer, add: bool | Value,
           depth: Index, batch: tuple[Ix, ...], column: Index, columns: int, m: int) -> None:
    bias = _bias(b, row, block, p, batch, column, columns, depth) if row.bias else {}
    full = m // block.rows
    if full:
        with b.loop(0, full * block.rows, block.rows) as rows:
            _block(b, row, block, a, p, c, add, depth, batch, rows.i, block.rows, column, columns, bias)
    if m % block.rows:
        _block(b, row, block, a, p, c, add, depth, batch, full * block.rows, m % block.rows, column, columns, bias)


def _step(b: ThreadBuilder, row: DotRow, acc: Value, x: Value, y: Value) -> Value:
    """acc + x * y for one k (or one group of k)."""
    if row.group > 1:
        return b.pure(th.DotGroups, acc, x, y)
    if dtype(row.acc).kind == "float":
        return b.pure(ew.Fma, x, y, acc)
    return b.pure(ew.Add, acc, b.pure(ew.Mul, x, y))


def _row_vectors(b: ThreadBuilder, row: DotRow, block: Blocking, p: Buffer, batch: tuple[Ix, ...], k: Index,
                 column: Index, columns: int) -> list[Value]:
    """The vectors of one row (group of rows) of a panel."""
    out = []
    for start, lanes in _widths(columns, block.lanes):
        offset, _ = p.address(b, (*batch, Ix(k), Ix(b.add(column, start))))
        out.append(b.load(p.memory, offset, lanes * row.group))
    return out


def _bias(b: ThreadBuilder, row: DotRow, block: Blocking, p: Buffer, batch: tuple[Ix, ...], column: Index,
          columns: int, depth: Index) -> dict[int, Value]:
    """bias * the column sums of a panel: what the biased operand adds too much."""
    acc_t = dtype(row.acc)
    widths = _widths(columns, block.lanes)
    inits = [b.full(0, acc_t, lanes) for _, lanes in widths]
    with b.loop(0, depth, row.group, inits) as k:
        vectors = _row_vectors(b, row, block, p, batch, k.i, column, columns)
        k.yield_([_step(b, row, s, b.full(row.bias, dtype(row.a), lanes * row.group), v)
                  for s, v, (_, lanes) in zip(k.carried, vectors, widths, strict=True)])
    return dict(enumerate(k.results))


def _block(b: ThreadBuilder, row: DotRow, block: Blocking, a: Buffer, p: Buffer, c: Buffer, add: bool | Value,
           depth: Index, batch: tuple[Ix, ...], first: Index, rows: int, column: Index, columns: int,
           bias: dict[int, Value]) -> None:
    widths = _widths(columns, block.lanes)
    acc_t = dtype(row.acc)

    def cells() -> Iterator[tuple[int, int, tuple[Ix, ...]]]:
        for i in range(rows):
            for j, (start, lanes) in enumerate(widths):
                yield i, j, (*batch, Ix(b.add(first, i)), Ix(b.add(column, start), lanes))
    b.epoch += 1  # accumulators change between blocks: reads are not shared
    floor, b.floor = b.floor, len(b.levels) - 1
    inits = [b.full(0, acc_t, widths[j][1]) if add is False else c.load(b, at, None if add is True else add)
             for _, j, at in cells()]
    with b.loop(0, depth, row.group, inits) as k:
        vectors = _row_vectors(b, row, block, p, batch, k.i, column, columns)
        out = []
        for i in range(rows):
            offset, _ = a.address(b, (*batch, Ix(b.add(first, i)), Ix(k.i)))
            for j, (_, lanes) in enumerate(widths):
                if row.group == 1:
                    x = b.splat(b.load(a.memory, offset, None), lanes)
                else:
                    x = b.pure(th.Repeat, b.load(a.memory, offset, row.group), times=lanes)
                out.append(_step(b, row, k.carried[i * len(widths) + j], x, vectors[j]))
        k.yield_(out)
    for (_, j, at), value in zip(list(cells()), k.results, strict=True):
        c.store(b, at, b.pure(ew.Sub, value, bias[j]) if bias else value)
    b.floor = floor
