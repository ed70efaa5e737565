"""Tiles in registers at THREAD: one vector per thread, and where in the tile each of its lanes lies."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.thread.builder import I32, Index, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir.core import Function, TileType, Value
from tilelang.layouts import RegisterLayout, SharedLayout, replicated


@lru_cache(maxsize=1024)
def local_offsets(layout: RegisterLayout) -> Any:
    """int array [local_size, rank]: what the local index adds to the tile index."""
    return layout.table()[0] - layout.table()[0, 0] if layout.rank else np.zeros((layout.local_size, 0), int)


@dataclass(frozen=True)
class Digits:
    """Digits of the thread number: for each, its stride in the thread index, its extent, and what it adds to the
    tile index: (dimension, step), or None for a copy."""

    stride: int
    extent: int
    adds: tuple[int, int] | None


@lru_cache(maxsize=1024)
def thread_digits(layout: RegisterLayout) -> tuple[Digits, ...]:
    """The most significant first: those of `layout.canonical`, for equal layouts share them."""
    layout = layout.canonical
    place: dict[int, tuple[int, int]] = {}
    mode = 0
    for d, dim in enumerate(layout.modes):
        for i in range(len(dim)):
            place[mode] = d, prod(dim[i + 1:])
            mode += 1
    out: list[Digits] = []
    stride = 1
    for m in reversed(layout.spatial):
        extent = -m if m < 0 else layout.extents[m]
        out.insert(0, Digits(stride, extent, place.get(m)))
        stride *= extent
    return tuple(out)


def repeated(layout: RegisterLayout, threads: int) -> RegisterLayout:
    """`layout` among more threads: they hold copies of it."""
    return replicated(threads // layout.num_threads, layout.rank) * layout


def vector_width(layout: RegisterLayout, place: SharedLayout, size: int) -> tuple[int, int]:
    """(dimension, registers) of the widest access that a register layout makes to a shared one."""
    best = (0, 1)
    for d in range(layout.rank):
        held, run = layout.contiguous(d), place.run(d)
        width = min(held, 16 // size)
        while width > 1 and (width & (width - 1) or run % width or held % width):
            width -= 1
        if width > best[1]:
            best = (d, width)
    return best


def is_tile(v: Value) -> bool:
    return isinstance(v.type, TileType) and bool(v.type.shape)


def thread_count(fn: Function, target: SimtTarget) -> int:
    """Threads of a program: those of its layouts; one warp where it has no tiles."""
    for op in fn.walk():
        for v in op.results:
            if is_tile(v) and isinstance(v.tile.layout, RegisterLayout):
                return v.tile.layout.num_threads
    return target.warp


class Threads:
    """Index arithmetic on the thread number, shared by all tiles of a function."""

    def __init__(self, b: ThreadBuilder, thread: Value, count: int) -> None:
        self.b, self.thread, self.count = b, thread, count

    def digit(self, d: Digits) -> Value:
        """An i32 in [0, extent)."""
        b, x = self.b, self.thread
        if d.extent & (d.extent - 1) or d.stride & (d.stride - 1):
            x = b.pure(ew.FloorDiv, x, b.const(d.stride, I32)) if d.stride > 1 else x
            return b.pure(ew.Mod, x, b.const(d.extent, I32)) if d.stride * d.extent < self.count else x
        if d.stride > 1:
            x = b.pure(ew.Shr, x, b.const(d.stride.bit_length() - 1, I32))
        if d.stride * d.extent < self.count:
            x = b.pure(ew.And, x, b.const(d.extent - 1, I32))
        return x

    def part(self, layout: RegisterLayout, dim: int) -> Index:
        """What the thread number adds to the tile index along `dim`, as an i64 index."""
        x = self.part32(layout, dim)
        return x if isinstance(x, int) else self.b.to_index(x)

    def part32(self, layout: RegisterLayout, dim: int) -> Value | int:
        """The same as i32."""
        b = self.b
        total: Value | None = None
        for d in thread_digits(layout):
            if d.adds is not None and d.adds[0] == dim and d.extent > 1:
                x = self.digit(d)
                if d.adds[1] > 1:
                    x = b.pure(ew.Mul, x, b.const(d.adds[1], I32))
                total = x if total is None else b.pure(ew.Add, total, x)
        return 0 if total is None else total

    def index(self, layout: RegisterLayout, dim: int) -> Value:
        """The tile index along `dim` of every register: an i32 vector."""
        b = self.b
        steps = b.pure(sh.ConstTile, values=tuple(int(x) for x in local_offsets(layout)[:, dim]), dtype=I32)
        part = self.part(layout, dim)
        if isinstance(part, int):
            return steps
        return b.pure(ew.Add, b.splat(b.pure(ew.Cast, part, dtype=I32), layout.local_size), steps)

    def leader(self, layout: RegisterLayout, last: bool = False) -> Value | None:
        """Whether this thread is the first (or last) of those that hold copies of its elements; None where it is
        alone."""
        b = self.b
        conditions = [b.pure(ew.Eq, self.digit(d), b.const(d.extent - 1 if last else 0, I32))
                      for d in thread_digits(layout) if d.adds is None and d.extent > 1]
        return b.all_of(conditions) if conditions else None

    def inside(self, layout: RegisterLayout, shape: Sequence[int]) -> Value | None:
        """Which registers hold elements of the tile; None where all do (a layout may be larger than its tile)."""
        b = self.b
        masks = [b.pure(ew.Lt, self.index(layout, d), b.full(extent, I32, layout.local_size))
                 for d, extent in enumerate(shape) if layout.shape[d] > extent]
        return b.all_of(masks) if masks else None
