"""What operations do to memory, as far as the passes that move or merge them need to know."""
from __future__ import annotations

from collections.abc import Iterable

from tilelang.ir.core import BufferType, Op, TensorType, Value

LOOPS = ("for", "while")
_NO_FENCE = {"yield", "print", "assert", "grid", "commit", "for", "while", "if", "nest", "start_next"}


def pure(op: Op) -> bool:
    """Whether equal operands always give equal results, and nothing else happens. Memory has an identity: `alloc` is
    not pure."""
    return not op.effects and not any(isinstance(r.type, BufferType) for r in op.results)


def may_alias(a: Value, b: Value) -> bool:
    """Whether two memories may share an element: tensor arguments may overlap each other, allocations may not."""
    if a is b or isinstance(a.type, TensorType) != isinstance(b.type, TensorType):
        return a is b
    return not all(v.owner is not None and v.owner.name == "alloc" for v in (a, b))


class Writes:
    """What some operations, nested ones included, may change: memories, or everything (a barrier lets other threads'
    writes be seen, a wait lets copies land)."""

    def __init__(self, ops: Iterable[Op]) -> None:
        self.memories: set[Value] = set()
        self.everything = False
        for op in ops:
            self.add(op)

    def add(self, op: Op) -> None:
        if op.effects == "write":
            self.memories |= {v for v in op.operands if isinstance(v.type, TensorType | BufferType)}
        self.everything |= op.effects == "control" and op.name not in _NO_FENCE
        for region in op.regions:
            for inner in region.ops:
                self.add(inner)

    def may_change(self, read: Op) -> bool:
        """Whether a `load` or another read may give something else afterwards."""
        return self.everything or any(may_alias(read.operands[0], m) for m in self.memories)
