"""Moving tiles between threads: through shared memory, one write phase and one read phase.

A staging buffer holds a tile under a `SharedLayout`. Everything that rearranges a tile across threads (a conversion
of layout, `reshape`, `concat`, `slice`, `lookup`, the last steps of reductions) writes it there and reads it back in
another way. Barriers are inserted later, by `barriers`, from the phases recorded here.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from operator import itemgetter
from sys import maxsize

import numpy as np

from tilelang.backends.simt.access import address, join, lanes_of, slice_start
from tilelang.backends.simt.matrix import as_rows, load_matrices, store_matrices
from tilelang.backends.simt.registers import Threads, local_offsets, vector_width
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.thread.builder import I32, Index, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import simt
from tilelang.ir import thread as th
from tilelang.ir.core import Op, Value
from tilelang.ir.dtypes import DType
from tilelang.ir.memory import Alloc
from tilelang.layouts import Move, Ports, RegisterLayout, SharedLayout, Swizzle, shared

Where = Callable[[tuple[Index, ...]], tuple[Index, ...]]


def itself(index: tuple[Index, ...]) -> tuple[Index, ...]:
    return index


@lru_cache(maxsize=1024)
def wavefronts(layout: RegisterLayout, place: SharedLayout, size: int, ports: Ports, store: bool) -> int:
    """Cycles by which the accesses of one warp exceed the fewest possible, and one for each access more that a swizzle
    inside of vectors makes of them."""
    _, width = vector_width(layout, place, size)
    _, widest = vector_width(layout, place.with_swizzle(None), size)
    nbytes = width * size
    banks = ports.of(nbytes, store)
    table = layout.table()[:sum(map(len, banks.phases))]
    phases = [[lane for lane in phase if lane < len(table)] for phase in banks.phases]
    extra = layout.local_size // width - layout.local_size // widest
    address = place.offset(tuple(np.minimum(table[:, ::width, d], place.shape[d] - 1) for d in range(layout.rank)))
    accesses = np.arange(layout.local_size // width)[:, None]
    address = np.broadcast_to(address, (len(table), len(accesses))) * size
    for lanes in filter(None, phases):
        words = address[lanes].T[..., None] // banks.width + np.arange(max(nbytes // banks.width, 1))
        words = np.sort(words.reshape(len(accesses), -1), 1)
        once = np.diff(words, axis=1, prepend=-1) != 0  # the same word may be read by many lanes
        found = (accesses * banks.count + words % banks.count)[once]
        of_bank = np.bincount(found, minlength=len(accesses) * banks.count).reshape(-1, banks.count)
        extra += int((of_bank.max(1) - -(-once.sum(1) // banks.count)).sum())
    return extra


@lru_cache(maxsize=1024)
def staging(shape: tuple[int, ...], size: int, stored: RegisterLayout, loaded: tuple[RegisterLayout, ...],
            ports: Ports, column: bool = False, whole: bool = True) -> SharedLayout:
    """A row-major (column-major) layout of a staging buffer that is written and read with the fewest bank conflicts.
    Swizzles move whole vectors, or two at once, once or twice; where that leaves some, one more bit is changed; and
    where vectors need not stay `whole`, their halves are exchanged by one bit or, like vectors, by one more."""
    users = [(stored, True), *((f, False) for f in loaded)]
    plain = shared(shape, strides=(1, shape[0])) if column else shared(shape)
    base = max(vector_width(u, plain, size)[1] for u, _ in users).bit_length() - 1
    top = (prod(shape) - 1).bit_length()

    def better(best: tuple[SharedLayout, int], starts: Sequence[int], longest: int,
               first: Swizzle | None) -> tuple[SharedLayout, int]:
        """`best`, or what beats it with one more term than `first`; with what it costs."""
        for start in starts:
            for bits in range(1, longest + 1):
                for shift in range(bits, top - start - bits + 1):
                    if best[1] == 0:
                        return best
                    best = min(best, costed(plain.with_swizzle(Swizzle(bits, start, shift, first))), key=itemgetter(1))
        return best

    def costed(place: SharedLayout) -> tuple[SharedLayout, int]:
        return place, sum(wavefronts(u, place, size, ports, store) for u, store in users)
    best = costed(plain)
    for starts, longest in ([base, base + 1], 5), ([base], 5), (range(base, top), 1):
        best = better(best, starts, longest, best[0].swizzle)
    if not whole and base and best[1]:
        halved = plain, maxsize  # the best of these may need one more bit to be better than whole vectors
        for shift in range(1, top - base + 1):
            halved = better(halved, [base], 5, Swizzle(1, base - 1, shift))
        best = min(best, better(halved, range(base - 1, top), 1, halved[0].swizzle), key=itemgetter(1))
    return best[0]


class Exchange:
    """Staging buffers of one function; every access to one carries the number of its phase."""

    def __init__(self, b: ThreadBuilder, threads: Threads, target: SimtTarget) -> None:
        self.b, self.threads, self.target = b, threads, target
        self.phase = 0

    def begin(self) -> int:
        """Opens a phase and gives its number."""
        self.phase += 1
        return self.phase

    def alloc(self, dt: DType, size: int | tuple[int, ...], name: str = "", like: Op | None = None) -> Value:
        """A buffer, of `size` elements, of a tile's shape or as `like` says."""
        shape = (size,) if isinstance(size, int) else size
        op = Alloc([], like.attrs if like is not None else {"dtype": dt, "shape": shape}, loc=self.b.loc)
        op.result.name = name
        return self.b.begin_with(op)

    def note(self, op: Op) -> Op:
        op.attrs["phase"] = self.phase
        return op

    def _index(self, layout: RegisterLayout, register: int) -> tuple[Index, ...]:
        """The tile index of a register."""
        local = local_offsets(layout)[register]
        return tuple(self.b.add(self.threads.part(layout, d), int(local[d])) for d in range(layout.rank))

    def _clip(self, index: tuple[Index, ...], layout: RegisterLayout, shape: Sequence[int]) -> list[Value]:
        """Conditions for an index to lie in the tile, where the layout is larger."""
        b = self.b
        return [b.pure(ew.Lt, b.index(at), b.index(shape[d])) for d, at in enumerate(index)
                if layout.shape[d] > shape[d]]

    @staticmethod
    def _width(layout: RegisterLayout, place: SharedLayout, size: int, shape: Sequence[int], where: Where) -> int:
        """Registers that an access may carry: `where` may break up vectors, and so may the tile's edge."""
        dim, width = vector_width(layout, place, size)
        return 1 if where is not itself or width > 1 and shape[dim] % width else width

    def write(self, value: Value, dt: DType, layout: RegisterLayout, shape: Sequence[int], memory: Value,
              place: SharedLayout, where: Where = itself, last: bool = False, phase: int | None = None) -> None:
        """Writes a tile, each element once, at `where` its index goes; of copies that differ the `last` counts."""
        b, phase = self.b, self.phase if phase is None else phase
        if where is itself and not last and self.target.stmatrix and \
                store_matrices(b, self.threads, value, memory, place, layout, phase):
            return
        width = self._width(layout, place, dt.storage.itemsize, shape, where)
        leader = self.threads.leader(layout, last)
        for first in range(0, layout.local_size, width):
            index = self._index(layout, first)
            conditions = self._clip(index, layout, shape) + ([leader] if leader is not None else [])
            offset = address(b, place, where(index))
            b.effect(th.St, memory, b.index(offset), lanes_of(b, value, first, width),
                     *([b.all_of(conditions)] if conditions else []), phase=phase)

    def read(self, dt: DType, layout: RegisterLayout, shape: Sequence[int], memory: Value, place: SharedLayout,
             where: Where = itself, phase: int | None = None, lead: Sequence[Index] = ()) -> Value:
        """Reads a tile, that at index `lead` of a buffer's first dimensions, into registers; those outside the tile
        are 0. What threads add of their own to the address is apart from the index, which loops change."""
        b, phase = self.b, self.phase if phase is None else phase
        whole = load_matrices(b, self.threads, memory, place, layout, lead, phase) \
            if where is itself and self.target.ldmatrix else None
        if whole is not None:
            return whole
        start = slice_start(b, place, lead)
        place = place.inner(len(lead))
        width, parts = self._width(layout, place, dt.storage.itemsize, shape, where), []
        for first in range(0, layout.local_size, width):
            index = self._index(layout, first)
            conditions = self._clip(index, layout, shape)
            source, offset = memory, address(b, place, where(index))
            if lead:
                own, constant = b.split(offset)
                source, offset = b.pure(simt.Block, memory, b.index(own), kept=True), b.add(start, constant)
            parts.append(b.effect(th.Ld, source, b.index(offset), *([b.all_of(conditions)] if conditions else []),
                                  lanes=width if width > 1 else None, phase=phase).result)
        return join(b, parts)

    def read_one(self, memory: Value, offset: Index) -> Value:
        """One element, the same for all threads."""
        return self.note(self.b.effect(th.Ld, memory, self.b.index(offset), lanes=None)).result

    def shuffle(self, value: Value, moves: Sequence[Move], warp: int) -> Value:
        """A conversion of layout within each warp."""
        b, parts = self.b, []
        lane = b.pure(ew.And, self.threads.thread, b.const(warp - 1, I32))

        def bit(n: int) -> Value:
            return b.pure(ew.And, b.pure(ew.Shr, lane, b.const(n, I32)), b.const(1, I32))

        def fetch(register: int, m: Move) -> Value:
            x = b.pure(th.Extract, value, lane=register)
            if m.xor is not None:
                return x if m.xor == 0 else b.effect(simt.Shuffle, x, by=m.xor, warp=warp).result
            source = b.const(m.base, I32)
            for n, weight in enumerate(m.weights):
                if weight:
                    source = b.pure(ew.Add, source, b.pure(ew.Mul, bit(n), b.const(weight, I32)))
            return b.effect(simt.Shuffle, x, source, kind="index", warp=warp).result
        swapped: dict[tuple[int, int, int], Sequence[Value]] = {}
        for m in moves:
            if m.other is not None and m.swap is not None:
                key = (m.register, m.other, m.swap)
                if key not in swapped:
                    both = (b.pure(th.Extract, value, lane=i) for i in key[:2])
                    swapped[key] = b.effect(simt.Swap, *both, by=m.swap).results
                parts.append(swapped[key][m.base != 0])
                continue
            part = fetch(m.register, m)
            if m.other is not None:
                upper = b.pure(ew.Ne, bit(m.bit), b.const(0, I32))
                part = b.pure(ew.Where, upper, fetch(m.other, m), part)
            parts.append(part)
        return join(b, parts)

    def pass_through(self, value: Value, dt: DType, src: RegisterLayout, dst: RegisterLayout,
                     shape: tuple[int, ...], last: bool = False) -> Value:
        """A conversion of layout by way of memory."""
        size = dt.storage.itemsize
        stored = as_rows(src, shape, dt) if self.target.stmatrix and not last else src
        loaded = as_rows(dst, shape, dt) if self.target.ldmatrix else dst
        matrices = self.target.ldmatrix or self.target.stmatrix
        place = staging(shape, size, stored, (loaded,), self.target.ports, whole=matrices)
        memory = self.alloc(dt, place.size)
        self.begin()
        self.write(value, dt, src, shape, memory, place, last=last)
        self.begin()
        return self.read(dt, dst, shape, memory, place)
