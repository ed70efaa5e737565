"""The NumPy interpreter: runs a function of any level by its operations' `eval`, one program of the grid at a time.

It defines what a kernel means. Compiled backends are compared with it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilelang.errors import CheckError, TargetError
from tilelang.ir.cluster import Cluster, cluster_of
from tilelang.ir.control import MAX_PROGRAMS, Grid
from tilelang.ir.core import Function, Op, Region, TensorType, Value
from tilelang.ir.dtypes import DType
from tilelang.ir.elementwise import Elementwise


class Frame:
    """The state of one program: values, its ids, its memory, copies in flight."""

    def __init__(self, ids: Sequence[int], num_workers: int, output: Callable[[str], None]) -> None:
        self.ids, self.num_workers, self.output = ids, num_workers, output
        self.values: dict[Value, Any] = {}
        self.written: dict[int, tuple[Any, Any]] = {}  # id of a buffer -> (the buffer, which elements are set)
        self.copies: list[list[tuple[Op, Any, Any, Any]]] = [[]]  # groups of asynchronous copies; the last one is open
        self.barriers: dict[tuple[int, int], list[tuple[Op, Any, Any, Any]]] = {}  # copies that a barrier tells of
        self.cluster_extents: tuple[int, ...] = ()  # as the grid says
        self.cluster: Cluster | None = None  # where programs of a cluster meet

    def run_region(self, region: Region, args: Sequence[Any]) -> list[Any]:
        """Runs the operations in order; gives what the region yields."""
        self.values.update(zip(region.args, args, strict=True))
        for op in region.ops:
            if op.name == "yield":
                return [self.values[v] for v in op.operands]
            self.run_op(op)
        return []

    def run_op(self, op: Op) -> None:
        """Computes an operation of known operands."""
        results = op.eval(self, *(self.values[v] for v in op.operands))
        self.values.update(zip(op.results, results if isinstance(results, tuple) else (results,), strict=True))

    def cluster_rank(self) -> Any:
        """The number of this program in its cluster."""
        rank = 0
        for at, n in zip(self.ids or (), self.cluster_extents, strict=False):
            rank = rank * n + at % n
        return np.asarray(rank, np.int32)

    # -- memory of the program ---------------------------------------------------------------------------------------
    def allocate(self, shape: Sequence[int], dt: DType) -> Any:
        buffer = np.zeros(shape, dt.storage)
        self.written[id(buffer)] = (buffer, np.zeros(shape, bool))
        return buffer

    def check_initialised(self, op: Op, array: Any, index: Any, inside: Any) -> None:
        """A read of program memory that no write has reached is an error, not a zero."""
        _, written = self.written.get(id(array), (None, None))
        if written is not None and np.any(inside & ~written[index]):
            raise CheckError([f"`{op.name}` reads {int(np.sum(inside & ~written[index]))} elements that were never "
                              f"written" + (f" ({op.loc.file}:{op.loc.line})" if op.loc else "")])

    def mark_written(self, op: Op, array: Any, where: Any) -> None:
        if id(array) in self.written:
            self.written[id(array)][1][where] = True

    def start_copy(self, op: Op, buffer: Any, where: Any, data: Any, barrier: tuple[int, int] | None = None) -> None:
        group = self.copies[-1] if barrier is None else self.barriers.setdefault(barrier, [])
        group.append((op, buffer, where, data))

    def commit_copies(self) -> None:
        self.copies.append([])

    def wait_copies(self, pending: int) -> None:
        """Finishes all closed groups but the latest `pending`: data arrives as late as the program allows."""
        while len(self.copies) - 1 > pending:
            self._arrive(self.copies.pop(0))

    def finish_copies(self, barrier: tuple[int, int]) -> None:
        """Finishes those that a barrier tells of."""
        self._arrive(self.barriers.pop(barrier, []))

    def _arrive(self, copies: Sequence[tuple[Op, Any, Any, Any]]) -> None:
        for op, buffer, where, data in copies:
            buffer[where] = data
            self.mark_written(op, buffer, where)


def run(fn: Function, args: Sequence[Any], num_workers: int = 1, output: Callable[[str], None] = print,
        order: Callable[[int], Sequence[int]] = range) -> None:
    """Runs every program of `fn`'s grid, one after the other in the given order of linear ids; those of a cluster that
    reach each other's memory run together.

    `args` holds one value for each parameter: for a tensor the NumPy array in `DType.storage` (written in place), for
    a scalar a NumPy scalar. Raises what the operations raise: `AssertFailed`, `CheckError`.
    """
    def frame_of(ids: Sequence[int]) -> Frame:
        frame = Frame(ids, num_workers, output)
        frame.values.update(zip(fn.params, args, strict=True))
        return frame

    with np.errstate(all="ignore"):
        extents, cluster = _extents(fn, frame_of(())), cluster_of(fn)
        for linear in order(count_programs(fn, extents)):
            ids = [int(i) for i in np.unravel_index(linear, extents)]
            if not cluster:
                frame_of(ids).run_region(fn.body, [])
            elif not any(i % n for i, n in zip(ids, cluster, strict=True)):  # the first of its cluster
                Cluster([frame_of([i + j for i, j in zip(ids, rest, strict=True)])
                         for rest in np.ndindex(*cluster)]).run(fn.body)


def grid_extents(fn: Function, args: Sequence[Any], shapes: Sequence[Sequence[int]],
                 num_workers: int = 1) -> list[int]:
    """The extents of the grid of `fn` for these arguments; [1] where it has none. Only the shapes of tensors count.
    Raises TargetError where the arithmetic of an extent wraps."""
    frame = Frame((), num_workers, print)
    for p, value, shape in zip(fn.params, args, shapes, strict=True):
        frame.values[p] = np.broadcast_to(np.zeros((), p.dtype.storage), shape) if isinstance(p.type, TensorType) \
            else np.asarray(value)
    return _extents(fn, frame)


def _extents(fn: Function, frame: Frame) -> list[int]:
    """As `grid_extents`, in a frame that holds the parameters."""
    grid = next((op for op in fn.body.ops if isinstance(op, Grid)), None)
    if grid is None:
        return [1]
    steps = grid.leading()
    for op in fn.body.ops:
        if op in steps:
            frame.run_op(op)
    _refuse_wrapped(fn, grid, frame.values)
    return [max(int(frame.values[v]), 0) for v in grid.operands]


def _refuse_wrapped(fn: Function, grid: Grid, values: Mapping[Value, Any]) -> None:
    """Raises TargetError where an operation that leads to an extent of the grid has wrapped."""
    checked = grid.wrapping()
    for op in (op for op in fn.body.ops if op in checked):
        operands = [int(values[v]) for v in op.operands]
        exact = operands[0]
        if isinstance(op, Elementwise):
            exact = int(type(op).fn(*(np.asarray(x, object) for x in operands)))
        if exact != int(values[op.result]):
            dt = op.result.dtype
            raise TargetError(f"an extent of the grid of `{fn.name}` does not fit {dt}", loc=op.loc,
                              needs=f"{dt.min} to {dt.max}", got=f"{op.name} of {' and '.join(map(str, operands))}: "
                              f"{exact}", try_="an extent for each factor, tile.grid(M, N), or larger blocks")


def count_programs(fn: Function, extents: Sequence[int]) -> int:
    """How many programs a grid of these extents has. Raises TargetError for more than `MAX_PROGRAMS`, and where
    programs that reach each other's memory are no whole clusters."""
    cluster = cluster_of(fn)
    if cluster and any(n % c for n, c in zip(extents, cluster, strict=True)):
        raise TargetError(f"the grid of `{fn.name}` is not made of whole clusters", loc=fn.loc,
                          needs=f"multiples of {' x '.join(map(str, cluster))}", got=' x '.join(map(str, extents)),
                          try_="round the extents up: programs outside of the tensors load and store nothing")
    count = math.prod(max(n, 0) for n in extents)
    if count > MAX_PROGRAMS:
        raise TargetError(f"`{fn.name}` has too many programs", loc=fn.loc, needs=f"a grid of at most {MAX_PROGRAMS}",
                          got=f"{' x '.join(map(str, extents))} = {count}", try_="larger blocks")
    return count
