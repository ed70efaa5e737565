"""along_memory: blocks whose neighbours in memory lie along their first dimension are read the other way round.

requires: TILE
ensures: a `load` of rows and columns that only feeds matrix products walks the tensor's dimension of stride one last,
and a `permute` gives the block as it was: copies then move runs of neighbours
example: `load %b, %k, %n {shape=(64, 128), axes=(0, 1)}` of a tensor `K:1, N` becomes `load … {shape=(128, 64),
axes=(1, 0)}` and a `permute`
"""
from __future__ import annotations

from tilelang.backends.simt.stage import staged_loads
from tilelang.backends.simt.target import SimtTarget
from tilelang.ir import shape as sh
from tilelang.ir.core import Function, Op, Region, TensorType, Value, map_regions
from tilelang.ir.memory import Load
from tilelang.passes.driver import exact


@exact
def along_memory(fn: Function, target: SimtTarget) -> Function:
    """Rewrites them, in place, for targets whose copies do not turn blocks themselves."""
    turned = {op for op in staged_loads(fn, target) if _across(op)} if target.ldmatrix else set()
    blocks: dict[Value, Value] = {}

    def step(region: Region) -> None:
        ops, region.ops = region.ops, []
        for op in ops:
            if op in turned:
                rows, columns = op.attrs["shape"]
                attrs = {**op.attrs, "shape": (columns, rows), "axes": op.attrs["axes"][::-1]}
                region.ops.append(Load(op.operands, attrs, loc=op.loc))
                before, old = region.ops[-1].result, op.result
                op = sh.Permute([before], {"order": (1, 0)}, loc=op.loc)
                blocks[old] = op.result
            region.ops.append(op)
    map_regions(fn, step)
    for op in fn.walk() if blocks else ():
        op.operands = [blocks.get(v, v) for v in op.operands]
    return fn


def _across(load: Op) -> bool:
    """Whether the first dimension of a block is that of neighbours in memory."""
    t, axes = load.operands[0].type, load.attrs["axes"]
    return isinstance(t, TensorType) and len(axes) == 2 and axes[0] < len(t.unit) and t.unit[axes[0]] \
        and not (axes[1] < len(t.unit) and t.unit[axes[1]])
