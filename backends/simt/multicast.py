"""Copies of blocks to several programs of a cluster (TMA multicast): which blocks programs have in common, and what
comes of it.

Programs whose places in the grid differ along one dimension alone read the same blocks of a tensor where these do not
depend on that dimension. Each of them copies a part of a block for all, to the same place in their shared memory. What
the barriers of a ring count changes with that: *full* the bytes that others send, too, *empty* the warps of all
programs that read what this one copies. So a copy is started once everybody has given back the block that it is
written over, and nobody can come to a phase before everybody is done with the one before.

Programs begin together, because nobody may write to the memory of one that has not made its barriers, and end
together, because others may yet arrive at those of one that is done.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from tilelang.backends.simt import bulk, roles
from tilelang.ir import elementwise as ew
from tilelang.ir.cluster import ClusterBarrier, Sharers
from tilelang.ir.core import Function, Op, Region, Value


@dataclass
class Shares:
    """Of the copies of a loop those that programs make for each other: by how many each, with this program's part and
    the bits of all; how many programs read what one copies, and their bits; the operations that tell, for the top of
    the function."""

    copies: dict[Op, tuple[int, list[Value]]] = field(default_factory=dict)
    readers: int = 1
    ranks: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)


def common(loop: Op, copies: Mapping[Op, bulk.Boxes], path: Sequence[Op], top: Region) -> \
        dict[Op, tuple[int, ...] | str]:
    """Of each copy of a loop, which stands in the operations of `path`, the dimensions of the grid along which
    programs of a cluster have its blocks in common, or why there are none. Nothing where there are no clusters."""
    grid = _grid(top)
    wide = {d for d, n in enumerate(grid.attrs["cluster"]) if n > 1} if grid is not None else set()
    if grid is None or not wide:
        return {}
    around, written = [*path, loop], roles.written_in(top)
    if any(v.owner is not None and v.owner.name == "num_workers" for v in roles.sources(
            [grid.operands[d] for d in wide], [])):
        return dict.fromkeys(copies, "how many clusters there are depends on the device")

    def differ(values: Sequence[Value]) -> set[int]:
        """The dimensions of a cluster along which scalars differ, all where nobody knows."""
        found = set[int]()
        for v in roles.sources(values, around):
            if v.owner is grid:
                found.add(grid.results.index(v))
            elif v.owner is not None and not roles.known(v.owner, written):
                return wide
        return found
    turns, out = differ(roles.bounds(around)), dict[Op, tuple[int, ...] | str]()
    for op, found in copies.items():
        along = tuple(sorted(wide - turns - differ(op.operands[1:-1])))
        count = prod(grid.attrs["cluster"][d] for d in along)
        if not along:
            out[op] = "programs of a cluster may read different blocks"
        elif bulk.parts(found, count, op.operands[0].dtype.storage.itemsize) is None:
            out[op] = f"its boxes are not divided by {count} programs"
        else:
            out[op] = along
    return out


def share(found: Mapping[Op, tuple[int, ...] | str], top: Region) -> Shares:
    """What comes of that."""
    out, grid, groups = Shares(), _grid(top), dict[tuple[int, ...], Sharers]()
    for copy, along in found.items():
        if grid is None or isinstance(along, str):
            continue
        if along not in groups:
            groups[along] = Sharers([], {"cluster": grid.attrs["cluster"], "along": along}, loc=copy.loc)
        out.copies[copy] = prod(grid.attrs["cluster"][d] for d in along), list(groups[along].results)
    readers = 0
    for group in groups.values():
        out.ops.append(group)
        if out.ranks:
            out.ops.append(ew.Or([*out.ranks, group.results[1]], loc=group.loc))
        out.ranks, readers = out.ops[-1].results[-1:], readers | group.of(0)[1]
    out.readers = max(readers.bit_count(), 1)
    return out


def together(fn: Function) -> Function:
    """Where programs copy for each other, they begin together, once barriers are made, and end together."""
    if any(op.name == "copy_shared" for op in fn.walk()):
        made = next(i for i, op in enumerate(fn.body.ops) if op.name == "once")
        loc = fn.body.ops[made].loc
        fn.body.ops[made + 1] = ClusterBarrier([], {"sharing": True}, loc=loc)
        fn.body.ops.append(ClusterBarrier([], {"sharing": True}, loc=loc))
    return fn


def _grid(top: Region) -> Op | None:
    return next((op for op in top.ops if op.name == "grid"), None)
