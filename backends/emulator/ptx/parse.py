"""PTX text to instructions with resolved names. Calls are inlined: what runs is one list of instructions."""
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from tilelang.errors import TargetError

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}
TYPES = {"pred": 1, "f16": 2, "bf16": 2, "tf32": 4, "f16x2": 4, "bf16x2": 4, "f32": 4, "f64": 8,
         **{k + n: s for k in "bus" for n, s in SIZES.items()}}


class PtxError(TargetError):
    """PTX that the interpreter does not cover, or a mistake that it met while running."""


def uncovered(what: str, statement: str = "") -> PtxError:
    """The error for a part of PTX that the interpreter does not have."""
    return PtxError(f"{what} is not covered by the PTX interpreter", got=statement)


@dataclass(frozen=True)
class Register:
    """A register of one thread; `size` bytes, or a predicate (0)."""

    name: str
    size: int


@dataclass(frozen=True)
class Constant:
    """A number in the text: its bits where it is a float, its value where it is an integer."""

    bits: int
    is_float: bool = False


@dataclass(frozen=True)
class Special:
    """A register that the hardware sets, such as `%tid.x`."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A variable by its place in a state space."""

    space: str
    offset: int


@dataclass(frozen=True)
class Address:
    """Memory at a register or symbol, plus a number of bytes."""

    base: Operand
    offset: int


@dataclass(frozen=True)
class Vector:
    """Operands in braces, or the two results of a shuffle or comparison."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Label:
    """A branch's target."""

    name: str


Operand = Register | Constant | Special | Symbol | Address | Vector | Label | None


@dataclass(frozen=True)
class Instruction:
    """One instruction; `guard` is its predicate, with whether it is negated."""

    name: str
    operands: tuple[Operand, ...]
    guard: tuple[Register, bool] | None
    text: str


@dataclass
class Kernel:
    """A kernel with everything it calls. Sizes are in bytes; `statics` are the module's own global variables."""

    name: str
    params: list[int]
    threads: int
    cluster: int = 1
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: set[Register] = field(default_factory=set)
    local_bytes: int = 0
    shared_bytes: int = 0
    dynamic_alignment: int = 1
    statics: bytes = b""


@dataclass(frozen=True)
class _Function:
    kind: str
    name: str
    result: str
    params: str
    directives: str
    body: str


_FUNCTION = re.compile(r"(?:\.\w+\s+)*\.(entry|func)\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)([{;])")
_VARIABLE = re.compile(r"(?:\.(?:visible|extern|weak)\s+)*\.(global|const|shared|local|param)\s+"
                       r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$%]+)\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?$", re.S)
_STATEMENT = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)


@lru_cache(maxsize=16)
def functions(text: str) -> tuple[list[_Function], list[str]]:
    """Every function, and the declarations between them."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    out, rest, at = [], [], 0
    while found := _FUNCTION.search(text, at):
        rest.append(text[at:found.start()])
        kind, result, name, params, directives, opening = found.groups(default="")
        at, depth = found.end(), int(opening == "{")
        while depth:
            brace = re.compile(r"[{}]").search(text, at)
            if brace is None:
                raise PtxError(f"the body of `{name}` does not end")
            depth, at = depth + (1 if brace[0] == "{" else -1), brace.end()
        out.append(_Function(kind, name, result, params, directives, text[found.end():at - 1]))
    declarations = "".join([*rest, text[at:]]).split(";")
    return [f for f in out if f.body], [d.strip() for d in declarations if "." in d]


def kernel(text: str, name: str) -> Kernel:
    """The kernel `name` of a PTX text. Raises PtxError."""
    bodies, declarations = functions(text)
    by_name = {f.name: f for f in bodies}
    if name not in by_name or by_name[name].kind != "entry":
        raise PtxError(f"the PTX has no kernel `{name}`", needs=", ".join(f.name for f in bodies if f.kind == "entry"))
    return _Parser(by_name, declarations).run(by_name[name])


@dataclass
class _Scope:
    """Names of a block in braces. An inlined function sees those of its module only, so `outer` ends there."""

    names: dict[str, Operand]
    outer: _Scope | None

    def find(self, name: str) -> Operand:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class _Parser:
    def __init__(self, bodies: dict[str, _Function], declarations: list[str]) -> None:
        self.bodies, self.declarations = bodies, declarations
        self.copies = 0  # of inlined functions and of scopes: their names must differ

    def run(self, f: _Function) -> Kernel:
        limit = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", f.directives)
        threads = int(limit[1]) * int(limit[2] or 1) * int(limit[3] or 1) if limit else 1024
        cluster = re.search(r"\.reqnctapercluster\s+(\d+)", f.directives)
        self.kernel = Kernel(f.name, [], threads, int(cluster[1]) if cluster else 1)
        module = _Scope({}, None)
        for text in self.declarations:
            if found := _VARIABLE.search(text):
                self.declare(module, found)
        scope, offset = _Scope({}, module), 0
        for text in filter(None, map(str.strip, f.params.split(","))):
            parameter = self.variable(text)
            size, alignment = _extent(parameter)
            offset = _align(offset, alignment)
            scope.names[parameter[4]] = Symbol("arguments", offset)
            self.kernel.params.append(size)
            offset += size
        self.body(f, scope, "")
        return self.kernel

    def variable(self, text: str) -> re.Match[str]:
        found = _VARIABLE.search(text)
        if found is None:
            raise PtxError("a declaration that the PTX interpreter cannot read", got=text)
        return found

    def declare(self, scope: _Scope, found: re.Match[str]) -> None:
        """Gives a variable its place."""
        k, space, name = self.kernel, found[1], found[4]
        size, alignment = _extent(found)
        if space in ("global", "const"):
            start = _align(len(k.statics), alignment)
            values = _initial(found[6] or "", TYPES[found[3]])
            k.statics = k.statics.ljust(start, b"\0") + values.ljust(size, b"\0")
            scope.names[name] = Symbol("global", start)
        elif space == "shared" and found[5] == "":
            k.dynamic_alignment = max(k.dynamic_alignment, alignment)
            scope.names[name] = Symbol("dynamic", 0)
        elif space == "shared":
            start = _align(k.shared_bytes, alignment)
            k.shared_bytes = start + size
            scope.names[name] = Symbol("shared", start)
        else:  # the parameters of a call live in the caller's own memory
            start = _align(k.local_bytes, alignment)
            k.local_bytes = start + size
            scope.names[name] = Symbol("local", start)

    def body(self, f: _Function, scope: _Scope, suffix: str) -> None:
        """Appends the instructions of a function; what it defines gets `suffix`, where it is inlined."""
        k, base = self.kernel, scope
        end = f"{f.name} ends{suffix}"
        for kind, text in _statements(f.body):
            if kind == "{":
                self.copies += 1
                scope = _Scope({}, scope)
            elif kind == "}":
                assert scope.outer is not None
                scope = scope.outer
            elif kind == "label":
                k.labels[text + suffix] = len(k.code)
            elif text.startswith(".reg"):
                self.registers(scope, text, f"{suffix}.{self.copies}" if scope is not base else suffix)
            elif text.startswith("."):
                if found := _VARIABLE.search(text):
                    self.declare(scope, found)
                elif not text.startswith(".pragma"):
                    raise uncovered(f"`{text.split()[0]}`", text)
            else:
                self.instruction(scope, text, suffix, end)
        k.labels[end] = len(k.code)

    def registers(self, scope: _Scope, text: str, suffix: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S).groups()  # type: ignore[union-attr]
        size = 0 if kind == "pred" else TYPES[kind]
        for name in map(str.strip, names.split(",")):
            counted = re.match(r"([%\w$]+)<(\d+)>", name)
            for each in [f"{counted[1]}{i}" for i in range(int(counted[2]))] if counted else [name]:
                register = Register(each + suffix, size)
                scope.names[each] = register
                self.kernel.registers.add(register)

    def instruction(self, scope: _Scope, text: str, suffix: str, end: str) -> None:
        found = _STATEMENT.match(text)
        if found is None:
            raise PtxError("a statement that the PTX interpreter cannot read", got=text)
        negated, guard, name, rest = found.groups()
        predicate = None
        if guard:
            register = scope.find(guard)
            assert isinstance(register, Register)
            predicate = register, bool(negated)
        name = re.sub(r"\.uni$", "", name)
        if name == "call":
            self.call(scope, rest, text)
            return
        if name == "ret" and suffix:
            name, rest, suffix = "bra", end, ""
        operands = tuple(Label(item + suffix) if name == "bra" else self.operand(scope, item, text)
                         for item in _split(rest))
        self.kernel.code.append(Instruction(name, operands, predicate, " ".join(text.split())))

    def call(self, scope: _Scope, rest: str, text: str) -> None:
        """Inlines a function: its parameters are the caller's variables."""
        found = re.match(r"(?:\(([^)]*)\)\s*,)?\s*([\w$]+)\s*(?:,\s*\(([^)]*)\))?$", rest.strip(), re.S)
        if found is None:
            raise uncovered("an indirect call", text)
        result, name, given = found.groups(default="")
        values = [scope.find(n.strip()) for n in given.split(",") if n.strip()]
        if name not in self.bodies:
            self.kernel.code.append(Instruction(name, tuple(Address(v, 0) for v in values), None, text))
            return
        f, module = self.bodies[name], scope
        while module.outer is not None:
            module = module.outer
        self.copies += 1
        inner = _Scope({}, module)
        for text, value in zip(filter(None, f.params.split(",")), values, strict=True):
            inner.names[self.variable(text)[4]] = value
        if result:
            inner.names[self.variable(f.result)[4]] = scope.find(result.strip())
        self.body(f, inner, f"/{self.copies}")

    def operand(self, scope: _Scope, text: str, statement: str) -> Operand:
        if text == "_":
            return None
        if text[0] in "{[":
            if text[0] == "{" or "," in text:  # a place in a tensor is its map, then the coordinates
                return Vector(tuple(self.operand(scope, t, statement) for t in _split(text[1:-1])))
            found = re.match(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]$", text)
            if found is None:
                raise PtxError("an address that the PTX interpreter cannot read", got=statement)
            return Address(self.operand(scope, found[1], statement), int(found[2] or "0", 0))
        if "|" in text:
            return Vector(tuple(self.operand(scope, t.strip(), statement) for t in text.split("|")))
        if found := re.match(r"0([fd])([0-9a-fA-F]+)$", text):
            return Constant(int(found[2], 16), True)
        if re.match(r"-?\d", text):
            return Constant(int(text.rstrip("U"), 0))
        if re.match(r"%(?:n?tid|n?ctaid)\.[xyz]$|%(?:laneid|warpid|cluster_ctarank)$", text):
            return Special(text)
        known = scope.find(text)
        if known is None:
            raise uncovered(f"`{text}`", statement)
        return known


def _extent(variable: re.Match[str]) -> tuple[int, int]:
    """Size and alignment of a variable, in bytes."""
    size = TYPES[variable[3]]
    return size * int(variable[5] or "0" if variable[5] is not None else "1"), int(variable[2] or size)


def _initial(text: str, size: int) -> bytes:
    """The bytes of an initial value."""
    out = b""
    for item in filter(None, map(str.strip, text.strip("{} \n").split(","))):
        if item.startswith(("0f", "0d")):
            out += int(item[2:], 16).to_bytes(size, "little")
        else:
            out += (int(item, 0) % (1 << 8 * size)).to_bytes(size, "little")
    return out


def _statements(body: str) -> Iterator[tuple[str, str]]:
    """("{", ""), ("}", ""), ("label", name) and ("", statement). A brace inside a statement is a vector's."""
    start = at = 0
    while at < len(body):
        c = body[at]
        pending = body[start:at].strip()
        if c == ";":
            if pending:
                yield "", pending
            start = at + 1
        elif c in "{}" and not pending:
            yield c, ""
            start = at + 1
        elif c == ":" and re.fullmatch(r"[\w$]+", pending):
            yield "label", pending
            start = at + 1
        next_special = re.compile(r"[;{}:]").search(body, at + 1)
        at = next_special.start() if next_special else len(body)


def _split(text: str) -> list[str]:
    """The parts between commas outside brackets."""
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[(") - (c in "}])")
        if c == "," and not depth:
            out.append(text[start:i])
            start = i + 1
    return [s.strip() for s in (*out, text[start:]) if s.strip()]
