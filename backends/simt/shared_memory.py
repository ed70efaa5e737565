"""allocate_shared: gives every buffer in shared memory its place.

requires: THREAD
ensures: every `alloc` in shared memory has an `offset`; buffers alive at the same time do not overlap
example: two conversions of layout, one after the other, use the same bytes
"""
from __future__ import annotations

from math import prod

from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import TargetError
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, Value

ALIGN = 128
"""Bytes a buffer's offset is a multiple of: swizzles count on it."""
Span = tuple[int, int]


def size_of(op: Op) -> int:
    """Bytes of a buffer, whole units of `ALIGN`."""
    layout = op.attrs["layout"]
    elements = layout.size if layout is not None else prod(op.attrs["shape"])
    return -(-elements * op.attrs["dtype"].storage.itemsize // ALIGN) * ALIGN


def shared_allocs(fn: Function) -> list[Op]:
    """The shared buffers; they stand at the top level."""
    return [op for op in fn.body.ops if op.name == "alloc" and op.attrs["space"] == "shared"]


def root(v: Value) -> Value:
    """The whole memory that a block or window is part of, or that is the same of another program."""
    while v.owner is not None and v.owner.name in ("block", "window", "peer"):
        v = v.owner.operands[0]
    return v


def span_of(v: Value) -> tuple[int, int]:
    """First byte and end of a buffer that has its place."""
    assert v.owner is not None
    return v.owner.attrs["offset"], v.owner.attrs["offset"] + size_of(v.owner)


def touched(op: Op) -> list[tuple[Value, int]]:
    """The memory that a THREAD operation accesses, each with the phase."""
    if op.name == "group_mma":
        return [(v, phase) for v, phase in zip(op.operands[1:], op.attrs["phases"], strict=True) if phase]
    several = op.name in ("print_shared", "bulk_wait")
    return [(v, op.attrs.get("phase", 0)) for v in (op.operands if several else op.operands[:1])
            if isinstance(v.type, BufferType | TensorType)]


def shared_bytes(fn: Function) -> int:
    """Shared memory of one program."""
    return max((op.attrs["offset"] + size_of(op) for op in shared_allocs(fn)), default=0)


def allocate_shared(fn: Function, target: SimtTarget) -> Function:
    """Fills in the offsets, in place; first fit over lifetimes, the largest first."""
    alive = spans(fn)
    placed: list[tuple[int, int, list[Span]]] = []
    for op in sorted(shared_allocs(fn), key=lambda o: -size_of(o)):
        mine, size = alive.get(op.result, [(0, 0)]), size_of(op)
        offset, align = 0, op.attrs["align"]
        for start, end, others in sorted(placed):
            meet = any(a[0] <= b[1] and b[0] <= a[1] for a in mine for b in others)
            if meet and offset < end and start < offset + size:
                offset = -(-end // align) * align
        op.attrs["offset"] = offset
        placed.append((offset, offset + size, mine))
    used = shared_bytes(fn)
    if used > target.shared_bytes:
        largest = max(shared_allocs(fn), key=size_of)
        raise TargetError(f"`{fn.name}` needs more shared memory than {target.name} has", loc=largest.loc or fn.loc,
                          needs=f"at most {target.shared_bytes} bytes", got=f"{used} bytes",
                          try_="use smaller tiles or fewer stages")
    return fn


def spans(fn: Function) -> dict[Value, list[Span]]:
    """First and last positions between which a buffer holds something: from its first to its last use, or, where these
    lie in different regions, all of the operations around them. What is used only inside of several loops of a region
    (`split_loops` makes them) is written in each before it is read, and lives in each by itself. Memory the user
    manages lives throughout."""
    uses: dict[Value, list[tuple[Span, ...]]] = {}
    managed: set[Value] = set()
    loops: dict[Span, Region] = {}  # the region that a loop stands in
    clock = 0

    def visit(region: Region, around: tuple[Span, ...]) -> int:
        nonlocal clock
        for op in region.ops:
            clock += 1
            start, buffers = clock, [root(v) for v in op.operands if isinstance(v.type, BufferType)]
            inner_uses = [(v, uses.setdefault(v, [])) for v in buffers]
            managed.update(root(v) for v, phase in touched(op) if phase == 0 and op.name != "block"
                           and isinstance(v.type, BufferType))
            # The span of an operation with regions is known once they have been walked.
            places = [_length(r) for r in op.regions]
            here = (*around, (start, start + sum(places)))
            if op.name == "for":
                loops[here[-1]] = region
            for _, paths in inner_uses:
                paths.append(here)
            for inner in op.regions:
                visit(inner, here)
        return clock
    end = visit(fn.body, ())

    def lives(paths: list[tuple[Span, ...]], depth: int) -> list[Span]:
        groups = {p[depth]: [q for q in paths if q[depth] == p[depth]] for p in paths}
        inside = all(len(p) > depth + 1 for p in paths)
        twins = {id(loops.get(span)) for span in groups}
        if inside and (len(groups) == 1 or len(twins) == 1 and twins != {id(None)}):
            return [span for group in groups.values() for span in lives(group, depth + 1)]
        return [(min(start for start, _ in groups), max(end for _, end in groups))]
    early = {root(op.operands[0]) for branch in productions(fn) for op in branch.regions[0].walk()
             if op.name == "tensor_load"}
    early |= {root(op.operands[0]) for op in fn.walk() if op.name == "tensor_load" and op.attrs["multicast"]}
    return {v: [(0, end)] if v in managed else [(0, max(path[0][1] for path in paths))] if v in early
            else lives(paths, 0) for v, paths in uses.items()}


def _length(region: Region) -> int:
    return sum(1 for _ in region.walk())


def productions(fn: Function) -> list[Op]:
    """The branches of a function that producers take."""
    return [op for op in fn.walk() if produces(op)]


def produces(op: Op) -> bool:
    """Whether a branch is one that producers take (`roles.py`)."""
    condition = op.operands[0].owner if op.name == "if" else None
    return condition is not None and condition.name == "elected" and condition.attrs["warp"] > 0
