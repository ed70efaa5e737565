"""How the dimensions of a nest walk the tiles in it, and which gathers and scatters touch whole rows."""
from __future__ import annotations

from collections.abc import Container

from tilelang.ir import elementwise as ew
from tilelang.ir.core import Op, TensorType, Value

Dims = tuple[int | None, ...]
"""For each dimension of a tile the one of the nest that walks it, if any does."""


def walked(op: Op, dims: Dims, operand: Value) -> Dims:
    """The dimensions of the nest that the operand's dimensions walk where the result's walk `dims`."""
    if op.name == "permute":
        out: list[int | None] = [None] * len(dims)
        for i, d in zip(op.attrs["order"], dims, strict=True):
            out[i] = d
        return tuple(out)
    if op.name == "broadcast":
        tail = dims[len(dims) - len(operand.shape):]
        return tuple(None if e == 1 else d for e, d in zip(operand.shape, tail, strict=True))
    if op.name == "reshape":
        it = iter([d for d, e in zip(dims, op.result.shape, strict=True) if e != 1])
        return tuple(None if e == 1 else next(it) for e in operand.shape)
    if op.name == "expand_load":
        return (*dims[:-1], None)
    if op.name == "concat":
        return tuple(None if i == op.attrs["axis"] else d for i, d in enumerate(dims))
    return dims


def row_run(op: Op, local: Container[Value]) -> tuple[int, int] | None:
    """(dimension, axis) of a gather or scatter whose index of the tensor's axis without a stride counts upwards along
    that dimension of its tiles, along which its other indices stay the same: it touches rows. `local` are the values
    that the nest computes."""
    memory, indices, _, _ = op.split()  # type: ignore[attr-defined]
    if not isinstance(memory, TensorType) or memory.dtype.packed:
        return None
    here = tuple(range(len(indices[0].shape)))
    for axis, one in enumerate(memory.unit):
        for d in here if one else ():
            rest = [*indices[:axis], *indices[axis + 1:]]
            if _counts(indices[axis], here, d, local) and not any(_varies(v, here, d, local) for v in rest):
                return d, axis
    return None


def _varies(v: Value, dims: Dims, d: int, local: Container[Value]) -> bool:
    """Whether a value may differ along dimension d of the nest."""
    op = v.owner
    if d not in dims:
        return False
    if op is None or v not in local or not (
            isinstance(op, ew.Elementwise | ew.Where | ew.Cast) or op.name in ("broadcast", "permute", "reshape")):
        return True
    return any(_varies(o, walked(op, dims, o), d, local) for o in op.operands if o.shape)


def _counts(v: Value, dims: Dims, d: int, local: Container[Value]) -> bool:
    """Whether an index grows by one from each position along dimension d to the next. Where i32 wraps, both what it
    wraps to and what it would be lie outside of every tensor."""
    op = v.owner
    if d not in dims or op is None or v not in local or v.dtype.name not in ("i32", "i64"):
        return False
    if op.name == "arange":
        return True
    if op.name not in ("broadcast", "permute", "reshape", "cast", "add", "sub"):
        return False
    first, *others = [(o, walked(op, dims, o) if o.shape else ()) for o in op.operands]
    if not others:
        return _counts(*first, d, local)
    (second,) = others
    return _counts(*first, d, local) and not _varies(*second, d, local) or \
        op.name == "add" and _counts(*second, d, local) and not _varies(*first, d, local)
