"""pipeline: overlaps the copies of a loop's later iterations with the work of the present one.

requires: PLACED, where a block that a loop's body copies into managed shared memory is waited for at once
ensures: in a `for` with `stages` n > 1 such a copy runs n - 1 iterations ahead, through a ring of n blocks (of as many
as shared memory holds); one wait and one barrier in each iteration serve all of them
example: `for … {stages=3} { barrier; copy_async %a, %k, %s; commit; wait {pending=0}; barrier; load %s; … }` copies
the first two blocks before the loop, and in it waits for the oldest, then copies the block after the next. Where warps
take turns (`schedule.py`) waits and barriers stand elsewhere

Where copies go through registers, one iteration ahead is all that registers hold: a ring of two blocks. Where shared
memory holds one block only, what was loaded in an iteration is stored at its end, after a barrier.

Where the target has copies of blocks by one thread (`bulk.py`) and they can make all of a loop's, the ring has
barriers in shared memory for each block: who reads it waits until it is full, who fills it until all warps are past
it. What is first used later has a barrier of its own: products with keys do not wait for values. That thread is one
of the warps that multiply or, where `roles.py` says so, of others that do nothing else.
"""
from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilelang.backends.simt import bulk, multicast, roles
from tilelang.backends.simt.registers import thread_count
from tilelang.backends.simt.schedule import conversion_of, read_first, refusal, schedule_of, stated
from tilelang.backends.simt.shared_memory import ALIGN, root, size_of
from tilelang.backends.simt.stage import by_first_use, ring, uses
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.through_registers import split
from tilelang.ir import bulk as ir
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir import simt
from tilelang.ir.control import For, If, Yield
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Value
from tilelang.ir.dtypes import dtype

I32 = dtype("i32")


def pipeline(fn: Function, target: SimtTarget) -> Function:
    """Rewrites every such loop, in place."""
    allocs = {op.result: op for op in fn.walk() if op.name == "alloc" and op.attrs["managed"]}

    def visit(region: Region, path: tuple[Op, ...] = ()) -> None:
        for op in list(region.ops):
            for inner in op.regions:
                visit(inner, (*path, op))
            if op.name == "for" and (op.attrs["stages"] > 1 or stated(op, target)):
                stages = op.attrs["stages"] if target.async_copy else 2
                loop = _Loop(region, op, allocs, stages, {row.name for row in target.group_mma})
                loop.run(target, threads, fn.body, path)
    threads = thread_count(fn, target)
    visit(fn.body)
    return multicast.together(fn)


class _Loop:
    def __init__(self, around: Region, op: Op, allocs: dict[Value, Op], stages: int, beside: set[str]) -> None:
        self.around, self.op, self.body, self.allocs, self.stages = around, op, op.regions[0], allocs, stages
        self.beside = beside  # instructions that run beside the threads that start them
        self.index = self.body.args[0]
        self.groups = list[list[Op]]()  # of copies, by what first uses their blocks
        self.shares = multicast.Shares()

    def run(self, target: SimtTarget, threads: int, top: Region, path: Sequence[Op]) -> None:
        """`top` is where allocations stand; `path` what the loop stands in, the outermost first."""
        copies = [op for op in self.body.ops if op.name == "copy_async" and op.operands[-1] in self.allocs
                  and self._slice(op) is not None]
        block = sum(size_of(self.allocs[op.operands[-1]]) for op in copies)
        others = self._others({op.operands[-1] for op in copies}, target.warp)
        self.groups = by_first_use(copies, self.body.ops)
        barriers = (len(self.groups) + 1) * self.stages * ir.U64.storage.itemsize
        left = target.shared_bytes - others - (-(-barriers // ALIGN) * ALIGN if target.bulk else 0)
        self.stages = min(self.stages, left // max(block, 1))
        if not copies or self.stages < (2 if target.async_copy else 1):
            if stated(self.op, target):
                raise refusal(self.op, "staged operands, of which at least two blocks fit into shared memory",
                              f"{len(copies)} staged operands, and {max(self.stages, 0)} blocks of {block} bytes")
            return
        if self.stages == 1:
            if self.op.attrs["schedule"] == "pingpong" and target.turns:
                raise refusal(self.op, "two blocks that fit into shared memory", f"one of {block} bytes")
            self._through_registers(copies, threads, target)
            return
        if target.bulk:
            why = self._objection(copies, threads // target.warp, target.warp)
            if not why:
                alone = self._unproduced(copies, others + self.stages * block, target, threads, top, path)
                common = self._common(copies, target, top, path, not alone)
                for op in copies:
                    own = common.get(op, "")
                    op.attrs["fallback"] = "; ".join(why for why in (alone, own) if why and isinstance(why, str))
                self.shares = multicast.share(common, top)
                by = self._by_barriers if alone else self._by_producers
                by(copies, threads // target.warp, top, path)
                return
            for op in copies:
                op.attrs["fallback"] = why
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
                     if op.name == "convert_layout" and conversion_of(op, warp) == "shared"]
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

    def _copy(self, out: list[Op], copy: Op, at: Value, *slot: Value, cls: type[Op] = mem.CopyAsync,
              **attrs: object) -> None:
        """The copy as iteration `at` makes it, into block `slot` of a ring."""
        mapping = {self.index: at}
        for op in self._slice(copy) or []:
            out.append(op.clone(mapping))
        *source, buffer = copy.operands
        out.append(cls([*(mapping.get(v, v) for v in source), buffer, *slot], {**copy.attrs, **attrs}, loc=copy.loc))

    def _through_registers(self, copies: Sequence[Op], threads: int, target: SimtTarget) -> None:
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
        way = "" if not target.turns else "interleave" if self.op.attrs["schedule"] == "interleave" else "plain"
        if way == "interleave":
            tail.append(self._made(simt.Spread))
        region = Region(self.body.args, [*head, *body, *tail, last])
        loop = For(self.op.operands, {"stages": 1, "schedule": way}, [region], self.op.loc)
        self._replace([*before, mem.Commit([], loc=self.op.loc)], loop, [self._made(mem.Wait, pending=0)])

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
        start = len(head)
        newest, at = self._newest(head, oldest)
        held = list[tuple[Value, Value, Value]]()
        if way == "pingpong" and not target.async_copy:
            held = self._held(before, head, copies, newest, at, threads)
        else:
            for copy in copies:
                self._copy(head, copy, at, newest)
        head.append(mem.Commit([], loc=self.op.loc))
        carried, _ = self._further(head, oldest, 1)
        self._start_beside(head, start, body)
        self._read(body, rings, oldest)
        last = body.pop()
        if way == "pingpong":
            moving, multiplying = read_first(body, rings)
            body = [*moving, self._made(mem.Wait, pending=self.stages - 2), self._made(simt.Meet, warps=target.turns),
                    self._made(simt.Priority, level=1), *multiplying, self._made(simt.Priority, level=0),
                    self._made(simt.Meet, warps=target.turns)]
        elif way == "interleave":
            body.append(self._made(simt.Spread))
        inits, args, following = ([h[i] for h in held] for i in range(3))
        yields = Yield([*last.operands, *following, carried], loc=last.loc)
        region = Region([*self.body.args, *args, oldest], [*head, *body, yields])
        attrs = {"stages": 1, "schedule": way if target.turns else ""}
        self._replace(before, For([*self.op.operands, *inits, first], attrs, [region], self.op.loc),
                      [*after, self._made(mem.Wait, pending=0)])

    def _held(self, before: list[Op], head: list[Op], copies: Sequence[Op], newest: Value, at: Value,
              threads: int) -> list[tuple[Value, Value, Value]]:
        """Copies by way of registers where warps take turns: an iteration stores what the one before it has loaded,
        and loads for the next. Of each copy what is loaded before the loop, what an iteration gets of it, and what it
        hands on."""
        lo, _, step = self.op.operands[:3]
        first, later = self._op(before, ew.Add, lo, step), self._op(head, ew.Add, at, step)
        storing, loading, held = list[Op](), list[Op](), list[tuple[Value, Value, Value]]()
        for copy in copies:
            self._copy(before, copy, first, newest)
            loads, _ = split(before.pop(), threads)
            before += loads
            self._copy(head, copy, later, newest)
            following, stores = split(head.pop(), threads)
            init, new = loads[-1].result, following[-1].result
            old = Value(init.type, f"{copy.operands[0].name}_held")
            for op in stores:
                op.operands = [old if v is new else v for v in op.operands]
            storing += stores
            loading += following
            held.append((init, old, new))
        head += [*storing, *loading]
        return held

    def _further(self, out: list[Op], block: Value, by: int) -> tuple[Value, Value]:
        """(the block `by` places further in the ring, whether the ring's end lies between)."""
        count, moved = self._const(out, self.stages), self._op(out, ew.Add, block, self._const(out, by))
        past = self._op(out, ew.Ge, moved, count)
        return self._op(out, ew.Where, past, self._op(out, ew.Sub, moved, count), moved), past

    def _newest(self, out: list[Op], oldest: Value) -> tuple[Value, Value]:
        """(the block that is free, the iteration that it is for)."""
        newest, _ = self._further(out, oldest, self.stages - 1)
        step = self.op.operands[2]
        distance = self._op(out, ew.Mul, step, self._const(out, self.stages - 1, step))
        return newest, self._op(out, ew.Add, self.index, distance)

    def _start_beside(self, head: list[Op], start: int, body: list[Op]) -> None:
        """Moves what `head` starts from there on behind the first products that run beside the threads."""
        if beside := next((i + 1 for i, op in enumerate(body) if op.attrs.get("instruction") in self.beside), 0):
            body[beside:beside] = head[start:]
            del head[start:]

    def _read(self, body: Sequence[Op], rings: set[Value], oldest: Value) -> None:
        """Reads of a ring are of its oldest block."""
        for op in Region([], list(body)).walk():
            if op.name == "load" and op.operands[0] in rings:
                op.operands.insert(1, oldest)
                op.attrs["axes"] = tuple(a + 1 for a in op.attrs["axes"])

    # -- copies of blocks by one thread -------------------------------------------------------------------------------
    def _objection(self, copies: Sequence[Op], warps: int, lanes: int) -> str:
        """Why one thread does not make the copies: the first reason, or nothing."""
        for copy in copies:
            t, buffer = copy.operands[0].type, copy.operands[-1].type
            assert isinstance(t, TensorType) and isinstance(buffer, BufferType)
            if why := bulk.objection(t, copy.operands[1:-1], copy.attrs["axes"], buffer):
                return why
        made = [self._boxes(copy) for copy in copies]
        few = bulk.worth(sum(n for _, n in made), sum(len(b.starts) for b, _ in made), len(self.groups), warps, lanes)
        return "" if few else "its blocks are too small for it"

    def _boxes(self, copy: Op) -> tuple[bulk.Boxes, int]:
        """The boxes of a copy that has them, and its bytes."""
        t = copy.operands[-1].type
        assert isinstance(t, BufferType) and t.layout is not None
        found = bulk.boxes(t.layout, t.dtype.storage.itemsize)
        assert isinstance(found, bulk.Boxes)
        return found, prod(t.shape) * t.dtype.storage.itemsize

    def _common(self, copies: Sequence[Op], target: SimtTarget, top: Region, path: Sequence[Op],
                produced: bool) -> dict[Op, tuple[int, ...] | str]:
        """What `multicast.common` says of the copies; nothing, or why not, where programs cannot share any."""
        if not target.multicast:
            return {}
        found = multicast.common(self.op, {op: self._boxes(op)[0] for op in copies}, path, top)
        if any(op.name not in ("for", "if") for op in path) or not produced and any(op.name == "for" for op in path):
            why = "another loop is around it"
        elif not roles.room(self.op, copies, path, top, self.stages, target):
            why = "shared memory has no room for blocks of others beside what comes before the loop"
        else:
            return found
        return dict.fromkeys(found, why)

    def _rings(self, copies: Sequence[Op], warps: int, top: Region) -> tuple[list[int], Value, Op]:
        """(the bytes of a block of each group, barriers, what makes these). For each group so many barriers as there
        are stages tell that blocks are full; the last of them tell that blocks of all groups are empty."""
        totals = [sum(self._boxes(copy)[1] for copy in group) for group in self.groups]
        for copy in copies:
            alloc = self.allocs[copy.operands[-1]]
            alloc.attrs["align"] = max(alloc.attrs["align"], self._boxes(copy)[0].align)
            self._ring(alloc)
        arrivals = (1,) * self.stages * len(totals) + (warps * self.shares.readers,) * self.stages
        alloc = mem.Alloc([], {"dtype": ir.U64, "shape": (len(arrivals),), "managed": True}, loc=self.op.loc)
        top.ops.insert(0, alloc)
        barriers = alloc.result
        barriers.name = "barriers"
        return totals, barriers, ir.MBarrierInit([barriers], {"arrivals": arrivals}, loc=self.op.loc)

    def _full(self, out: list[Op], group: int, slot: Value) -> Value:
        """The barrier that tells of the blocks of a group."""
        return self._op(out, ew.Add, slot, self._const(out, group * self.stages)) if group else slot

    def _empty(self, out: list[Op], slot: Value) -> Value:
        return self._full(out, len(self.groups), slot)

    def _fill(self, totals: Sequence[int], at: Value, slot: Value, barriers: Value) -> list[Op]:
        """What one thread does to start the copies for iteration `at` into a block."""
        out: list[Op] = []
        for n, (group, total) in enumerate(zip(self.groups, totals, strict=True)):
            full = self._full(out, n, slot)
            out.append(ir.MBarrierExpect([barriers, full], {"bytes": total}, loc=group[0].loc))
            for copy in group:
                parts, numbers = self.shares.copies.get(copy, (0, []))
                cls, attrs = (ir.CopyShared, {"parts": parts}) if parts else (ir.CopyBulk, {})
                self._copy(out, copy, at, slot, barriers, full, *numbers, cls=cls, **attrs)
        return out

    def _wait(self, group: int, barriers: Value, oldest: Value, parity: Value) -> list[Op]:
        """Waits until the blocks of a group are full."""
        out: list[Op] = []
        full = self._full(out, group, oldest)
        return [*out, ir.MBarrierWait([barriers, full, parity], loc=self.groups[group][0].loc)]

    def _wait_later(self, body: list[Op], *position: Value) -> None:
        """The same of each group but the first, where the body comes to it."""
        for n, group in enumerate(self.groups[1:], 1):
            at = next(i for i, op in enumerate(body) if uses(op, {copy.operands[-1] for copy in group}))
            body[at:at] = self._wait(n, *position)

    def _by_barriers(self, copies: Sequence[Op], warps: int, top: Region, path: Sequence[Op]) -> None:
        """The loop carries the number of the oldest block, and the parity of the phase in which it is full."""
        lo, hi, step = self.op.operands[:3]
        totals, barriers, start = self._rings(copies, warps, top)

        def fill(out: list[Op], at: Value, slot: Value, *first: Op) -> None:
            """Starts the copies for iteration `at`, if there is one, into a block."""
            inner = [*first, *self._fill(totals, at, slot, barriers)]
            some = Region([], [ir.Once([], {}, [Region([], inner)], self.op.loc), self._made(Yield)])
            out.append(If([self._op(out, ew.Lt, at, hi)], {}, [some, Region([], [self._made(Yield)])], self.op.loc))
        before = list[Op]()
        if self.shares.copies:
            first = roles.made_first(top, start)
            top.ops[first:first] = self.shares.ops
        else:
            before += [ir.Once([], {}, [Region([], [start])], self.op.loc), self._made(mem.Barrier)]
        at = lo
        for stage in range(self.stages - 1):
            fill(before, at, self._const(before, stage))
            at = self._op(before, ew.Add, at, step)
        zero = self._const(before, 0)
        oldest, parity = self._position()
        head = self._wait(0, barriers, oldest, parity)
        body = self._rest(copies)
        newest, at = self._newest(head, oldest)
        empty = self._empty(head, newest)
        head.append(ir.MBarrierArrive([barriers, empty, *self.shares.ranks], loc=self.op.loc))
        fill(head, at, newest, ir.MBarrierWait([barriers, empty, parity], loc=self.op.loc))
        following = self._following(head, oldest, parity)
        self._wait_later(body, barriers, oldest, parity)
        self._start_beside(head, 1, body)
        self._read(body, {op.operands[-1] for op in copies}, oldest)
        last = body.pop()
        region = Region([*self.body.args, oldest, parity],
                        [*head, *body, Yield([*last.operands, *following], loc=last.loc)])
        drop = ir.MBarrierDrop([barriers], {"count": (len(self.groups) + 1) * self.stages}, loc=self.op.loc)
        again = any(op.name in ("for", "while") for op in path)
        after = [self._made(mem.Barrier), ir.Once([], {}, [Region([], [drop])], self.op.loc)] if again else []
        self._replace(before, For([*self.op.operands, zero, zero], {"stages": 1}, [region], self.op.loc), after)

    def _position(self) -> tuple[Value, Value]:
        """What a loop carries of a ring: the number of the oldest block, and the parity of the phase in which it is
        full."""
        oldest, parity = (Value(TileType((), I32), name) for name in ("stage", "parity"))
        return oldest, parity

    def _following(self, out: list[Op], oldest: Value, parity: Value) -> tuple[Value, Value]:
        """The next iteration's position."""
        carried, past = self._further(out, oldest, 1)
        return carried, self._op(out, ew.Xor, parity, self._op(out, ew.Cast, past, dtype=I32))

    # -- by warps of their own ----------------------------------------------------------------------------------------
    def _unproduced(self, copies: Sequence[Op], shared: int, target: SimtTarget, threads: int, top: Region,
                    path: Sequence[Op]) -> str:
        """Why no warps of their own make the copies; nothing where they do. Raises TargetError where they are asked
        for and cannot."""
        way, loop = self.op.attrs["schedule"], self.op
        if way == "plain":
            return "its schedule is 'plain'"
        if why := roles.hindrance(loop, copies, path, top, threads // target.warp, self.beside):
            if way == "producer" and self.beside:  # others have one way
                raise refusal(loop, "blocks whose places all warps know, and products that run beside them", why)
            return why
        if way == "producer":
            return ""
        if any(op.name == "for" for op in path):
            return "another loop is around it"
        if not roles.worth(loop, shared, threads, target):
            return "a multiprocessor holds several blocks"
        return "" if roles.room(loop, copies, path, top, self.stages, target) else \
            "shared memory has no room for its blocks beside what comes before the loop"

    def _by_producers(self, copies: Sequence[Op], warps: int, top: Region, path: Sequence[Op]) -> None:
        """Both roles carry the position. A warp that has come to a block, and started its products, is past the one
        before: it arrives at the barrier of the block that it has come to. So who fills a block waits at that of the
        next, for the arrivals of the round before. Loops around carry the position on: blocks are filled for their
        next iteration while warps are busy with the end of this one."""
        totals, barriers, start = self._rings(copies, warps, top)
        first = roles.begin(top, start, warps)
        top.ops[first:first] = self.shares.ops
        loops, before, head = [op for op in path if op.name == "for"], list[Op](), list[Op]()
        begin = [self._const(before, 0)] * 2
        for op in loops:
            op.operands += begin
            begin = list(self._position())
            op.regions[0].args += begin
        if loops:
            at = top.ops.index(loops[0])
            top.ops[at:at], before = before, []
        oldest, parity = self._position()
        following, turned = self._following(head, oldest, parity)
        fill: list[Op] = []
        round_before = self._op(fill, ew.Xor, turned, self._const(fill, 1))
        next_one = self._empty(fill, following)
        fill += [ir.MBarrierWait([barriers, next_one, round_before], loc=self.op.loc),
                 *self._fill(totals, self.index, oldest, barriers)]
        head += [ir.Once([], {"producer": True}, [Region([], fill)], self.op.loc),
                 *self._wait(0, barriers, oldest, parity)]
        start_of_products = len(head)
        given = self._empty(head, oldest)
        head.append(ir.MBarrierArrive([barriers, given, *self.shares.ranks], loc=self.op.loc))
        body = self._rest(copies)
        self._wait_later(body, barriers, oldest, parity)
        self._start_beside(head, start_of_products, body)
        self._read(body, {op.operands[-1] for op in copies}, oldest)
        last = body.pop()
        region = Region([*self.body.args, oldest, parity],
                        [*head, *body, Yield([*last.operands, following, turned], loc=last.loc)])
        new = For([*self.op.operands, *begin], {"stages": 1}, [region], self.op.loc)
        self._replace(before, new, [])
        after = new.results[-2:]
        for op in reversed(loops):
            op.regions[0].ops[-1].operands += after
            after = [Value(v.type, v.name, op) for v in after]
            op.results += after

    def _made(self, cls: type[Op], **attrs: object) -> Op:
        return cls([], attrs, loc=self.op.loc)

    def _rest(self, copies: Sequence[Op]) -> list[Op]:
        """The body without its copies, and without their waits and barriers where nothing else needs them."""
        body = [op for op in self.body.ops if op not in copies]
        if not self._waits(body, {op.operands[-1] for op in copies}):
            body = [op for op in body if op.name not in ("commit", "wait", "barrier")]
        return body

    def _replace(self, before: Sequence[Op], new: Op, after: Sequence[Op]) -> None:
        """`new`, whose first results are those of the loop, in its place."""
        for old, value in zip(self.op.results, new.results, strict=False):
            value.name = old.name
        place = self.around.ops.index(self.op)
        self.around.ops[place:place + 1] = [*before, new, *after]
        replaced = dict(zip(self.op.results, new.results, strict=False))
        for op in Region([], self.around.ops[place:]).walk():
            op.operands = [replaced.get(v, v) for v in op.operands]
