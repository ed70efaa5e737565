"""What it takes to bring a tile from one register layout into another."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
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

    @property
    def swap(self) -> int | None:
        """The distance d of the lanes of which l gets what l & ~d has (base 0) or l | d (base d): together the two are
        one exchange of `register` and `other` between lanes d apart; None where this is no half of one."""
        d = 1 << self.bit
        straight = all(w == (0 if b == self.bit else 1 << b) for b, w in enumerate(self.weights))
        return d if self.other is not None and straight and self.base in (0, d) else None


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
        """Shuffles of every warp; an exchange is one."""
        swaps = {(m.register, m.other, m.swap) for m in self.moves if m.swap is not None}
        return len(swaps) + sum(1 if m.other is None else 2 for m in self.moves
                                if m.swap is None and (m.other is not None or m.xor != 0))


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
    take = _own(have, want)
    if take is None:
        moves = _moves(src, have, want, shape, warp)
        return Conversion("shared") if moves is None else Conversion("shuffle", moves=moves)
    return Conversion("none" if take == tuple(range(src.local_size)) else "registers", take)


def _own(have: Any, want: Any) -> tuple[int, ...] | None:
    """For each register of `want` the one of `have` in which every thread holds what it wants (0: it wants nothing);
    None where some register has none."""
    wanted = want >= 0
    first = wanted.argmax(0)
    there = have[first] == want[first, np.arange(want.shape[1])][:, None]
    register = np.where(wanted.any(0), there.argmax(1), 0)
    return tuple(register.tolist()) if ((have[:, register] == want) | ~wanted).all() else None


def _moves(src: RegisterLayout, have: Any, want: Any, shape: tuple[int, ...], warp: int) -> tuple[Move, ...] | None:
    """A shuffle for every register, the same in all warps; None where some element comes from another warp, or from a
    lane that is no sum over the bits of the lane number."""
    warps, left = divmod(len(have), warp)
    if left:
        return None
    if not _held(src, shape, warp)[np.arange(len(want))[:, None] // warp, want].all():
        return None
    out: list[Move] = []
    for registers in (slice(1), slice(1, None)):  # most that cannot be fail with the first
        wanted = want[:, registers].T.reshape(-1, warps, warp)
        first = (wanted >= 0).argmax(1)  # the warp that says where a lane's element is; the others must agree
        held_in = np.empty((warp, *first.shape), np.int16)  # [lane that may hold it, register, lane]
        for number in np.unique(first):
            mine = first == number
            held_in[:, mine] = _holders(src, shape, warp, int(number))[:, wanted[:, number][mine]]
        near = np.where(held_in >= 0, _distances(warp)[:, None], warp * warp).argmin(0)
        register = np.take_along_axis(held_in, near[None], 0)[0]
        found = have.reshape(warps, warp, -1)[:, near, register].swapaxes(0, 1)
        some = ((found == wanted) | (wanted < 0)).all()
        made = _shuffles(near, register, (wanted >= 0).any(1)) if some else None
        if made is None:
            return None
        out += made
    return tuple(out)


@lru_cache(maxsize=256)
def _held(layout: RegisterLayout, shape: tuple[int, ...], warp: int) -> Any:
    """[warp, element]: whether some lane of a warp holds an element; the last column: what lies outside of the tile
    every lane has."""
    table = flat_table(layout, shape)
    out = np.zeros((len(table) // warp, prod(shape) + 1), bool)
    out[np.arange(len(table))[:, None] // warp, table] = True
    out[:, -1] = True
    return out


@lru_cache(maxsize=64)
def _holders(layout: RegisterLayout, shape: tuple[int, ...], warp: int, number: int) -> Any:
    """[lane, element]: the first register of a lane of warp `number` that holds an element, -1 where none does."""
    table = flat_table(layout, shape)[number * warp:(number + 1) * warp]
    out = np.full((warp, prod(shape) + 1), -1, np.int16)  # the last column: what lies outside of the tile
    for register in reversed(range(table.shape[1])):
        out[np.arange(warp), table[:, register]] = register
    return out


@lru_cache(maxsize=2)
def _distances(warp: int) -> Any:
    """[lane, lane]: orders the first by the bits in which it differs from the second, then by number."""
    lanes = np.arange(warp)
    return (np.bitwise_count(lanes[:, None] ^ lanes) * np.int16(warp) + lanes[:, None]).astype(np.int16)


def _shuffles(there: Any, register: Any, wants: Any) -> list[Move] | None:
    """The shuffles that bring each lane that `wants` something what `register` of the lane `there` holds; arrays
    [register of the result, lane]."""
    (count, warp), bits = there.shape, there.shape[1].bit_length() - 1
    each, first = np.arange(count)[:, None], wants.argmax(1)[:, None]
    digits = np.arange(warp) >> np.arange(bits)[:, None] & 1
    base, flipped = there[each, first], first | 1 << np.arange(bits)
    # A lane that wants nothing says nothing of its bits: they count as if they moved nothing.
    weights = np.where(wants[each, flipped] & (flipped != first), there[each, flipped] - base, 0)
    source = base + weights @ digits
    if ((source != there) & wants).any() or (source < 0).any() or (source >= warp).any():
        return None
    turned = (register != register[each, first]) & wants  # lanes that want another register than the first that wants
    one = register[each, first], register[each, turned.argmax(1)[:, None]]
    at = first >> np.arange(bits) & 1
    agree = ((turned[:, None] == (digits != at[..., None])) | ~wants[:, None]).all(2)
    if ((register != one[1]) & turned).any() or not (agree.any(1) | ~turned.any(1)).all():
        return None
    bit = agree.argmax(1)
    out = []
    for i, (some, several) in enumerate(zip(wants.any(1).tolist(), turned.any(1).tolist(), strict=True)):
        low, high = (int(r[i, 0]) for r in one)
        if several and at[i, bit[i]]:
            low, high = high, low
        out.append(Move(low, int(base[i, 0]), tuple(weights[i].tolist()), *((high, int(bit[i])) if several else ()))
                   if some else Move(0, 0, tuple(1 << b for b in range(bits))))
    return out


@lru_cache(maxsize=4096)
def blocked(shape: tuple[int, ...], threads: int, order: tuple[int, ...], vector: int = 1) -> RegisterLayout:
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
