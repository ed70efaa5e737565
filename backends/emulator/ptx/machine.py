"""All threads of a block, or of a cluster of blocks, at once: registers are arrays with an element for each thread,
control is per thread.

Threads that stand at the same instruction run together, those at the lowest one first, so that branches meet again.
Instructions of whole warps and barriers keep threads until all that take part have come.
"""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tilelang.backends.emulator.ptx.numbers import UNSIGNED, Array
from tilelang.backends.emulator.ptx.parse import PtxError
from tilelang.ir.roles import GROUP, REGISTERS, UNIT

LANES = 32
LIMIT = 20_000_000
"""Instructions after which a block is taken to hang."""
GAP = 4096  # bytes between buffers, so that a small overrun lands in none


class TensorMap(NamedTuple):
    """How boxes of a tensor are copied: the address of its first element, the bytes of one; extents, strides in bytes
    and extents of a box, the dimension of neighbours first; bytes of rows whose pieces are permuted; NumPy's letter
    for the kind of elements."""

    start: int
    size: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    boxes: tuple[int, ...]
    swizzle: int
    kind: str = "u"


class Space:
    """A state space: bytes, of which those in a region may be accessed."""

    def __init__(self, name: str, base: int, sizes: Sequence[tuple[int, int]], fill: int = 0) -> None:
        """`sizes` has the length of each region and its address modulo 256."""
        self.name, self.starts, self.ends, at = name, list[int](), list[int](), base
        for size, phase in sizes:
            at = -(-at // 1024) * 1024 + phase
            self.starts.append(at)
            self.ends.append(at + size)
            at += size + GAP
        self.base = base
        self.data = np.full(-(-(at - base) // 16) * 16, fill, np.uint8)
        self.views = {size: self.data.view(t) for size, t in UNSIGNED.items()}

    def region(self, i: int) -> Array:
        return self.data[self.starts[i] - self.base:self.ends[i] - self.base]

    def outside(self, at: Array, size: int) -> Array:
        """Which accesses are not within a region."""
        index = np.searchsorted(np.asarray(self.starts), at, "right") - 1
        return (index < 0) | (at + size > np.asarray([*self.ends, 0])[index])

    def check(self, at: Array, size: int, partly: bool = False) -> Array:
        """Offsets of the addresses of an access of `size` bytes; one byte in a region is enough where `partly`.
        Raises PtxError."""
        if not at.size:
            return at
        low, high = int(at.min()), int(at.max())
        i = bisect_right(self.starts, low) - 1
        if i < 0 or high + size > self.ends[i]:  # not all in one region
            bad = self.outside(at, size)
            if partly:
                bad = np.logical_and.reduce([self.outside(at + k, 1) for k in range(size)])
            if bad.any():
                raise PtxError(f"{int(bad.sum())} threads access {size} bytes outside every buffer of "
                               f"{self.name} memory", got=f"address {int(at[bad][0]):#x}",
                               needs=", ".join(f"[{s:#x}, {e:#x})" for s, e in zip(self.starts, self.ends,
                                                                                    strict=True)))
        if size > 1 and (at & size - 1).any():
            raise PtxError(f"a misaligned access of {size} bytes in {self.name} memory",
                           got=f"address {int(at[at & size - 1 != 0][0]):#x}")
        return at - self.base

    def load(self, offsets: Array, size: int) -> Array:
        """Words of `size` bytes at offsets that `check` gave."""
        return self.views[size][offsets >> size.bit_length() - 1]

    def store(self, offsets: Array, values: Array) -> None:
        size = values.dtype.itemsize
        self.views[size][offsets >> size.bit_length() - 1] = values


@dataclass
class MBarrier:
    """A barrier in shared memory: arrivals of a phase, those and the bytes still to come, phases that have ended, and
    what the copies under way will write: (offsets, words)."""

    arrivals: int
    missing: int
    bytes: int = 0
    phase: int = 0
    copies: list[tuple[Array, Array]] = field(default_factory=list)


@dataclass
class BulkStore:
    """A copy to a tensor under way: the thread that started it and its group, and what it does when it is done."""

    thread: int
    group: int
    land: Callable[[], None]


@dataclass
class Bulk:
    """Barriers in shared memory by address, tensor maps by the address of their parameter, copies to tensors that
    nobody has waited for and how many groups of them each thread has closed."""

    barriers: dict[int, MBarrier] = field(default_factory=dict)
    maps: dict[int, TensorMap] = field(default_factory=dict)
    stores: list[BulkStore] = field(default_factory=list)
    groups: dict[int, int] = field(default_factory=dict)


Step = Callable[["Machine"], "list[tuple[int, Array]] | None"]
"""Runs one instruction for the active threads. Where they do not all go on to the next one: who goes where."""


class Machine:
    """The state of a block, or of the blocks of a cluster, whose threads follow one another."""

    def __init__(self, threads: int, registers: list[Array], spaces: dict[str, Space], cluster: int = 1) -> None:
        self.cluster, self.block = cluster, -(-threads // LANES) * LANES
        self.width = cluster * self.block
        self.exists = np.arange(self.width) % self.block < threads
        self.registers, self.spaces = registers, spaces
        self.live = self.exists.copy()
        self.parked: dict[int, Array] = {}  # threads that wait for others, by instruction
        self.copies: list[tuple[Array, Array, Array, Array]] = []  # async: threads, groups, places, words
        self.group = np.zeros(self.width, np.int64)  # that an async copy of the thread belongs to
        self.bulk = Bulk()
        each = min(REGISTERS // self.block // UNIT * UNIT, 256)
        self.granted = np.full(-(-self.width // (LANES * GROUP)), each)  # registers of a thread of each group of warps
        self.free = [0] * cluster  # of those that each block began with
        self.waits: set[int] = set()  # instructions where threads wait for a barrier in shared memory, or registers
        self.again: set[int] = set()  # those of them at which parked threads are to look again
        self.activate(self.live)

    def peer(self, address: int, rank: int) -> int:
        """The same place in the shared memory of another block of the cluster. Raises PtxError."""
        if not 0 <= rank < self.cluster:
            raise PtxError(f"shared memory of block {rank} of a cluster of {self.cluster}")
        starts = self.spaces["shared"].starts
        return address - starts[bisect_right(starts, address) - 1] + starts[rank]

    def look_again(self) -> None:
        """Something came that threads may wait for."""
        self.again.update(self.parked.keys() & self.waits)

    def activate(self, active: Array) -> None:
        self.active = active
        count = np.count_nonzero(active)
        self.all = count == self.width
        self.whole = self.all or count == np.count_nonzero(self.live)
        self.index: Any = slice(None) if self.all else np.flatnonzero(active)

    def put(self, register: int, value: Array) -> None:
        """Arrays are never changed in place: a `mov` shares them."""
        self.registers[register] = value if self.whole else np.where(self.active, value, self.registers[register])

    def spread(self, value: Array) -> Array:
        """Values of the active threads as those of all."""
        if self.all:
            return value
        out = np.zeros(self.width, value.dtype)
        out[self.index] = value
        return out

    def run(self, steps: Sequence[Step], text: Callable[[int], str]) -> None:
        """Runs until every thread has exited. Raises PtxError with the instruction where it happened."""
        ready, count = {0: self.live}, 0
        while ready:
            pc = min(ready)
            self.activate(ready.pop(pc))
            stop = min(ready, default=len(steps) + 1)
            while pc < stop:
                count += 1
                try:
                    out = steps[pc](self)
                except PtxError as e:
                    e.why = e.why or f"in `{text(pc)}`"
                    raise
                for at in self.again:
                    ready[at] = ready[at] | self.parked.pop(at) if at in ready else self.parked.pop(at)
                    stop = min(stop, at)
                self.again.clear()
                pc += 1
                if out is None:
                    continue
                if len(out) == 1 and out[0][1] is self.active:
                    pc = out[0][0]
                    continue
                for to, who in out:
                    ready[to] = ready[to] | who if to in ready else who
                break
            else:
                ready[pc] = ready[pc] | self.active if pc in ready else self.active
            if count > LIMIT:
                raise PtxError(f"the kernel still runs after {LIMIT} instructions", why=f"in `{text(pc)}`")
        if self.parked:
            pc = min(self.parked)
            raise PtxError(f"{int(self.parked[pc].sum())} threads wait for others that never come",
                           why=f"in `{text(pc)}`")
        if self.copies:
            raise PtxError("async copies are under way when the kernel ends", needs="a wait for every group")
        if any(b.copies for b in self.bulk.barriers.values()):
            raise PtxError("a copy of a block is under way when the kernel ends", needs="a wait for its phase")
        if self.bulk.stores:
            raise PtxError("a copy of a block to a tensor is under way when the kernel ends",
                           needs="a wait for its group")
