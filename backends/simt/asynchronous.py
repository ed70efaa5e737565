"""order_products: fences and waits for products that run beside the threads that start them.

requires: THREAD with barriers
ensures: before a `group_mma` stands a fence of registers, after it a `commit`; what threads wrote to memory that one
reads, or that copies of blocks read, write or count their bytes in, is fenced before the barrier after which it does;
sums are waited for as late as possible: before something else uses them, and, because others may then write over the
operands, before a barrier; but where a warp gives back a block of a ring (`mbarrier_arrive`), that is the one before,
and products of the same iteration go on
example: `barrier; group_mma; add; barrier` becomes `fence memory; barrier; fence registers; group_mma; commit; add;
wait; barrier`

A sum may be under way when an iteration ends: the next one's product adds to it in the same registers.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tilelang.backends.clike.rendered import TENSOR
from tilelang.backends.simt.shared_memory import root, shared_allocs, span_of, touched
from tilelang.ir.cluster import BARRIERS
from tilelang.ir.core import Function, Op, Region, TileType, Value
from tilelang.ir.memory import Commit, Wait
from tilelang.ir.simt import Fence


class State(NamedTuple):
    """Groups of products under way, the oldest first, each as its sum (None for one that nothing can use any more),
    and whether this thread may have written to an operand since it last fenced memory."""

    groups: tuple[Value | None, ...] = ()
    written: bool = False


def order_products(fn: Function, target: Any = None) -> Function:
    """Inserts them, in place."""
    if any(op.name in ("group_mma", *TENSOR) for op in fn.walk()):
        order = _Order(fn)
        ops, state = order.ops(fn.body.ops, State())
        fn.body.ops = [*ops, *order.wait(state, len(state.groups), None)]
    return fn


def continuing(fn: Function) -> frozenset[Op]:
    """Each `group_mma` that goes on in the registers of the sum it takes: that is carried, or the sum of another, made
    as often as this is, and nothing else uses it."""
    uses = uses_of(fn)
    found: list[Op] = []

    def visit(region: Region) -> None:
        made = {*region.args, *(v for op in region.ops if op.name in ("group_mma", "for", "fence")
                for v in op.results)}
        for op in region.ops:
            if op.name == "group_mma" and op.operands[0] in made and uses[op.operands[0]] == 1:
                found.append(op)
            for inner in op.regions:
                visit(inner)
    visit(fn.body)
    return frozenset(found)


def uses_of(fn: Function) -> Counter[Value]:
    """How many operands each value is, of other operations than waits."""
    return Counter(v for op in fn.walk() if op.name != "wait" for v in op.operands)


def _aside(op: Op) -> bool:
    """Whether a branch has nothing to do with products."""
    return op.name == "if" and not any(o.name in ("group_mma", "barrier", "for", "while")
                                       for r in op.regions for o in r.walk())


class _Order:
    def __init__(self, fn: Function) -> None:
        self.uses, self.continuing = uses_of(fn), continuing(fn)
        self.read = {root(v) for op in fn.walk() if op.name in ("group_mma", "tensor_store") for v, _ in touched(op)}
        filled = [span_of(root(op.operands[0])) for op in fn.walk() if op.name == "tensor_load"]
        for op in shared_allocs(fn) if filled else ():
            lo, hi = span_of(op.result)
            if any(lo < end and start < hi for start, end in filled):
                self.read.add(op.result)

    def wait(self, state: State, groups: int, like: Op | None) -> list[Op]:
        """For the oldest `groups` of those under way."""
        if not groups:
            return []
        there = [v for v in state.groups[:groups] if v is not None]
        return [Wait(there, {"pending": len(state.groups) - groups, "products": True}, loc=like.loc if like else None)]

    def ops(self, ops: Sequence[Op], state: State, write: bool = True) -> tuple[list[Op], State]:
        """The operations with what they need, and how things stand after them. Regions change only to `write`."""
        out: list[Op] = []
        started = 0
        for op in ops:
            if op.name in BARRIERS and state.written:
                out.append(Fence([], {"kind": "memory"}, loc=op.loc))
                state = state._replace(written=False)
            count = self.needed(op, state, started)
            out += self.wait(state, count, op)
            state = state._replace(groups=state.groups[count:])
            if op.name == "group_mma":
                out += [self.fence(op, ops, write), op, Commit([], {"products": True}, loc=op.loc)]
                before = tuple(None if v is op.operands[0] else v for v in state.groups)
                state = state._replace(groups=(*before, op.result))
                started += 1
                continue
            if op.regions and not _aside(op):
                state = self.inner(op, state, write)
            elif any(self.writes(o) for o in (op, *(o for r in op.regions for o in r.walk()))):
                state = state._replace(written=True)
            out.append(op)
        return out, state

    def fence(self, op: Op, region: Sequence[Op], write: bool) -> Fence:
        """The fence before a product, behind which it, and what follows it in its region, use the registers that were
        computed there: its sum, unless that goes on, and its left operand. Those from before the region are."""
        values = [v for i, v in enumerate(op.operands) if isinstance(v.type, TileType)
                  and (v.owner in region if i else op not in self.continuing)]
        fence = Fence(values, {"kind": "registers"}, loc=op.loc)
        fenced = dict(zip(values, fence.results, strict=True))
        for user in Region([], region[region.index(op):]).walk() if write else ():
            user.operands = [fenced.get(v, v) for v in user.operands]
        return fence

    def writes(self, op: Op) -> bool:
        """Whether this thread writes to what a product, or a copy of a block, then uses."""
        return op.name in ("wait", "mbarrier_init", "mbarrier_drop") or op.effects == "write" and \
            op.name != "tensor_load" and any(root(v) in self.read for v, _ in touched(op))

    def needed(self, op: Op, state: State, started: int) -> int:
        """How many groups must be done before `op`, in a region that has started so many."""
        if op.name in BARRIERS or op.regions and not _aside(op):
            return len(state.groups)
        if op.name == "mbarrier_arrive":
            return max(len(state.groups) - started, 0)
        used = [*op.operands, *(v for r in op.regions for o in r.walk() for v in o.operands)]
        if op in self.continuing:
            used = used[1:]
        elif op.name == "yield":
            used = []  # `inner` knows what may go on
        return max((i + 1 for i, v in enumerate(state.groups) if v in used), default=0)

    def inner(self, op: Op, state: State, write: bool) -> State:
        """Rewrites the regions of an operation, before which nothing is under way."""
        if op.name == "for":
            region = op.regions[0]
            once = self.carried(region, self.ops(region.ops, state, False)[1])
            again = self.carried(region, self.ops(region.ops, State(once or (), True), False)[1])
            goes_on = once is not None and again == once
            ops, end = self.ops(region.ops, State(once if once is not None and goes_on else (), True), write)
            if not goes_on:  # what is under way differs from iteration to iteration: nothing may be
                ops, once = self.drained(ops, end), ()
            if write:
                region.ops = ops
            assert once is not None
            results = dict(zip(region.args[1:], op.results, strict=True))
            return State(tuple(None if v is None else results[v] for v in once), True)
        for region in op.regions:
            ops, end = self.ops(region.ops, State((), True), write)
            if write:
                region.ops = self.drained(ops, end)
        return State((), True)

    def drained(self, ops: list[Op], state: State) -> list[Op]:
        """With a wait for everything before the end."""
        return [*ops[:-1], *self.wait(state, len(state.groups), ops[-1]), ops[-1]]

    def carried(self, region: Region, state: State) -> tuple[Value | None, ...] | None:
        """The groups under way when the next iteration begins; None where a sum is not carried in place."""
        groups: list[Value | None] = []
        for v in state.groups:
            first = v
            while first is not None and first.owner in self.continuing:
                first = first.owner.operands[0]
            if v is not None and (self.uses[v] != 1 or not any(
                    y is v and a is first for a, y in zip(region.args[1:], region.yields, strict=True))):
                return None
            groups.append(first)
        return tuple(groups)
