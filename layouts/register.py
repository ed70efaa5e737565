"""Register layouts: which thread holds which element of a tile, in which of its registers.

A layout writes every dimension of the tile in mixed radix (its *modes*, the most significant first) and gives each
mode to the thread index (*spatial*) or to the index within a thread (*local*); further thread digits may hold copies
(*replicated*). Sizes are arbitrary. The algebra (product, division, reduction, …) is that of Tilus, arXiv 2504.12984.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np


class LayoutError(ValueError):
    """Layouts that do not fit each other; the message shows them."""


def _digits(index: Any, extents: Sequence[int]) -> list[Any]:
    """Mixed-radix digits of an index, the most significant first."""
    out = []
    for extent in reversed(extents):
        out.append(index % extent)
        index = index // extent
    return out[::-1]


@dataclass(frozen=True, eq=False)
class RegisterLayout:
    """(thread, local index) -> tile index.

    `modes[d]` are the radices of dimension d. `spatial` and `local` list mode numbers (counted over all dimensions),
    the most significant first; a negative entry -n in `spatial` is n copies.
    """

    modes: tuple[tuple[int, ...], ...]
    spatial: tuple[int, ...]
    local: tuple[int, ...]

    def __post_init__(self) -> None:
        count = sum(map(len, self.modes))
        if sorted([*(m for m in self.spatial if m >= 0), *self.local]) != list(range(count)):
            raise LayoutError(f"each of the {count} modes must be spatial or local exactly once: "
                              f"spatial {self.spatial}, local {self.local}")
        if any(extent < 1 for dim in self.modes for extent in dim):
            raise LayoutError(f"extents must be positive: {self.modes}")

    # -- sizes -------------------------------------------------------------------------------------------------------
    @cached_property
    def extents(self) -> tuple[int, ...]:
        """Extents of all modes, in order."""
        return tuple(e for dim in self.modes for e in dim)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(dim) for dim in self.modes)

    @property
    def rank(self) -> int:
        return len(self.modes)

    @cached_property
    def num_threads(self) -> int:
        return prod(-m if m < 0 else self.extents[m] for m in self.spatial)

    @cached_property
    def local_size(self) -> int:
        return prod(self.extents[m] for m in self.local)

    @property
    def replication(self) -> int:
        """How many threads hold each element."""
        return prod(-m for m in self.spatial if m < 0)

    # -- meaning -----------------------------------------------------------------------------------------------------
    def index(self, thread: Any, local: Any) -> tuple[Any, ...]:
        """Tile index of register `local` of `thread` (integers or broadcasting arrays)."""
        values: dict[int, Any] = {}
        sizes = [-m if m < 0 else self.extents[m] for m in self.spatial]
        values.update(zip(self.spatial, _digits(thread, sizes), strict=True))
        values.update(zip(self.local, _digits(local, [self.extents[m] for m in self.local]), strict=True))
        out, mode = [], 0
        for dim in self.modes:
            at: Any = 0 * (np.asarray(thread) + np.asarray(local))
            for extent in dim:
                at = at * extent + values[mode]
                mode += 1
            out.append(at)
        return tuple(out)

    def table(self) -> Any:
        """int array [num_threads, local_size, rank] of all tile indices."""
        thread, local = np.ogrid[:self.num_threads, :self.local_size]
        return np.stack(np.broadcast_arrays(*self.index(thread, local)), -1) if self.rank else \
            np.zeros((self.num_threads, self.local_size, 0), int)

    def inverse(self) -> dict[tuple[int, ...], list[tuple[int, int]]]:
        """Tile index -> every (thread, local) that holds it."""
        owners: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        table = self.table()
        for thread in range(self.num_threads):
            for local in range(self.local_size):
                owners.setdefault(tuple(int(x) for x in table[thread, local]), []).append((thread, local))
        return owners

    @cached_property
    def canonical(self) -> RegisterLayout:
        """The same meaning with the fewest modes: no extent 1, neighbours that stay neighbours merged."""
        first, dims, alive = 0, [], []
        for dim in self.modes:
            dims.append([[first + i] for i, e in enumerate(dim) if e > 1])
            first += len(dim)
        keep = {m for dim in dims for (m,) in dim}
        spatial = [[m] for m in self.spatial if m < -1 or m in keep]
        local = [[m] for m in self.local if m in keep]
        for group in dims:
            i = 0
            while i + 1 < len(group):
                a, b = group[i], group[i + 1]
                for side in (spatial, local):
                    at = side.index(a) if a in side else -1
                    if 0 <= at < len(side) - 1 and side[at + 1] == b:
                        side[at:at + 2] = [a + b]
                        group[i:i + 2] = [a + b]
                        break
                else:
                    i += 1
        merged: list[list[int]] = []
        for m in spatial:  # neighbouring copies are one digit
            if merged and m[0] < 0 and merged[-1][0] < 0:
                merged[-1] = [-(m[0] * merged[-1][0])]
            else:
                merged.append(m)
        alive = [tuple(m) for dim in dims for m in dim]
        number = {m: i for i, m in enumerate(alive)}
        return RegisterLayout(tuple(tuple(prod(self.extents[i] for i in m) for m in dim) for dim in dims),
                              tuple(m[0] if m[0] < 0 else number[tuple(m)] for m in merged),
                              tuple(number[tuple(m)] for m in local))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RegisterLayout):
            return NotImplemented
        return self is other or self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        c = self.canonical
        return c.modes, c.spatial, c.local

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    # -- algebra -----------------------------------------------------------------------------------------------------
    def __mul__(self, inner: RegisterLayout) -> RegisterLayout:
        """Each element of `self` becomes a block laid out as `inner`; ranks are aligned at the last dimension."""
        a, b = _same_rank(self, inner)
        number_a, number_b, modes, count = {}, {}, [], 0
        ia = ib = 0
        for da, db in zip(a.modes, b.modes, strict=True):
            for _ in da:
                number_a[ia] = count
                ia, count = ia + 1, count + 1
            for _ in db:
                number_b[ib] = count
                ib, count = ib + 1, count + 1
            modes.append(da + db)

        def renumber(side: Sequence[int], number: dict[int, int]) -> tuple[int, ...]:
            return tuple(m if m < 0 else number[m] for m in side)
        return RegisterLayout(tuple(modes), renumber(a.spatial, number_a) + renumber(b.spatial, number_b),
                              renumber(a.local, number_a) + renumber(b.local, number_b))

    def __truediv__(self, inner: RegisterLayout) -> RegisterLayout:
        """The layout f with f * inner == self. Raises LayoutError where there is none."""
        return _divide(self, inner, right=True)

    def divide_left(self, outer: RegisterLayout) -> RegisterLayout:
        """The layout g with outer * g == self. Raises LayoutError where there is none."""
        return _divide(self, outer, right=False)

    def reduce(self, dims: Sequence[int], keepdims: bool = False) -> RegisterLayout:
        """The layout of a reduction over `dims`: their thread digits become copies, their local digits vanish."""
        gone: set[int] = set()
        number: dict[int, int] = {}
        modes: list[tuple[int, ...]] = []
        old = 0
        for d, dim in enumerate(self.modes):
            for _ in dim:
                if d in dims:
                    gone.add(old)
                else:
                    number[old] = len(number)
                old += 1
            if d not in dims:
                modes.append(dim)
            elif keepdims:
                modes.append(())
        return RegisterLayout(tuple(modes), tuple(-self.extents[m] if m in gone else m if m < 0 else number[m]
                                                  for m in self.spatial),
                              tuple(number[m] for m in self.local if m not in gone))

    def permute(self, order: Sequence[int]) -> RegisterLayout:
        """Dimension i of the result is dimension `order[i]`."""
        if sorted(order) != list(range(self.rank)):
            raise LayoutError(f"{list(order)} is not a permutation of the {self.rank} dimensions of {self}")
        starts = np.cumsum([0, *map(len, self.modes)])
        number: dict[int, int] = {}
        for d in order:
            for m in range(starts[d], starts[d + 1]):
                number[m] = len(number)
        return RegisterLayout(tuple(self.modes[d] for d in order),
                              tuple(m if m < 0 else number[m] for m in self.spatial),
                              tuple(number[m] for m in self.local))

    def reshape(self, shape: Sequence[int]) -> RegisterLayout:
        """The same elements in row-major order under another shape; modes are split where a boundary needs it."""
        if prod(shape) != prod(self.shape):
            raise LayoutError(f"{self} has {prod(self.shape)} elements, {list(shape)} has {prod(shape)}")
        flat = RegisterLayout((self.extents,), self.spatial, self.local)
        for d in range(len(shape)):
            flat = _split_tail(flat, 0, prod(shape[d:]), self)
        parts: list[tuple[int, ...]] = []
        pending = list(flat.modes[0])
        for extent in reversed(shape):
            part: list[int] = []
            while prod(part) != extent:
                part.insert(0, pending.pop())
            parts.insert(0, tuple(part))
        if parts:  # what is left has extent 1
            parts[0] = (*pending, *parts[0])
        return RegisterLayout(tuple(parts), flat.spatial, flat.local)

    def concat(self, other: RegisterLayout) -> RegisterLayout:
        """The outer product of two tiles: dimensions of `self`, then those of `other`; its threads are the minor."""
        n = len(self.extents)
        return RegisterLayout(self.modes + other.modes,
                              self.spatial + tuple(m if m < 0 else m + n for m in other.spatial),
                              self.local + tuple(m + n for m in other.local))

    def expand_dims(self, axis: int) -> RegisterLayout:
        """Inserts a dimension of extent 1."""
        return RegisterLayout((*self.modes[:axis], (), *self.modes[axis:]), self.spatial, self.local)

    def innermost(self, digits: Sequence[tuple[int, int]]) -> RegisterLayout:
        """The same elements in every thread, its registers in another order: those of the lowest `extent` local steps
        along dimension d follow one another, for each (d, extent) of `digits`, the least significant first; the rest
        keeps its order above them. Raises LayoutError where a dimension's lowest local digit is no multiple."""
        f, lowest = self.canonical, list[int]()
        for d, extent in digits:
            if extent == 1:
                continue
            modes = range(sum(map(len, f.modes[:d])), sum(map(len, f.modes[:d + 1])))
            mode = next((m for m in reversed(f.local) if m in modes and m not in lowest and f.extents[m] > 1), None)
            if mode is None or f.extents[mode] % extent:
                raise LayoutError(f"no {extent} local steps along dimension {d} in {self}")
            f = _split(f, mode, extent)
            lowest = [mode + 1, *(m + 1 if m > mode else m for m in lowest)]
        return RegisterLayout(f.modes, f.spatial, (*(m for m in f.local if m not in lowest), *lowest))

    def contiguous(self, dim: int) -> int:
        """Elements that consecutive local indices of a thread hold next to each other along `dim`: the width of a
        vector access."""
        c, width = self.canonical, 1
        ends = np.cumsum(list(map(len, c.modes)))
        mode, side = int(ends[dim]) - 1, list(c.local)
        if c.modes[dim] and side and side[-1] == mode:
            width = c.extents[mode]
        return width

    def __repr__(self) -> str:
        from tilelang.layouts.text import format_register
        return format_register(self)


def _same_rank(a: RegisterLayout, b: RegisterLayout) -> tuple[RegisterLayout, RegisterLayout]:
    rank = max(a.rank, b.rank)

    def pad(f: RegisterLayout) -> RegisterLayout:
        return RegisterLayout(((),) * (rank - f.rank) + f.modes, f.spatial, f.local)
    return pad(a), pad(b)


def _split(f: RegisterLayout, mode: int, minor: int) -> RegisterLayout:
    """Splits one mode of extent e into (e / minor, minor)."""
    modes, count = [], 0
    for dim in f.modes:
        out: list[int] = []
        for e in dim:
            out += [e // minor, minor] if count == mode else [e]
            count += 1
        modes.append(tuple(out))

    def renumber(side: Sequence[int]) -> tuple[int, ...]:
        out: list[int] = []
        for m in side:
            out += [m, m + 1] if m == mode else [m + 1 if m > mode else m]
        return tuple(out)
    return RegisterLayout(tuple(modes), renumber(f.spatial), renumber(f.local))


def _split_tail(f: RegisterLayout, dim: int, size: int, shown: RegisterLayout) -> RegisterLayout:
    """Splits a mode of `dim` so that its last modes cover exactly `size` elements."""
    first, covered = sum(map(len, f.modes[:dim])), 1
    for i in reversed(range(len(f.modes[dim]))):
        if covered == size:
            return f
        e = f.modes[dim][i]
        if covered * e <= size:
            covered *= e
            continue
        minor = size // covered
        if size % covered or e % minor:
            break
        return _split(f, first + i, minor)
    if covered == size:
        return f
    raise LayoutError(f"no digit boundary of {shown} lies at {size} elements of dimension {dim}")


def _divide(f: RegisterLayout, g: RegisterLayout, right: bool) -> RegisterLayout:
    whole, part = (x.canonical for x in _same_rank(f, g))

    def fail() -> LayoutError:
        return LayoutError(f"{f} cannot be divided by {g}: needs {'f * ' if right else ''}({g})"
                           f"{'' if right else ' * g'} to give the first for some layout {'f' if right else 'g'}")
    for d in range(whole.rank):  # cut every dimension of `whole` at the boundaries of `part`
        if whole.shape[d] % part.shape[d]:
            raise fail()
        sizes = [prod(part.modes[d][i:]) for i in range(len(part.modes[d]))]
        if not right:
            sizes = [s * (whole.shape[d] // part.shape[d]) for s in sizes] + [whole.shape[d] // part.shape[d]]
        for size in sizes:
            try:
                whole = _split_tail(whole, d, size, f)
            except LayoutError:
                raise fail() from None
    owners, rest, first_w, first_p = {}, [], 0, 0
    for dw, dp in zip(whole.modes, part.modes, strict=True):
        cut = len(dw) - len(dp) if right else len(dp)
        inner = range(cut, len(dw)) if right else range(cut)
        if tuple(dw[i] for i in inner) != dp:
            raise fail()
        owners.update({first_w + i: first_p + k for k, i in enumerate(inner)})
        rest.append(tuple(dw[:cut] if right else dw[cut:]))
        first_w, first_p = first_w + len(dw), first_p + len(dp)
    number = {m: i for i, m in enumerate(m for m in range(first_w) if m not in owners)}

    def cut_side(side: tuple[int, ...], of: tuple[int, ...]) -> tuple[int, ...]:
        """`side` without the digits of `part`, which must stand together at its end (or start)."""
        side, tail = list(side), list(of)  # type: ignore[assignment]
        taken: list[int] = []
        items = list(side)
        while tail:
            want = tail.pop() if right else tail.pop(0)
            if not items:
                raise fail()
            m = items.pop() if right else items.pop(0)
            if want < 0 and m < 0 and m % want == 0:
                if m != want:
                    items.insert(len(items) if right else 0, -(m // want))
            elif m < 0 or owners.get(m) != want:
                raise fail()
            taken.append(m)
        if any(m in owners for m in items):
            raise fail()
        return tuple(m if m < 0 else number[m] for m in items)
    return RegisterLayout(tuple(rest), cut_side(whole.spatial, part.spatial), cut_side(whole.local, part.local))


def _order(rank: int, column: bool) -> tuple[int, ...]:
    return tuple(reversed(range(rank))) if column else tuple(range(rank))


def local(*shape: int) -> RegisterLayout:
    """All elements in one thread, row-major."""
    return RegisterLayout(tuple((e,) for e in shape), (), _order(len(shape), False))


def column_local(*shape: int) -> RegisterLayout:
    """All elements in one thread, column-major."""
    return RegisterLayout(tuple((e,) for e in shape), (), _order(len(shape), True))


def spatial(*shape: int) -> RegisterLayout:
    """One element per thread, row-major."""
    return RegisterLayout(tuple((e,) for e in shape), _order(len(shape), False), ())


def column_spatial(*shape: int) -> RegisterLayout:
    """One element per thread, column-major."""
    return RegisterLayout(tuple((e,) for e in shape), _order(len(shape), True), ())


def replicated(copies: int, rank: int = 1) -> RegisterLayout:
    """One element (of the given rank) held by `copies` threads."""
    return RegisterLayout(((),) * rank, (-copies,), ())
