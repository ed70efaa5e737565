"""The textual form of the IR. It follows from the operation classes; `tilelang.ir.parser` reads it back.

    func @row_sum(%x: tensor<in f32, M, K:1>, %y: tensor<out f32, M:1>) tile {
      %0 = const {value=0, dtype=i32} : i32
      %1 = load %x, %0, %0 {shape=(4, 8), axes=(0, 1), fill=0} : f32[4, 8]
      %2 = reduce %1 {kind='sum', axis=1} : f32[4]
      store %y, %0, %2 {axes=(0,)}
    }

An operation is `results = name operands {attributes} : result types`, then its regions, each `(arguments) {…}`.
"""
from __future__ import annotations

import math
import re
from typing import Any

from tilelang.errors import VerifyError
from tilelang.ir.core import Function, Op, Region, Value
from tilelang.ir.dtypes import DType
from tilelang.layouts import RegisterLayout, SharedLayout


def print_function(fn: Function, locs: bool = False) -> str:
    """The text of `fn`; `locs` adds the user's line to each operation, as a comment. Names are unique and stable:
    `print_function(parse(text)) == text` for every text this function gives."""
    printer = _Printer(locs)
    params = ", ".join(f"{printer.define(p)}: {p.type}" for p in fn.params)
    name = re.sub(r"\W", "_", fn.name)
    printer.lines.append(f"func @{name}({params}) {fn.level} {{")
    printer.region(fn.body, "  ")
    return "\n".join([*printer.lines, "}", ""])


def format_attribute(value: Any) -> str:
    """The literal that reads back as exactly `value`. Raises VerifyError for one that has no textual form."""
    if value is None or isinstance(value, bool | str):
        return repr(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return ("-" if math.copysign(1.0, value) < 0 else "") + "nan" if math.isnan(value) else float.__repr__(value)
    if isinstance(value, DType):
        return str(value)
    if isinstance(value, RegisterLayout | SharedLayout):
        return f"<{value}>"
    if isinstance(value, tuple):
        return f"({', '.join(map(format_attribute, value))}{',' if len(value) == 1 else ''})"
    raise VerifyError(f"{value!r} cannot be an attribute",
                      needs="None, a bool, int, float, str, dtype, layout, or a tuple of these",
                      got=type(value).__name__, try_="convert it to a Python value where the op is made")


def format_attributes(op: Op) -> str:
    """`key=value, …` in the order of the class."""
    return ", ".join(f"{key}={format_attribute(op.attrs[key])}" for key in type(op).attributes)


class _Printer:
    def __init__(self, locs: bool) -> None:
        self.locs = locs
        self.lines: list[str] = []
        self.names: dict[Value, str] = {}
        self.taken: set[str] = set()
        self.suffix: dict[str, int] = {}
        self.numbered = 0

    def define(self, value: Value) -> str:
        """A name not used before: the value's own where it is free, else with a suffix; a number where it has none."""
        base = re.sub(r"\W", "_", value.name)
        if not base or base[0].isdecimal():
            name, self.numbered = str(self.numbered), self.numbered + 1
        else:
            name = base
            while name in self.taken:
                self.suffix[base] = self.suffix.get(base, 0) + 1
                name = f"{base}_{self.suffix[base]}"
        self.taken.add(name)
        self.names[value] = f"%{name}"
        return self.names[value]

    def use(self, value: Value) -> str:
        # A broken function must still print: that is how one finds out why it is broken.
        return self.names.get(value, f"%undefined({value.name})")

    def region(self, region: Region, indent: str) -> None:
        for op in region.ops:
            self.op(op, indent)

    def op(self, op: Op, indent: str) -> None:
        line = indent + (", ".join(map(self.define, op.results)) + " = " if op.results else "") + op.name
        if op.operands:
            line += " " + ", ".join(map(self.use, op.operands))
        if op.attrs:
            line += f" {{{format_attributes(op)}}}"
        if op.results:
            line += " : " + ", ".join(str(r.type) for r in op.results)
        loc = f"  # {op.loc.file}:{op.loc.line}" if self.locs and op.loc else ""
        for region in op.regions:
            args = ", ".join(f"{self.define(a)}: {a.type}" for a in region.args)
            self.lines.append(f"{line} ({args}) {{{loc}")
            self.region(region, indent + "  ")
            line, loc = indent + "}", ""
        self.lines.append(line + loc)
