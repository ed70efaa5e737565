"""What all parts of the renderer write with: names of values, lines, numbers of operations."""
from __future__ import annotations

import re
from abc import ABC, abstractmethod

from tilelang.backends.clike.expressions import RESERVED, c_type, literal
from tilelang.backends.clike.rendered import c_name, tensor_maps
from tilelang.backends.simt.asynchronous import continuing
from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import Loc
from tilelang.ir.core import Function, Op, Region, TensorType, Value
from tilelang.ir.interpreter import Frame

_DECLARATION = re.compile(r"\s*(//.*|[\w:<>, ]+;)$")


class Writer(ABC):
    """The text of one function so far."""

    def __init__(self, fn: Function, target: SimtTarget) -> None:
        self.fn, self.target = fn, target
        self.lines: list[str] = []
        self.indent = "  "
        self.names: dict[Value, str] = {}
        self.taken: set[str] = set()
        self.ops: list[Op] = []
        self.loc: Loc | None = None
        self.last: tuple[int, int, list[str]] = -1, 0, []  # the last loop over lanes: where, of how many, what it does
        self.continuing = continuing(fn)
        self.maps = tensor_maps(fn)

    # -- names --------------------------------------------------------------------------------------------------------
    def name(self, v: Value) -> str:
        if v not in self.names:
            base = c_name(v.name or "")
            self.names[v] = self.fresh(base if base and not base[0].isdigit() else f"x{len(self.names)}")
        return self.names[v]

    def fresh(self, base: str) -> str:
        """A name that nothing has."""
        name, n = base, 1
        while name in self.taken or name in RESERVED:
            name, n = f"{base}_{n}", n + 1
        self.taken.add(name)
        return name

    def scalar(self, v: Value) -> str:
        """A scalar as an expression: constants stand for themselves."""
        op = v.owner
        if op is not None and op.name == "const":
            return literal(op.eval(Frame((), 1, print)), v.dtype)
        return self.name(v)

    def lane(self, v: Value, i: str) -> str:
        """Lane i of a vector, or a scalar; a broadcast scalar is not stored."""
        if not v.shape:
            return self.scalar(v)
        op = v.owner
        if op is not None and op.name == "broadcast":
            return self.lane(op.operands[0], "0")
        return f"{self.name(v)}[{i}]"

    def vector(self, v: Value) -> str:
        """The name of a vector that must lie in registers."""
        op = v.owner
        if op is not None and op.name == "broadcast" and v not in self.names:
            return f"tl::full<{c_type(v.dtype)}, {v.shape[0]}>({self.lane(v, '0')})"
        return self.name(v)

    def value(self, v: Value) -> str:
        """A scalar or a vector as an expression."""
        return self.vector(v) if v.shape else self.scalar(v)

    def type(self, v: Value) -> str:
        t = c_type(v.dtype)
        return f"tl::vec<{t}, {v.shape[0]}>" if v.shape else t

    def line(self, text: str) -> None:
        self.lines.append(self.indent + text)

    def number(self, op: Op) -> str:
        self.ops.append(op)
        return f"tl::op({len(self.ops) - 1})"

    # -- text ---------------------------------------------------------------------------------------------------------
    def define(self, v: Value, text: str) -> None:
        self.line(f"const {self.type(v)} {self.name(v)} = {text};")

    def declare(self, v: Value) -> str:
        name = self.name(v)
        self.line(f"{self.type(v)} {name};")
        return name

    def each(self, n: int, body: str) -> None:
        """Does something with each lane."""
        self.line(f"TL_UNROLL for (int i = 0; i < {n}; ++i) {body}")

    def each_too(self, n: int, body: str) -> None:
        """The same, in one loop with what was done so just before, if only declarations stand between: compilers keep
        to the order of the text, and no vector of intermediate values is then in registers at once."""
        at, lanes, bodies = self.last
        if lanes != n or not all(_DECLARATION.match(line) for line in self.lines[at + 1:]):
            bodies = []
        if bodies:
            del self.lines[at]
        self.last = len(self.lines), n, [*bodies, body]
        self.each(n, f"{{ {' '.join(self.last[2])} }}" if bodies else body)

    def address(self, memory: Value, offset: Value) -> str:
        at = self.scalar(offset)
        whole = isinstance(memory.type, TensorType) and memory.owner is None
        return f"{self.name(memory)}, {at if whole else f'(int){at}'}"

    def nested(self, region: Region) -> None:
        self.indent += "  "
        self.region(region)

    def close(self) -> None:
        self.indent = self.indent[:-2]
        self.line("}")

    @abstractmethod
    def region(self, region: Region) -> None:
        """Writes the operations of a region."""
