"""Shared-memory and scratch layouts: where in a buffer each element of a tile lies.

Every dimension is written in mixed radix, each digit with a stride in elements; an XOR swizzle may permute the
resulting offset (CuTe's Swizzle<bits, base, shift>: offset ^ ((offset >> shift) & (mask << base))).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np

from tilelang.layouts.register import LayoutError, _digits


@dataclass(frozen=True)
class Swizzle:
    """XORs `bits` bits of the offset, starting at bit `base`, with the bits `shift` places above them, and with what
    `more` reads."""

    bits: int
    base: int
    shift: int
    more: Swizzle | None = None

    @property
    def terms(self) -> tuple[Swizzle, ...]:
        """What is XORed with the offset, one after the other."""
        return (self, *(self.more.terms if self.more is not None else ()))

    @property
    def mask(self) -> int:
        """The bits that this term changes."""
        return ((1 << self.bits) - 1) << self.base

    @property
    def vector(self) -> int:
        """Elements that stay neighbours."""
        return int(min(1 << s.base for s in self.terms))

    @property
    def block(self) -> int:
        """Elements that are permuted among themselves."""
        return int(max(1 << (s.base + s.bits + max(s.shift, 0)) for s in self.terms))

    def __call__(self, offset: Any) -> Any:
        out = offset
        for s in self.terms:
            out = out ^ ((offset >> s.shift) & s.mask)
        return out

    def apart(self, bits: int, constant: int) -> int:
        """A part p of `constant` for which swizzle(x + constant) = swizzle(x + constant - p) + swizzle(p), whatever x
        is with none but these bits (-1: any)."""
        taken = 0
        if bits < 0 or bits & constant:
            return 0
        for bit in (1 << i for i in range(constant.bit_length()) if constant >> i & 1):
            others = bits | constant & ~(taken | bit)
            changed = others
            for s in self.terms:
                changed |= others >> s.shift & s.mask
            if not self(taken | bit) & changed:
                taken |= bit
        return taken


@dataclass(frozen=True)
class SharedLayout:
    """Tile index -> element offset. `dims[d]` lists (extent, stride) digits, the most significant first."""

    dims: tuple[tuple[tuple[int, int], ...], ...]
    swizzle: Swizzle | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(e for e, _ in dim) for dim in self.dims)

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def size(self) -> int:
        """Elements the buffer needs (one more than the largest offset, rounded up where a swizzle permutes)."""
        linear = 1 + sum((e - 1) * s for dim in self.dims for e, s in dim)
        if self.swizzle is None:
            return linear
        return -(-linear // self.swizzle.block) * self.swizzle.block

    def run(self, dim: int) -> int:
        """Neighbours along a dimension that lie side by side wherever a multiple of their number begins."""
        if not self.dims[dim] or self.dims[dim][-1][1] != 1:
            return 1
        extent = self.dims[dim][-1][0]
        others = (stride for e, stride in (digit for d in self.dims for digit in d) if e > 1 and stride != 1)
        return gcd(extent, *others, *([self.swizzle.vector] if self.swizzle else []))

    def offset(self, index: Sequence[Any]) -> Any:
        """Element offset of a tile index (integers or broadcasting arrays)."""
        if len(index) != self.rank:
            raise LayoutError(f"{self} has rank {self.rank}, got an index of {len(index)}")
        out: Any = 0
        for at, dim in zip(index, self.dims, strict=True):
            for digit, (_, stride) in zip(_digits(at, [e for e, _ in dim]), dim, strict=True):
                out = out + digit * stride
        return self.swizzle(out) if self.swizzle else out

    def table(self) -> Any:
        """int array of `shape`: the offset of every element."""
        return np.broadcast_to(self.offset(np.ogrid[tuple(slice(n) for n in self.shape)]), self.shape)

    def injective(self) -> bool:
        """Whether no two elements share an offset."""
        return len(np.unique(self.table())) == prod(self.shape)

    def inner(self, lead: int) -> SharedLayout:
        """Of a slice at an index of the first `lead` dimensions, counted from where the slice begins."""
        return SharedLayout(self.dims[lead:], self.swizzle)

    def permute(self, order: Sequence[int]) -> SharedLayout:
        """Dimension i of the result is dimension `order[i]`."""
        return SharedLayout(tuple(self.dims[d] for d in order), self.swizzle)

    def with_swizzle(self, swizzle: Swizzle | None) -> SharedLayout:
        return SharedLayout(self.dims, swizzle)

    def __repr__(self) -> str:
        from tilelang.layouts.text import format_shared
        return format_shared(self)


def shared(shape: Sequence[int], strides: Sequence[Any] | None = None,
           swizzle: tuple[int, ...] | None = None) -> SharedLayout:
    """A layout of `shape`, row-major unless `strides` says otherwise. `swizzle` is (bits, base, shift) of each term.

    An entry of `shape` may be a tuple of digit extents, with a tuple of as many strides: `shared([128, (4, 32)],
    [32, (4096, 1)])` stores four panels of 32 columns one after the other.
    """
    nested = [e if isinstance(e, tuple) else (e,) for e in shape]
    if strides is None:
        flat: list[int] = []
        step = 1
        for e in reversed([x for dim in nested for x in dim]):
            flat.insert(0, step)
            step *= e
        it = iter(flat)
        steps = [tuple(next(it) for _ in dim) for dim in nested]
    else:
        steps = [s if isinstance(s, tuple) else (s,) for s in strides]
    if [len(d) for d in nested] != [len(s) for s in steps]:
        raise LayoutError(f"extents {list(shape)} and strides {strides} differ in structure")
    return SharedLayout(tuple(tuple(zip(d, s, strict=True)) for d, s in zip(nested, steps, strict=True)),
                        _swizzle(swizzle) if swizzle else None)


def _swizzle(numbers: Sequence[int]) -> Swizzle:
    if len(numbers) % 3:
        raise LayoutError(f"a swizzle is (bits, base, shift) for each term, not {numbers}")
    bits, base, shift, *more = numbers
    return Swizzle(bits, base, shift, _swizzle(more) if more else None)


@dataclass(frozen=True)
class Banks:
    """How a memory serves one request: `phases` are the groups of lanes served together, each of which may touch
    `count` banks of `width` bytes once (the same word may be read by many lanes)."""

    count: int
    width: int
    phases: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Ports:
    """How a memory serves loads, and stores, of up to 4, 8 and 16 bytes a lane."""

    loads: tuple[Banks, Banks, Banks]
    stores: tuple[Banks, Banks, Banks]

    def of(self, nbytes: int, store: bool) -> Banks:
        return (self.stores if store else self.loads)[0 if nbytes <= 4 else 1 if nbytes <= 8 else 2]


def in_order(count: int, lanes: int, each: int) -> Banks:
    """`count` banks of 4 bytes that serve a warp of `lanes` lanes `each` at a time, in order."""
    return Banks(count, 4, tuple(tuple(range(i, i + each)) for i in range(0, lanes, each)))


def conflicts(addresses: Sequence[int], nbytes: int, banks: Banks) -> int:
    """Extra cycles of one request: lane i accesses `nbytes` from byte `addresses[i]`. 0 is conflict-free."""
    extra = 0
    for phase in banks.phases:
        words: dict[int, set[int]] = {}
        for lane in phase:
            first, last = addresses[lane] // banks.width, (addresses[lane] + nbytes - 1) // banks.width
            for word in range(first, last + 1):
                words.setdefault(word % banks.count, set()).add(word)
        needed = max((len(w) for w in words.values()), default=1)
        ideal = max(1, -(-sum(len(w) for w in words.values()) // banks.count))
        extra += needed - ideal
    return extra


def _swizzles(size: int) -> Iterator[Swizzle | None]:
    yield None
    top = size.bit_length()
    for bits in range(1, 6):
        for base in range(0, top - bits + 1):
            for shift in range(bits, top - base - bits + 1):
                yield Swizzle(bits, base, shift)


def derive_swizzle(layout: SharedLayout, requests: Sequence[tuple[Sequence[tuple[int, ...]], int]], banks: Banks,
                   element_bytes: int) -> tuple[SharedLayout, int]:
    """The swizzle of `layout` with the fewest conflicts over all `requests`, and how many are left.

    A request is (tile index of each lane, bytes per lane). Vectors must stay contiguous, so swizzles that move bits
    inside the widest vector are not considered.
    """
    widest = max(nbytes for _, nbytes in requests) // element_bytes
    best: tuple[SharedLayout, int] | None = None
    for swizzle in _swizzles(layout.size):
        if swizzle is not None and swizzle.vector < widest:
            continue
        candidate = layout.with_swizzle(swizzle)
        cost = sum(conflicts([int(candidate.offset(i)) * element_bytes for i in lanes], nbytes, banks)
                   for lanes, nbytes in requests)
        if best is None or cost < best[1]:
            best = candidate, cost
        if cost == 0:
            break
    assert best is not None
    return best
