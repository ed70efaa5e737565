"""Copies from tensors straight into shared memory by units that write it in order (AMD's `buffer_load … lds`): the
lanes of a warp fill neighbouring places, so that a swizzle is undone on the side of the tensor.

`count_waits` says how many such copies may be under way when a group has arrived: the hardware counts them, in order.

A copy of 16 bytes for each lane (gfx950) takes three instructions: the place, what lies between, and itself. Units
that copy 4 (gfx90a, gfx942) take twelve for as much, 48 cycles of a wave for each KiB, where going through registers
takes a load and a store, 8. What that buys is registers, and copies more than one iteration ahead, for which the 64
KiB of those processors hold no blocks where registers are short: one of 256 x 128 x 32 would spend 288 cycles of each
1024 of its products on its 6 KiB for each wave instead of 48. So pipelined loops go through registers there, and
`tile.copy_async` into memory that the user manages is by such copies: through registers it would wait where it stands.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

from tilelang.backends.simt.facts import Facts
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir.codec import blank_is_zero
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, Value
from tilelang.layouts import SharedLayout, Swizzle, shared

GROUPS = 8
"""How many groups back a wait may look; those further back count as arrived never."""
MOST = 63
"""The largest number of operations that `s_waitcnt` can leave under way."""


def copies_in_order(copy: Op, facts: Facts, bytes_each: int, threads: int, windows: set[Value]) -> bool:
    """Whether the unit can make a `copy_async` with accesses of `bytes_each` bytes: whole rounds of all threads, along
    rows of the tensor as of the buffer."""
    at = copy.buffer  # type: ignore[attr-defined]
    tensor, offsets, buffer = copy.operands[0], copy.operands[1:at], copy.operands[at]
    t, memory, axes = tensor.type, buffer.type, copy.attrs["axes"]
    assert isinstance(t, TensorType) and isinstance(memory, BufferType)
    size = t.dtype.storage.itemsize
    if not bytes_each or tensor not in windows or bytes_each % size or not blank_is_zero(t.dtype):
        return False
    each, lead = bytes_each // size, len(copy.operands) - at - 1
    shape, place = memory.shape[lead:], memory.layout or shared(memory.shape)
    inner = SharedLayout(place.dims[lead:])
    unit = next((i for i, u in enumerate(t.unit) if u), None)
    return inner.dims == shared(shape).dims and prod(shape) % (threads * each) == 0 and shape[-1] % each == 0 and \
        (place.swizzle is None or place.swizzle.vector >= each) and len(axes) == len(shape) and \
        unit is not None and unit == axes[-1] and t.align % bytes_each == 0 and \
        facts.divisor(offsets[unit]) % each == 0


@lru_cache(maxsize=1024)
def depth(swizzle: Swizzle) -> int:
    """How often what a swizzle reads has to be XORed with what it made until it is undone."""
    def reads(offset: int) -> int:
        return swizzle(offset) ^ offset
    left, count = {1 << i for i in range(swizzle.block.bit_length())}, 0
    while any(left):
        left, count = {reads(x) for x in left}, count + 1
    return count


def swizzled(b: ThreadBuilder, s: Swizzle, offset: Value, read: Value) -> Value:
    """The XOR of an offset with what the terms of a swizzle take from the bits of `read`: `s(offset)` for the same."""
    for term in s.terms:
        offset = b.pure(ew.Xor, offset, b.pure(ew.And, b.pure(ew.Shr, read, b.index(term.shift)), b.index(term.mask)))
    return offset


def undone(b: ThreadBuilder, place: SharedLayout, offset: Index) -> list[Index]:
    """The tile index of what lies at an offset of a row-major, swizzled buffer: in a number system in which a swizzle
    is I + N with N**depth = 0, its inverse is the sum of the powers of N."""
    s, row = place.swizzle, prod(place.shape[1:])
    constant = b.split(offset)[1]
    whole = constant - constant % (s.block if s is not None else row)
    rows, whole = (whole // row, whole) if whole % row == 0 else (0, 0)  # whole rows and blocks are added last
    offset = b.add(offset, -whole)
    if s is not None:
        at = linear = b.index(offset)
        for _ in range(depth(s) - 1):
            linear = swizzled(b, s, at, linear)
        offset = linear
    index: list[Index] = []
    for extent in reversed(place.shape[1:]):
        index.insert(0, b.mod(offset, extent))
        offset = b.div(offset, extent)
    return [b.add(offset, rows), *index]


def count_waits(fn: Function, target: Any = None) -> Function:
    """count_waits: says of each `wait` how many copies may be under way after it.

    requires: THREAD
    ensures: where copies are made in order, a `wait` for all but `pending` groups has `operations`: the fewest copies
    that any path starts in those groups
    example: `dma; dma; commit; dma; dma; commit; wait {pending=1}` gets `operations=2`
    """
    if any(op.name == "dma" for op in fn.walk()):
        _count(fn.body, (0,) * (GROUPS + 1))
    return fn


def _count(region: Region, state: tuple[int, ...]) -> tuple[int, ...]:
    """The copies of the open group and of those before it, latest first, after a region."""
    for op in region.ops:
        if op.name == "dma":
            state = (state[0] + 1, *state[1:])
        elif op.name == "commit":
            state = (0, *state[:-1])
        elif op.name == "wait":
            op.attrs["operations"] = min(sum(state[:op.attrs["pending"] + 1]), MOST)
        elif op.name in ("for", "while"):
            before: tuple[int, ...] | None = None
            while state != before:
                before, out = state, state
                for r in op.regions:
                    out = _count(r, out)
                state = _fewest(state, out)
        elif op.regions:
            outs: Sequence[tuple[int, ...]] = [_count(r, state) for r in op.regions]
            for out in outs:
                state = _fewest(state, out) if out is not outs[0] else out
    return state


def _fewest(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """What holds whichever of two paths was taken: for any number of latest groups no more than either started."""
    sums = [min(sum(a[:i + 1]), sum(b[:i + 1])) for i in range(len(a))]
    return tuple(s - (sums[i - 1] if i else 0) for i, s in enumerate(sums))
