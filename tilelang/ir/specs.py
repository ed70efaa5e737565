"""What each level of the IR may contain, and the verifier: every rule a function must keep between two passes."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilelang.errors import Loc, TileError, UnsupportedSyntax, VerifyError
from tilelang.ir.control import Grid
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Type, Value
from tilelang.ir.dtypes import DType
from tilelang.ir.text import format_attribute


@dataclass(frozen=True)
class Spec:
    """One level: `objection` says why a value may not have a type (empty where it may). Which operations it may
    contain is stated by each operation's `levels`."""

    level: str
    objection: Callable[[Type], str]


def _layout_objection(t: Type) -> str:
    layout = None if isinstance(t, TensorType) else t.layout
    # A layout may hold more than the tile: packing pads to whole vectors.
    if isinstance(t, TensorType) or layout is None or (
            layout.rank == t.rank and all(a >= b for a, b in zip(layout.shape, t.shape, strict=True))):
        return ""
    return f"a layout that covers {list(t.shape)}"


def _thread_objection(t: Type) -> str:
    if isinstance(t, TileType) and (t.rank > 1 or t.layout is not None):
        return "a scalar or a vector: a tile of rank at most 1, without a layout"
    return _layout_objection(t)


TILE = Spec("tile", _layout_objection)
"""Logical tiles of any rank, structured loops, symbolic extents; layouts optional; no threads."""
PLACED = Spec("placed", _layout_objection)
"""As TILE, with the choices of a target made explicit: nests, converted layouts, instructions, stages, barriers."""
THREAD = Spec("thread", _thread_objection)
"""Scalars, vectors, memory, loads and stores at addresses, loops, instruction calls; no tiles."""
SPECS = {spec.level: spec for spec in (TILE, PLACED, THREAD)}


def refines(given: Type, inferred: Type) -> bool:
    """Whether a result may have type `given` where `infer` says `inferred`: the same, or the same tile with a layout
    that a pass has chosen."""
    if isinstance(given, TileType) and isinstance(inferred, TileType) and inferred.layout is None:
        return (given.shape, given.dtype) == (inferred.shape, inferred.dtype)
    return given == inferred


def verify(fn: Function, level: str | None = None, pass_name: str = "") -> None:
    """Raises VerifyError, naming the operation, its line and `pass_name`, for a function that breaks a rule of
    `level` (its own by default):

    - operations and types belong to the level; attributes are complete and have a textual form;
    - every value is defined once, before its uses, in the same region or one around it;
    - result types are what the operation infers from its operands (a tile may have gained a layout);
    - `yield` stands last, and only there; a combination's region has no effects;
    - `grid` stands once at the top level, before every write, and the caller can evaluate its extents.
    """
    _Verifier(SPECS[level or fn.level], pass_name).function(fn)


class _Verifier:
    def __init__(self, spec: Spec, pass_name: str) -> None:
        self.spec, self.pass_name = spec, pass_name
        self.defined: set[Value] = set()

    def fail(self, op: Op | None, message: str, needs: str, got: str, why: str = "",
             loc: Loc | None = None) -> VerifyError:
        return VerifyError(f"`{op.name}`: {message}" if op else message, op=op.name if op else "",
                           pass_name=self.pass_name, needs=needs, got=got, why=why,
                           try_="this is a mistake in the compiler" if self.pass_name else "correct the function",
                           loc=op.loc if op else loc)

    def function(self, fn: Function) -> None:
        if fn.level != self.spec.level:
            raise self.fail(None, f"function `{fn.name}` is at another level", self.spec.level, fn.level, loc=fn.loc)
        for p in fn.params:
            if isinstance(p.type, BufferType) or (isinstance(p.type, TileType) and p.type.shape):
                raise self.fail(None, f"parameter %{p.name} of `{fn.name}`", "a tensor or a scalar", str(p.type),
                                loc=fn.loc)
            self.define(p, None)
        if fn.body.args or fn.body.yields:
            raise self.fail(None, f"the body of `{fn.name}` takes or yields values", "neither", "some", loc=fn.loc)
        self.region(fn.body, None, set(fn.params))
        if fault := grid_fault(fn):
            op, error = fault
            raise self.fail(op, error.message, error.needs, error.got, error.why) from error

    # -- values ------------------------------------------------------------------------------------------------------
    def define(self, value: Value, op: Op | None) -> None:
        if value in self.defined:
            raise self.fail(op, "a value is defined twice", "one definition of every value", repr(value))
        self.defined.add(value)
        if wanted := self.spec.objection(value.type):
            raise self.fail(op, f"a value is not of level {self.spec.level}", wanted, repr(value))

    def region(self, region: Region, parent: Op | None, visible: set[Value]) -> None:
        """Checks the operations; `visible` holds the values defined around the region."""
        visible = visible | set(region.args)
        for arg in region.args:
            if arg.owner is not None:
                raise self.fail(parent, "a region argument claims to be a result", "no owner", repr(arg.owner))
            self.define(arg, parent)
        for i, op in enumerate(region.ops):
            if op.name == "yield" and i != len(region.ops) - 1:
                raise self.fail(op, "stands in the middle of a region", "the last place", f"place {i}")
            self.op(op, visible)
            visible |= set(op.results)

    def op(self, op: Op, visible: set[Value]) -> None:
        if self.spec.level not in op.levels:
            raise self.fail(op, f"is not an operation of level {self.spec.level}", " or ".join(sorted(op.levels)),
                            self.spec.level)
        self.attributes(op)
        for v in op.operands:
            if v not in visible:
                why = "it is defined later, in a region beside this one, or not at all" if v not in self.defined else \
                    "it is defined in a region that does not enclose this one"
                raise self.fail(op, "uses a value that is not defined here", "a definition above, in this region or "
                                "around it", repr(v), why)
        for region in op.regions:
            self.region(region, op, visible)
            if op.name in ("reduce", "scan"):
                self.pure(op, region)
        self.types(op)
        for r in op.results:
            if r.owner is not op:
                raise self.fail(op, "a result belongs to another operation", f"owner `{op.name}`", repr(r.owner))
            self.define(r, op)

    def attributes(self, op: Op) -> None:
        if set(op.attrs) != set(op.attributes):
            raise self.fail(op, "has other attributes than its class", str(sorted(op.attributes)),
                            str(sorted(op.attrs)))
        for key, value in op.attrs.items():
            try:
                format_attribute(value)
            except VerifyError as error:
                raise self.fail(op, f"attribute `{key}`", error.needs, f"{value!r} ({error.got})") from None
            if key == "dtype" and not isinstance(value, DType):
                raise self.fail(op, "attribute `dtype`", "a dtype", repr(value))

    def types(self, op: Op) -> None:
        try:
            inferred = list(op.infer())
        except TileError as error:
            raise self.fail(op, error.message, error.needs, error.got, error.why) from error
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise self.fail(op, "malformed operands, attributes or regions", (op.__doc__ or "").split("\n")[0],
                            str(error)) from error
        printed: Sequence[Type] = [r.type for r in op.results]
        if len(printed) != len(inferred) or not all(map(refines, printed, inferred)):
            raise self.fail(op, "its results have other types than it infers", ", ".join(map(str, inferred)) or "none",
                            ", ".join(map(str, printed)) or "none")

    def pure(self, op: Op, region: Region) -> None:
        for inner in region.walk():
            if inner.effects and inner.name != "yield":
                raise self.fail(op, f"its combination contains `{inner.name}`", "operations without effects",
                                f"a {inner.effects} effect", "elements are combined in any order, any number of times")


def grid_fault(fn: Function) -> tuple[Op, UnsupportedSyntax] | None:
    """The operation that keeps `grid` from standing once at the top level, before every write, with extents that the
    caller can evaluate, and what to tell a user of it."""
    grids = [op for op in fn.walk() if isinstance(op, Grid)]
    if not grids:
        return None
    grid = grids[-1]
    if len(grids) > 1:
        return grid, UnsupportedSyntax(
            "a second grid", loc=grid.loc, needs="one tile.grid or tile.persistent in a kernel", got=f"{len(grids)}",
            why="the caller launches one grid", try_="one grid of all extents: m, n = tile.grid(M, N)")
    if grid not in fn.body.ops:
        return grid, UnsupportedSyntax(
            "a grid in a loop or a branch", loc=grid.loc, needs="a place that every program reaches exactly once",
            got="a nested one", why="the caller launches one grid",
            try_="call it before the loop or branch, and use there what it gives")
    for op in Region([], fn.body.ops[:fn.body.ops.index(grid)]).walk():
        if op.effects == "write" and not isinstance(op.operands[0].type, BufferType):  # else its own memory
            return op, UnsupportedSyntax(
                "a write before the grid", loc=op.loc, needs="writes after it", got=f"`{op.name}`",
                why="what stands before the grid is run by every program", try_="call tile.grid first")
    for op in grid.leading():
        if op.effects or op.regions:
            return grid, UnsupportedSyntax(
                "an extent of the grid depends on more than the caller knows", loc=grid.loc,
                needs="dimensions, scalar parameters and constants", got=f"`{op.name}`",
                why="the caller evaluates the extents before the kernel runs",
                try_="pass the number as a parameter, n: tile.i32; tile.where instead of `if`")
    return None
