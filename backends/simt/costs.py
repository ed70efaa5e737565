"""What layout inference weighs: bytes moved, instructions and exchanges."""
from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from tilelang.backends.simt.matrix import fragments
from tilelang.backends.simt.registers import thread_digits, vector_width
from tilelang.layouts import RegisterLayout, SharedLayout, conversion, flat_table, shared

EXCHANGE = 16384
"""Cost, in bytes, of going through shared memory once: two barriers and the latency, at 128 bytes a cycle. In a loop
twice that: nothing of the next products begins before it is through."""
GLOBAL = 4
"""What a byte of global memory costs beside one of shared memory."""
Wanted = RegisterLayout | SharedLayout | None
"""A layout in registers, or one in shared memory that the user of a tile reads by itself; None for any."""


@lru_cache(maxsize=4096)
def access_cost(layout: RegisterLayout, shape: tuple[int, ...], axis: int | None, bits: int, width: int,
                warp: int) -> int:
    """Bytes of the 32-byte sectors that a block access touches, weighed, plus 32 for every instruction of a warp."""
    table = flat_table(layout, shape)[:warp]
    vector = 1
    if axis is not None:
        vector = min(layout.contiguous(axis), width)
        while shape[axis] % vector or layout.local_size % vector:
            vector //= 2
    first = table[:, ::vector]
    warps = max(layout.num_threads // warp, 1)
    if axis is None:
        sectors = int(np.count_nonzero(first >= 0))
    else:
        row = prod(shape[axis + 1:])
        inner = first // row % shape[axis]
        other = first // (row * shape[axis]) * row + first % row
        sector = np.where(first >= 0, other * (1 << 40) + inner * bits // 256, -1)
        sectors = sum(len(np.unique(sector[:, i][sector[:, i] >= 0])) for i in range(sector.shape[1]))
    return warps * (GLOBAL * 32 * sectors + 32 * first.shape[1])


@lru_cache(maxsize=4096)
def buffer_cost(layout: RegisterLayout, shape: tuple[int, ...], size: int, whole: bool, matrices: bool,
                warp: int) -> int:
    """Bytes that an access to shared memory moves, plus 32 for every instruction of a warp."""
    place = shared(shape)
    width = vector_width(layout, place, size)[1] if whole and layout.shape == shape else 1
    if matrices and layout.shape == shape and (found := fragments(layout, place, size)) is not None:
        width = next(n for n in (4, 2, 1) if found[0].local_size % n == 0) * 4 // size
    return layout.num_threads * (layout.local_size * size + 32 * layout.local_size // width // warp)


@lru_cache(maxsize=4096)
def crosses(layout: RegisterLayout, axis: int, warp: int) -> bool:
    """Whether elements along `axis` lie in different warps."""
    return any(d.adds is not None and d.adds[0] == axis and d.extent > 1 and d.stride * d.extent > warp
               for d in thread_digits(layout))


@lru_cache(maxsize=16384)
def conversion_cost(have: RegisterLayout | None, want: Wanted, shape: tuple[int, ...], size: int, warp: int,
                    weight: int = 1) -> int:
    """Bytes written and read, the fixed cost of an exchange included, as often as the loops around it run."""
    exchange = EXCHANGE * (1 if weight == 1 else 2)
    if isinstance(want, SharedLayout):
        return weight * (exchange + prod(shape) * size)
    reads = want.num_threads * want.local_size if want is not None else prod(shape)
    by_memory = weight * (exchange + (prod(shape) + reads) * size)
    if have is None or want is None:
        return by_memory
    how = conversion(have, want, shape, warp)
    if how.kind == "shuffle":
        return min(weight * how.shuffles * want.num_threads * 4, by_memory)
    return {"none": 0, "registers": weight * prod(shape) * size // 8, "shared": by_memory}[how.kind]
