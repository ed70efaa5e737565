"""Reading operands of matrix instructions by loads that transpose on the way (`ds_read_b64_tr_b16`, `…_b8`): sixteen
lanes name four rows of sixteen elements of 16 bits, or eight of 8 bits, 8 bytes of them each, and get a column each.

Which lane gets what, with e elements in 8 bytes: lane l of sixteen gets, as its element n, element l % e of what lane
l / e + 16 / e n named (16 bits: ROCm's instruction tests, rocm-systems pull request 10175; 8 bits: Triton's lowering,
pull request 8525). The forms for 4 and 6 bits are not used: such elements take a byte in local memory.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tilelang.backends.simt.access import address, block_of, join
from tilelang.backends.simt.registers import Threads, local_offsets
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.ir import simt
from tilelang.ir.core import Value
from tilelang.layouts import LayoutError, RegisterLayout, SharedLayout, local, spatial

BYTES = 8
"""What a lane names and gets."""


@lru_cache(maxsize=1024)
def reader(layout: RegisterLayout, size: int) -> RegisterLayout | None:
    """Who names which elements where a tile of `size` bytes an element is read into `layout`; None where the
    instruction does not apply: division by what it gives fails."""
    if size > 2 or layout.rank != 2:
        return None
    each = BYTES // size
    try:
        return layout / (spatial(1, 16) * local(each, 1)) * (spatial(each, 16 // each) * local(1, each))
    except LayoutError:
        return None


def load_transposed(b: ThreadBuilder, threads: Threads, memory: Value, place: SharedLayout, layout: RegisterLayout,
                    lead: Sequence[Index], phase: int) -> Value | None:
    """The tile at index `lead` of the first dimensions of a buffer, in `layout`; None where the instruction cannot:
    elements that a lane names must be neighbours in memory, at a multiple of their size."""
    tile_place = place.inner(len(lead))
    size = memory.dtype.storage.itemsize
    named = reader(layout, size) if tile_place.shape == layout.shape else None
    if named is None or not _together(tile_place, BYTES // size):
        return None
    block = block_of(b, memory, place, lead)
    offsets, parts = local_offsets(named), []
    for first in range(0, named.local_size, BYTES // size):
        index = [b.add(threads.part(named, d), int(offsets[first][d])) for d in range(named.rank)]
        where = b.index(address(b, tile_place, index))
        parts.append(b.effect(simt.LdTransposed, block, where, phase=phase).result)
    return join(b, parts)


def _together(place: SharedLayout, each: int) -> bool:
    """Whether runs of `each` along the last dimension are aligned neighbours."""
    extent, step = place.dims[-1][-1] if place.dims[-1] else (1, 1)
    others = [s for dim in place.dims[:-1] for _, s in dim] + [s for _, s in place.dims[-1][:-1]]
    return step == 1 and extent % each == 0 and not any(s % each for s in others) and \
        (place.swizzle is None or place.swizzle.vector >= each)
