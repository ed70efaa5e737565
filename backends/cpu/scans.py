"""Scans of tiles in memory: sequential along the axis, vectors along the last dimension where that is another one.
Short rows of 32-bit integers are scanned in registers, several at once."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

from tilelang.backends.cpu.buffers import Buffer, Ix
from tilelang.backends.cpu.machine import LINE
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.backends.thread.combine import COMBINE, inline_region
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir import thread as th
from tilelang.ir.core import Op, Value
from tilelang.ir.dtypes import dtype


def scan(b: ThreadBuilder, op: Op, sources: Sequence[Buffer], targets: Mapping[int, Buffer],
         scalars: Mapping[Value, Value], vector_bytes: int) -> None:
    """Fills `targets`, buffers by the number of the result: those that nothing uses have none, so that LLVM drops what
    only they need."""
    shape, axis = sources[0].shape, op.attrs["axis"]
    if _fills_registers(op, sources[0], vector_bytes):
        if targets:
            _in_registers(b, op, sources[0], targets[0], vector_bytes // 4)
        return
    # Steps lie far apart: of each line of the caches all is read at once.
    lanes = min(shape[-1], max(vector_bytes, LINE) // sources[0].dtype.storage.itemsize)
    _each_line(b, shape, [d for d in range(len(shape)) if d != axis], lanes, {},
               partial(_line, b, op, sources, targets, scalars))


def _each_line(b: ThreadBuilder, shape: Sequence[int], dims: Sequence[int], lanes: int, at: dict[int, Ix],
               line: Callable[[dict[int, Ix]], None]) -> None:
    """Loops over `dims`, by `lanes` over the last dimension of the tile, and what `line` emits at each position."""
    if not dims:
        line(at)
        return
    d, *inner = dims
    if d < len(shape) - 1:
        with b.loop(0, shape[d]) as loop:
            _each_line(b, shape, inner, lanes, {**at, d: Ix(loop.i)}, line)
        return
    full = shape[d] // lanes * lanes
    with b.loop(0, full, lanes) as loop:
        line({**at, d: Ix(loop.i, lanes)})
    if shape[d] > full:
        line({**at, d: Ix(full, shape[d] - full)})


def _line(b: ThreadBuilder, op: Op, sources: Sequence[Buffer], targets: Mapping[int, Buffer],
          scalars: Mapping[Value, Value], at: Mapping[int, Ix]) -> None:
    """The scan along the axis at one position of the other dimensions."""
    axis, rank = op.attrs["axis"], len(sources[0].shape)
    n = sources[0].shape[axis]

    def where(i: Index) -> tuple[Ix, ...]:
        place = b.sub(b.index(n - 1), b.index(i)) if op.attrs["reverse"] else i
        return tuple(Ix(place) if d == axis else at[d] for d in range(rank))
    first = [s.load(b, where(0)) for s in sources]
    for i, t in targets.items():
        t.store(b, where(0), first[i])
    floor = b.floor
    with b.loop(1, n, 1, first) as loop:
        b.floor = len(b.levels) - 1
        out = _combined(b, op, loop.carried, [s.load(b, where(loop.i)) for s in sources], scalars)
        for i, t in targets.items():
            t.store(b, where(loop.i), out[i])
        loop.yield_(out)
    b.floor = floor


def _combined(b: ThreadBuilder, op: Op, acc: Sequence[Value], x: Sequence[Value],
              scalars: Mapping[Value, Value]) -> list[Value]:
    if op.attrs["kind"] != "custom":
        return [b.pure(COMBINE[op.attrs["kind"]], acc[0], x[0])]
    lanes = x[0].shape[0] if x[0].shape else None
    return [b.splat(v, lanes) for v in inline_region(b, op.regions[0], [*acc, *x], scalars)]


def _fills_registers(op: Op, source: Buffer, vector_bytes: int) -> bool:
    """Whether the scan is along rows of 32-bit integers that fill registers of AVX-512."""
    n, lanes = source.shape[-1], vector_bytes // 4
    return op.attrs["axis"] == len(source.shape) - 1 and op.attrs["kind"] in COMBINE and \
        source.dtype.name in ("i32", "u32") and lanes == 16 and 1 < n <= lanes and lanes % n == 0 and \
        prod(source.shape) % lanes == 0 and source.row_major


def _in_registers(b: ThreadBuilder, op: Op, source: Buffer, target: Buffer, lanes: int) -> None:
    """Several rows at once, in log2 n steps: each adds what is so many places before to what is not."""
    n, u32, kind = source.shape[-1], dtype("u32"), COMBINE[op.attrs["kind"]]
    with b.loop(0, prod(source.shape), lanes) as loop:
        x, step = b.load(source.memory, loop.i, lanes), 1
        while step < n:
            by = -step if not op.attrs["reverse"] else step
            inside = [0 <= i % n + by < n for i in range(lanes)]
            places = tuple(i + by if held else i for i, held in enumerate(inside))
            moved = b.pure(th.LaneLookup, x, b.pure(sh.ConstTile, values=places, dtype=u32))
            mask = b.pure(sh.ConstTile, values=tuple(map(int, inside)), dtype=ew.I1)
            x, step = b.pure(ew.Where, mask, b.pure(kind, moved, x), x), 2 * step
        b.store(target.memory, loop.i, x)
