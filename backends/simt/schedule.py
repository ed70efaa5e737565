"""Schedules of pipelined loops on machines where two warps share a vector unit, as HipKittens has them (arXiv
2511.08083): which a loop gets, and what they need to know.

In "pingpong" the halves of a program's warps are half an iteration apart: while one multiplies, the other moves data.
An iteration is two parts with a meeting after each. In the first, a warp starts the copies of a later block, reads all
of its own and waits until its copies of the next block have arrived; in the second, it multiplies. One half comes to
one more meeting before the loop, the other after it. What makes that right, with n blocks in the ring:

- A warp overwrites the block of the iteration before. All have read that: the other half meets it after its reads.
- A warp reads a block that all have waited for: the other half did before the meeting at which this half's products of
  the iteration before ended. So each waits one iteration early, for all but the latest n - 2 groups.
- Copies by way of registers are loaded in one iteration and stored in the next, before the reads of its first part: a
  warp overwrites the block of the iteration before, and what it stores all have met twice after when they read it.
- Nothing else in the loop may go through shared memory: other barriers would be met by the wrong half.

In "interleave" nothing is special but where the compiler's scheduler is to put reads of shared memory: each before its
share of the products.
"""
from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import TargetError
from tilelang.ir import elementwise as ew
from tilelang.ir.core import BufferType, Function, Op, Value
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout, conversion

LEAST = 3
"""Blocks in the ring: with two, copies would be waited for as soon as they are started. Copies by way of registers
have their third block there."""
PRODUCTS, PRODUCT = 16, 16 * 16 * 512
"""Matrix instructions of a warp that are worth two meetings, and what one of them multiplies, by the bits of a number:
HipKittens' parts have so many of 16 x 16 x 32 numbers of 16 bits."""


def schedule_of(loop: Op, body: Sequence[Op], rings: set[Value], stages: int, target: SimtTarget,
                threads: int) -> str:
    """How a loop is to run whose body is `body` without its copies. Raises TargetError where the stated way does not
    fit."""
    way = loop.attrs["schedule"].replace("producer", "")
    if not target.turns or way in ("plain", "interleave"):
        return way if target.turns else "plain"
    needs, got = _hindrance(body, rings, stages, target, threads)
    if way and needs:
        raise refusal(loop, needs, got)
    return "plain" if needs or not way and _products(body, target, threads) < PRODUCTS else "pingpong"


def stated(loop: Op, target: SimtTarget) -> bool:
    """Whether a loop must be pipelined, because a way to do it is stated."""
    return bool(target.turns) and loop.attrs["schedule"] in ("pingpong", "interleave")


def refusal(loop: Op, needs: str, got: str) -> TargetError:
    """What a loop is told that cannot run as stated."""
    return TargetError(f"the loop cannot run as {loop.attrs['schedule']!r}", loc=loop.loc, needs=needs, got=got,
                       try_="leave `schedule` out: the compiler chooses")


def _hindrance(body: Sequence[Op], rings: set[Value], stages: int, target: SimtTarget,
               threads: int) -> tuple[str, str]:
    """What "pingpong" needs and the loop has instead; nothing where it fits."""
    if threads != target.turns * target.warp:
        return f"{target.turns} warps", f"{threads // target.warp} warps"
    least = LEAST if target.async_copy else LEAST - 1
    if stages < least:
        return f"at least {least} stages that fit into shared memory", str(stages)
    for op in body:
        if _moves(op, rings, target):
            return "nothing but products, their staged operands, and operations on elements", f"`{op.name}`"
    return "", ""


def _moves(op: Op, rings: set[Value], target: SimtTarget) -> bool:
    """Whether an operation may go through shared memory, or branches."""
    if op.name == "convert_layout":
        return conversion_of(op, target.warp) == "shared"
    if op.name == "load":
        return op.operands[0] not in rings and isinstance(op.operands[0].type, BufferType)
    if op.name == "dot":
        return not op.attrs["instruction"]
    return not (isinstance(op, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast)
                or op.name in ("const", "dim", "broadcast", "permute", "dot_scaled", "yield"))


def conversion_of(op: Op, warp: int) -> str:
    """The kind of a `convert_layout`."""
    have, want = op.operands[0].tile.layout, op.result.tile.layout
    assert isinstance(have, RegisterLayout) and isinstance(want, RegisterLayout)
    return conversion(have, want, op.result.shape, warp).kind


def _products(body: Sequence[Op], target: SimtTarget, threads: int) -> float:
    """What a warp multiplies, by such instructions."""
    rows = {row.name: row for row in target.mma}
    total = 0.0
    for op in body:
        if op.name in ("dot", "dot_scaled"):
            bits = dtype(rows[op.attrs["instruction"]].a).bits
            total += prod(op.result.shape[-2:]) * op.operands[0].shape[-1] * bits / PRODUCT * target.warp / threads
    return total


def read_first(body: Sequence[Op], rings: set[Value]) -> tuple[list[Op], list[Op]]:
    """(the reads of staged blocks, with what they need; the rest)."""
    first: set[Op] = set()
    pending = [op for op in body if op.name == "load" and op.operands[0] in rings]
    inside = set(body)
    while pending:
        op = pending.pop()
        first.add(op)
        pending += [v.owner for v in op.operands if v.owner in inside and v.owner not in first]
    return [op for op in body if op in first], [op for op in body if op not in first]


def count_products(fn: Function, target: Any = None) -> Function:
    """count_products: says of loops that are to spread reads of shared memory among products how many there are.

    requires: THREAD
    ensures: each `spread` has the numbers of its loop's body
    example: `ld %s …; mma … {steps=((0, 0, 0), (4, 0, 8))}; spread` gets `reads=1, products=2`
    """
    for loop in fn.walk():
        for op in loop.regions[0].ops if loop.name == "for" else ():
            if op.name == "spread":
                inside = loop.regions[0].ops
                reads = sum(o.name in ("ld", "ld_transposed") and isinstance(o.operands[0].type, BufferType)
                            for o in inside)
                op.attrs.update(reads=reads, products=sum(len(o.attrs["steps"]) for o in inside if o.name == "mma"))
    return fn
