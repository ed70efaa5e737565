"""insert_barriers: makes what threads write to shared memory visible before other threads touch it.

requires: THREAD with allocated shared memory
ensures: between two accesses of different phases that may touch the same byte, one of them a write, stands a barrier
on every path; each barrier stands as late as it can, which gives the fewest in straight-line code, but in front of a
loop where its body would repeat it for nothing
example: `st %s …{phase=1}`, `ld %s …{phase=2}` get a barrier between them

A program means what it does one operation after the other: what one of its threads writes to a tensor, another may
read later, and a barrier makes that visible too. Accesses of phase 0 need none: tensors that are only read, and
shared memory of the user, who places barriers himself. A `wait` makes the asynchronous copies of a thread arrive: it
counts as the write.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tilelang.backends.simt.shared_memory import root, size_of, touched
from tilelang.ir.cluster import BARRIERS
from tilelang.ir.core import Function, Op, Region, TensorType, Value
from tilelang.ir.memory import Barrier


@dataclass(frozen=True)
class Touch:
    """An access since the last barrier: bytes [lo, hi), by a write or a read, in a phase."""

    lo: int
    hi: int
    writes: bool
    phase: int

    def conflicts(self, other: Touch) -> bool:
        return (self.writes or other.writes) and self.phase != other.phase and \
            self.lo < other.hi and other.lo < self.hi


State = frozenset[Touch]
ARRIVED = 0
"""The phase of a copy that its own thread has waited for."""
GLOBAL = 1 << 40
"""Where the pretended places of tensors begin: one for each, for blocks may lie anywhere in it."""


def insert_barriers(fn: Function, target: Any = None) -> Function:
    """Inserts them, in place."""
    scan = _Scan(fn)
    before: set[Op] = set()
    scan.region(fn.body, frozenset(), before)
    _insert(fn.body, before)
    return fn


def _insert(region: Region, before: set[Op]) -> None:
    ops, region.ops = region.ops, []
    for op in ops:
        if op in before:
            region.ops.append(Barrier([], loc=op.loc))
        region.ops.append(op)
        for inner in op.regions:
            _insert(inner, before)


class _Scan:
    def __init__(self, fn: Function) -> None:
        self.place: dict[Value, tuple[int, int]] = {}
        for op in fn.walk():
            if op.name == "alloc" and op.attrs["offset"] is not None:
                start = op.attrs["offset"]
                self.place[op.result] = start, start + size_of(op)
        tensors = [p for p in fn.params if isinstance(p.type, TensorType)]
        self.place.update({p: (GLOBAL + i, GLOBAL + i + 1) for i, p in enumerate(tensors)})
        managed = {op.result for op in fn.walk() if op.name == "alloc" and op.attrs["managed"]}
        writes = [op for op in fn.walk() if op.effects == "write" and root(op.operands[0]) in managed]
        self.copies = {op.attrs["phase"] for op in writes if op.name != "tensor_load"}  # others have their barriers
        self.asynchronous = {op.attrs["phase"] for op in writes if op.name in ("st_async", "dma")}

    def touches(self, op: Op) -> list[Touch]:
        return [Touch(*self.place[root(v)], op.effects == "write", phase) for v, phase in touched(op) if phase]

    def after_barrier(self, state: State) -> State:
        """Copies under way are not done by a barrier."""
        return frozenset(t for t in state if t.writes and t.phase in self.asynchronous)

    def region(self, region: Region, state: State, before: set[Op]) -> State:
        """The accesses pending after the region; `before` collects operations that need a barrier in front."""
        for op in region.ops:
            if op.name in (*BARRIERS, "meet"):  # where warps take turns, `schedule` has ordered all there is
                state = self.after_barrier(state)
            elif op.name == "wait":  # a thread's own copies are done: others see them after a barrier
                state = frozenset(replace(t, phase=ARRIVED) if t.writes and t.phase in self.copies else t
                                  for t in state)
            elif op.name in ("for", "while"):
                state = self.loop(op, state, before)
            elif op.regions:
                state = frozenset().union(*(self.region(r, state, before) for r in op.regions))
            else:
                mine = self.touches(op)
                if any(t.conflicts(o) for t in mine for o in state):
                    before.add(op)
                    state = self.after_barrier(state)
                state = state | frozenset(mine)
        return state

    def loop(self, op: Op, state: State, before: set[Op]) -> State:
        """One barrier in front of a loop stands for those in its body that only what was before it asks for."""
        inside: set[Op] = set()
        out = self.rounds(op, state, inside)
        cleared = self.after_barrier(state)
        if inside and cleared != state:
            fewer: set[Op] = set()
            then = self.rounds(op, cleared, fewer)
            if len(fewer) < len(inside):
                before.add(op)
                inside, out = fewer, then
        before |= inside
        return out

    def rounds(self, op: Op, state: State, before: set[Op]) -> State:
        """A body is entered from before the loop and from its own end: grows the state until it holds both."""
        while True:
            trial: set[Op] = set()
            out = state
            for r in op.regions:
                out = self.region(r, out, trial)
            out = frozenset(_aged(t) for t in out)
            if out <= state:
                before |= trial
                return state
            state = state | out


def _aged(t: Touch) -> Touch:
    """An access of the iteration before: the same operation may touch the same element of a tensor again."""
    return replace(t, phase=-abs(t.phase)) if t.lo >= GLOBAL and t.writes else t
