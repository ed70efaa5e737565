"""Reads the textual form of the IR (see `tilelang.ir.text`); what is wrong is shown with its line and a caret."""
from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelang.errors import Loc, TileError, VerifyError
from tilelang.ir import (  # noqa: F401 (fill Op.registry)
    cluster,
    control,
    elementwise,
    memory,
    reduction,
    shape,
    sorting,
    thread,
    words,
)
from tilelang.ir.core import BufferType, Dim, Function, Op, Region, TensorType, TileType, Type, Value
from tilelang.ir.dtypes import DType, codebook, dtype
from tilelang.ir.specs import SPECS, refines
from tilelang.layouts import RegisterLayout, SharedLayout
from tilelang.layouts import parse as parse_layout

if TYPE_CHECKING:
    from lark import Lark

Node = Any
"""A `lark.Tree` or `lark.Token`; a child that is optional in the grammar is None where it is absent."""

_WORDS = {"True": True, "False": False, "None": None}
_READABLE = {"SYMBOL": "@name", "VALUE": "%value", "NAME": "a name", "INT": "an integer", "FLOAT": "a float",
             "STRING": "a string", "LAYOUT": "<layout>", "UNIT": "1", "_NL": "end of line", "$END": "end of text"}


def parse(text: str) -> Function:
    """The function that prints as `text`. Every operation gets the line of the text as its `loc`. Raises VerifyError
    for text that does not parse, and what the operations raise for operands that do not fit."""
    from lark import UnexpectedInput
    try:
        tree = _lark().parse(text if text.endswith("\n") else text + "\n")
    except UnexpectedInput as error:
        raise _syntax_error(text, error) from None
    return _Reader(text).function(tree)


@cache
def _lark() -> Lark:
    from lark import Lark  # on first use, because importing it takes as long as the rest of the IR
    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", propagate_positions=True, maybe_placeholders=True)


@dataclass(frozen=True)
class _TextLoc(Loc):
    """A place in the text that is read, which is no file."""

    text: str = ""

    def source_line(self) -> str:
        return self.text


def _syntax_error(text: str, error: Any) -> VerifyError:
    lines = text.split("\n")
    line = min(max(error.line, 1), len(lines)) if error.line > 0 else len(lines)
    col = max(error.column - 1, 0) if error.line > 0 else len(lines[-1])
    token = getattr(error, "token", None)
    got = repr(str(token)) if token is not None and token.strip() else \
        "end of line" if token is not None else repr(lines[line - 1][col:col + 1])
    wanted: Any = getattr(error, "accepts", None) or getattr(error, "allowed", None) or getattr(error, "expected", ())
    terminals = {t.name: t.pattern.value for t in _lark().terminals}
    names = sorted(_READABLE.get(w) or repr(terminals.get(w, w)) for w in wanted)
    return VerifyError("the text of the IR cannot be parsed", needs=" or ".join(names) or "a function", got=got,
                       try_="see tilelang.ir.text for the form of an operation",
                       loc=_TextLoc("<ir>", line, col, col + max(len((token or "").strip()), 1), text=lines[line - 1]))


def _children(node: Node) -> list[Any]:
    return list(node.children) if node is not None else []


class _Reader:
    """Builds operations top down, because a use is understood by the definitions around it."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")

    def loc(self, node: Node) -> Loc:
        at: Any = getattr(node, "meta", node)
        end = at.end_column - 1 if at.end_line == at.line else None
        return _TextLoc("<ir>", at.line, at.column - 1, end, text=self.lines[at.line - 1])

    def fail(self, node: Node, message: str, needs: str, got: str, try_: str, op: str = "") -> VerifyError:
        return VerifyError(message, op=op, needs=needs, got=got, try_=try_, loc=self.loc(node))

    # -- structure ---------------------------------------------------------------------------------------------------
    def function(self, tree: Node) -> Function:
        symbol, params, level, body = tree.children
        if level not in SPECS:
            raise self.fail(level, "unknown level", " or ".join(SPECS), str(level), "name the level after `)`")
        scope: dict[str, Value] = {}
        args = self.params(params, scope)
        region = Region([], self.ops(body, scope))
        return Function(str(symbol)[1:], args, region, str(level), self.loc(symbol))

    def params(self, node: Node, scope: dict[str, Value]) -> list[Value]:
        return [self.define(name, Value(self.type(type_)), scope)
                for name, type_ in (p.children for p in _children(node))]

    def define(self, token: Node, value: Value, scope: dict[str, Value]) -> Value:
        if token in scope:
            raise self.fail(token, "a value is defined twice", "a new name", str(token), "rename it")
        value.name = "" if token[1:].isdecimal() else str(token[1:])
        scope[token] = value
        return value

    def ops(self, body: Node, scope: dict[str, Value]) -> list[Op]:
        return [self.op(node, scope) for node in body.children]

    def op(self, node: Node, scope: dict[str, Value]) -> Op:
        results, name, operands, attrs, types, *blocks = node.children
        cls = Op.registry.get(str(name))
        if cls is None:
            near = difflib.get_close_matches(str(name), Op.registry, n=3)
            raise self.fail(name, f"unknown operation `{name}`", "the name of an operation", str(name),
                            f"use {' or '.join(near)}" if near else f"use one of {sorted(Op.registry)}")
        values = []
        for token in _children(operands):
            if token not in scope:
                raise self.fail(token, "a value that is not defined here", "a value defined above, in this region or "
                                "around it", str(token), "define it first", op=cls.name)
            values.append(scope[token])
        given = {str(key): self.literal(value) for key, value in
                 (a.children for a in _children(attrs))}
        regions = []
        for params, body in (b.children for b in blocks):
            inner = dict(scope)
            args = self.params(params, inner)
            regions.append(Region(args, self.ops(body, inner)))
        loc = self.loc(node)
        try:
            op = cls(values, given, regions, loc)
        except TileError as error:
            error.loc = error.loc or loc
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            # Type rules may rely on the number and kind of what they are given; text may hold anything.
            raise VerifyError(f"malformed `{name}`", op=cls.name, loc=loc, needs=(cls.__doc__ or "").split("\n")[0],
                              got=str(error), try_="compare the operands, attributes and regions with its class") \
                from error
        self.results(op, node, _children(results), _children(types), scope)
        return op

    def results(self, op: Op, node: Node, names: Sequence[Node], types: Sequence[Node],
                scope: dict[str, Value]) -> None:
        inferred, printed = [r.type for r in op.results], [self.type(t) for t in types]
        if not len(inferred) == len(printed) == len(names) or not all(map(refines, printed, inferred)):
            raise self.fail(node.children[4] or node, f"the results of `{op.name}` have other types",
                            ", ".join(map(str, inferred)) or "no result",
                            f"{len(names)} names with types {', '.join(map(str, printed)) or 'none'}",
                            "write the types that the operands imply", op=op.name)
        for value, token, type_ in zip(op.results, names, printed, strict=True):
            value.type = type_
            self.define(token, value, scope)

    # -- types and literals ------------------------------------------------------------------------------------------
    def type(self, node: Node) -> Type:
        match node.data:
            case "tensor":
                mode, dt, align, *dims = node.children
                if mode not in ("in", "out", "inout"):
                    raise self.fail(mode, "unknown mode of a tensor", "in, out or inout", str(mode), "pick one")
                pairs = [d.children for d in dims]
                unit = tuple(one is not None for _, one in pairs)
                names: list[Dim] = [int(d) if d.type == "INT" else str(d) for d, _ in pairs]
                return TensorType(self.dtype(dt), tuple(names), str(mode), unit if any(unit) else (), int(align or 1))
            case "buffer":
                space, dt, *rest = node.children
                layout = self.layout(rest.pop())
                if isinstance(layout, RegisterLayout):
                    raise self.fail(node, "a buffer in a register layout", "a shared layout", str(layout),
                                    "write shared([…], […])")
                return BufferType(self.dtype(dt), tuple(int(str(e)) for e in rest), str(space), layout)
        dt, extents, place = node.children
        shape_ = tuple(int(e) for e in _children(extents))
        return TileType(shape_, self.dtype(dt), self.layout(place))

    def dtype(self, node: Node) -> DType:
        (inner,) = node.children if node.data == "dtype" else [node]
        if getattr(inner, "data", "") == "codebook":
            bits, *table = inner.children
            return codebook(int(bits), [float(x.children[0]) for x in table])
        try:
            return dtype(str(inner))
        except ValueError as error:
            raise self.fail(inner, "unknown dtype", "the name of a dtype", str(inner), str(error)) from None

    def layout(self, token: Node) -> RegisterLayout | SharedLayout | None:
        try:
            return parse_layout(token[1:-1]) if token is not None else None
        except ValueError as error:
            raise self.fail(token, "not a layout", "for example local(2, 1).spatial(8, 4)", str(token),
                            str(error)) from None

    def literal(self, node: Node) -> Any:
        if getattr(node, "data", "") == "tuple":
            return tuple(map(self.literal, node.children))
        match getattr(node, "type", "codebook"):
            case "INT":
                return int(node)
            case "FLOAT":
                return float(node)
            case "STRING":
                return ast.literal_eval(node)
            case "LAYOUT":
                return self.layout(node)
            case "NAME" if node in _WORDS:
                return _WORDS[node]
            case "NAME":
                try:
                    return dtype(str(node))
                except ValueError:
                    raise self.fail(node, "not a literal", "a number, string, dtype, layout, tuple, True, False or "
                                    "None", str(node), "quote strings") from None
        (bits, *table) = node.children
        return codebook(int(bits), [float(x.children[0]) for x in table])
