"""Structured control flow, the grid, and output for debugging."""
from __future__ import annotations

from collections.abc import Sequence
from math import prod
from string import Formatter
from typing import Any

import numpy as np

from tilelang.errors import AssertFailed, DTypeMismatch, ShapeMismatch, VerifyError
from tilelang.ir import codec
from tilelang.ir.core import MAX_EXTENT, Op, Region, TileType, Type, Value
from tilelang.ir.dtypes import DType
from tilelang.ir.elementwise import ALL_LEVELS, I1
from tilelang.ir.shape import I32

MAX_GROUP = 1 << 15
"""Rows of a grid that run together at most."""
MAX_CLUSTER = 8
"""Programs of a cluster at most: what every GPU with clusters takes (CUDA C++ Programming Guide)."""
MAX_PROGRAMS = ((1 << 31) - 1) * ((1 << 16) - 1)
"""Programs of a grid at most: what CUDA can launch in two extents."""
MAX_WORKERS = 1 << 16
"""Programs that run at once at most, of any processor there is."""
_MOST_64 = 1 << 62
"""What no 64-bit number comes to that is computed in a kernel, and not written in it: nothing is counted so far."""
_INTEGERS = ("int", "uint")


class Grid(Op):
    """Ids of this program in a grid of the given extents; stands once, at the top level of a function. The extents
    depend on dimensions, scalar parameters and constants only, because the caller evaluates them. Programs run in
    any order, in parallel; with `group`, GPUs begin with that many rows of the last two extents, column by column. A
    `cluster` lists of how many neighbours along each extent a cluster is."""
    name, levels, effects, attributes = "grid", ALL_LEVELS, "control", {"group": 1, "cluster": ()}

    def infer(self) -> Sequence[Type]:
        group = self.attrs["group"]
        if type(group) is not int or not 1 <= group <= MAX_GROUP or (group > 1 and len(self.operands) < 2):
            raise VerifyError("`grid` cannot run in groups like this", op=self.name, loc=self.loc,
                              needs=f"group=1 … {MAX_GROUP}, of rows of a grid with two extents or more",
                              got=f"group={group!r}, {len(self.operands)} extents",
                              try_="tile.grid(rows, columns, group=8)")
        cluster = self.attrs["cluster"]
        if cluster != () and (type(cluster) is not tuple or len(cluster) != len(self.operands)
                              or any(type(n) is not int or n < 1 for n in cluster) or prod(cluster) > MAX_CLUSTER):
            raise VerifyError("`grid` has no such clusters", op=self.name, loc=self.loc,
                              needs=f"a number for each extent, of at most {MAX_CLUSTER} programs in all",
                              got=f"cluster={cluster!r}, {len(self.operands)} extents",
                              try_="tile.grid(rows, columns, cluster=(2, 1))")
        for v in self.operands:
            if v.type != TileType((), I32):
                raise DTypeMismatch("grid extents must be i32 scalars", loc=self.loc, needs="i32", got=str(v.type),
                                    try_="cast it: n.to(tile.i32)")
        return [TileType((), I32)] * len(self.operands)

    def eval(self, frame: Any, *args: Any) -> Any:
        frame.cluster_extents = self.attrs["cluster"]
        return tuple(np.asarray(i, np.int32) for i in frame.ids)

    def leading(self) -> set[Op]:
        """The operations that the extents follow from."""
        found: set[Op] = set()
        pending = [v.owner for v in self.operands]
        while pending:
            op = pending.pop()
            if op is not None and op not in found:
                found.add(op)
                pending += [v.owner for v in op.operands]
        return found

    def wrapping(self) -> set[Op]:
        """The operations on integers by which the extents are computed and that may wrap: a grid of a number that did
        would leave out blocks, so whoever evaluates the extents refuses it."""
        return {op for op in self.leading() if op.name in ("add", "sub", "mul", "neg", "cast")
                and all(v.type.dtype.kind in ("int", "uint") for v in (*op.operands, *op.results))}


class NumWorkers(Op):
    """How many programs run at once (worker threads, multiprocessors): the natural size of a persistent grid."""
    name, levels = "num_workers", ALL_LEVELS

    def infer(self) -> Sequence[Type]:
        return [TileType((), I32)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.asarray(frame.num_workers, np.int32)


class WaitPrevious(Op):
    """Waits until the kernels before this one in its stream have ended; stands at the top level. Where the target can
    (NVIDIA's griddepcontrol.wait), the kernel begins before they have."""
    name, levels, effects = "wait_previous", ALL_LEVELS, "control"

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class StartNext(Op):
    """The next kernel in the stream, if it has `wait_previous`, may begin when all programs have come here or ended
    (NVIDIA's griddepcontrol.launch_dependents)."""
    name, levels, effects = "start_next", ALL_LEVELS, "control"

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class Yield(Op):
    """Ends a region with its results."""
    name, levels, effects = "yield", ALL_LEVELS, "control"

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return args


def _check_region(op: Op, region: Region, args: Sequence[Type], yields: Sequence[Type]) -> None:
    for what, needs, got in (("arguments", args, [a.type for a in region.args]),
                             ("results", yields, [v.type for v in region.yields])):
        if list(needs) != list(got):
            raise ShapeMismatch(f"`{op.name}`: the {what} of its body changed type", loc=op.loc,
                                needs=", ".join(map(str, needs)) or "none", got=", ".join(map(str, got)) or "none",
                                try_="keep the shape and dtype of a variable the same on every path (cast with .to)")


class For(Op):
    """for i in range(lo, hi, step) with carried values: operands (lo, hi, step, init…), region (i, carried…) yielding
    the next carried values. `step` is positive. `stages` asks for that many stages of software pipelining, `schedule`
    for a way to do it: "" leaves the choice to the target."""
    name, levels, effects, attributes = "for", ALL_LEVELS, "control", {"stages": 1, "schedule": ""}

    def infer(self) -> Sequence[Type]:
        bounds, inits = self.operands[:3], [v.type for v in self.operands[3:]]
        if len({v.type for v in bounds}) != 1 or bounds[0].type.dtype.kind not in ("int", "uint"):
            raise DTypeMismatch("loop bounds must be integer scalars of one dtype", loc=self.loc, needs="i32",
                                got=", ".join(str(v.type) for v in bounds), try_="cast them: n.to(tile.i32)")
        _check_region(self, self.regions[0], [bounds[0].type, *inits], inits)
        return inits

    def eval(self, frame: Any, *args: Any) -> Any:
        lo, hi, step = (int(a) for a in args[:3])
        carried = list(args[3:])
        if step <= 0:
            raise AssertFailed("the step of a loop must be positive", loc=self.loc, needs="1 or more", got=str(step),
                               try_="count upwards, and compute the descending index from it")
        dt = self.operands[0].dtype.storage
        for i in range(lo, hi, step):
            carried = frame.run_region(self.regions[0], [np.asarray(i, dt), *carried])
        return tuple(carried)


def overruns(loop: Op) -> bool:
    """Whether the last index of a `for` plus its step may be no number of their type: to count there, a target must
    stop at `hi` (i += min(step, hi - i), without signs), which costs two instructions more."""
    _, hi, step = loop.operands[:3]
    return bool(_most(hi) - 1 + _most(step) > hi.dtype.max)


def _most(v: Value, depth: int = 8) -> int:
    """A number that an integer scalar does not exceed, as far as some operations before it tell."""
    op = v.owner
    if op is None or not depth:
        return _MOST_64 if v.dtype.bits == 64 else v.dtype.max
    known = [_most(x, depth - 1) for x in op.operands if isinstance(x.type, TileType) and x.dtype.kind in _INTEGERS]
    match op.name:
        case "const":
            return int(op.attrs["value"])
        case "dim":
            return MAX_EXTENT
        case "num_workers":
            return MAX_WORKERS
        case "min":
            return min(known)
        case "max" | "where":
            return max(known)
        case "cast" if known and known[0] <= v.dtype.max and op.operands[0].dtype.bits <= v.dtype.bits:
            return known[0]
        case "floordiv" if (by := op.operands[1].owner) is not None and by.name == "const" and known[1] > 0:
            return known[0] // known[1]
    return _MOST_64 if v.dtype.bits == 64 else v.dtype.max


class While(Op):
    """Carried values while a condition holds: region 0 (carried…) yields one i1, region 1 (carried…) the next."""
    name, levels, effects = "while", ALL_LEVELS, "control"

    def infer(self) -> Sequence[Type]:
        types = [v.type for v in self.operands]
        _check_region(self, self.regions[0], types, [TileType((), I1)])
        _check_region(self, self.regions[1], types, types)
        return types

    def eval(self, frame: Any, *args: Any) -> Any:
        carried = list(args)
        while bool(frame.run_region(self.regions[0], carried)[0]):
            carried = frame.run_region(self.regions[1], carried)
        return tuple(carried)


class If(Op):
    """Region 0 where the i1 scalar holds, region 1 otherwise; both yield the results."""
    name, levels, effects = "if", ALL_LEVELS, "control"

    def infer(self) -> Sequence[Type]:
        if self.operands[0].type != TileType((), I1):
            raise DTypeMismatch("the condition of `if` must be one i1", loc=self.loc, needs="an i1 scalar",
                                got=str(self.operands[0].type),
                                try_="reduce a tile with tile.any(...) or tile.all(...), or use tile.where")
        types = [v.type for v in self.regions[0].yields]
        _check_region(self, self.regions[0], [], types)
        _check_region(self, self.regions[1], [], types)
        return types

    def eval(self, frame: Any, *args: Any) -> Any:
        return tuple(frame.run_region(self.regions[0 if bool(args[0]) else 1], []))


class Print(Op):
    """Prints `text`, in which `{}` stand for the operands' values, one line for each program."""
    name, levels, effects, attributes = "print", ALL_LEVELS, "control", {"text": ""}

    def infer(self) -> Sequence[Type]:
        if (places := len(pieces(self.attrs["text"])) - 1) != len(self.operands):
            raise VerifyError("`print` needs a place for each value", op=self.name, loc=self.loc,
                              needs=f"{len(self.operands)} times {{}}", got=f"{places} in {self.attrs['text']!r}")
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        frame.output(printed(self.attrs["text"], [(a, v.type.dtype) for a, v in
                                                  zip(args, self.operands, strict=True)]))
        return ()


def pieces(text: str) -> list[str]:
    """What `print` writes before the first, between and behind the values of a text with `{}` for each of them, and
    with doubled braces for braces."""
    out = [""]
    for literal, field, *_ in Formatter().parse(text):
        out[-1] += literal
        if field is not None:
            out.append("")
    return out


def printed(text: str, values: Sequence[tuple[Any, DType]]) -> str:
    """What `print` writes for values in storage form."""
    return text.format(*(str(codec.decode(a, dt)) for a, dt in values))


class Assert(Op):
    """Stops the kernel with `AssertFailed` where any element of the i1 tile is false."""
    name, levels, effects, attributes = "assert", ALL_LEVELS, "control", {"message": ""}

    def infer(self) -> Sequence[Type]:
        if self.operands[0].dtype != I1:
            raise VerifyError("`assert` needs an i1 tile", op=self.name, loc=self.loc, needs="i1",
                              got=str(self.operands[0].type), try_="compare it")
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        if not np.all(args[0]):
            raise assertion_failed(self, f"{int(np.sum(~np.asarray(args[0])))} false",
                                   "inspect the values with tile.print")
        return ()


def assertion_failed(op: Op, got: str = "a false element", try_: str = "run kernel.reference(...) to see how many"
                     ) -> AssertFailed:
    """The error of an `assert` that a false element has stopped."""
    return AssertFailed(op.attrs["message"] or "assertion failed", loc=op.loc, needs="every element true", got=got,
                        try_=try_)
