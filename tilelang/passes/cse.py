"""cse: computes equal things once: pure operations with the same operands and attributes, and reads with no write to
their memory between them.

requires: TILE, PLACED or THREAD
ensures: no pure operation repeats one that is visible from it
example:
    func @f(%x: tensor<in f32, N:1>, %y: tensor<inout f32, N:1>, %n: i32) tile {
      %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %b = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %c = add %a, %b : f32[4]
      %d = add %b, %a : f32[4]
      store %y, %n, %c {axes=(0,)}
      %e = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %g = add %d, %e : f32[4]
      store %y, %n, %g {axes=(0,)}
    }
becomes:
    func @f(%x: tensor<in f32, N:1>, %y: tensor<inout f32, N:1>, %n: i32) tile {
      %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %c = add %a, %a : f32[4]
      store %y, %n, %c {axes=(0,)}
      %e = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %g = add %c, %e : f32[4]
      store %y, %n, %g {axes=(0,)}
    }
(the second load of %x stays, because %y may overlap it)
"""
from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from typing import Any

from tilelang.ir.core import Function, Op, Region, Value
from tilelang.ir.text import format_attributes
from tilelang.passes.driver import exact
from tilelang.passes.effects import Writes, pure

Known = MutableMapping[Any, Op]


@exact
def cse(fn: Function, target: Any = None) -> Function:
    """Merges in place. A region sees what is known around it; what it learns ends with it."""
    replaced: dict[Value, Value] = {}

    def visit(region: Region, known: Known, reads: dict[Any, Op]) -> None:
        kept = []
        for op in region.ops:
            op.operands = [replaced.get(v, v) for v in op.operands]
            writes = Writes([op])
            # A loop may have written before its body reads again, hence before the regions are visited.
            for key in [k for k, read in reads.items() if writes.may_change(read)]:
                del reads[key]
            for inner in op.regions:
                visit(inner, ChainMap({}, known), dict(reads))
            seen: Known | None = None
            if not op.regions:
                seen = known if pure(op) else reads if op.effects == "read" else None
            if seen is not None:
                first = seen.setdefault(_key(op), op)
                if first is not op:
                    replaced.update(zip(op.results, first.results, strict=True))
                    continue
            kept.append(op)
        region.ops = kept

    visit(fn.body, {}, {})
    return fn


def _key(op: Op) -> Any:
    # Attributes as text: 1, 1.0, True and -0.0, 0.0 are equal in Python and different here.
    return op.name, tuple(op.operands), format_attributes(op), tuple(r.type for r in op.results)
