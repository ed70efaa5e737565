"""What it takes to bring a tile from one register layout into another."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tilelang.layouts.register import RegisterLayout


@dataclass(frozen=True)
class Conversion:
    """How a conversion is done, the cheapest way that works.

    `kind` is "none" (every thread holds its elements in the same registers), "registers" (in other registers of the
    same thread) or "shared" (in other threads: through memory). `take[i]` is the source register of register i,
    given for the first two kinds.
    """

    kind: str
    take: tuple[int, ...] = ()


@lru_cache(maxsize=4096)
def flat_table(layout: RegisterLayout, shape: tuple[int, ...]) -> Any:
    """int array [num_threads, local_size]: the row-major number of each element, -1 for those outside `shape` (a
    layout may be larger than its tile)."""
    table = layout.table()
    flat = np.zeros(table.shape[:2], np.int64)
    inside = np.ones(table.shape[:2], bool)
    for d, extent in enumerate(shape):
        flat = flat * extent + table[..., d]
        inside &= table[..., d] < extent
    return np.where(inside, flat, -1)


@lru_cache(maxsize=4096)
def conversion(src: RegisterLayout, dst: RegisterLayout, shape: tuple[int, ...]) -> Conversion:
    """The cheapest conversion of a tile of `shape` from `src` to `dst`; both have the same number of threads."""
    if src == dst:
        return Conversion("none", tuple(range(src.local_size)))
    have, want = flat_table(src, shape), flat_table(dst, shape)
    take = []
    for i in range(want.shape[1]):
        register = _register(have, want[:, i])
        if register is None:
            return Conversion("shared")
        take.append(register)
    same = len(take) == src.local_size and take == list(range(len(take)))
    return Conversion("none" if same else "registers", tuple(take))


def _register(have: Any, want: Any) -> int | None:
    """The register of `have` in which every thread holds the element it wants (-1: any)."""
    threads = np.flatnonzero(want >= 0)
    if not len(threads):
        return 0
    first = threads[0]
    for register in np.flatnonzero(have[first] == want[first]):
        if np.array_equal(have[threads, register], want[threads]):
            return int(register)
    return None


def blocked(shape: Sequence[int], threads: int, order: Sequence[int], vector: int = 1) -> RegisterLayout:
    """Vectors of `vector` elements along the first dimension of `order`, threads along it and then the next ones,
    the rest of the tile repeated in each thread; left-over threads hold copies. The layout covers at least `shape`:
    extents are rounded up to what the threads divide.
    """
    rank, left = len(shape), threads
    inner = [1] * rank
    across = [1] * rank
    for n, d in enumerate(order):
        if n == 0:
            while inner[d] * 2 <= min(vector, shape[d]) and shape[d] % (inner[d] * 2) == 0:
                inner[d] *= 2
        groups = -(-shape[d] // inner[d])
        while across[d] < groups and left > 1:
            across[d] *= 2
            left //= 2
    modes = tuple((-(-shape[d] // (across[d] * inner[d])), across[d], inner[d]) for d in range(rank))
    minor_last = list(reversed(order))
    spatial = tuple(3 * d + 1 for d in minor_last)
    local = tuple(3 * d for d in minor_last) + tuple(3 * d + 2 for d in minor_last)
    return RegisterLayout(modes, ((-left,) if left > 1 else ()) + spatial, local)
