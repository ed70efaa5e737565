"""Copies of blocks by the tensor memory accelerator (NVIDIA's TMA): which blocks it can copy, in how many boxes, and
the code of one thread that starts them.

A box of a tensor goes to memory element after element, the dimension of neighbours first, with 1 to 5 dimensions; rows
of 128, 64 or 32 bytes may have their pieces of 16 bytes permuted by the bits of the address above its lowest 7 (PTX
ISA 8.7, section 5.5). A block is as many boxes as its shared layout needs.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from tilelang.backends.clike.rendered import tensor_maps
from tilelang.backends.simt.access import slice_start
from tilelang.backends.thread.builder import I32, Index, ThreadBuilder
from tilelang.ir import bulk
from tilelang.ir import elementwise as ew
from tilelang.ir.core import BufferType, Function, TensorType, Value
from tilelang.layouts import SharedLayout

PIECE = 16
"""Bytes that stay together, and that addresses and strides of tensors are multiples of."""
EXTENT = 256
"""The largest extent of a box."""
RANK = 5
MAX_STRIDE = 1 << 40
"""Bytes that every stride of a tensor is below."""
SHARED_ALIGN = 128
"""Bytes that the place of a box without a permutation is a multiple of; that of others is one of eight rows."""
ARRIVAL_INSTRUCTIONS = 2
"""What a warp runs in an iteration to give back a block: an arrival after the lanes have met."""
COPY_INSTRUCTIONS = 3
"""What a warp runs for a copy of 16 bytes a lane: the copy, its address and its mask."""


@dataclass(frozen=True)
class Boxes:
    """The boxes that make up a block: the block's dimensions in the order of their neighbours, those beyond with one
    element each; their extents in one box; the bytes of a permuted row, 0 where none is; and for each box its first
    index in the block and its place in the layout."""

    order: tuple[int, ...]
    extents: tuple[int, ...]
    swizzle: int
    starts: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def align(self) -> int:
        """Bytes that the place of a box is a multiple of."""
        return 8 * self.swizzle or SHARED_ALIGN


def boxes(place: SharedLayout, size: int) -> Boxes | str:
    """The boxes of a block of elements of `size` bytes in such a layout, or why there are none."""
    digits = [list(d) for d in place.dims]
    order, extents, run = list[int](), list[int](), 1
    while (found := next((d for d, left in enumerate(digits) if left and d not in order
                          and left[-1][1] == run and run * left[-1][0] > run), None)) is not None:
        extent = digits[found].pop()[0]
        order.append(found)
        extents.append(extent)
        run *= extent
    if not order:
        return "its elements have no neighbours in shared memory"
    row, swizzle, inner = extents[0] * size, 0, run // extents[-1]
    if extents[-1] > EXTENT and len(order) > 1:  # the outermost dimension may be cut where another box may begin
        apart = 8 * row if place.swizzle is not None else SHARED_ALIGN
        part = next((n for n in range(EXTENT, 0, -1) if extents[-1] % n == 0 and n * inner * size % apart == 0),
                    extents[-1])
        digits[order[-1]].append((extents[-1] // part, part * inner))
        extents[-1] = part
    if max(extents) > EXTENT or row % PIECE:
        return f"rows of {extents[0]} elements are no multiples of {PIECE} bytes of at most {EXTENT} elements"
    if (s := place.swizzle) is not None:
        swizzle = PIECE << s.bits
        if s.more is not None or s.shift != 3 or s.vector * size != PIECE or s.bits > 3 or row != swizzle:
            return "no copy of a block permutes shared memory as it is to lie"
    order += [d for d in range(place.rank) if d not in order]
    extents += [1] * (place.rank - len(extents))
    starts = []
    for choice in product(*(product(*(range(e) for e, _ in left)) for left in digits)):
        index, at = [], 0
        for d, picked in enumerate(choice):
            inner, total = extents[order.index(d)], 0
            for (e, stride), i in zip(digits[d], picked, strict=True):
                total = total * e + i
                at += i * stride
            index.append(total * inner)
        starts.append((tuple(index), at))
    out = Boxes(tuple(order), tuple(extents), swizzle, tuple(starts))
    if any(at * size % out.align for _, at in out.starts):
        return "its boxes begin at other places than they may"
    return out


@dataclass(frozen=True)
class Parts:
    """A block's boxes as equal parts: the boxes of the first, and how far the next part is in the block's indices and
    in its layout."""

    boxes: Boxes
    index: tuple[int, ...]
    place: int


def parts(found: Boxes, count: int, size: int) -> Parts | None:
    """Boxes of elements of `size` bytes as `count` parts, each of as many boxes or else of a part of every box; None
    where they do not divide."""
    starts, each = found.starts, len(found.starts) // count
    if each * count == len(starts):
        index = tuple(b - a for a, b in zip(starts[0][0], starts[each][0], strict=True))
        place = starts[each][1] - starts[0][1]
        if all(starts[i] == (tuple(x + i // each * d for x, d in zip(starts[i % each][0], index, strict=True)),
                             starts[i % each][1] + i // each * place) for i in range(len(starts))):
            return Parts(replace(found, starts=starts[:each]), index, place)
    last = max((i for i, n in enumerate(found.extents) if n > 1), default=0)
    extent, rest = divmod(found.extents[last], count)
    place = extent * prod(found.extents[:last])
    if not last or rest or place * size % found.align:
        return None
    index = tuple(extent if d == found.order[last] else 0 for d in range(len(found.order)))
    return Parts(replace(found, extents=(*found.extents[:last], extent, *found.extents[last + 1:])), index, place)


def objection(t: TensorType, offsets: Sequence[Value], axes: Sequence[int], buffer: BufferType) -> str:
    """Why blocks of a tensor cannot be copied so to a buffer with a layout; nothing where they can."""
    place = buffer.layout
    assert place is not None
    if place.shape != buffer.shape:
        return "its shared memory holds more than the block"
    if t.dtype.packed or t.align % PIECE:
        return f"the address, strides and rows of the tensor are not known to be multiples of {PIECE} bytes"
    if t.rank > RANK:
        return f"the tensor has more than {RANK} dimensions"
    if any(v.dtype.bits > 32 or v.dtype.name == "u32" for v in offsets):
        return "its offsets are not i32"
    found = boxes(place, t.dtype.storage.itemsize)
    if isinstance(found, str):
        return found
    unit = axes[found.order[0]]
    if unit >= len(t.unit) or not t.unit[unit]:
        return "neighbours in shared memory are none in the tensor"
    return ""


def worth(block_bytes: int, count: int, groups: int, warps: int, lanes: int) -> bool:
    """Whether `count` boxes, which are expected and waited for in `groups`, are fewer instructions of warps than
    copies of 16 bytes for each of `lanes` lanes."""
    return count + groups + (groups + ARRIVAL_INSTRUCTIONS) * warps < \
        COPY_INSTRUCTIONS * -(-block_bytes // (PIECE * lanes))


def load(b: ThreadBuilder, op: bulk.CopyBulk, of: Callable[[Value], Value], phase: int) -> None:
    """The code of the thread that starts a `copy_bulk`, or its part of a `copy_shared`."""
    at = op.buffer
    memory, offsets, buffer = op.operands[0], op.operands[1:at], of(op.operands[at])
    barriers, number, *shared = map(of, op.operands[len(op.operands) - op.after:])
    lead, part = [b.to_index(of(v)) for v in op.index], (op.attrs["parts"], shared[0]) if shared else None
    for place, coordinates, attrs in _each(b, memory, offsets, op.attrs["axes"], buffer, lead, of, part):
        b.effect(bulk.TensorLoad, buffer, place, barriers, number, memory, *coordinates, *shared[1:], **attrs,
                 multicast=bool(shared), phase=phase)


def store(b: ThreadBuilder, op: bulk.StoreBulk, of: Callable[[Value], Value], phase: int) -> None:
    """The code of the thread that starts a `store_bulk`."""
    memory, *offsets, staged = op.operands
    buffer = of(staged)
    for place, coordinates, attrs in _each(b, memory, offsets, op.attrs["axes"], buffer, [], of):
        b.effect(bulk.TensorStore, buffer, place, memory, *coordinates, **attrs, add=op.attrs["add"], phase=phase)


def _each(b: ThreadBuilder, memory: Value, offsets: Sequence[Value], axes: Sequence[int], buffer: Value,
          lead: Sequence[Index], of: Callable[[Value], Value],
          part: tuple[int, Value] | None = None) -> Iterator[tuple[Value, list[Value], dict[str, Any]]]:
    """For each box of the block of a buffer at index `lead` of its first dimensions, or of a `part` of so many: its
    place in the buffer, its coordinates in the tensor, and what its map says."""
    t = buffer.type
    assert isinstance(t, BufferType) and isinstance(memory.type, TensorType) and t.layout is not None
    start = slice_start(b, t.layout, lead)
    found = boxes(t.layout.inner(len(lead)), t.dtype.storage.itemsize)
    assert isinstance(found, Boxes), found
    steps = dict[int, Value]()
    if part is not None:
        divided = parts(found, part[0], t.dtype.storage.itemsize)
        assert divided is not None
        found, start = divided.boxes, b.add(start, b.mul(b.to_index(part[1]), divided.place))
        steps = {axes[d]: b.pure(ew.Mul, part[1], b.const(n, I32)) for d, n in enumerate(divided.index) if n}
    order = [axes[d] for d in found.order]
    order += [a for a in range(memory.type.rank) if a not in order]
    extents = (*found.extents, *[1] * (len(order) - len(found.extents)))
    for index, place in found.starts:
        coordinates = []
        for a in order:
            first = of(offsets[a])
            first = first if first.dtype is I32 else b.pure(ew.Cast, first, dtype=I32)
            first = b.pure(ew.Add, first, steps[a]) if a in steps else first
            step = index[axes.index(a)] if a in axes else 0
            coordinates.append(b.pure(ew.Add, first, b.const(step, I32)) if step else first)
        yield b.index(b.add(start, place)), coordinates, {"order": tuple(order), "boxes": extents,
                                                          "swizzle": found.swizzle}


def encodable(fn: Function, shapes: Sequence[Sequence[Any]], strides: Sequence[Sequence[Any]]) -> Any:
    """Whether the tensors that a THREAD function copies boxes of, or to, have shapes and strides (elements) that a map
    can say: a bool, or code, as of `window.reaches`."""
    good: Any = True
    for i in {m.index: None for m in tensor_maps(fn)}:
        largest = MAX_STRIDE // fn.params[i].dtype.storage.itemsize
        for n, stride in zip(shapes[i], strides[i], strict=True):
            good &= (n > 0) & ((n == 1) | (0 < stride) & (stride < largest))
    return good
