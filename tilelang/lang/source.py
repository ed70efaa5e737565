"""The source of a kernel or tile function: its syntax tree, and what its free names mean."""
from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from types import FunctionType
from typing import Any

from tilelang.errors import Loc, MissingSource, UnsupportedSyntax


class Source:
    """Syntax tree of a Python function, with positions in its file. Raises UnsupportedSyntax for anything else."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not isinstance(fn, FunctionType):
            raise UnsupportedSyntax("only plain functions can be kernels or tile functions", needs="def",
                                    got=f"{type(fn).__name__} {fn!r}"[:80],
                                    try_="write `def name(...)` under one decorator of tile's")
        self.fn = fn
        self.name = fn.__name__
        self.file = inspect.getsourcefile(fn) or fn.__code__.co_filename
        self.first_line = fn.__code__.co_firstlineno
        self._lines: list[str] = []
        try:  # now: a file that is edited while the process runs, or a cell of the same name, is another function's
            self._lines = inspect.findsource(fn)[0]
        except (OSError, TypeError):
            pass

    @property
    def loc(self) -> Loc:
        return Loc(self.file, self.first_line, function=self.name)

    @cached_property
    def tree(self) -> ast.FunctionDef:
        """The syntax tree of the definition. Raises MissingSource, UnsupportedSyntax."""
        if not self._lines:
            raise self._missing(f"a function from {self.file}")
        text = "".join(inspect.getblock(self._lines[self.first_line - 1:]))
        try:
            node: ast.AST | None = _statement(text)
        except (SyntaxError, IndexError):
            node = None
        if isinstance(node, ast.Assign | ast.Expr | ast.Return | ast.AsyncFunctionDef):
            raise UnsupportedSyntax("only plain functions can be kernels", loc=self.loc, needs="def",
                                    got=type(node).__name__, try_="write `def name(...)` under the decorator")
        if not isinstance(node, ast.FunctionDef) or node.name != self.fn.__code__.co_name:
            raise self._missing(f"other text in line {self.first_line} of {self.file}")
        ast.increment_lineno(node, self.first_line - 1)
        return node

    def _missing(self, got: str) -> MissingSource:
        return MissingSource(f"the source of `{self.name}` cannot be read", needs="a function defined in a file",
                             got=got, why="the compiler reads the kernel's source text, not its bytecode",
                             try_="put the kernel in a .py file (or a notebook cell)")

    def at(self, node: ast.AST, caller: Loc | None = None) -> Loc:
        """The place of a node."""
        line, col = getattr(node, "lineno", self.first_line), getattr(node, "col_offset", 0)
        end = getattr(node, "end_col_offset", None) if getattr(node, "end_lineno", line) == line else None
        text = self._lines[line - 1] if line <= len(self._lines) else ""
        if not text.isascii():  # the tree counts bytes
            data = text.encode()
            col, end = (x if x is None else len(data[:x].decode(errors="ignore")) for x in (col, end))
        return Loc(self.file, line, col, end, self.name, caller)

    def lookup(self, name: str) -> tuple[Any, Callable[[], Any]]:
        """Where a captured variable, global or builtin is kept, and what gives its present value. Raises KeyError."""
        code = self.fn.__code__
        if name in code.co_freevars and self.fn.__closure__:
            cell = self.fn.__closure__[code.co_freevars.index(name)]
            return cell, partial(getattr, cell, "cell_contents", None)
        scope = self.fn.__globals__ if name in self.fn.__globals__ else vars(builtins)
        scope[name]
        return scope, partial(scope.get, name)


def _statement(text: str) -> ast.AST:
    """The first statement of a text, which may be indented, with its columns as they are. (Lines in long strings and
    comments may be less indented: nothing can be cut off of all lines.)"""
    try:
        return ast.parse(text).body[0]
    except IndentationError:
        node = ast.parse("if 1:\n" + text).body[0]
        assert isinstance(node, ast.If)
        return ast.increment_lineno(node.body[0], -1)


def assigned_names(nodes: Sequence[ast.AST]) -> list[str]:
    """Names that statements, or targets of assignments, bind, in order of appearance."""
    names: dict[str, None] = {}
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                names.setdefault(inner.id)
    return list(names)


def returns(nodes: list[ast.stmt]) -> bool:
    """Whether a `return` stands anywhere in the statements."""
    return any(isinstance(inner, ast.Return) for node in nodes for inner in ast.walk(node))


def without_continue(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The body of a loop in which what follows an `if` with a `continue` stands in its branches."""
    out: list[ast.stmt] = []
    for at, node in enumerate(body):
        if isinstance(node, ast.Continue):
            break
        if isinstance(node, ast.If) and any(_continues(node)):
            branches = (without_continue([*side, *body[at + 1:]]) for side in (node.body, node.orelse))
            out.append(ast.copy_location(ast.If(node.test, *branches), node))
            break
        out.append(node)
    return out


def _continues(node: ast.stmt) -> Iterator[bool]:
    """Whether statements of the same loop, below this one, are `continue`."""
    for inner in ast.iter_child_nodes(node):
        yield isinstance(inner, ast.Continue) or isinstance(inner, ast.If) and any(_continues(inner))
