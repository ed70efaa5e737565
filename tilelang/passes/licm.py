"""licm: moves out of a loop what is the same in every iteration.

requires: TILE
ensures: no pure operation in a loop has only operands from outside it; the same for reads of tensors in loops that
write nothing
example:
    func @f(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>, %n: i32) tile {
      %lo = const {value=0, dtype=i32} : i32
      %two = const {value=2, dtype=i32} : i32
      %zero = const {value=0.0, dtype=f32} : f32
      %acc = broadcast %zero {shape=(4,)} : f32[4]
      %r = for %lo, %n, %two, %acc {stages=1, schedule=''} : f32[4] (%i: i32, %c: f32[4]) {
        %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
        %e = exp %a : f32[4]
        %d = add %c, %e : f32[4]
        yield %d
      }
      store %y, %n, %r {axes=(0,)}
    }
becomes:
    func @f(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>, %n: i32) tile {
      %lo = const {value=0, dtype=i32} : i32
      %two = const {value=2, dtype=i32} : i32
      %zero = const {value=0.0, dtype=f32} : f32
      %acc = broadcast %zero {shape=(4,)} : f32[4]
      %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
      %e = exp %a : f32[4]
      %r = for %lo, %n, %two, %acc {stages=1, schedule=''} : f32[4] (%i: i32, %c: f32[4]) {
        %d = add %c, %e : f32[4]
        yield %d
      }
      store %y, %n, %r {axes=(0,)}
    }
A loop that never runs is no obstacle: pure operations do not trap, and reads of tensors check their bounds.
"""
from __future__ import annotations

from typing import Any

from tilelang.ir.core import Function, Op, Region, TensorType, Value, map_regions, used_values
from tilelang.ir.memory import READS
from tilelang.passes.driver import exact
from tilelang.passes.effects import LOOPS, Writes, pure


@exact
def licm(fn: Function, target: Any = None) -> Function:
    """Hoists in place, inner loops first, so that an operation may leave several."""
    def step(region: Region) -> None:
        region.ops = [o for op in region.ops for o in ([*_hoist(op), op] if op.name in LOOPS else [op])]
    map_regions(fn, step)
    return fn


def _hoist(loop: Op) -> list[Op]:
    """Takes the invariant operations out of the loop's regions."""
    writes = Writes([loop])
    hoisted = []
    for body in loop.regions:
        variant: set[Value] = set(body.args)
        kept = []
        for op in body.ops:
            uses = set(op.operands).union(*(used_values(r) for r in op.regions))
            if (pure(op) or _stable(op, writes)) and not uses & variant:
                hoisted.append(op)
            else:
                kept.append(op)
                variant |= set(op.results)
        body.ops = kept
    return hoisted


def _stable(op: Op, writes: Writes) -> bool:
    """Whether a read gives the same before the loop: memory of the program may not have been written there, and THREAD
    reads are not checked against bounds, so only block and element reads of tensors qualify."""
    return op.name in READS and isinstance(op.operands[0].type, TensorType) and not writes.may_change(op)
