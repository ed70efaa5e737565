"""Tiles from and to shared memory by `ldmatrix` and `stmatrix`, eight rows of 16 bytes at a time."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tilelang.backends.simt.access import address, join, lanes_of, slice_start
from tilelang.backends.simt.registers import Threads, local_offsets
from tilelang.backends.thread.builder import I32, Index, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import simt
from tilelang.ir.core import BufferType, Value
from tilelang.ir.dtypes import DType
from tilelang.layouts import LayoutError, RegisterLayout, SharedLayout, local, replicated, shared, spatial


@lru_cache(maxsize=1024)
def fragments(layout: RegisterLayout, place: SharedLayout, size: int) -> tuple[RegisterLayout, bool] | None:
    """(what remains of `layout` when the instruction's atom is divided out, whether it transposes); None where the
    instruction does not apply: the division fails, or rows of the atom are not 16 aligned bytes in memory."""
    rank = layout.rank
    if size > 2 or rank < 2 or not place.dims[-1] or place.dims[-1][-1][1] != 1:
        return None
    width = 16 // size
    inner = place.dims[-1][-1][0]
    if inner % width or (place.swizzle is not None and place.swizzle.vector < width):
        return None
    if any(s % width for dim in place.dims[:-1] for _, s in dim):
        return None
    plain = spatial(8, 4) * local(1, width // 4)
    atoms = [(plain, False)] + ([(plain.permute((1, 0)), True)] if size == 2 else [])
    for atom, trans in atoms:
        try:
            return layout / atom, trans
        except LayoutError:
            continue
    return None


def matrix_rows(size: int) -> RegisterLayout:
    """How `ldmatrix` and `stmatrix` access memory: eight rows of 16 bytes at a time."""
    return spatial(8, 1) * local(1, 16 // size)


def as_rows(layout: RegisterLayout, shape: tuple[int, ...], dt: DType) -> RegisterLayout:
    """How threads that hold a tile as `layout` access its staging buffer by these instructions; by plain accesses, as
    `layout`, where they do not apply."""
    size = dt.storage.itemsize
    applies = layout.shape == shape and len(shape) == 2 and dt.kind != "bool" and \
        fragments(layout, shared(shape), size) is not None
    return matrix_rows(size) if applies else layout


@dataclass(frozen=True)
class _Access:
    """`count` matrices: registers from `first` on; the lane's own row is at `where` in `block`."""

    first: int
    count: int
    block: Value
    where: Value


def _accesses(b: ThreadBuilder, threads: Threads, memory: Value, place: SharedLayout, layout: RegisterLayout,
              lead: Sequence[Index]) -> tuple[list[_Access], bool] | None:
    """The accesses to the tile at index `lead` of the first dimensions of a buffer, and whether they transpose; None
    where the instructions do not apply."""
    size = memory.dtype.storage.itemsize
    tile_place = place.inner(len(lead))
    if tile_place.shape != layout.shape or memory.dtype.kind == "bool":
        return None
    found = fragments(layout, tile_place, size)
    if found is None:
        return None
    rest, trans = found
    rows, columns = (8, 8) if trans else (8, 16 // size)
    warps = rest * replicated(32, rest.rank)
    offsets = local_offsets(rest)
    count = next(n for n in (4, 2, 1) if rest.local_size % n == 0 and _regular(offsets, n))
    lane = b.pure(ew.And, threads.thread, b.const(31, I32))
    row = b.pure(ew.And, lane, b.const(7, I32))

    def bit(n: int) -> Index:
        """Bit n of the number of the matrix whose row this lane addresses."""
        return b.to_index(b.pure(ew.And, b.pure(ew.Shr, lane, b.const(3 + n, I32)), b.const(1, I32)))
    start = slice_start(b, place, lead)
    scale = [1] * (layout.rank - 2) + [rows, columns]
    out = []
    for first in range(0, rest.local_size, count):
        index: list[Index] = []
        for d in range(layout.rank):
            at = b.mul(threads.part(warps, d), scale[d])
            for n in range(count.bit_length() - 1):
                step = int(offsets[first + (1 << n)][d] - offsets[first][d]) * scale[d]
                at = b.add(at, b.mul(bit(n), step))
            if d == layout.rank - 2:
                at = b.add(at, b.to_index(row))
            index.append(b.add(at, int(offsets[first][d]) * scale[d]))
        own, constant = b.split(address(b, tile_place, index))
        row_of = b.pure(simt.Block, memory, b.index(own), kept=True)
        out.append(_Access(first * 4 // size, count, row_of, b.index(b.add(start, constant))))
    return out, trans


def _own(memory: Value) -> bool:
    """Whether it is the program's own: matrices are in no other's."""
    return isinstance(memory.type, BufferType) and memory.type.space == "shared"


def load_matrices(b: ThreadBuilder, threads: Threads, memory: Value, place: SharedLayout, layout: RegisterLayout,
                  lead: Sequence[Index], phase: int) -> Value | None:
    """The tile at index `lead` of the first dimensions of a buffer, in `layout`; None where `ldmatrix` cannot."""
    found = _accesses(b, threads, memory, place, layout, lead)
    if found is None or not _own(memory):
        return None
    accesses, trans = found
    return join(b, [b.effect(simt.LdMatrix, a.block, a.where, count=a.count, trans=trans, phase=phase).result
                    for a in accesses])


def store_matrices(b: ThreadBuilder, threads: Threads, value: Value, memory: Value, place: SharedLayout,
                   layout: RegisterLayout, phase: int) -> bool:
    """Writes a tile in `layout` to a buffer; False, and nothing is done, where `stmatrix` cannot: where threads hold
    copies one of them would have to be chosen."""
    found = _accesses(b, threads, memory, place, layout, []) if threads.leader(layout) is None else None
    if found is None or not _own(memory):
        return False
    accesses, trans = found
    size = memory.dtype.storage.itemsize
    for a in accesses:
        b.effect(simt.StMatrix, a.block, a.where, lanes_of(b, value, a.first, a.count * 4 // size), count=a.count,
                 trans=trans, phase=phase)
    return True


def _regular(offsets: Sequence[Sequence[int]], count: int) -> bool:
    """Whether in every run of `count` matrices the place is a sum over the bits of the matrix's number, the same in
    all runs."""
    for first in range(0, len(offsets), count):
        for n in range(count):
            for d in range(len(offsets[0])):
                steps = [offsets[first + (1 << k)][d] - offsets[first][d] for k in range(count.bit_length() - 1)]
                if offsets[first + n][d] - offsets[first][d] != sum(s for k, s in enumerate(steps) if n >> k & 1):
                    return False
    return True
