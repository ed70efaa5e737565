"""Operands of dots, and of views in pipelined loops, that go from a tensor into shared memory without passing through
registers."""
from __future__ import annotations

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
class Use:
    """Operand `side` of a `dot` or `view` that is a staged tile, permuted by `order` in between."""

    user: Op
    side: int
    order: tuple[int, ...]

    @property
    def value(self) -> Value:
        """The operand."""
        return self.user.operands[self.side]


@dataclass(frozen=True)
class Staged:
    """A `load` that only feeds operands, by way of `permutes`."""

    load: Op
    uses: tuple[Use, ...]
    permutes: tuple[Op, ...] = ()


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
            out[op] = Staged(op, (Use(users[op.result][0], 0, tuple(range(op.result.tile.rank))),))
        if op.result.tile.rank == 2:
            uses, permutes = list[Use](), list[Op]()
            if _operands_alone(op.result, (0, 1), users, target, uses, permutes):
                out[op] = Staged(op, tuple(uses), tuple(permutes))
    return out


def _operands_alone(v: Value, order: tuple[int, ...], users: dict[Value, list[Op]], target: SimtTarget,
                    uses: list[Use], permutes: list[Op]) -> bool:
    """Whether a block permuted by `order` is nothing but operands of dots by instructions, which are collected."""
    for user in users.get(v, []):
        if user.name == "permute":
            permutes.append(user)
            turned = tuple(order[d] for d in user.attrs["order"])
            if not _operands_alone(user.result, turned, users, target, uses, permutes):
                return False
            continue
        if user.name not in ("dot", "dot_scaled") or v not in user.operands[:2]:
            return False
        a, b = user.operands[:2]
        if a is b or v in user.operands[2:] or choose(target.mma, a.dtype, b.dtype, user.result.dtype) is None:
            return False
        uses.append(Use(user, user.operands.index(v), order))
    return bool(users.get(v))


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
