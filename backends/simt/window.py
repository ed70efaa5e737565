"""Blocks of tensors as windows: accesses that the hardware drops where they lie outside (AMD's buffer loads, stores).

A window begins where the block does and ends with the last slice of the tensor along one axis, so that rows past the
edge need no comparison; other conditions choose an offset outside. Offsets from there have 32 bits, and order the
elements only where strides are positive and slices do not overlap: `reaches` says of a call whether that holds.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from tilelang.backends.simt.facts import Facts
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.ir import simt
from tilelang.ir.core import Function, TensorType, Value

LIMIT = (1 << 31) - (1 << 16)
"""Bytes from the start of a window that an access may begin at; what lies beyond is outside of every window."""


def windowed(fn: Function) -> set[Value]:
    """The tensors of a function that it only loads in blocks, or only stores in blocks: whatever orders accesses to
    one tensor need not order those through windows and others."""
    uses: dict[Value, set[str]] = {}
    for op in fn.walk():
        if op.operands and isinstance(op.operands[0].type, TensorType) and op.effects in ("read", "write"):
            uses.setdefault(op.operands[0], set()).add("load" if op.name == "copy_async" else op.name)
    return {v for v, names in uses.items() if names in ({"load"}, {"store"}) and not v.dtype.packed}


def open_window(b: ThreadBuilder, facts: Facts, memory: Value, offsets: Sequence[Value], starts: Sequence[Index],
                strides: Sequence[Index], axes: Sequence[int], shape: Sequence[int],
                exact: bool) -> tuple[Value, int | None]:
    """(the window of a block at `offsets`, the axis along which it ends where the tensor does). `starts` are the
    offsets as indices, `exact` whether what lies outside need not be anything but dropped or 0."""
    t = memory.type
    assert isinstance(t, TensorType)
    start: Index = 0
    for at, stride in zip(starts, strides, strict=True):
        start = b.add(start, b.mul(at, stride))
    # A block that begins before a row reaches into it as far beyond where the next one begins, and so past the end.
    natural = exact and any(t.unit) and all(facts.natural(offsets[a]) for a in axes)
    axis = next((a for a in axes if natural and not (a < len(t.unit) and t.unit[a])), None)
    extent: Index = LIMIT
    if axis is not None:
        extent = b.mul(b.sub(b.extent(memory, axis), starts[axis]), strides[axis])
    window = b.pure(simt.Window, memory, b.index(start), b.index(extent),
                    block=tuple(zip(axes, shape, strict=True)), axis=axis)
    return window, axis


class Window(NamedTuple):
    """Blocks of the tensor that is a function's parameter: extents by axis, the axis along which they end where the
    tensor does, its rank, and the bytes of an element."""

    parameter: int
    block: tuple[tuple[int, int], ...]
    axis: int | None
    rank: int
    size: int


def windows(fn: Function) -> list[Window]:
    """The windows of a THREAD function, each once."""
    return list(dict.fromkeys(
        Window(fn.params.index(memory), op.attrs["block"], op.attrs["axis"], memory.type.rank,
               memory.dtype.storage.itemsize)
        for op in fn.walk() if op.name == "window" for memory in op.operands[:1]))


def reaches(fn: Function, shapes: Sequence[Sequence[Any]], strides: Sequence[Sequence[Any]]) -> Any:
    """Whether every window of a THREAD function holds its blocks in tensors of these shapes and strides (in
    elements): a bool of ints, or (`start.py`) the code that finds out."""
    good: Any = True
    for index, block, axis, _, size in windows(fn):
        extents, steps = shapes[index], strides[index]
        for a, n in block:
            good &= (0 <= steps[a]) & ((steps[a] <= LIMIT) | (n == 1))  # so that no product below is large
        good &= sum((n - 1) * steps[a] for a, n in block) * size <= LIMIT
        if axis is not None:
            inside = sum((n - (n - extents[a]) * (extents[a] < n) - 1) * steps[a] for a, n in block if a != axis)
            empty = reduce(or_, [n == 0 for n in extents])
            good &= empty | (steps[axis] > 0) & (inside < steps[axis])
    return good
