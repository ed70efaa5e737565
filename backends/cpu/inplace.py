"""Where the tiles that a loop carries live: decided before lowering, so that no tile is copied without need."""
from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tilelang.backends.cpu.place import COSTLY, weight
from tilelang.ir import elementwise as ew
from tilelang.ir import thread as th
from tilelang.ir.core import Function, Op, Region, TileType, Value, used_values
from tilelang.layouts import SharedLayout


def is_tile(v: Value) -> bool:
    return isinstance(v.type, TileType) and bool(v.type.shape)


@dataclass
class InPlace:
    """home: a value -> the carried argument whose buffer it is written to.
    adopted: initial values that nothing else reads; the loop goes on in their buffer.
    begun: a dot -> the loop it accumulates over from zero. Its first iteration does not read the accumulator, and
    `unwritten` holds the nests that would have cleared it: they run only where the loop does not.
    finishes: a dot, or a loop -> the nest right behind that takes its last accumulators out of registers.
    packed: a tile -> the layout that a dot wants it in, where all who read the tile can do with that one.
    copies: nests that would only copy such a tile to what they give."""

    home: dict[Value, Value] = field(default_factory=dict)
    adopted: set[Value] = field(default_factory=set)
    begun: dict[Op, Op] = field(default_factory=dict)
    unwritten: set[Op] = field(default_factory=set)
    finishes: dict[Op, Finish] = field(default_factory=dict)
    packed: dict[Value, SharedLayout] = field(default_factory=dict)
    copies: set[Op] = field(default_factory=set)


class Finish(NamedTuple):
    """`nest` stores what becomes of the elements of `tile`, which is the result of `dot` (in the last iteration)."""

    dot: Op
    nest: th.Nest
    tile: Value


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
        for op, nest in pairwise(region.ops):
            if isinstance(nest, th.Nest):
                finish = _finish(op, nest, uses)
                if finish is not None:
                    out.finishes[op] = finish
    visit(fn.body)
    _pack(out, fn)
    return out


def _pack(out: InPlace, fn: Function) -> None:
    """Tiles that are left operands, whose layout is rows, and that besides nests read and nothing writes again."""
    readers: dict[Value, list[Op]] = {}
    copying: list[th.Nest] = []

    def visit(region: Region) -> None:
        for op in region.ops:
            inside = isinstance(op, th.Nest)
            for v in _reads(op) if inside else op.operands:
                readers.setdefault(v, []).append(op)
            for inner in () if inside else op.regions:
                visit(inner)
            if isinstance(op, th.Nest) and [o.name for o in op.regions[0].ops] == ["convert_layout", "yield"]:
                copying.append(op)
    visit(fn.body)
    for op in copying:
        (v,), layout = op.regions[0].ops[0].operands, op.result.tile.layout
        if not isinstance(layout, SharedLayout):
            continue
        rows = all(len(digits) == 1 for digits in layout.dims) and layout.dims[-1][0][1] == 1
        made = v.owner is not None and v.owner.name in ("nest", "dot") and v not in out.home and v not in out.adopted
        if rows and made and all(isinstance(o, th.Nest) for o in readers[v]) and \
                out.packed.setdefault(v, layout) == layout:
            out.copies.add(op)


def _accumulates(body: Region, arg: Value) -> Op | None:
    """The dot onto `arg` where that is the only reader of `arg`."""
    readers = [op for op in body.ops if arg in _reads(op)]
    if len(readers) == 1 and readers[0].name == "dot" and readers[0].operands[2:] == [arg] and \
            arg not in readers[0].operands[:2]:
        return readers[0]
    return None


def _finish(op: Op, nest: th.Nest, uses: Counter[Value]) -> Finish | None:
    """How a nest takes accumulators out of registers: it is the only reader of one result of the dot or loop before it
    and stores each element where it stands, after little else, because the code is repeated for every accumulator."""
    if op.name not in ("dot", "for"):
        return None
    region = nest.regions[0]
    mine = [r for r in op.results if r in used_values(region)]
    if len(mine) != 1 or uses[mine[0]] != 1 or nest.results or nest.attrs["shape"] != mine[0].shape or \
            not _pointwise(region, mine[0]) or sum(map(weight, region.ops[:-1])) > COSTLY or \
            not all(o.name == "store" for o in region.ops[:-1] if o.effects not in ("", "read")):
        return None
    if op.name == "dot":
        return Finish(op, nest, mine[0])
    body, stored = op.regions[0], {o.operands[0] for o in region.ops if o.name == "store"}
    dot = body.yields[op.results.index(mine[0])].owner
    if dot is None or dot not in body.ops or dot.name != "dot" or uses[dot.result] != 1 or \
            any(o.effects == "write" or stored.intersection(o.operands) for o in body.walk()):
        return None
    return Finish(dot, nest, mine[0])


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
    return _pointwise(region, arg)


def _pointwise(region: Region, arg: Value) -> bool:
    """Whether a nest computes, stores and sums up elements of what depends on `arg` where the element of `arg` stands:
    it comes to each position once."""
    depend = {arg}
    for op in region.ops:
        if op.name == "yield" or depend.isdisjoint(op.operands):
            continue
        if not (isinstance(op, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast) or
                op.name == "reduce" and op.attrs["kind"] != "custom" or
                op.name == "store" and depend.isdisjoint(op.operands[:-1])):
            return False
        depend.update(op.results)
    return True
