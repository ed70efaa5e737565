"""Statements: assignments, control flow on constants (resolved) and on run-time scalars (emitted)."""
from __future__ import annotations

import ast
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tilelang.errors import (
    ArgumentCount,
    DTypeMismatch,
    Loc,
    NonConstantExtent,
    ShapeMismatch,
    TileError,
    UnsupportedSyntax,
)
from tilelang.ir import control
from tilelang.ir.core import Region, Value
from tilelang.lang import memory
from tilelang.lang.emitter import Emitter, emit, here
from tilelang.lang.expressions import _BINARY, Expressions, Function, Undefined
from tilelang.lang.source import assigned_names, returns, without_continue
from tilelang.lang.values import Tile, as_tile, offset

Statement = ast.stmt | Callable[[], None]
"""Of a function, or a step of its evaluation between two of them."""


class Returned:
    """The value of a `return` that was reached."""

    def __init__(self, value: Any) -> None:
        self.value = value


def inline(function: Function, emitter: Emitter, caller: Loc | None, args: Sequence[Any], kwargs: dict[str, Any],
           stack: tuple[Function, ...] = ()) -> Any:
    """Evaluates a tile function's body at a call; errors inside show the chain of calls."""
    try:
        bound = inspect.signature(function.source.fn).bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentCount(f"`{function.__name__}`: {error}", loc=caller,
                            needs=f"{function.__name__}{inspect.signature(function.source.fn)}",
                            got=f"{len(args)} positional and {sorted(kwargs)}", try_="match the signature") from None
    bound.apply_defaults()
    run = Statements(function.source, emitter, dict(bound.arguments), caller, (*stack, function))
    out = run.block(function.source.tree.body)
    return out.value if out is not None else None


def _parts(value: Any) -> list[Tile] | None:
    """The tiles of a value that control flow can carry (numbers become scalars); None where it cannot."""
    if isinstance(value, Tile):
        return [value]
    if isinstance(value, bool | int | float):
        return [as_tile(value)]
    if isinstance(value, tuple | list):
        inner = [_parts(v) for v in value]
        return None if any(i is None for i in inner) else [t for i in inner if i is not None for t in i]
    return None


def _rebuild(value: Any, parts: list[Value]) -> Any:
    """A value of the same structure made of new tiles (consumed from the front of `parts`)."""
    if isinstance(value, tuple | list):
        rebuilt = [_rebuild(v, parts) for v in value]
        return rebuilt if isinstance(value, list) else tuple(rebuilt)
    return Tile(parts.pop(0))


class Statements(Expressions):
    """Executes the statements of one function."""

    def block(self, body: Sequence[Statement]) -> Returned | None:
        """Runs statements up to a `return`. Those that a constant condition or an unrolled loop chooses stand in its
        place: what follows a `return` under a run-time condition is all that would follow it in Python."""
        todo = deque(body)
        while todo:
            node, out = todo.popleft(), None
            if not isinstance(node, ast.stmt):
                node()
            elif isinstance(node, ast.If):
                test = self.eval(node.test)
                if not isinstance(test, Tile):
                    todo.extendleft(reversed(node.body if test else node.orelse))
                elif returns(node.body) or returns(node.orelse):
                    return self.branch(node, test, [*node.body, *todo], [*node.orelse, *todo])
                else:
                    out = self.branch(node, test, node.body, node.orelse)
            elif isinstance(node, ast.For):
                todo.extendleft(reversed(self.unrolled(node)))
            else:
                method = getattr(self, f"run_{type(node).__name__}", None)
                if method is None:
                    raise UnsupportedSyntax(
                        f"`{ast.unparse(node).split()[0].rstrip(':')}` is not supported in a kernel",
                        loc=self.at(node),
                        needs="assignments, for, while, if, return, assert and calls",
                        got=ast.unparse(node).splitlines()[0][:80],
                        try_=_INSTEAD.get(type(node).__name__, "move it out of the kernel"))
                out = method(node)
            if out is not None:
                return out
        return None

    # -- simple statements -------------------------------------------------------------------------------------------
    def run_Assign(self, node: ast.Assign) -> None:
        value = self.eval(node.value)
        for target in node.targets:
            self.bind(target, value)

    def run_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.bind(node.target, self.eval(node.value))

    def run_AugAssign(self, node: ast.AugAssign) -> None:
        target = ast.Name(node.target.id, ast.Load()) if isinstance(node.target, ast.Name) else node.target
        ast.copy_location(target, node.target)
        left, right = self.eval(target), self.eval(node.value)
        self.bind(node.target, self.apply(node, _BINARY[type(node.op)], left, right))

    def run_Expr(self, node: ast.Expr) -> None:
        self.eval(node.value)

    def run_Pass(self, node: ast.Pass) -> None:
        pass

    def run_Assert(self, node: ast.Assert) -> None:
        test = self.eval(node.test)
        message = str(self.eval(node.msg)) if node.msg else ast.unparse(node.test)
        if isinstance(test, Tile):
            self.apply(node, memory.assert_, test, message)
        elif not test:
            raise UnsupportedSyntax(f"assertion failed while compiling: {message}", loc=self.at(node),
                                    needs=ast.unparse(node.test), got="False", try_="change the constants")

    def run_Return(self, node: ast.Return) -> Returned:
        value = self.eval(node.value) if node.value is not None else None
        if value is not None and not self.stack:
            raise UnsupportedSyntax("a kernel cannot return a value", loc=self.at(node),
                                    needs="results written to tile.Out parameters", got=ast.unparse(node),
                                    try_="tile.store(out, offsets, value)")
        return Returned(value)

    # -- control flow on run-time values -----------------------------------------------------------------------------
    def condition(self, node: ast.expr, test: Any) -> Value:
        flag = self.apply(node, self.truth, test)
        if flag.shape:
            raise ShapeMismatch("a condition must be one value", loc=self.at(node), needs="an i1 scalar",
                                got=str(flag.value.type), try_="tile.any(x), tile.all(x), or tile.where(x, a, b)")
        value: Value = flag.value
        return value

    def branch(self, node: ast.If, test: Tile, then: Sequence[Statement], other: Sequence[Statement]
               ) -> Returned | None:
        condition, before = self.condition(node.test, test), dict(self.env)
        regions, envs, outs = [Region(), Region()], [], []
        for region, body in zip(regions, (then, other), strict=True):
            self.env = dict(before)
            with self.emitter.open(region):
                outs.append(self.block(body))
            envs.append(self.env)
        self.env = before
        leaves = any(out is not None for out in outs)
        if leaves:  # everything after the `if` stands in the branches: only the returned value goes on
            pairs = {"": tuple(out.value if out is not None else None for out in outs)}
        else:
            names = [n for n in dict.fromkeys([*envs[0], *envs[1]]) if envs[0].get(n) is not envs[1].get(n)]
            pairs = {n: tuple(e.get(n, Undefined(f"a value in only one branch of the `if` in line {node.lineno}"))
                              for e in envs) for n in names}
        carried: dict[str, Any] = {}
        yields: list[list[Value]] = [[], []]
        for name, pair in pairs.items():
            if any(isinstance(v, Undefined) for v in pair):
                carried[name] = next(v for v in pair if isinstance(v, Undefined))
                continue
            if all(v is None for v in pair):
                continue
            if not name and any(v is None for v in pair):
                raise UnsupportedSyntax("a value is returned on one path only", loc=self.at(node),
                                        needs="a `return` of one kind on every path", got="a path without a value",
                                        try_="return a value after the `if`, too")
            sides = []
            for region, value in zip(regions, pair, strict=True):
                with self.emitter.open(region):
                    sides.append(self.apply(node, _parts, value))
            self.same_types(node, name, *sides)
            for side, out in zip(sides, yields, strict=True):
                out += [t.value for t in side]
            carried[name] = pair[0]
        for region, values in zip(regions, yields, strict=True):
            with self.emitter.open(region):
                self.apply(node, emit, control.Yield, *values)
        results = list(self.apply(node, emit, control.If, condition, regions=regions).results)
        for name, like in carried.items():
            self.env[name] = like if isinstance(like, Undefined) else _rebuild(like, results)
        return Returned(self.env.pop("", None)) if leaves else None

    def same_types(self, node: ast.AST, name: str, a: list[Tile] | None, b: list[Tile] | None) -> None:
        """Raises for a variable, or without a name the returned value, that is not the same kind of tiles twice."""
        what = f"`{name}`" if name else "the returned value"
        if a is None or b is None:
            raise NonConstantExtent(f"{what} changes under a run-time condition but is not a tile",
                                    loc=self.at(node), needs="tiles and numbers", got="a compile-time object",
                                    try_="make the condition a tile.Const")
        if [t.value.type for t in a] != [t.value.type for t in b]:
            shown = [", ".join(str(t.value.type) for t in side) or "nothing" for side in (a, b)]
            error = ShapeMismatch if [t.shape for t in a] != [t.shape for t in b] else DTypeMismatch
            raise error(f"{what} changes its type", loc=self.at(node), needs=shown[0], got=shown[1],
                        why="a variable keeps its shape and dtype on every path and in every iteration of a loop",
                        try_=f"start it as that type, or cast: {name}.to(...)" if name else "cast before: x.to(...)")

    def carry(self, node: ast.For | ast.While, skip: Sequence[str] = ()) -> dict[str, Any]:
        """Variables that exist before a loop and are assigned in it, with their structure."""
        if returns(node.body):
            raise UnsupportedSyntax("`return` inside a run-time loop", loc=self.at(node), needs="a loop that ends by "
                                    "its condition", got="return", try_="put the condition into `while`")
        out = {}
        for name in assigned_names(node.body):
            value = self.env.get(name)
            if name not in skip and name in self.env and not isinstance(value, Undefined) \
                    and _parts(value) is not None:
                out[name] = value
        return out

    def enter(self, carried: dict[str, Any], region: Region) -> None:
        """Binds the carried variables to new arguments of a region."""
        for name, like in carried.items():
            args = [Value(t.value.type, name) for t in _parts(like) or []]
            region.args += args
            self.env[name] = _rebuild(like, list(args))

    def leave(self, node: ast.For | ast.While, carried: dict[str, Any], before: dict[str, Any]) -> None:
        """Yields the carried variables at the end of a loop's body."""
        out: list[Value] = []
        for name, like in carried.items():
            now = self.apply(node, _parts, self.env[name])
            self.same_types(node, name, _parts(like), now)
            out += [t.value for t in now]
        self.apply(node, emit, control.Yield, *out)
        for name, value in self.env.items():
            if name not in carried and name in before and before[name] is not value \
                    and not isinstance(before[name], Undefined):
                raise NonConstantExtent(f"`{name}` changes inside a run-time loop but is not a tile",
                                        loc=self.at(node), needs="tiles and numbers", got=type(value).__name__,
                                        try_="use tile.static_range for compile-time variables")

    def finish(self, node: ast.For | ast.While, carried: dict[str, Any], before: dict[str, Any],
               results: list[Value]) -> None:
        """After a loop: carried variables hold its results, variables born inside are gone."""
        born = [n for n, v in self.env.items() if before.get(n) is not v and
                (n not in before or isinstance(before[n], Undefined))]
        self.env = before
        for name, like in carried.items():
            self.env[name] = _rebuild(like, results)
        for name in born:
            self.env[name] = Undefined(f"a value only inside the loop in line {node.lineno}")

    def unrolled(self, node: ast.For) -> list[Statement]:
        """The iterations of a `for` on constants, one after the other; none of one that runs in the kernel."""
        iterable = self.eval(node.iter)
        if node.orelse:
            raise self.unsupported(node.orelse[0], "for … else", "drop the else")
        if isinstance(iterable, memory.Loop):
            self.loop(node, iterable)
            return []
        statements: list[Statement] = []
        for item in self.apply(node.iter, list, iterable):
            statements += [partial(self.bind, node.target, item), *without_continue(node.body)]
        return statements

    def loop(self, node: ast.For, iterable: memory.Loop) -> None:
        """A `for` that runs in the kernel."""
        bounds, targets = self.apply(node.iter, _bounds, iterable), assigned_names([node.target])
        carried = self.carry(node, targets)
        inits = [t.value for like in carried.values() for t in self.apply(node, _parts, like) or []]
        before = dict(self.env)
        index = Value(bounds[0].type)
        region = Region([index])
        with self.emitter.open(region):
            self.enter(carried, region)
            position = -Tile(index) if _down(iterable) else Tile(index)
            self.bind(node.target, self.apply(node.iter, _unravel, position, iterable.unravel)
                      if len(iterable.unravel) > 1 else position)
            self.block(without_continue(node.body))
            for name in targets:
                if name not in before:
                    del self.env[name]
                else:
                    self.env[name] = before[name]
            self.leave(node, carried, before)
        op = self.apply(node, emit, control.For, *bounds, *inits, regions=[region], stages=iterable.stages,
                        schedule=iterable.schedule)
        self.finish(node, carried, before, list(op.results))
        for name in targets:
            self.env[name] = Undefined(f"a value only inside the loop in line {node.lineno}")

    def run_While(self, node: ast.While) -> None:
        if node.orelse:
            raise self.unsupported(node.orelse[0], "while … else", "drop the else")
        self.unconditional(node.test, "the condition of a loop")
        carried = self.carry(node)
        inits = [t.value for like in carried.values() for t in self.apply(node, _parts, like) or []]
        before, regions = dict(self.env), [Region(), Region()]
        with self.emitter.open(regions[0]):
            self.enter(carried, regions[0])
            test = self.eval(node.test)
            if not isinstance(test, Tile):
                raise UnsupportedSyntax("a `while` whose condition is constant", loc=self.at(node.test),
                                        needs="a condition that changes in the loop", got=repr(test),
                                        try_="for i in tile.static_range(n)")
            self.apply(node, emit, control.Yield, self.condition(node.test, test))
        self.env = dict(before)
        with self.emitter.open(regions[1]):
            self.enter(carried, regions[1])
            self.block(without_continue(node.body))
            self.leave(node, carried, before)
        op = self.apply(node, emit, control.While, *inits, regions=regions)
        self.finish(node, carried, before, list(op.results))


_INSTEAD = {"Break": "put the condition into `while`, or use tile.where",
            "FunctionDef": "define it outside and mark it @tile.function", "With": "call the functions directly",
            "Try": "kernels have no exceptions: check with `assert`", "Import": "import outside the kernel",
            "ImportFrom": "import outside the kernel", "ClassDef": "define classes outside",
            "Delete": "just assign another value", "Global": "pass values as parameters",
            "Nonlocal": "pass values as parameters", "Match": "use if / elif"}


def _down(loop: memory.Loop) -> bool:
    return isinstance(loop.step, int) and loop.step < 0


def _bounds(loop: memory.Loop) -> list[Value]:
    """lo, hi and step of the loop that runs: of one that counts down, their negatives, as are its indices."""
    tiles = [as_tile(b) for b in (loop.lo, loop.hi, loop.step)]
    wide = max((t.dtype for t in tiles), key=lambda d: d.bits)
    if isinstance(loop.step, int) and not loop.step:
        raise TileError("the step of a loop must not be 0", needs="another number", got="0", try_="a `while`")
    if _down(loop):
        if unsigned := [t.dtype for t in tiles if t.dtype.kind == "uint"]:
            raise DTypeMismatch("a loop over unsigned numbers cannot count down", loc=here(), needs="signed bounds",
                                got=str(unsigned[0]), try_="cast the bounds: n.to(tile.i32)")
        return [offset(-t.to(wide)) for t in tiles]
    if isinstance(loop.step, Tile) and not isinstance(loop.step.value.owner, control.NumWorkers):
        memory.assert_(loop.step > 0, "the step of a loop must be positive")  # or it would never end
    return [offset(t.to(wide)) for t in tiles]


def _unravel(position: Tile, counts: tuple[Any, ...]) -> tuple[Any, ...]:
    out: list[Any] = []
    rest: Any = position
    for count in reversed(counts[1:]):
        out.insert(0, rest % count)
        rest = rest // count
    return (rest, *out)
