"""Which blocks of tensors are asked for before they are needed: those of later iterations and of the next program."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilelang.ir import thread as th
from tilelang.ir.core import Function, Op, Region, TensorType, Value

PAGE = 4096
"""Bytes of memory that a processor reads ahead in."""


@dataclass(frozen=True)
class Ahead:
    """A load asks for the elements `blocks` blocks further along `axis`, too; without an axis for those of so many
    iterations of `loop` on, which begin at `offsets` (known when the load is lowered)."""

    blocks: int
    axis: int | None = None
    loop: Op | None = None
    offsets: Sequence[Value] = ()


def read_ahead(fn: Function) -> dict[Op, Ahead]:
    """Loads of blocks that a loop of several stages uses at once, instead of packing them. Along rows of pages the
    processor itself reads ahead."""
    out = {}
    for loop in fn.walk():
        for nest in loop.regions[0].ops if loop.name == "for" and loop.attrs["stages"] > 1 else []:
            for op in nest.regions[0].ops if isinstance(nest, th.Nest) and not _packs(nest) else []:
                if op.name not in ("load", "expand_load") or not op.result.shape:
                    continue
                body, blocks = loop.regions[0], loop.attrs["stages"] - 1
                axis = next((axis for axis, v in enumerate(op.operands[1:]) if _steps(v, body.args[0])), None)
                if axis == op.attrs["axes"][-1] and op.attrs["shape"][-1] * op.result.dtype.memory_bits >= 8 * PAGE:
                    continue
                known = [_known(v, body) for v in op.operands[1:]]
                if axis is not None:
                    out[op] = Ahead(blocks, axis)
                elif any(known) and None not in known:
                    out[op] = Ahead(blocks, loop=loop)
    return out


def _packs(nest: th.Nest) -> bool:
    return any(op.name == "convert_layout" for op in nest.regions[0].ops)


def _steps(v: Value, i: Value) -> bool:
    """Whether a scalar is a multiple of `i`, or of its quotient."""
    op = v.owner
    return v is i or op is not None and op.name in ("mul", "floordiv") and any(_steps(o, i) for o in op.operands)


def _known(v: Value, body: Region) -> bool | None:
    """Whether a scalar changes with the loop's index; None where other iterations may have to run first."""
    op = v.owner
    if v in body.args:
        return True if v is body.args[0] else None
    if op is None or op not in body.ops:
        return False
    if isinstance(op, th.Nest):
        op, *others = op.regions[0].ops[:-1]
        if others or op.name != "load" or op.result.shape or not isinstance(op.operands[0].type, TensorType):
            return None
    elif op.regions or op.effects:
        return None
    each = [_known(o, body) for o in op.operands]
    return None if None in each else any(each)


def read_again(fn: Function) -> dict[Op, Ahead]:
    """The last loads of blocks that several nests of a program read, with the axis along which the next program's
    block follows. Only the first nest waits for memory; while the last one computes, the next block can arrive."""
    ids = {v for op in fn.body.ops if op.name == "grid" for v in op.results[-1:]}
    seen: dict[Any, list[Op]] = {}
    for nest in fn.body.ops:
        for op in nest.regions[0].ops if isinstance(nest, th.Nest) else []:
            if op.name == "load" and not op.operands[0].dtype.packed and op.attrs["shape"] == nest.attrs["shape"]:
                seen.setdefault((tuple(op.operands), op.attrs["shape"]), []).append(op)
    out = {}
    for (operands, _), loads in seen.items():
        axes = [axis for axis, v in enumerate(operands[1:]) if v in ids or v.owner is not None and
                v.owner.name == "mul" and any(o in ids for o in v.owner.operands)]
        if len(loads) > 1 and axes:
            out[loads[-1]] = Ahead(1, axes[0])
    return out
