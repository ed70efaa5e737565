"""Operands of dots, and of views in pipelined loops, that go from a tensor into shared memory without passing through
registers."""
from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tilelang.backends.simt.exchange import staging, wavefronts
from tilelang.backends.simt.group_products import panels
from tilelang.backends.simt.instructions import choose
from tilelang.backends.simt.matrix import as_rows, matrix_rows
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.through_registers import turned_layouts
from tilelang.backends.simt.transposed import reader as transposed_reader
from tilelang.ir.codec import blank_is_zero
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, Value
from tilelang.ir.reduction import DOTS
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
                or op.attrs["fill"] != 0 or not blank_is_zero(t.dtype) or op.operands[0] in written:
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
        if user.name not in (*DOTS, "dot_scaled") or v not in user.operands[:2]:
            return False
        a, b = user.operands[:2]
        rows, _ = target.rows(user)
        if a is b or v in user.operands[2:] or choose(rows, a.dtype, b.dtype, user.result.dtype) is None:
            return False
        uses.append(Use(user, user.operands.index(v), order))
    return bool(users.get(v))


def leading(op: Op) -> list[Value]:
    """The index of the dimensions of memory that a block access does not walk, where it walks the last ones."""
    v = op.result if op.name == "load" else op.operands[-1]
    t = op.operands[0].type
    assert isinstance(t, TensorType | BufferType)
    return op.operands[1:t.rank - v.tile.rank + 1]


def slices(op: Op) -> bool:
    """Whether a `load` or `store` is of a whole slice of a buffer: all of its last dimensions."""
    t, v = op.operands[0].type, op.result if op.name == "load" else op.operands[-1]
    if not isinstance(t, BufferType) or not v.shape:
        return False
    first = t.rank - v.tile.rank
    return t.shape[first:] == v.shape and op.attrs["axes"] == tuple(range(first, t.rank)) and all(
        at.owner is not None and at.owner.name == "const" and at.owner.attrs["value"] == 0
        for at in op.operands[1 + first:1 + t.rank])


def user_layout(users: Sequence[tuple[Op, RegisterLayout]], shape: tuple[int, ...], size: int,
                target: SimtTarget) -> SharedLayout | None:
    """A layout for memory that the user manages and gave none: blocks of its last two dimensions as those who write
    and read them whole have the fewest bank conflicts. `users` are its loads, stores and copies with the layouts of
    their tiles; None where nobody reads it so."""
    block, matrices = shape[-2:], {"load": target.ldmatrix, "store": target.stmatrix, "copy_async": False}

    def access(op: Op, layout: RegisterLayout) -> RegisterLayout:
        if op.name == "load" and target.transposed_loads and (named := transposed_reader(layout, size)):
            return named
        return as_rows(layout, block, op.operands[0].dtype) if matrices[op.name] else layout
    whole = [(op.name, access(op, layout)) for op, layout in users
             if layout.rank == 2 and (op.name == "copy_async" or slices(op))]
    read = [layout for name, layout in whole if name == "load"]
    if len(block) < 2 or not read:
        return None
    written = [layout for name, layout in whole if name != "load"]
    place = staging(block, size, written[0] if written else read[0], (read[0],), target.ports)
    for extent in reversed(shape[:-2]):
        place = ring(place, extent)
    return place


def buffer_layout(shape: tuple[int, ...], size: int, threads: int, target: SimtTarget,
                  operands: Sequence[RegisterLayout]) -> SharedLayout:
    """A block of a matrix as copies write it and `ldmatrix`, or threads that hold it as `operands`, read it, with the
    fewest bank conflicts. Where a copy can turn it, it lies as the first of them wants it."""
    if target.ldmatrix:
        fits = shape[0] % 8 == 0 and shape[1] % (16 // size) == 0
        readers: tuple[RegisterLayout, ...] = (matrix_rows(size),) if fits else ()
    else:
        named = [transposed_reader(f, size) if target.transposed_loads else None for f in operands]
        readers = tuple(dict.fromkeys(name or f for name, f in zip(named, operands, strict=True)))
        along = operands[0].contiguous(0) > operands[0].contiguous(1)
        turned = turned_layouts(shape, size, threads) if along and not target.async_copy else None
        if turned:
            return staging(shape, size, turned[1], readers, target.ports, True)
    stored = blocked(shape, threads, (1, 0), 16 // size)
    found = staging(shape, size, stored, readers, target.ports)
    rows, columns = shape
    boxes = panels(rows, columns, size, columns) if target.bulk and readers else None  # one thread can copy these

    def conflicts(place: SharedLayout) -> int:
        return sum(wavefronts(f, place, size, target.ports, f is stored) for f in (stored, *readers))
    return boxes if boxes is not None and conflicts(boxes) <= conflicts(found) else found


def words_layout(shape: tuple[int, ...], size: int, threads: int, target: SimtTarget,
                 source: RegisterLayout) -> SharedLayout:
    """The same of a block that a `view` has as `source`."""
    return staging(shape, size, blocked(shape, threads, tuple(reversed(range(len(shape)))), 16 // size), (source,),
                   target.ports)


def ring(place: SharedLayout, stages: int) -> SharedLayout:
    """`stages` blocks one after the other."""
    return SharedLayout((((stages, place.size),), *place.dims), place.swizzle)


def by_first_use(copies: Sequence[Op], body: Sequence[Op]) -> list[list[Op]]:
    """Copies of a loop's body in groups, by the operation that first computes something from their blocks."""
    groups: dict[int, list[Op]] = {}
    for copy in copies:
        held, first = {copy.operands[-1]}, len(body)
        for at, op in enumerate(body):
            if op.name in ("load", "permute") and op.operands[0] in held:
                held.add(op.result)
            elif op is not copy and uses(op, held):
                first = at
                break
        groups.setdefault(first, []).append(copy)
    return [groups[first] for first in sorted(groups)]


def uses(op: Op, values: Collection[Value]) -> bool:
    """Whether an operation, or one in it, has one of the values as an operand."""
    return any(v in values for inner in Region([], [op]).walk() for v in inner.operands)
