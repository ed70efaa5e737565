"""What it takes to bring a tile from one register layout into another."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tilelang.layouts.register import RegisterLayout


@dataclass(frozen=True)
class Move:
    """One register from another lane of the warp: lane l gets register `register` of lane `base` + the sum of
    `weights[b]` over the bits b that are set in l. Where l has bit `bit` set it gets `other` instead (None: never)."""

    register: int
    base: int
    weights: tuple[int, ...]
    other: int | None = None
    bit: int = 0

    @property
    def xor(self) -> int | None:
        """The number x for which the lane is l ^ x, if there is one."""
        if all(w == (-1 if self.base >> b & 1 else 1) << b for b, w in enumerate(self.weights)):
            return self.base
        return None


@dataclass(frozen=True)
class Conversion:
    """How a conversion is done.

    `kind` is "none" (every thread holds its elements in the same registers), "registers" (in other registers of the
    same thread), "shuffle" (in other lanes of its warp) or "shared" (anywhere: through memory). `take[i]` is the
    source register of register i for the first two kinds, `moves[i]` how register i is shuffled for the third.
    """

    kind: str
    take: tuple[int, ...] = ()
    moves: tuple[Move, ...] = ()

    @property
    def shuffles(self) -> int:
        """Shuffles of every warp."""
        return sum(1 if m.other is None else 2 for m in self.moves if m.other is not None or m.xor != 0)


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
def conversion(src: RegisterLayout, dst: RegisterLayout, shape: tuple[int, ...], warp: int = 32) -> Conversion:
    """The nearest conversion of a tile of `shape` from `src` to `dst`, which have the same number of threads, in warps
    of `warp`."""
    if src == dst:
        return Conversion("none", tuple(range(src.local_size)))
    have, want = flat_table(src, shape), flat_table(dst, shape)
    take = []
    for i in range(want.shape[1]):
        register = _register(have, want[:, i])
        if register is None:
            moves = _moves(src, have, want, shape, warp)
            return Conversion("shared") if moves is None else Conversion("shuffle", moves=moves)
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


def _moves(src: RegisterLayout, have: Any, want: Any, shape: tuple[int, ...], warp: int) -> tuple[Move, ...] | None:
    """A shuffle for every register, the same in all warps; None where some element comes from another warp, or from a
    lane that is no sum over the bits of the lane number."""
    count = len(have)
    if count % warp:
        return None
    held = np.zeros((count // warp, int(max(have.max(), want.max())) + 2), bool)  # the last column: any element
    each = np.arange(count)[:, None] // warp
    held[each, have] = True
    held[:, -1] = True
    if not held[each, want].all() or _scattered(have, want, warp):  # found out at once, for most that are tried
        return None
    out = []
    for i in range(want.shape[1]):
        wanted = want[:, i].reshape(-1, warp)
        lanes = np.flatnonzero((wanted >= 0).any(0))
        first = (wanted >= 0).argmax(0)[lanes]  # the warp that says where a lane's element is; the others must agree
        held_in = np.empty((warp, len(lanes)), np.int64)
        for number in np.unique(first):
            mine = first == number
            held_in[:, mine] = _holders(src, shape, warp, int(number))[:, wanted[number, lanes[mine]]]
        near = np.where(held_in >= 0, _distances(warp)[:, lanes], warp * warp).argmin(0)
        register = held_in[near, np.arange(len(lanes))]
        found = have.reshape(-1, warp, have.shape[1])[:, near, register]
        if not np.all((found == wanted[:, lanes]) | (wanted[:, lanes] < 0)):
            return None
        move = _move(lanes, near, register, warp)
        if move is None:
            return None
        out.append(move)
    return tuple(out)


def _scattered(have: Any, want: Any, warp: int) -> bool:
    """Whether it is clear without looking at lanes one by one that no shuffles make the conversion: where each element
    has one place in a warp, a register comes from more than two, or from others in other warps."""
    warps, size = len(have) // warp, int(max(have.max(), want.max())) + 1
    each = np.repeat(np.arange(warps), warp)[:, None]
    place = np.full((warps, size), -1)
    place[each, have] = np.arange(warp * have.shape[1]).reshape(warp, -1)[np.arange(len(have)) % warp]
    if (have < 0).any() or (want < 0).any() or np.count_nonzero(place >= 0) < have.size:
        return False
    source = place[each, want].reshape(warps, warp, -1)
    registers = np.sort(source[0] % have.shape[1], 0)
    return bool((source != source[0]).any() or (np.count_nonzero(np.diff(registers, axis=0), 0) > 1).any())


@lru_cache(maxsize=64)
def _holders(layout: RegisterLayout, shape: tuple[int, ...], warp: int, number: int) -> Any:
    """[lane, element]: the first register of a lane of warp `number` that holds an element, -1 where none does."""
    table = flat_table(layout, shape)[number * warp:(number + 1) * warp]
    out = np.full((warp, int(np.prod(shape)) + 1), -1, np.int32)  # the last column: what lies outside of the tile
    for register in reversed(range(table.shape[1])):
        out[np.arange(warp), table[:, register]] = register
    return out


@lru_cache(maxsize=2)
def _distances(warp: int) -> Any:
    """[lane, lane]: orders the first by the bits in which it differs from the second, then by number."""
    lanes = np.arange(warp)
    return np.bitwise_count(lanes[:, None] ^ lanes).astype(np.int64) * warp + lanes[:, None]


def _move(lanes: Any, there: Any, register: Any, warp: int) -> Move | None:
    """The shuffle that brings each of `lanes` (in order) what `register` of the lane `there` holds; the other lanes
    want nothing."""
    bits = warp.bit_length() - 1
    if not len(lanes):
        return Move(0, 0, tuple(1 << b for b in range(bits)))
    source = np.full(warp, -1)
    source[lanes] = there
    first, base = int(lanes[0]), int(there[0])
    # A lane that wants nothing says nothing of its bits: they count as if they moved nothing.
    weights = tuple(int(source[first | 1 << b]) - base if source[first | 1 << b] >= 0 and not first >> b & 1 else 0
                    for b in range(bits))
    total = base + (np.arange(warp)[:, None] >> np.arange(bits) & 1) @ np.array(weights)
    if not np.array_equal(total[lanes], there) or total.min() < 0 or total.max() >= warp:
        return None
    if (register == register[0]).all():
        return Move(int(register[0]), base, weights)
    for bit in range(bits):
        low, high = register[lanes >> bit & 1 == 0], register[lanes >> bit & 1 == 1]
        if len(low) and len(high) and (low == low[0]).all() and (high == high[0]).all():
            return Move(int(low[0]), base, weights, int(high[0]), bit)
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
