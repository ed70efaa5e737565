"""Rings of blocks that one thread fills (`bulk.py`), with barriers in shared memory for each block: who reads it waits
until it is full, who fills it until all warps are past it. What is first used later has a barrier of its own: products
with keys do not wait for values. That thread is one of the warps that multiply or, where `roles.py` says so, of others
that do nothing else."""
from __future__ import annotations

from math import prod

from tilelang.backends.simt import bulk, multicast, roles
from tilelang.backends.simt.pipelined_loop import I32, Loop
from tilelang.backends.simt.schedule import refusal
from tilelang.backends.simt.stage import uses
from tilelang.ir import bulk as ir
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir.control import For, If, Yield, overruns
from tilelang.ir.core import BufferType, Op, Region, TensorType, TileType, Value
from tilelang.ir.thread import I64


def objection(loop: Loop) -> str:
    """Why one thread does not make a loop's copies: the first reason, or nothing."""
    for copy in loop.copies:
        t, buffer = copy.operands[0].type, copy.operands[-1].type
        assert isinstance(t, TensorType) and isinstance(buffer, BufferType)
        if why := bulk.objection(t, copy.operands[1:-1], copy.attrs["axes"], buffer):
            return why
    few = bulk.worth(sum(_bytes(copy) for copy in loop.copies), sum(len(_boxes(copy).starts) for copy in loop.copies),
                     len(loop.groups), loop.warps, loop.target.warp)
    return "" if few else "its blocks are too small for it"


def _boxes(copy: Op) -> bulk.Boxes:
    """The boxes of a copy that has them."""
    t = copy.operands[-1].type
    assert isinstance(t, BufferType) and t.layout is not None
    found = bulk.boxes(t.layout, t.dtype.storage.itemsize)
    assert isinstance(found, bulk.Boxes)
    return found


def _bytes(copy: Op) -> int:
    """The bytes of its block."""
    t = copy.operands[-1].type
    assert isinstance(t, BufferType)
    return prod(t.shape) * t.dtype.storage.itemsize


class BulkRing:
    """The rings of a loop whose copies meet no objection."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.unproduced = self._unproduced()
        common = self._common()
        for copy in loop.copies:
            unshared = common.get(copy, "")
            copy.attrs["fallback"] = "; ".join(
                why for why in (self.unproduced, unshared) if why and isinstance(why, str))
        self.shares = multicast.share(common, loop.top)
        self.bytes = [sum(map(_bytes, group)) for group in loop.groups]
        self.barriers, self.start = self._barriers()

    def run(self) -> None:
        """Rewrites the loop."""
        if self.unproduced:
            self._by_all_warps()
        else:
            self._by_producers()

    def _unproduced(self) -> str:
        """Why no warps of their own make the copies; nothing where they do. Raises TargetError where they are asked
        for and cannot."""
        loop = self.loop
        way = loop.op.attrs["schedule"]
        if way == "plain":
            return "its schedule is 'plain'"
        if why := roles.hindrance(loop.op, loop.copies, loop.path, loop.top, loop.warps, loop.beside):
            if way == "producer" and loop.beside:  # others have one way
                raise refusal(loop.op, "blocks whose places all warps know, and products that run beside them", why)
            return why
        if way == "producer":
            return ""
        held = loop.others + loop.stages * loop.block + roles.moved_around(loop.op, loop.path)
        if not roles.worth(loop.op, held, loop.threads, loop.target):
            return "a multiprocessor holds several blocks"
        return "" if self._room() else "shared memory has no room for its blocks beside the rest"

    def _room(self) -> bool:
        """Whether blocks may be copied before the program comes to the loop."""
        loop = self.loop
        return roles.room(loop.op, loop.copies, loop.path, loop.top, loop.stages, loop.target)

    def _common(self) -> dict[Op, tuple[int, ...] | str]:
        """What `multicast.common` says of the copies; nothing, or why not, where programs cannot share any."""
        loop = self.loop
        if not loop.target.multicast:
            return {}
        found = multicast.common(loop.op, {op: _boxes(op) for op in loop.copies}, loop.path, loop.top)
        if any(op.name not in ("for", "if") for op in loop.path) \
                or self.unproduced and any(op.name == "for" for op in loop.path):
            why = "another loop is around it"
        elif not self._room():
            why = "shared memory has no room for blocks of others beside the rest"
        else:
            return found
        return dict.fromkeys(found, why)

    # -- blocks and their barriers ------------------------------------------------------------------------------------
    def _barriers(self) -> tuple[Value, Op]:
        """(barriers, what makes them). For each group so many barriers as there are stages tell that blocks are full;
        the last of them tell that blocks of all groups are empty."""
        loop = self.loop
        for copy in loop.copies:
            alloc = loop.managed[copy.operands[-1]]
            alloc.attrs["align"] = max(alloc.attrs["align"], _boxes(copy).align)
            loop.make_ring(alloc)
        full, empty = 1, loop.warps * self.shares.readers
        arrivals = (full,) * loop.stages * len(loop.groups) + (empty,) * loop.stages
        alloc = mem.Alloc([], {"dtype": ir.U64, "shape": (len(arrivals),), "managed": True}, loc=loop.op.loc)
        loop.top.ops.insert(0, alloc)
        alloc.result.name = "barriers"
        return alloc.result, ir.MBarrierInit([alloc.result], {"arrivals": arrivals}, loc=loop.op.loc)

    def _full(self, out: list[Op], group: int, slot: Value) -> Value:
        """The barrier that tells of the blocks of a group."""
        loop = self.loop
        return loop.emit(out, ew.Add, slot, loop.const(out, group * loop.stages)) if group else slot

    def _empty(self, out: list[Op], slot: Value) -> Value:
        return self._full(out, len(self.loop.groups), slot)

    def _fill(self, at: Value, slot: Value) -> list[Op]:
        """What one thread does to start the copies for iteration `at` into a block."""
        out: list[Op] = []
        for n, (group, total) in enumerate(zip(self.loop.groups, self.bytes, strict=True)):
            full = self._full(out, n, slot)
            out.append(ir.MBarrierExpect([self.barriers, full], {"bytes": total}, loc=group[0].loc))
            for copy in group:
                parts, numbers = self.shares.copies.get(copy, (0, []))
                cls, attrs = (ir.CopyShared, {"parts": parts}) if parts else (ir.CopyBulk, {})
                self.loop.copy(out, copy, at, slot, self.barriers, full, *numbers, cls=cls, **attrs)
        return out

    def _wait(self, group: int, oldest: Value, parity: Value) -> list[Op]:
        """Waits until the blocks of a group are full."""
        out: list[Op] = []
        full = self._full(out, group, oldest)
        return [*out, ir.MBarrierWait([self.barriers, full, parity], loc=self.loop.groups[group][0].loc)]

    def _wait_later(self, body: list[Op], oldest: Value, parity: Value) -> None:
        """The same of each group but the first, where the body comes to it."""
        for n, group in enumerate(self.loop.groups[1:], 1):
            at = next(i for i, op in enumerate(body) if uses(op, {copy.operands[-1] for copy in group}))
            body[at:at] = self._wait(n, oldest, parity)

    def _give_back(self, out: list[Op], slot: Value) -> Value:
        """A warp is done with a block; the barrier at which it says so."""
        empty = self._empty(out, slot)
        out.append(ir.MBarrierArrive([self.barriers, empty, *self.shares.ranks], loc=self.loop.op.loc))
        return empty

    def _position(self) -> tuple[Value, Value]:
        """What a loop carries of a ring: the number of the oldest block, and the parity of the phase in which it is
        full."""
        return self.loop.oldest(), Value(TileType((), I32), "parity")

    def _following(self, out: list[Op], oldest: Value, parity: Value) -> tuple[Value, Value]:
        """The next iteration's position."""
        loop = self.loop
        carried, past = loop.further(out, oldest, 1)
        return carried, loop.emit(out, ew.Xor, parity, loop.emit(out, ew.Cast, past, dtype=I32))

    # -- who fills them -----------------------------------------------------------------------------------------------
    def _by_all_warps(self) -> None:
        """A thread of the warps that multiply fills the blocks, each once all warps have given it back."""
        loop = self.loop
        lo, hi, step = loop.op.operands[:3]

        def fill(out: list[Op], at: Value, slot: Value, since: Value, blocks: int, *first: Op) -> None:
            """Starts the copies for iteration `at`, which is so many `blocks` from `since`, if there is one, into a
            block."""
            inner = [*first, *self._fill(at, slot)]
            there = loop.emit(out, ew.Lt, at, hi)
            if overruns(loop.op):  # it may be no i32
                i, end, by = (loop.emit(out, ew.Cast, v, dtype=I64) for v in (since, hi, step))
                distance = loop.emit(out, ew.Mul, by, loop.const(out, blocks, by))
                there = loop.emit(out, ew.Lt, loop.emit(out, ew.Add, i, distance), end)
            some = Region([], [ir.Once([], {}, [Region([], inner)], loop.op.loc), loop.made(Yield)])
            out.append(If([there], {}, [some, Region([], [loop.made(Yield)])], loop.op.loc))
        before = list[Op]()
        if self.shares.copies:
            first = roles.made_first(loop.top, self.start)
            loop.top.ops[first:first] = self.shares.ops
        else:
            before += [ir.Once([], {}, [Region([], [self.start])], loop.op.loc), loop.made(mem.Barrier)]
        at = lo
        for stage in range(loop.stages - 1):
            fill(before, at, loop.const(before, stage), lo, stage)
            at = loop.emit(before, ew.Add, at, step)
        zero = loop.const(before, 0)
        oldest, parity = self._position()
        head = self._wait(0, oldest, parity)
        body = loop.rest()
        newest, at = loop.newest(head, oldest)
        empty = self._give_back(head, newest)
        fill(head, at, newest, loop.index, loop.stages - 1,
             ir.MBarrierWait([self.barriers, empty, parity], loc=loop.op.loc))
        following = self._following(head, oldest, parity)
        self._wait_later(body, oldest, parity)
        loop.start_beside(head, 1, body)
        loop.read(body, oldest)
        last = body.pop()
        region = Region([*loop.body.args, oldest, parity],
                        [*head, *body, Yield([*last.operands, *following], loc=last.loc)])
        drop = ir.MBarrierDrop([self.barriers], {"count": (len(loop.groups) + 1) * loop.stages}, loc=loop.op.loc)
        again = any(op.name in ("for", "while") for op in loop.path)
        after = [loop.made(mem.Barrier), ir.Once([], {}, [Region([], [drop])], loop.op.loc)] if again else []
        loop.replace(before, For([*loop.op.operands, zero, zero], {"stages": 1}, [region], loop.op.loc), after)

    def _by_producers(self) -> None:
        """Both roles carry the position. A warp that has come to a block, and started its products, is past the one
        before: it arrives at the barrier of the block that it has come to. So who fills a block waits at that of the
        next, for the arrivals of the round before. Loops around carry the position on: blocks are filled for their
        next iteration while warps are busy with the end of this one."""
        loop = self.loop
        first = roles.begin(loop.top, self.start, loop.warps)
        loop.top.ops[first:first] = self.shares.ops
        loops, before, head = [op for op in loop.path if op.name == "for"], list[Op](), list[Op]()
        begin = [loop.const(before, 0)] * 2
        for op in loops:
            op.operands += begin
            begin = list(self._position())
            op.regions[0].args += begin
        if loops:
            at = loop.top.ops.index(loops[0])
            loop.top.ops[at:at], before = before, []
        oldest, parity = self._position()
        following, turned = self._following(head, oldest, parity)
        fill: list[Op] = []
        round_before = loop.emit(fill, ew.Xor, turned, loop.const(fill, 1))
        next_one = self._empty(fill, following)
        fill += [ir.MBarrierWait([self.barriers, next_one, round_before], loc=loop.op.loc),
                 *self._fill(loop.index, oldest)]
        head += [ir.Once([], {"producer": True}, [Region([], fill)], loop.op.loc), *self._wait(0, oldest, parity)]
        start_of_products = len(head)
        self._give_back(head, oldest)
        body = loop.rest()
        self._wait_later(body, oldest, parity)
        loop.start_beside(head, start_of_products, body)
        loop.read(body, oldest)
        last = body.pop()
        region = Region([*loop.body.args, oldest, parity],
                        [*head, *body, Yield([*last.operands, following, turned], loc=last.loc)])
        new = For([*loop.op.operands, *begin], {"stages": 1}, [region], loop.op.loc)
        loop.replace(before, new, [])
        after = new.results[-2:]
        for op in reversed(loops):
            op.regions[0].ops[-1].operands += after
            after = [Value(v.type, v.name, op) for v in after]
            op.results += after
