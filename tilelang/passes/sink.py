"""sink: moves into a branch the tiles that only that branch uses.

requires: TILE, PLACED or THREAD
ensures: no pure operation beside an `if` whose result is a tile, or a vector, has all its uses in one region of it
example:
    func @f(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>, %n: i32) tile {
      %zero = const {value=0, dtype=i32} : i32
      %some = lt %zero, %n : i1
      %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %e = exp %a : f32[4]
      if %some () {
        store %y, %n, %e {axes=(0,)}
        yield
      } () {
        yield
      }
    }
becomes:
    func @f(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>, %n: i32) tile {
      %zero = const {value=0, dtype=i32} : i32
      %some = lt %zero, %n : i1
      %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      if %some () {
        %e = exp %a : f32[4]
        store %y, %n, %e {axes=(0,)}
        yield
      } () {
        yield
      }
    }
`lower` computes everything as far outside as its operands allow, which is as well for indices: they are shared, and
computed while something is waited for. NVIDIA's assembler does not undo it for sums of products by groups of warps,
and lets each of these wait for the one before (`serialized`).
"""
from __future__ import annotations

from typing import Any

from tilelang.ir.core import Function, Op, Region, TileType, Value, used_values
from tilelang.passes.driver import exact
from tilelang.passes.effects import pure

Side = tuple[Op, int]
"""A region of an `if`."""


@exact
def sink(fn: Function, target: Any = None) -> Function:
    """Rewrites every region, in place."""
    _sink(fn.body)
    return fn


def _movable(op: Op) -> bool:
    return pure(op) and not op.regions and any(isinstance(r.type, TileType) and r.shape for r in op.results)


def _sink(region: Region) -> None:
    """From the last operation to the first, so that what an operation is computed from follows it."""
    sides: dict[Value, set[Side | None]] = {}  # where each value is used: in a branch, or (None) elsewhere
    kept: list[Op] = []
    for op in reversed(region.ops):
        used = {side for r in op.results for side in sides.get(r, ())}
        side = used.pop() if len(used) == 1 and _movable(op) else None
        if side is None:
            kept.append(op)
        else:
            side[0].regions[side[1]].ops.insert(0, op)
        for v in op.operands:
            sides.setdefault(v, set()).add(side)
        for i, inner in enumerate(op.regions):
            for v in used_values(inner):
                sides.setdefault(v, set()).add((op, i) if op.name == "if" else None)
    region.ops = kept[::-1]
    for op in region.ops:
        for inner in op.regions:
            _sink(inner)
