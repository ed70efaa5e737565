"""interleave: reads of shared memory stand among the products of the step before theirs.

requires: THREAD, with its barriers
ensures: in a loop whose body ends in `spread`, each `mma` whose operands are read from shared memory is one for each
of its steps along k. What the first step needs is read before; what each other one needs, among the products of the
step before it; copies written in order (`dma.py`) are made there, too, and what goes through registers is stored among
those of the last one. A `spread` behind each step says how many accesses and products there are to be placed, and lets
nothing across
example: `ld %s; ld %s; concat; mma {steps=((0, 0, 0), (0, 8, 8))}; spread` becomes `ld; spread; ld; mma {steps=((0, 0,
0),)}; spread {accesses=1, products=1}; mma {steps=((0, 0, 0),)}; spread {products=1}`

Left to itself the compiler reads a step's operands into the registers of the step before, so after its last product,
and waits for them; a warp that has its vector unit to itself then does nothing for as long.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilelang.ir import shape as sh
from tilelang.ir import simt
from tilelang.ir.core import BufferType, Function, Op, Value

READS = "ld", "ld_transposed"


def interleave(fn: Function, target: Any = None) -> Function:
    """Rewrites every such loop, in place."""
    for loop in fn.walk():
        if loop.name == "for" and any(op.name == "spread" for op in loop.regions[0].ops):
            body = loop.regions[0]
            body.ops = _spread([op for op in body.ops if op.name != "spread"])
    return fn


@dataclass
class _Step:
    """Part of a product, with what joins its operands: `loads` are what is read for it alone, or for it first."""

    loads: list[Op]
    joins: list[Op]
    product: Op


def _spread(ops: Sequence[Op]) -> list[Op]:
    """The operations of a body, those of its products in steps."""
    users: dict[Value, int] = {}
    for op in ops:
        for v in op.operands:
            users[v] = users.get(v, 0) + 1
    split = {op: found for op in ops if op.name == "mma" and (found := _steps(op, users, set(ops)))}
    moved = {load for steps in split.values() for step in steps for load in step.loads}
    moved |= {op for op in ops if op.name == "concat" and moved.intersection(v.owner for v in op.operands)}
    # Several waits: who reads what is copied is not known to be this loop's next iterations alone.
    alone = sum(op.name in ("wait", "commit") for op in ops) == 2
    copies = [op for op in ops if alone and split and op.name in ("dma", "commit")]
    last = _independent(ops, max((ops.index(op) for op in split), default=len(ops)))
    out: list[Op] = []
    count = sum(map(len, split.values()))
    for op in ops:
        if op in split:
            steps, loc = split[op], op.loc
            out += [*steps[0].loads, simt.Spread([], {}, loc=loc)]
            for step, following in zip(steps, [*steps[1:], None], strict=True):
                count -= 1
                share = -(-len(copies) // (count + 1))
                beside = following.loads if following else [] if count else last
                placed = {"accesses": sum(o.name in (*READS, "st") for o in beside),
                          "products": len(step.product.attrs["steps"])}
                out += [*beside, *copies[:share], *step.joins, step.product, simt.Spread([], placed, loc=loc)]
                del copies[:share]
        elif op not in moved and op not in copies and op not in last:
            out.append(op)
    return out


def _independent(ops: Sequence[Op], at: int) -> list[Op]:
    """The operations behind that at `at` which need nothing of it, up to the next meeting of threads: stores of what
    the iteration has loaded."""
    out, sums = list[Op](), {v for op in ops[at:at + 1] for v in op.results}
    for op in ops[at + 1:-1]:
        if op.name in ("barrier", "wait", "meet") or op.regions:
            break
        if sums.intersection(op.operands):
            sums.update(op.results)
        else:
            out.append(op)
    return out


def _steps(mma: Op, users: dict[Value, int], inside: set[Op]) -> list[_Step]:
    """The parts of a product, in each of which every sum is added to once; none where no operand is read for it
    alone."""
    sides = [_read(v, users, inside) for v in mma.operands[1:3]]
    if not any(sides):
        return []
    groups: list[list[tuple[int, ...]]] = []
    for step in mma.attrs["steps"]:
        if not groups or step[0] in (other[0] for other in groups[-1]):
            groups.append([])
        groups[-1].append(step)
    out, seen, acc = list[_Step](), set[Op](), mma.operands[0]
    for i, group in enumerate(groups):
        operands, starts = list(mma.operands), [dict[int, int](), dict[int, int]()]
        operands[0], loads, joins = acc, list[Op](), list[Op]()
        for side, parts in enumerate(sides):
            first = sorted({step[1 + side] for step in group})
            if not parts:
                starts[side] = {at: at for at in first}
                continue
            needed = _needed(parts, first, mma.attrs["sizes"][1 + side])
            loads += [load for _, load in needed if load not in seen]
            seen |= set(loads)
            place, places = 0, dict[int, int]()
            for at, load in needed:
                places.update((at + n, place + n) for n in range(load.result.shape[0]))
                place += load.result.shape[0]
            starts[side] = {at: places[at] for at in first}
            operands[1 + side] = needed[0][1].result
            if len(needed) > 1:
                joins.append(sh.Concat([load.result for _, load in needed], {"axis": 0}, loc=mma.loc))
                operands[1 + side] = joins[-1].result
        part = simt.Mma(operands, {**mma.attrs, "steps": tuple(
            (step[0], starts[0][step[1]], starts[1][step[2]], *step[3:]) for step in group)}, loc=mma.loc)
        if i == len(groups) - 1:
            part.results = mma.results
            mma.result.owner = part
        acc = part.result
        out.append(_Step(loads, joins, part))
    return out


def _read(v: Value, users: dict[Value, int], inside: set[Op]) -> list[tuple[int, Op]]:
    """The loads that make an operand, which nothing else uses, with the first of its lanes that each is; none where
    it is something else."""
    joins = v.owner is not None and v.owner.name == "concat" and users[v] == 1
    parts = v.owner.operands if joins and v.owner is not None else [v]
    out, at = list[tuple[int, Op]](), 0
    for part in parts:
        op = part.owner
        if op is None or op not in inside or op.name not in READS or users[part] != 1 or not part.shape or \
                not isinstance(op.operands[0].type, BufferType):
            return []
        out.append((at, op))
        at += part.shape[0]
    return out


def _needed(parts: Sequence[tuple[int, Op]], first: Sequence[int], size: int) -> list[tuple[int, Op]]:
    """Those of which some lanes lie in a run of `size` from one of `first`."""
    return [(at, load) for at, load in parts
            if any(at < start + size and start < at + load.result.shape[0] for start in first)]
