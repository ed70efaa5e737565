"""pipeline: overlaps the copies of a loop's later iterations with the work of the present one.

requires: PLACED, where a block that a loop's body copies into managed shared memory is waited for at once
ensures: in a `for` with `stages` n > 1 such a copy runs n - 1 iterations ahead, through a ring of n blocks (of as many
as shared memory holds); one wait and one barrier in each iteration serve all of them
example: `for … {stages=3} { barrier; copy_async %a, %k, %s; commit; wait {pending=0}; barrier; load %s; … }` copies
the first two blocks before the loop, and in it waits for the oldest, then copies the block after the next. Where warps
take turns (`schedule.py`) waits and barriers stand elsewhere

Where copies go through registers, one iteration ahead is all that registers hold: a ring of two blocks. Where shared
memory holds one block only, what was loaded in an iteration is stored at its end, after a barrier.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilelang.backends.simt.registers import thread_count
from tilelang.backends.simt.schedule import read_first, refusal, schedule_of, stated
from tilelang.backends.simt.shared_memory import root, size_of
from tilelang.backends.simt.stage import ring
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.through_registers import split
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir import simt
from tilelang.ir.control import For, Yield
from tilelang.ir.core import BufferType, Function, Op, Region, TileType, Value
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout, conversion

I32 = dtype("i32")


def pipeline(fn: Function, target: SimtTarget) -> Function:
    """Rewrites every such loop, in place."""
    allocs = {op.result: op for op in fn.walk() if op.name == "alloc" and op.attrs["managed"]}

    def visit(region: Region) -> None:
        for op in list(region.ops):
            for inner in op.regions:
                visit(inner)
            if op.name == "for" and (op.attrs["stages"] > 1 or stated(op, target)):
                stages = op.attrs["stages"] if target.async_copy else 2
                _Loop(region, op, allocs, stages, {row.name for row in target.group_mma}).run(target, threads)
    threads = thread_count(fn, target)
    visit(fn.body)
    return fn


class _Loop:
    def __init__(self, around: Region, op: Op, allocs: dict[Value, Op], stages: int, beside: set[str]) -> None:
        self.around, self.op, self.body, self.allocs, self.stages = around, op, op.regions[0], allocs, stages
        self.beside = beside  # instructions that run beside the threads that start them
        self.index = self.body.args[0]

    def run(self, target: SimtTarget, threads: int) -> None:
        copies = [op for op in self.body.ops if op.name == "copy_async" and op.operands[-1] in self.allocs
                  and self._slice(op) is not None]
        block = sum(size_of(self.allocs[op.operands[-1]]) for op in copies)
        left = target.shared_bytes - self._others({op.operands[-1] for op in copies}, target.warp)
        self.stages = min(self.stages, left // max(block, 1))
        if not copies or self.stages < (2 if target.async_copy else 1):
            if stated(self.op, target):
                raise refusal(self.op, "staged operands, of which at least two blocks fit into shared memory",
                              f"{len(copies)} staged operands, and {max(self.stages, 0)} blocks of {block} bytes")
            return
        if self.stages == 1:
            self._through_registers(copies, threads)
            return
        rings = {self._ring(self.allocs[op.operands[-1]]) for op in copies}
        before: list[Op] = []
        lo, _, step = self.op.operands[:3]
        at = lo
        for stage in range(self.stages - 1):
            slot = self._const(before, stage)
            for copy in copies:
                self._copy(before, copy, at, slot)
            before.append(mem.Commit([], loc=self.op.loc))
            at = self._op(before, ew.Add, at, step)
        self._rewrite(before, copies, rings, step, target, threads)

    def _others(self, copied: set[Value], warp: int) -> int:
        """Bytes of shared memory that the body uses besides the blocks it copies."""
        ops = list(self.body.walk())
        buffers = {root(v) for op in ops for v in op.operands if isinstance(v.type, BufferType)} - copied
        exchanged = [op.result.tile.size * op.result.dtype.storage.itemsize for op in ops
                     if op.name == "convert_layout" and _how(op, warp) == "shared"]
        return sum(size_of(v.owner) for v in buffers if v.owner is not None) + max(exchanged, default=0)

    # -- building -----------------------------------------------------------------------------------------------------
    def _op(self, out: list[Op], cls: type[Op], *operands: Value, **attrs: object) -> Value:
        out.append(cls(operands, attrs, loc=self.op.loc))
        return out[-1].result

    def _const(self, out: list[Op], value: int, like: Value | None = None) -> Value:
        return self._op(out, sh.Const, value=value, dtype=like.dtype if like is not None else I32)

    def _ring(self, alloc: Op) -> Value:
        """The buffer of `alloc`, once for every stage; it takes the place of `alloc`."""
        t = alloc.result.type
        assert isinstance(t, BufferType)
        assert t.layout is not None
        shape, layout = (self.stages, *t.shape), ring(t.layout, self.stages)
        alloc.attrs.update(shape=shape, layout=layout)
        alloc.result.type = BufferType(t.dtype, shape, t.space, layout)
        return alloc.result

    def _slice(self, copy: Op) -> list[Op] | None:
        """The operations of the body that compute the place of a copy from the loop's index; None where it depends
        on more: a carried value, or memory."""
        inside = set(self.body.ops)
        needed: list[Op] = []
        pending = list(copy.operands[1:-1])
        while pending:
            v = pending.pop()
            if v in self.body.args[1:]:
                return None
            op = v.owner
            if op is None or op not in inside or op in needed:
                continue
            tiles = op.name != "dim" and any(not isinstance(o.type, TileType) or o.shape for o in op.operands)
            if op.effects or op.regions or tiles:
                return None
            needed.append(op)
            pending += op.operands
        return [op for op in self.body.ops if op in needed]

    def _waits(self, body: Sequence[Op], rings: set[Value]) -> bool:
        """Whether something else in the body needs its waits: the user's buffers, or a copy that stays."""
        ops = list(Region([], body).walk())
        copied = {op.operands[-1] for op in ops if op.name == "copy_async"}
        return any(isinstance(v.type, BufferType) and v not in rings and (v not in self.allocs or v in copied)
                   for op in ops for v in op.operands)

    def _copy(self, out: list[Op], copy: Op, at: Value, *slot: Value) -> None:
        """The copy as iteration `at` makes it, into block `slot` of a ring."""
        mapping = {self.index: at}
        for op in self._slice(copy) or []:
            out.append(op.clone(mapping))
        *source, buffer = copy.operands
        out.append(mem.CopyAsync([*(mapping.get(v, v) for v in source), buffer, *slot], copy.attrs, loc=copy.loc))

    def _through_registers(self, copies: Sequence[Op], threads: int) -> None:
        """The loop loads the next block while it works on the only one in shared memory."""
        before: list[Op] = []
        head: list[Op] = [mem.Wait([], loc=self.op.loc), mem.Barrier([], loc=self.op.loc)]
        tail: list[Op] = [mem.Barrier([], loc=self.op.loc)]
        at = self._op(head, ew.Add, self.index, self.op.operands[2])
        for copy in copies:
            self._copy(before, copy, self.op.operands[0])
            self._copy(head, copy, at)
            loads, stores = split(head.pop(), threads)
            head += loads
            tail += stores
        *body, last = self._rest(copies)
        region = Region(self.body.args, [*head, *body, *tail, last])
        self._replace([*before, mem.Commit([], loc=self.op.loc)],
                      For(self.op.operands, {"stages": 1}, [region], self.op.loc))

    def _rewrite(self, before: list[Op], copies: Sequence[Op], rings: set[Value], step: Value, target: SimtTarget,
                 threads: int) -> None:
        """The loop carries the number of the oldest block."""
        first = self._const(before, 0)
        oldest = Value(TileType((), I32), "stage")
        body, after = self._rest(copies), list[Op]()
        way = schedule_of(self.op, body, rings, self.stages, target, threads)
        arrived = self._made(mem.Wait, pending=self.stages - 2), self._made(mem.Barrier)
        head: list[Op] = []
        if way == "pingpong":
            before += [*arrived, self._made(simt.Meet, warps=target.turns, half=1)]
            after.append(self._made(simt.Meet, warps=target.turns, half=0))
        else:
            head += arrived
        one, count = (self._const(head, n) for n in (1, self.stages))

        def following(x: Value, by: Value) -> Value:
            moved = self._op(head, ew.Add, x, by)
            past = self._op(head, ew.Ge, moved, count)
            return self._op(head, ew.Where, past, self._op(head, ew.Sub, moved, count), moved)
        start = len(head)
        ahead = self._const(head, self.stages - 1)
        newest = following(oldest, ahead)
        distance = self._op(head, ew.Mul, step, self._const(head, self.stages - 1, step))
        at = self._op(head, ew.Add, self.index, distance)
        for copy in copies:
            self._copy(head, copy, at, newest)
        head.append(mem.Commit([], loc=self.op.loc))
        carried = following(oldest, one)
        if beside := next((i + 1 for i, op in enumerate(body) if op.attrs.get("instruction") in self.beside), 0):
            body[beside:beside] = head[start:]  # copies start while products run beside the threads
            del head[start:]
        for op in body:
            if op.name == "load" and op.operands[0] in rings:
                op.operands.insert(1, oldest)
                op.attrs["axes"] = tuple(a + 1 for a in op.attrs["axes"])
        last = body.pop()
        if way == "pingpong":
            moving, multiplying = read_first(body, rings)
            body = [*moving, self._made(mem.Wait, pending=self.stages - 2), self._made(simt.Meet, warps=target.turns),
                    self._made(simt.Priority, level=1), *multiplying, self._made(simt.Priority, level=0),
                    self._made(simt.Meet, warps=target.turns)]
        elif way == "interleave":
            body.append(self._made(simt.Spread))
        yields = Yield([*last.operands, carried], loc=last.loc)
        region = Region([*self.body.args, oldest], [*head, *body, yields])
        self._replace(before, For([*self.op.operands, first], {"stages": 1}, [region], self.op.loc), after)

    def _made(self, cls: type[Op], **attrs: object) -> Op:
        return cls([], attrs, loc=self.op.loc)

    def _rest(self, copies: Sequence[Op]) -> list[Op]:
        """The body without its copies, and without their waits and barriers where nothing else needs them."""
        body = [op for op in self.body.ops if op not in copies]
        if not self._waits(body, {op.operands[-1] for op in copies}):
            body = [op for op in body if op.name not in ("commit", "wait", "barrier")]
        return body

    def _replace(self, before: Sequence[Op], new: Op, after: Sequence[Op] = ()) -> None:
        """`new`, whose first results are those of the loop, in its place."""
        for old, value in zip(self.op.results, new.results, strict=False):
            value.name = old.name
        place = self.around.ops.index(self.op)
        self.around.ops[place:place + 1] = [*before, new, *after, self._made(mem.Wait, pending=0)]
        replaced = dict(zip(self.op.results, new.results, strict=False))
        for op in Region([], self.around.ops[place:]).walk():
            op.operands = [replaced.get(v, v) for v in op.operands]


def _how(op: Op, warp: int) -> str:
    """The kind of a conversion of layout."""
    have, want = op.operands[0].tile.layout, op.result.tile.layout
    assert isinstance(have, RegisterLayout) and isinstance(want, RegisterLayout)
    return conversion(have, want, op.result.shape, warp).kind
