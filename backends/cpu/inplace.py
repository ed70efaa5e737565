"""Where the tiles that a loop carries live: decided before lowering, so that no tile is copied without need."""
from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from tilelang.ir import elementwise as ew
from tilelang.ir import thread as th
from tilelang.ir.core import Function, Op, Region, TileType, Value, used_values


def is_tile(v: Value) -> bool:
    return isinstance(v.type, TileType) and bool(v.type.shape)


@dataclass
class InPlace:
    """home: a value -> the carried argument whose buffer it is written to.
    adopted: initial values that nothing else reads; the loop goes on in their buffer.
    begun: a dot -> the loop it accumulates over from zero. Its first iteration does not read the accumulator, and
    `unwritten` holds the nests that would have cleared it: they run only where the loop does not."""

    home: dict[Value, Value] = field(default_factory=dict)
    adopted: set[Value] = field(default_factory=set)
    begun: dict[Op, Op] = field(default_factory=dict)
    unwritten: set[Op] = field(default_factory=set)


def plan(fn: Function) -> InPlace:
    out = InPlace()
    uses = Counter(v for op in fn.walk() for v in op.operands)

    def visit(region: Region) -> None:
        for op in region.ops:
            for inner in [] if isinstance(op, th.Nest) else op.regions:
                visit(inner)
            if op.name != "for":
                continue
            body = op.regions[0]
            for arg, value in zip(body.args[1:], body.yields, strict=True):
                if is_tile(arg):
                    _claim(out, body, arg, value)
        for op in region.ops:
            for init, arg in zip(op.operands[3:], op.regions[0].args[1:], strict=True) if op.name == "for" else ():
                own = init.owner
                if own in region.ops and own.name in ("nest", "dot") and uses[init] == 1 and init not in out.home:
                    out.adopted.add(init)
                    dot = _accumulates(op.regions[0], arg)
                    if dot is not None and out.home.get(dot.result) is arg and _zeros(own):
                        out.begun[dot] = op
                        out.unwritten.add(own)
    visit(fn.body)
    return out


def _accumulates(body: Region, arg: Value) -> Op | None:
    """The dot onto `arg` where that is the only reader of `arg`."""
    readers = [op for op in body.ops if arg in _reads(op)]
    if len(readers) == 1 and readers[0].name == "dot" and readers[0].operands[2:] == [arg] and \
            arg not in readers[0].operands[:2]:
        return readers[0]
    return None


def _zeros(op: Op) -> bool:
    """Whether a nest writes zeros and does nothing else."""
    if not isinstance(op, th.Nest) or len(op.results) != 1:
        return False
    fill = op.regions[0].yields[0].owner
    const = fill.operands[0].owner if fill is not None and fill.name == "broadcast" else None
    if const is None or const.name != "const" or any(o not in (fill, const) for o in op.regions[0].ops[:-1]):
        return False
    return const.attrs["value"] == 0 and math.copysign(1.0, const.attrs["value"]) > 0


def _claim(out: InPlace, region: Region, arg: Value, value: Value) -> None:
    """Lets `value` (and the accumulator it is a dot onto) live in the buffer of `arg` where that is safe."""
    chain: list[Value] = []
    while value.owner is not None and value.owner in region.ops and value is not arg:
        chain.append(value)
        op = value.owner
        if op.name != "dot" or len(op.operands) < 3 or \
                sum(value_used is op.operands[2] for o in region.ops for value_used in _reads(o)) != 1:
            break
        value = op.operands[2]
    if not chain:
        return
    first = chain[-1].owner
    assert first is not None
    start = region.ops.index(first)
    for i, op in enumerate(region.ops):
        if arg not in _reads(op) or i < start:
            continue
        aligned = (op is first and isinstance(first, th.Nest) and _aligned(first, chain[-1], arg)) or \
            (op is first and op.name == "dot" and op.operands[2] is arg and arg not in op.operands[:2])
        if not aligned:
            return
    if first.name not in ("nest", "dot") or any(v in out.home for v in chain):
        return
    for v in chain:
        out.home[v] = arg


def _reads(op: Op) -> set[Value]:
    out = set(op.operands)
    for region in op.regions:
        out |= used_values(region)
    return out


def _aligned(nest: th.Nest, result: Value, arg: Value) -> bool:
    """Whether a nest reads `arg` only at the index it writes `result` at."""
    region = nest.regions[0]
    target = region.yields[nest.results.index(result)]
    if target.owner is None or target.owner.name in ("reduce", "atomic", "convert_layout"):
        return False
    return all(arg not in op.operands or isinstance(op, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast)
               for op in region.ops) and not any(
        op.name in ("broadcast", "permute", "slice", "reshape", "reduce", "gather", "lookup", "lookup4")
        and arg in _sources(op, region) for op in region.ops if op.name != "reduce" or op.results)


def _sources(op: Op, region: Region) -> set[Value]:
    """Everything an operation of a nest is computed from."""
    out: set[Value] = set()
    work = list(op.operands)
    while work:
        v = work.pop()
        if v not in out:
            out.add(v)
            if v.owner is not None and v.owner in region.ops:
                work += v.owner.operands
    return out
