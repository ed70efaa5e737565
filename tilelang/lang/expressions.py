"""Expressions: Python operators on tiles and constants, under the position of the user's source."""
from __future__ import annotations

import ast
import builtins
import difflib
import inspect
import math as pymath
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from tilelang.errors import ArgumentCount, Loc, RecursionRefused, TileError, UndefinedTile, UnsupportedSyntax
from tilelang.ir.core import TensorType
from tilelang.lang import math, memory, shaping
from tilelang.lang.builtins import PUBLIC
from tilelang.lang.elsewhere import HINTS, LEFT_OUT
from tilelang.lang.emitter import Emitter
from tilelang.lang.source import Source, assigned_names
from tilelang.lang.values import Memory, Tile

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor,
    ast.MatMult: shaping.dot}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert, ast.Not: math.logical_not}
_OPERATORS = {*_BINARY.values(), *_COMPARE.values(), *_UNARY.values()}
_PYTHON = {builtins.print: memory.print, builtins.range: memory.range}


def _of_several(reduced: Callable[..., Any], pairwise: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Python's `max` and `min`, whose second argument is an operand: that of `tile.max` is an axis."""
    def call(first: Any, *others: Any, **options: Any) -> Any:
        return reduce(partial(pairwise, **options), others, first) if others else reduced(first, **options)
    call.__name__ = reduced.__name__
    return call


def _several_tiles(x: Any) -> bool:
    return isinstance(x, list | tuple) and len(x) > 1 and any(isinstance(v, Tile) for v in x)


_ON_TILES: dict[Any, Callable[..., Any]] = {builtins.abs: math.abs, builtins.sum: shaping.sum,
                                            builtins.min: _of_several(shaping.min, math.minimum),
                                            builtins.max: _of_several(shaping.max, math.maximum),
                                            builtins.any: shaping.any, builtins.all: shaping.all,
                                            builtins.round: math.round}
_FOLDED = {len, min, max, abs, int, float, bool, round, sum, tuple, list, zip, enumerate, isinstance, reversed, sorted,
           any, all, divmod, pow, str, repr, range, slice, *(f for f in vars(pymath).values() if callable(f))}


class Undefined:
    """A name that has no value on some path; using it is an error."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Function:
    """A function marked `@tile.function`: inlined at each call."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.source, self.__name__, self.__doc__ = Source(fn), fn.__name__, fn.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from tilelang.lang.emitter import emitter
        from tilelang.lang.statements import inline
        e = emitter()
        return inline(self, e, e.loc, args, kwargs)


class Expressions:
    """Evaluates expression nodes of one function in an environment."""

    def __init__(self, source: Source, emitter: Emitter, env: dict[str, Any], caller: Loc | None,
                 stack: tuple[Function, ...]) -> None:
        self.source, self.emitter, self.env, self.caller, self.stack = source, emitter, env, caller, stack

    def at(self, node: ast.AST) -> Loc:
        return self.source.at(node, self.caller)

    def eval(self, node: ast.expr) -> Any:
        method = getattr(self, f"eval_{type(node).__name__}", None)
        if method is None:
            raise self.unsupported(node, type(node).__name__)
        return _plain(method(node))

    def unsupported(self, node: ast.AST, what: str, try_: str = "compute it outside and pass it as tile.Const") -> \
            UnsupportedSyntax:
        return UnsupportedSyntax(f"`{what}` is not supported in a kernel", loc=self.at(node),
                                 needs="expressions of tiles and constants", got=ast.unparse(node)[:80], try_=try_)

    def apply(self, node: ast.AST, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls `fn` with operations attributed to `node`; plain Python errors become ours."""
        self.emitter.loc = self.at(node)
        try:
            return fn(*args, **kwargs)
        except TileError as error:
            if error.loc is None:
                error.loc = self.at(node)
            raise
        except (
            TypeError,
            ValueError,
            ZeroDivisionError,
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
        ) as error:
            if isinstance(error, TypeError):
                self.check_arguments(node, fn, args, kwargs)
                self.check_tiles(node, fn, args)
            if isinstance(error, AttributeError) and fn is getattr:
                raise self.unknown(node, *args) from error
            raise UnsupportedSyntax(
                f"this expression cannot be evaluated: {error}",
                loc=self.at(node),
                needs="operands that fit the operation",
                got=", ".join(describe(a) for a in args) or "nothing",
                try_="check the arguments",
            ) from error

    def unknown(self, node: ast.AST, value: Any, name: str) -> TileError:
        """What to raise for an attribute that a value lacks."""
        near = difflib.get_close_matches(name, dir(value), 3)
        what = f"`{ast.unparse(node.value)}`" if isinstance(node, ast.Attribute) else describe(value)
        return UnsupportedSyntax(f"{what} has no `{name}`", loc=self.at(node),
                                 needs=f"an attribute of {describe(value)}", got=name,
                                 try_=LEFT_OUT if value is None else HINTS.get(name) or " or ".join(near) or
                                 "look in docs/language.md for what there is")

    def check_tiles(self, node: ast.AST, fn: Callable[..., Any], args: Sequence[Any]) -> None:
        """Raises UnsupportedSyntax where an operator is applied to a tensor that was not loaded."""
        if fn in _OPERATORS and any(isinstance(a, Memory) for a in args):
            raise UnsupportedSyntax("a tensor is not a tile", loc=self.at(node), needs="tiles and numbers",
                                    got=", ".join(map(describe, args)),
                                    try_="tile.load(tensor, offsets, shape) gives a tile of it")

    def check_arguments(self, node: ast.AST, fn: Callable[..., Any], args: Sequence[Any],
                        kwargs: dict[str, Any]) -> None:
        """Raises ArgumentCount where `fn` cannot take these arguments."""
        try:
            signature = inspect.signature(fn)
        except (TypeError, ValueError):  # a builtin without one
            return
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            known = [str(p).partition(":")[0] + ("" if p.default is p.empty else f"={p.default!r}")
                     for p in signature.parameters.values()]
            unknown = next((k for k in kwargs if k not in signature.parameters), "")
            missing = str(error).rpartition("missing a required argument: ")[2].strip("'")
            near = difflib.get_close_matches(unknown, list(signature.parameters), 1)
            name = getattr(fn, "__name__", repr(fn))
            raise ArgumentCount(f"`{name}` has no argument `{unknown}`" if unknown else f"`{name}`: {error}",
                                loc=self.at(node), needs=", ".join(known) or "no arguments",
                                got=", ".join([*map(describe, args), *(f"{k}={describe(v)}" for k, v in
                                                                       kwargs.items())]) or "none",
                                try_=f"{near[0]}={describe(kwargs[unknown])}" if near else HINTS.get(unknown) or
                                (f"leave out `{unknown}`" if unknown else
                                 HINTS.get(missing, "pass what it needs"))) from error

    # -- leaves ------------------------------------------------------------------------------------------------------
    def eval_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def eval_Name(self, node: ast.Name) -> Any:
        if node.id in self.env:
            value = self.env[node.id]
            if isinstance(value, Undefined):
                raise UndefinedTile(f"`{node.id}` may have no value here", loc=self.at(node),
                                    needs="a value on every path", got=value.reason,
                                    try_=f"assign `{node.id}` on every path")
            return value
        try:
            place, now = self.source.lookup(node.id)
        except KeyError:
            extents = [f"{name}.shape[{x.type.dims.index(node.id)}]" for name, x in self.env.items()
                       if isinstance(x, Memory) and isinstance(x.type, TensorType) and node.id in x.type.dims]
            near = difflib.get_close_matches(node.id, [*self.env, *self.source.fn.__globals__], 1)
            raise UndefinedTile(f"`{node.id}` is not defined", loc=self.at(node), needs="a name with a value",
                                got=f"no variable, parameter or global `{node.id}`",
                                try_=f"{extents[0]}, or a parameter `{node.id}: tile.Const` for tiles of that extent"
                                if extents else " or ".join(near) or "assign it first") from None
        return self.emitter.capture(place, node.id, now)

    def eval_Attribute(self, node: ast.Attribute) -> Any:
        value = self.eval(node.value)
        found = self.apply(node, getattr, value, node.attr)
        return self.emitter.capture(value, node.attr, partial(getattr, value, node.attr, None)) \
            if self.emitter.outside(value) else found

    def eval_Subscript(self, node: ast.Subscript) -> Any:
        value, index = self.eval(node.value), self.eval(node.slice)
        return self.apply(node, operator.getitem, value, index)

    def eval_Slice(self, node: ast.Slice) -> slice:
        return slice(*(None if part is None else self.eval(part) for part in (node.lower, node.upper, node.step)))

    def eval_Tuple(self, node: ast.Tuple | ast.List) -> tuple[Any, ...]:
        out: list[Any] = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                out += self.eval(item.value)
            else:
                out.append(self.eval(item))
        return tuple(out)

    def eval_List(self, node: ast.List) -> list[Any]:
        return list(self.eval_Tuple(node))

    def eval_JoinedStr(self, node: ast.JoinedStr) -> str:
        return "".join([str(self.eval(part)) for part in node.values])

    def eval_FormattedValue(self, node: ast.FormattedValue) -> str:
        value = self.eval(node.value)
        if isinstance(value, Tile):
            raise self.unsupported(node, "an f-string of a tile", "tile.print(\"x =\", x)")
        if node.conversion >= 0:
            written: dict[str, Callable[[Any], str]] = {"s": str, "r": repr, "a": ascii}
            value = written[chr(node.conversion)](value)
        text: str = self.apply(node, format, value, self.eval(node.format_spec) if node.format_spec else "")
        return text

    # -- operators ---------------------------------------------------------------------------------------------------
    def eval_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.eval(node.left), self.eval(node.right)
        return self.apply(node, _BINARY[type(node.op)], left, right)

    def eval_UnaryOp(self, node: ast.UnaryOp) -> Any:
        return self.apply(node, _UNARY[type(node.op)], self.eval(node.operand))

    def eval_Compare(self, node: ast.Compare) -> Any:
        left, out = self.eval(node.left), True
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.eval(right_node)
            step = self.apply(node, _COMPARE[type(op)], left, right)
            out = step if out is True else self.apply(node, operator.and_, out, step)
            left = right
        return out

    def eval_BoolOp(self, node: ast.BoolOp) -> Any:
        """One of the operands, as in Python; element by element of tiles, all of which are computed."""
        is_and = isinstance(node.op, ast.And)
        out = self.eval(node.values[0])
        for part in node.values[1:]:
            if isinstance(out, Tile):
                self.unconditional(part, "what a run-time condition decides about")
                value, flag = self.eval(part), self.apply(node, self.truth, out)
                if flag is out and (isinstance(value, bool) or isinstance(value, Tile) and value.dtype.kind == "bool"):
                    out = self.apply(node, operator.and_ if is_and else operator.or_, out, value)
                else:
                    out = self.apply(node, math.where, flag, *((value, out) if is_and else (out, value)))
            elif bool(out) == is_and:
                out = self.eval(part)
        return out

    @staticmethod
    def truth(test: Tile) -> Tile:
        """Whether a tile is not zero."""
        flag: Tile = test if test.dtype.kind == "bool" else test != 0
        return flag

    def unconditional(self, node: ast.expr, what: str) -> None:
        """Raises UnsupportedSyntax for a `:=` where it would have to wait for a run-time condition."""
        if named := next((n for n in ast.walk(node) if isinstance(n, ast.NamedExpr)), None):
            raise self.unsupported(named, f":= in {what}", "assign it in a statement before")

    def eval_IfExp(self, node: ast.IfExp) -> Any:
        test = self.eval(node.test)
        if isinstance(test, Tile):
            for part in (node.body, node.orelse):
                self.unconditional(part, "what a run-time condition decides about")
            return self.apply(node, math.where, self.apply(node, self.truth, test), self.eval(node.body),
                              self.eval(node.orelse))
        return self.eval(node.body if test else node.orelse)

    def eval_NamedExpr(self, node: ast.NamedExpr) -> Any:
        self.env[node.target.id] = self.eval(node.value)
        return self.env[node.target.id]

    # -- calls and comprehensions ------------------------------------------------------------------------------------
    def eval_Call(self, node: ast.Call) -> Any:
        callee = self.eval(node.func)
        args: list[Any] = []
        for a in node.args:
            args += self.eval(a.value) if isinstance(a, ast.Starred) else [self.eval(a)]
        kwargs: dict[str, Any] = {}
        for k in node.keywords:
            kwargs.update({k.arg: self.eval(k.value)} if k.arg else self.eval(k.value))
        if isinstance(callee, Function):
            if callee in self.stack:
                raise RecursionRefused(f"`{callee.__name__}` calls itself", loc=self.at(node),
                                       needs="tile functions without recursion", got=" -> ".join(
                                           f.__name__ for f in (*self.stack, callee)),
                                       why="tile functions are inlined where they are called",
                                       try_="write a loop")
            from tilelang.lang.statements import inline
            return inline(callee, self.emitter, self.at(node), args, kwargs, self.stack)
        if (callee is max or callee is min) and len(args) == 1 and _several_tiles(args[0]):
            args = list(args[0])  # max([a, b]) is max(a, b)
        tiles = any(isinstance(a, Tile | Memory) for a in [*args, *kwargs.values()])
        callee = _PYTHON.get(callee, callee) if callable(callee) and _hashable(callee) else callee
        if tiles and _hashable(callee):
            callee = _ON_TILES.get(callee, callee)
            if callee is len:
                return args[0].shape[0]
        if _allowed(callee, tiles):
            return self.apply(node, callee, *args, **kwargs)
        name = getattr(callee, "__name__", repr(callee))
        from tilelang.lang.kernel import KernelDef
        if isinstance(callee, KernelDef):
            raise UnsupportedSyntax(f"a kernel cannot call the kernel `{name}`", loc=self.at(node),
                                    needs="functions marked @tile.function", got=repr(callee),
                                    try_="move what both do into a @tile.function, or call one kernel after the other")
        module = getattr(callee, "__module__", None) or type(callee).__module__  # NumPy 2.0 functions have none
        raise UnsupportedSyntax(f"`{name}` cannot be called in a kernel", loc=self.at(node),
                                needs="functions of tile.*, functions marked @tile.function, or Python functions of "
                                "constants", got=f"{module}.{name}",
                                try_=HINTS.get(name) or (f"tile.{name}" if name in PUBLIC else
                                "mark it @tile.function if it works on tiles"))

    def eval_Lambda(self, node: ast.Lambda) -> Callable[..., Any]:
        given = node.args
        names, none = [a.arg for a in (*given.posonlyargs, *given.args)], inspect.Parameter.empty
        if given.vararg or given.kwarg or given.kwonlyargs:
            raise self.unsupported(node, "a lambda with * or keyword-only parameters", "name each parameter")
        defaults = [none] * (len(names) - len(given.defaults)) + [self.eval(d) for d in given.defaults]
        signature = inspect.Signature([
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
            for name, default in zip(names, defaults, strict=True)])

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            inner = type(self)(self.source, self.emitter, {**self.env, **bound.arguments}, self.caller, self.stack)
            return inner.eval(node.body)
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__name__ = "<lambda>"
        return call

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> list[Any]:
        out: list[Any] = []
        own = assigned_names([gen.target for gen in node.generators])  # `:=` binds names around it
        saved = {name: self.env[name] for name in own if name in self.env}
        for inner in [n for n in ast.walk(node) if isinstance(n, ast.Lambda)]:  # it would see the last value of all
            taken = {a.arg for a in inner.args.args}
            if late := [n.id for n in ast.walk(inner.body) if isinstance(n, ast.Name) and n.id in {*own} - taken]:
                raise self.unsupported(inner, f"a lambda that reads `{late[0]}` of a comprehension",
                                       f"a default: lambda ..., {late[0]}={late[0]}: ...")

        def run(generators: Sequence[ast.comprehension]) -> None:
            if not generators:
                out.append(self.eval(node.elt))
                return
            gen, *inner = generators
            for item in self.apply(gen.iter, list, self.eval(gen.iter)):
                self.bind(gen.target, item)
                if all(self.eval(test) for test in gen.ifs):
                    run(inner)
        run(node.generators)
        for name in own:
            self.env.pop(name, None)
        self.env.update(saved)
        return out

    eval_ListComp = eval_GeneratorExp = _comprehension

    def bind(self, target: ast.expr, value: Any) -> None:
        """Assigns to a name or a (nested) tuple of names."""
        if isinstance(target, ast.Name):
            self.env[target.id] = value = _plain(value)
            if isinstance(value, Tile | Memory) and not value.value.name:
                value.value.name = target.id
        elif isinstance(target, ast.Tuple | ast.List):
            items = self.apply(target, list, value)
            rest = next((i for i, t in enumerate(target.elts) if isinstance(t, ast.Starred)), None)
            if rest is not None and len(items) >= len(target.elts) - 1:
                end = len(items) - (len(target.elts) - 1 - rest)
                items[rest:end] = [items[rest:end]]
            if len(items) != len(target.elts):
                raise UnsupportedSyntax("tuple assignment of the wrong length", loc=self.at(target),
                                        needs=f"{len(target.elts)} values", got=str(len(items)),
                                        try_="match the number of names")
            for t, v in zip(target.elts, items, strict=True):
                self.bind(t.value if isinstance(t, ast.Starred) else t, v)
        else:
            owner = self.eval(target.value) if isinstance(target, ast.Subscript | ast.Attribute) else None
            raise UnsupportedSyntax("only names can be assigned", loc=self.at(target), needs="a name, or several",
                                    got=ast.unparse(target), why="tiles and lists keep their elements",
                                    try_="tile.where(tile.arange(n) == i, new, x)" if isinstance(owner, Tile) else
                                    "a new list: [*x[:i], new, *x[i + 1:]]" if isinstance(owner, list) else
                                    "tile.store(tensor, offsets, tile) to write memory")


def _plain(x: Any) -> Any:
    """A constant of NumPy as one of Python."""
    return x.item() if isinstance(x, np.generic) else x


def _hashable(x: Any) -> bool:
    return getattr(type(x), "__hash__", None) is not None


def _allowed(callee: Any, tiles: bool) -> bool:
    module = getattr(callee, "__module__", "") or ""  # methods of builtins have None
    if module.startswith(("tilelang.lang", "tilelang.layouts", "tilelang.ir.dtypes")) or callee in PUBLIC.values():
        return True
    return not tiles and ((_hashable(callee) and callee in _FOLDED) or isinstance(callee, FunctionType | np.ufunc) or
                          isinstance(callee, type) and issubclass(callee, np.generic) or
                          isinstance(getattr(callee, "__self__", None), int | float | str | tuple | list | dict))


def describe(x: Any) -> str:
    """A value in an error message."""
    if isinstance(x, Tile | Memory):
        return str(x.value.type)
    return x.__name__ if isinstance(x, ModuleType) else repr(x)[:60]
