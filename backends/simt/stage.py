"""Operands of dots, and of views in pipelined loops, that go from a tensor into shared memory without passing through
registers."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilelang.backends.simt.exchange import staging
from tilelang.backends.simt.instructions import choose
from tilelang.backends.simt.matrix import matrix_rows
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.through_registers import turned_layouts
from tilelang.backends.simt.transposed import reader as transposed_reader
from tilelang.ir.core import Function, Op, TensorType, Value
from tilelang.layouts import RegisterLayout, SharedLayout, blocked


@dataclass(frozen=True)
class Staged:
    """A `load` that only feeds operand `side` of a `dot` or `view`, permuted by `order` in between."""

    load: Op
    user: Op
    side: int
    order: tuple[int, ...]
    permutes: tuple[Op, ...]

    @property
    def value(self) -> Value:
        """The operand."""
        return self.user.operands[self.side]


def staged_loads(fn: Function, target: SimtTarget) -> dict[Op, Staged]:
    """The loads of `fn` that need no registers, by load."""
    users: dict[Value, list[Op]] = {}
    written = {op.operands[0] for op in fn.walk() if op.effects == "write"}
    for op in fn.walk():
        for v in op.operands:
            users.setdefault(v, []).append(op)
    ahead = {op for loop in fn.walk() if loop.name == "for" and loop.attrs["stages"] > 1 and target.async_copy
             for op in loop.regions[0].walk()}
    out = {}
    for op in fn.walk():
        t = op.operands[0].type if op.operands else None
        if op.name != "load" or not isinstance(t, TensorType) or t.dtype.packed or t.dtype.kind == "bool" \
                or op.attrs["fill"] != 0 or op.operands[0] in written:
            continue
        if op in ahead and [user.name for user in users.get(op.result, [])] == ["view"]:
            out[op] = Staged(op, users[op.result][0], 0, tuple(range(op.result.tile.rank)), ())
        if op.result.tile.rank != 2:
            continue
        order: Sequence[int] = (0, 1)
        v, permutes = op.result, list[Op]()
        while len(users.get(v, [])) == 1 and users[v][0].name == "permute":
            step = users[v][0]
            order = tuple(order[d] for d in step.attrs["order"])
            v = step.result
            permutes.append(step)
        if len(users.get(v, [])) != 1 or users[v][0].name != "dot" or v not in users[v][0].operands[:2]:
            continue
        dot = users[v][0]
        a, b = dot.operands[:2]
        if a is not b and choose(target.mma, a.dtype, b.dtype, dot.attrs["dtype"]) is not None:
            out[op] = Staged(op, dot, dot.operands.index(v), tuple(order), tuple(permutes))
    return out


def buffer_layout(shape: tuple[int, ...], size: int, threads: int, target: SimtTarget,
                  operand: RegisterLayout) -> SharedLayout:
    """A block of a matrix as copies write it and `ldmatrix`, or threads that hold it as `operand`, read it, with the
    fewest bank conflicts."""
    reader: RegisterLayout | None = operand
    turned = turned_layouts(shape, size, threads) if operand.contiguous(0) > operand.contiguous(1) else None
    if target.ldmatrix:
        reader = matrix_rows(size) if shape[0] % 8 == 0 and shape[1] % (16 // size) == 0 else None
    elif target.transposed_loads and (named := transposed_reader(operand, size)):
        reader = named
    elif turned and not target.async_copy:
        return staging(shape, size, turned[1], reader, target.ports, True)
    return staging(shape, size, blocked(shape, threads, (1, 0), 16 // size), reader, target.ports)


def words_layout(shape: tuple[int, ...], size: int, threads: int, target: SimtTarget,
                 source: RegisterLayout) -> SharedLayout:
    """The same of a block that a `view` has as `source`."""
    return staging(shape, size, blocked(shape, threads, tuple(reversed(range(len(shape)))), 16 // size), source,
                   target.ports)


def ring(place: SharedLayout, stages: int) -> SharedLayout:
    """`stages` blocks one after the other."""
    return SharedLayout((((stages, place.size),), *place.dims), place.swizzle)
