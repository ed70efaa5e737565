"""pipeline: overlaps the copies of a loop's later iterations with the work of the present one.

requires: PLACED, where a block that a loop's body copies into managed shared memory is waited for at once
ensures: in a `for` with `stages` n > 1 such a copy runs n - 1 iterations ahead, through a ring of n blocks (of as many
as shared memory holds); one wait and one barrier in each iteration serve all of them
example: `for … {stages=3} { barrier; copy_async %a, %k, %s; commit; wait {pending=0}; barrier; load %s; … }` copies
the first two blocks before the loop, and in it waits for the oldest, then copies the block after the next. Where warps
take turns (`schedule.py`) waits and barriers stand elsewhere

Where copies go through registers, one iteration ahead is all that registers hold: a ring of two blocks. Where shared
memory holds one block only, what was loaded in an iteration is stored at its end, after a barrier.

Where the target has copies of blocks by one thread, and they can make all of a loop's, these fill the ring
(`bulk_ring.py`); here all threads do. What both need of the loop is in `pipelined_loop.py`.
"""
from __future__ import annotations

from tilelang.backends.simt import bulk_ring, multicast
from tilelang.backends.simt.pipelined_loop import Loop
from tilelang.backends.simt.registers import thread_count
from tilelang.backends.simt.schedule import read_first, refusal, schedule_of, stated
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.through_registers import split
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import simt
from tilelang.ir.control import For, Yield
from tilelang.ir.core import Function, Op, Region, Value


def pipeline(fn: Function, target: SimtTarget) -> Function:
    """Rewrites every such loop, in place."""
    managed = {op.result: op for op in fn.walk() if op.name == "alloc" and op.attrs["managed"]}
    threads = thread_count(fn, target)

    def visit(region: Region, path: tuple[Op, ...] = ()) -> None:
        for op in list(region.ops):
            for inner in op.regions:
                visit(inner, (*path, op))
            if op.name == "for" and (op.attrs["stages"] > 1 or stated(op, target)):
                _pipeline(Loop(op, region, path, fn.body, managed, target, threads))
    visit(fn.body)
    return multicast.together(fn)


def _pipeline(loop: Loop) -> None:
    """Rewrites a loop in the way that its blocks and the target allow. Raises TargetError where another is stated."""
    op, target = loop.op, loop.target
    if not loop.copies or loop.stages < (2 if target.async_copy else 1):
        if stated(op, target):
            got = f"{len(loop.copies)} staged operands, and {max(loop.stages, 0)} blocks of {loop.block} bytes"
            raise refusal(op, "staged operands, of which at least two blocks fit into shared memory", got)
    elif loop.stages == 1:
        if op.attrs["schedule"] == "pingpong" and target.turns:
            raise refusal(op, "two blocks that fit into shared memory", f"one of {loop.block} bytes")
        _one_block(loop)
    elif not target.bulk:
        _ring(loop)
    elif why := bulk_ring.objection(loop):
        for copy in loop.copies:
            copy.attrs["fallback"] = why
        _ring(loop)
    else:
        bulk_ring.BulkRing(loop).run()


def _one_block(loop: Loop) -> None:
    """The loop loads the next block while it works on the only one in shared memory."""
    before: list[Op] = []
    head: list[Op] = [loop.made(mem.Wait), loop.made(mem.Barrier)]
    tail: list[Op] = [loop.made(mem.Barrier)]
    at = loop.emit(head, ew.Add, loop.index, loop.op.operands[2])
    for copy in loop.copies:
        loop.copy(before, copy, loop.op.operands[0])
        loop.copy(head, copy, at)
        loads, stores = split(head.pop(), loop.threads)
        head += loads
        tail += stores
    *body, last = loop.rest()
    way = "" if not loop.target.turns else "interleave" if loop.op.attrs["schedule"] == "interleave" else "plain"
    if way == "interleave":
        tail.append(loop.made(simt.Spread))
    region = Region(loop.body.args, [*head, *body, *tail, last])
    new = For(loop.op.operands, {"stages": 1, "schedule": way}, [region], loop.op.loc)
    loop.replace([*before, loop.made(mem.Commit)], new, [loop.made(mem.Wait, pending=0)])


def _ring(loop: Loop) -> None:
    """The loop carries the number of the oldest block."""
    target = loop.target
    for copy in loop.copies:
        loop.make_ring(loop.managed[copy.operands[-1]])
    before = _first_blocks(loop)
    first = loop.const(before, 0)
    oldest = loop.oldest()
    body, head, after = loop.rest(), list[Op](), list[Op]()
    way = schedule_of(loop.op, body, loop.copied, loop.stages, target, loop.threads)
    arrived = loop.made(mem.Wait, pending=loop.stages - 2), loop.made(mem.Barrier)
    if way == "pingpong":
        before += [*arrived, loop.made(simt.Meet, warps=target.turns, half=1)]
        after.append(loop.made(simt.Meet, warps=target.turns, half=0))
    else:
        head += arrived
    start = len(head)
    newest, at = loop.newest(head, oldest)
    held = list[tuple[Value, Value, Value]]()
    if way == "pingpong" and not target.async_copy:
        held = _held(loop, before, head, newest, at)
    else:
        for copy in loop.copies:
            loop.copy(head, copy, at, newest)
    head.append(loop.made(mem.Commit))
    carried, _ = loop.further(head, oldest, 1)
    loop.start_beside(head, start, body)
    loop.read(body, oldest)
    *body, last = body
    inits, args, following = ([h[i] for h in held] for i in range(3))
    yields = Yield([*last.operands, *following, carried], loc=last.loc)
    region = Region([*loop.body.args, *args, oldest], [*head, *_scheduled(loop, way, body), yields])
    attrs = {"stages": 1, "schedule": way if target.turns else ""}
    loop.replace(before, For([*loop.op.operands, *inits, first], attrs, [region], loop.op.loc),
                 [*after, loop.made(mem.Wait, pending=0)])


def _first_blocks(loop: Loop) -> list[Op]:
    """Copies of all blocks but one before the loop, each a group."""
    before, (at, _, step) = list[Op](), loop.op.operands[:3]
    for stage in range(loop.stages - 1):
        slot = loop.const(before, stage)
        for copy in loop.copies:
            loop.copy(before, copy, at, slot)
        before.append(loop.made(mem.Commit))
        at = loop.emit(before, ew.Add, at, step)
    return before


def _scheduled(loop: Loop, way: str, body: list[Op]) -> list[Op]:
    """What an iteration does with its block, in the order, and with the meetings, of a schedule."""
    if way == "pingpong":
        moving, multiplying = read_first(body, loop.copied)
        return [*moving, loop.made(mem.Wait, pending=loop.stages - 2), loop.made(simt.Meet, warps=loop.target.turns),
                loop.made(simt.Priority, level=1), *multiplying, loop.made(simt.Priority, level=0),
                loop.made(simt.Meet, warps=loop.target.turns)]
    return [*body, loop.made(simt.Spread)] if way == "interleave" else body


def _held(loop: Loop, before: list[Op], head: list[Op], newest: Value, at: Value) -> list[tuple[Value, Value, Value]]:
    """Copies by way of registers where warps take turns: an iteration stores what the one before it has loaded, and
    loads for the next. Of each copy what is loaded before the loop, what an iteration gets of it, and what it hands
    on."""
    lo, _, step = loop.op.operands[:3]
    first, later = loop.emit(before, ew.Add, lo, step), loop.emit(head, ew.Add, at, step)
    storing, loading, held = list[Op](), list[Op](), list[tuple[Value, Value, Value]]()
    for copy in loop.copies:
        loop.copy(before, copy, first, newest)
        loads, _ = split(before.pop(), loop.threads)
        before += loads
        loop.copy(head, copy, later, newest)
        following, stores = split(head.pop(), loop.threads)
        init, new = loads[-1].result, following[-1].result
        old = Value(init.type, f"{copy.operands[0].name}_held")
        for op in stores:
            op.operands = [old if v is new else v for v in op.operands]
        storing += stores
        loading += following
        held.append((init, old, new))
    head += [*storing, *loading]
    return held
