"""dce: drops operations whose results nobody uses, loop-carried values that only feed themselves, and unused results
of branches and nests.

requires: TILE, PLACED or THREAD
ensures: every operation has an effect, or a result that one with an effect needs
example:
    func @f(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>, %n: i32) tile {
      %lo = const {value=0, dtype=i32} : i32
      %two = const {value=2, dtype=i32} : i32
      %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %unused = exp %a : f32[4]
      %r, %s = for %lo, %n, %two, %a, %n {stages=1, schedule=''} : f32[4], i32 (%i: i32, %c: f32[4], %count: i32) {
        %d = add %c, %a : f32[4]
        %more = add %count, %i : i32
        yield %d, %more
      }
      store %y, %n, %r {axes=(0,)}
    }
becomes:
    func @f(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>, %n: i32) tile {
      %lo = const {value=0, dtype=i32} : i32
      %two = const {value=2, dtype=i32} : i32
      %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %r = for %lo, %n, %two, %a {stages=1, schedule=''} : f32[4] (%i: i32, %c: f32[4]) {
        %d = add %c, %a : f32[4]
        yield %d
      }
      store %y, %n, %r {axes=(0,)}
    }
"""
from __future__ import annotations

from typing import Any

from tilelang.ir.core import Function, Op, Region, Value
from tilelang.passes.driver import exact

Columns = list[tuple[list[Value], int]]
"""Lists, each from an offset, whose entries belong together: entry i of all of them is one carried value."""


@exact
def dce(fn: Function, target: Any = None) -> Function:
    """Marks what the effects need, then drops the rest, in place."""
    needs: dict[Value | Op, list[Value | Op]] = {}
    roots: list[Value | Op] = []

    def survey(region: Region, parent: Op | None) -> None:
        for op in region.ops:
            if op.name == "yield":
                continue  # its operands are needed as far as the parent's results are
            needs[op] = [parent] if parent is not None else []
            if (columns := _columns(op)) is None:
                needs[op] += [*op.operands, *(v for inner in op.regions for v in inner.yields)]
                if op.effects in ("write", "control"):
                    roots.append(op)
            else:
                definitions, uses = columns
                needs[op] += op.operands[:uses[0][1]] if op.name == "for" else []
                needs[op] += op.operands if op.name == "if" else op.regions[0].yields if op.name == "while" else []
                for i in range(len(op.results)):
                    row = [entries[first + i] for entries, first in [*definitions, *uses]]
                    for entries, first in definitions:
                        needs[entries[first + i]] = [*row, op]
            for r in op.results:
                needs.setdefault(r, [op])
            for inner in op.regions:
                survey(inner, op)

    survey(fn.body, None)
    live: set[Value | Op] = set()
    while roots:
        node = roots.pop()
        if node not in live:
            live.add(node)
            roots += needs.get(node, [])
    _sweep(fn.body, live)
    return fn


def _columns(op: Op) -> tuple[Columns, Columns] | None:
    """The lists that define and that use the carried values or results of a structured operation; None for others."""
    match op.name:
        case "for":
            return [(op.results, 0), (op.regions[0].args, 1)], [(op.operands, 3), (op.regions[0].yields, 0)]
        case "while":
            condition, body = op.regions
            return [(op.results, 0), (condition.args, 0), (body.args, 0)], [(op.operands, 0), (body.yields, 0)]
        case "if" | "nest":
            return [(op.results, 0)], [(region.yields, 0) for region in op.regions]
    return None


def _sweep(region: Region, live: set[Value | Op]) -> None:
    region.ops = [op for op in region.ops if op in live or op.name == "yield"]
    for op in region.ops:
        if (columns := _columns(op)) is not None:
            kept = [i for i, r in enumerate(op.results) if r in live]
            for entries, first in [*columns[0], *columns[1]]:
                entries[first:] = [entries[first + i] for i in kept]
        for inner in op.regions:
            _sweep(inner, live)
