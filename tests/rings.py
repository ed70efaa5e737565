"""Random kernels that keep rings of blocks in memory of their own, by asynchronous copies, waits and barriers: the
fewest of these that a program needs, by a model of what they mean, and what it lacks where one of them is changed."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tests.growing import I32
from tilelang.errors import Loc
from tilelang.ir import control, memory
from tilelang.ir.core import Builder, Function, Op, Region, TensorType, TileType, Value
from tilelang.ir.dtypes import dtype

FILE, MOST = "ring.py", 6
"""Where statements seem to stand, each in a line of its own, and the largest number of blocks."""
SHAPES = (*((16, 16), (8, 32), (16, 64), (32, 32), (64, 32)) * 2, (5, 16), (17, 9), (33, 8), (1, 64))
FLOATS = ("f16", "bf16", "f32")
READS = ("sum", "rows", "turned", "dot", "gather", "part", "one")
CROSSING = READS[4:]
"""Reads by which threads get what others have copied, however tiles lie."""


@dataclass(frozen=True)
class Ring:
    """`depth` blocks, copied `ahead` blocks before they are read, the first from `at` on, of a matrix, or one each of
    a `stack` of matrices."""

    dtype: str
    shape: tuple[int, int]
    depth: int
    ahead: int
    at: tuple[int, int]
    stack: bool


@dataclass(frozen=True)
class Step:
    """A "copy" of block k + `block` of a ring to its place k + `place`, a "read" (`how`) or "write" of that, "commit",
    "wait" (`pending`), "barrier", or a `body`: "for" each block k, "again" (twice), "if" there is a block k + `block`.
    """

    name: str
    ring: int = 0
    block: int = 0
    place: int = 0
    pending: int = 0
    how: str = ""
    body: tuple[Step, ...] = ()
    line: int = field(default=0, compare=False)


Steps = tuple[Step, ...]
Cell = tuple[int, int]


@dataclass(frozen=True)
class Program:
    """`count` blocks, or, where that is none, as many as sizes say: up to MOST."""

    rings: tuple[Ring, ...]
    steps: Steps
    count: int | None

    @property
    def counts(self) -> Sequence[int]:
        return range(MOST + 1) if self.count is None else (self.count,)


def all_steps(steps: Steps) -> Iterator[Step]:
    for s in steps:
        yield s
        yield from all_steps(s.body)


def edited(steps: Steps, line: int, new: Sequence[Step]) -> Steps:
    """With others in the place of the step of a line."""
    return tuple(x for s in steps for x in (new if s.line == line else [replace(s, body=edited(s.body, line, new))]))


def numbered(steps: Steps, first: int = 1) -> Steps:
    """One to a line."""
    out = []
    for s in steps:
        out.append(replace(s, line=first, body=numbered(s.body, first + 1)))
        first += 1 + sum(1 for _ in all_steps(s.body))
    return tuple(out)


# -- what they mean ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Lack:
    """What is to stand before a step, or (None) at the end: a wait or a barrier; None where neither helps."""

    cure: Step | None
    before: Step | None


class Model:
    """Runs a program of so many blocks."""

    def __init__(self, program: Program, count: int) -> None:
        self.program, self.count = program, count
        self.groups: list[list[Cell]] = [[]]  # of copies under way; the last is open
        self.arrived: set[Cell] = set()  # since the last barrier; the same threads may copy to there again
        self.new: set[Cell] = set()  # written since then
        self.used: set[Cell] = set()  # read since then
        self.valid: set[Cell] = set()

    def lacks(self) -> Iterator[Lack]:
        yield from self.run(self.program.steps, 0)
        if any(self.groups):
            yield Lack(None if self.groups[-1] else Step("wait"), None)

    def run(self, steps: Steps, k: int) -> Iterator[Lack]:
        for s in steps:
            match s.name:
                case "for" | "again":
                    for i in range(self.count if s.name == "for" else 2):
                        yield from self.run(s.body, i if s.name == "for" else 0)
                case "if":
                    yield from self.run(s.body, k) if k + s.block < self.count else ()
                case "commit":
                    self.groups.append([])
                case "wait":
                    while len(self.groups) - 1 > s.pending:
                        self.arrived |= set(self.groups[0])
                        self.valid |= set(self.groups.pop(0))
                case "barrier":
                    self.arrived, self.new, self.used = set(), set(), set()
                case _:
                    yield from self.access(s, (s.ring, (k + s.place) % self.program.rings[s.ring].depth))

    def access(self, s: Step, cell: Cell) -> Iterator[Lack]:
        latest = max((i for i, group in enumerate(self.groups) if cell in group), default=None)
        if latest is not None:
            pending = len(self.groups) - 2 - latest
            yield Lack(Step("wait", pending=pending) if pending >= 0 else None, s)
        elif cell in self.new or cell in (self.used if s.name == "copy" else self.arrived) or \
                s.name == "write" and cell in self.used:
            yield Lack(Step("barrier"), s)
        elif s.name == "read" and cell not in self.valid:
            yield Lack(None, s)
        if s.name == "copy":
            self.groups[-1].append(cell)
        else:
            (self.used if s.name == "read" else self.new).add(cell)
            self.valid.add(cell)


def lack(program: Program, counts: Sequence[int] = ()) -> Lack | None:
    """The first thing that a program lacks, for some number of blocks."""
    return next((found for n in counts or program.counts for found in Model(program, n).lacks()), None)


def repaired(program: Program) -> Program | None:
    """With the waits and barriers that it needs and no others, if these are enough."""
    program = replace(program, steps=numbered(program.steps))
    while (found := lack(program)) is not None:
        if found.cure is None:
            return None
        steps = edited(program.steps, found.before.line, [found.cure, found.before]) if found.before else \
            (*program.steps, found.cure)
        program = replace(program, steps=numbered(steps))
    for s in all_steps(program.steps):
        without = replace(program, steps=edited(program.steps, s.line, []))
        if s.name in ("wait", "barrier") and lack(without) is None:
            program = without
    return program


CHANGED = ("wait", "barrier", "commit", "copy", "read")


def mistaken(program: Program, s: Step) -> Program:
    """With one of these changed: a wait for one group less, another place, or left out."""
    new = [replace(s, pending=s.pending + 1)] if s.name == "wait" else \
        [replace(s, place=s.place + 1)] if s.name in ("copy", "read") else []
    return replace(program, steps=edited(program.steps, s.line, new))


# -- drawing ----------------------------------------------------------------------------------------------------------
def draw_program(random: Random) -> Program | None:
    """Of one to three rings; None where the parts do not fit together."""
    def flag(of: int = 2) -> bool:
        return random.randrange(of) == 0
    rings = []
    for _ in range(random.randint(1, 3)):
        depth = random.randint(1, 5)
        rings.append(Ring(random.choice((*FLOATS, "f16", "i32", "i8", "u8", "i16")), random.choice(SHAPES), depth,
                          random.randint(0, depth), (random.choice((0, 0, 1, -2)), random.choice((0, 0, 8, 3, -1))),
                          flag()))
    before = list[Step]()
    for s in range(max(r.ahead for r in rings)):
        for i, r in enumerate(rings):
            if s < r.ahead:
                before += [Step("copy", i, s, s)] + [Step("commit")] * flag()
        before.append(Step("commit"))
    parts = []
    for i, r in enumerate(rings):
        # Products of f32 by pieces make NaN of an infinity by a large number: `tests.strategies` draws these.
        hows = [how for how in READS if how != "dot" or r.dtype != "f32"]
        copy = Step("copy", i, r.ahead, r.ahead)
        copies = [Step("if", block=r.ahead, body=(copy,)) if flag(3) else copy]
        copies += [Step("commit")] * (flag() or not r.ahead)
        reads = [Step("read", i, how=random.choice(hows)) for _ in range(random.randint(1, 2))]
        if flag(3):
            reads += [Step("write", i), Step("read", i, how=random.choice(hows))]
        parts.append([*copies, *reads] if r.ahead < r.depth and (not r.ahead or flag()) else [*reads, *copies])
    body = list[Step]()
    while any(parts):
        part = random.choice([part for part in parts if part])
        body += [part.pop(0) for _ in range(random.randint(1, len(part)))]
    steps: Steps = (*before, Step("for", body=(*body, Step("commit"))))
    if flag():
        steps = (Step("again", body=steps) if flag() else Step("if", block=random.randint(0, 1), body=steps),)
    return repaired(Program(tuple(rings), steps, random.randint(0, MOST) if flag(3) else None))


# -- as a function ----------------------------------------------------------------------------------------------------
class _Maker:
    """Makes a function of a program: each read adds to a sum of its own, which is stored."""

    def __init__(self, program: Program) -> None:
        self.program, self.region = program, Region()
        self.b = Builder(self.region, Loc(FILE, 1))
        self.tensors = [self.tensor(f"x{i}", r.dtype, 3 if r.stack else 2, "in") for i, r in enumerate(program.rings)]
        self.zero, self.one, self.two = map(self.const, range(3))
        self.count = self.const(program.count) if program.count is not None else self.emit(
            "mod", self.emit("dim", self.tensors[0], axis=1), self.const(MOST + 1))
        self.buffers = [self.emit("alloc", dtype=dtype(r.dtype), shape=(r.depth, *r.shape)) for r in program.rings]
        self.reads = [s for s in all_steps(program.steps) if s.name == "read"]

    def function(self) -> Function:
        sums = [self.emit("broadcast", self.const(0, t.dtype), shape=t.shape) for t in map(self.type, self.reads)]
        sums = self.steps(self.program.steps, self.zero, sums)
        outs = [self.tensor(f"y{i}", v.dtype.name, len(v.shape), "out") for i, v in enumerate(sums)]
        for out, v in zip(outs, sums, strict=True):
            self.b.add(memory.Store, out, *[self.zero] * len(v.shape), v, axes=tuple(range(len(v.shape))))
        return Function("rings", [*self.tensors, *outs], self.region, loc=Loc(FILE, 1))

    def tensor(self, name: str, dt: str, rank: int, mode: str) -> Value:
        unit = tuple(d == rank - 1 for d in range(rank))
        return Value(TensorType(dtype(dt), tuple(f"{name}_{d}" for d in range(rank)), mode, unit, 16), name)

    def emit(self, name: str, *operands: Value, **attrs: Any) -> Value:
        return self.b.emit(Op.registry[name], *operands, **attrs)

    def const(self, value: int, dt: Any = I32) -> Value:
        return self.emit("const", value=value, dtype=dt)

    def plus(self, v: Value, n: int) -> Value:
        return self.emit("add", v, self.const(n)) if n else v

    def type(self, s: Step) -> TileType:
        """Of the sum of a read."""
        ring = self.program.rings[s.ring]
        m, n = ring.shape
        shape = {"turned": (n, m), "rows": (m,), "one": (1,), "dot": (m, m)}.get(s.how, (m, n))
        return TileType(shape, dtype("f32" if ring.dtype in FLOATS else "i32"))

    def place(self, s: Step, k: Value) -> list[Value]:
        return [self.buffers[s.ring],
                self.emit("mod", self.plus(k, s.place), self.const(self.program.rings[s.ring].depth))]

    def read(self, s: Step, k: Value, total: Value) -> Value:
        (m, n), (buffer, slot), sums = self.program.rings[s.ring].shape, self.place(s, k), total.dtype

        def block(*at: Value, shape: tuple[int, ...] = (m, n)) -> Value:
            return self.emit("load", buffer, slot, *at, shape=shape, axes=(1, 2)[:len(shape)], fill=1)
        match s.how:
            case "gather":  # backwards
                index = [self.emit("broadcast", self.emit("reshape", self.downwards(e), shape=shape), shape=(m, n))
                         for e, shape in ((m, (m, 1)), (n, (1, n)))]
                v = self.emit("gather", buffer, self.emit("broadcast", slot, shape=(m, n)), *index)
            case "part":
                v = block(self.one, self.two)
            case "one":
                v = self.emit("broadcast", block(self.const(m - 1), self.const(n // 2), shape=()), shape=(1,))
            case "dot":
                turned = self.emit("permute", block(self.zero, self.zero), order=(1, 0))
                return self.emit("dot", block(self.zero, self.zero), turned, total, dtype=sums)
            case _:
                v = block(self.zero, self.zero)
        v = self.emit("cast", v, dtype=sums) if v.dtype is not sums else v
        v = self.emit("permute", v, order=(1, 0)) if s.how == "turned" else v
        return self.emit("add", total, self.emit("reduce", v, kind="sum", axis=1) if s.how == "rows" else v)

    def downwards(self, extent: int) -> Value:
        last = self.emit("broadcast", self.const(extent - 1), shape=(extent,))
        return self.emit("sub", last, self.emit("arange", start=0, size=extent))

    def steps(self, steps: Steps, k: Value, sums: list[Value]) -> list[Value]:
        for s in steps:
            self.b.loc = Loc(FILE, s.line)
            ring = self.program.rings[s.ring]
            match s.name:
                case "copy":
                    block, (row, column) = self.plus(k, s.block), ring.at
                    first = [block, self.const(row)] if ring.stack else \
                        [self.plus(self.emit("mul", block, self.const(ring.shape[0])), row)]
                    self.b.add(memory.CopyAsync, self.tensors[s.ring], *first, self.const(column), *self.place(s, k),
                               axes=(1, 2) if ring.stack else (0, 1))
                case "commit" | "barrier":
                    self.b.add(Op.registry[s.name])
                case "wait":
                    self.b.add(memory.Wait, pending=s.pending)
                case "read":
                    at = self.reads.index(next(r for r in self.reads if r is s))
                    sums = [*sums[:at], self.read(s, k, sums[at]), *sums[at + 1:]]
                case "write":
                    number = self.emit("cast", self.plus(k, 1), dtype=dtype(ring.dtype))
                    self.b.add(memory.Store, *self.place(s, k), self.zero, self.zero,
                               self.emit("broadcast", number, shape=ring.shape), axes=(1, 2))
                case "if":
                    there = self.emit("lt", self.plus(k, s.block), self.count)
                    regions = [self.inside(Region(), s.body, k, sums), self.inside(Region(), (), k, sums)]
                    sums = list(self.b.add(control.If, there, regions=regions).results)
                case _:
                    region = Region([Value(k.type), *(Value(v.type) for v in sums)])
                    self.inside(region, s.body, region.args[0] if s.name == "for" else self.zero, region.args[1:])
                    end = self.count if s.name == "for" else self.two
                    sums = list(self.b.add(control.For, self.zero, end, self.one, *sums, regions=[region]).results)
        return sums

    def inside(self, region: Region, steps: Steps, k: Value, sums: list[Value]) -> Region:
        outer, self.b = self.b, Builder(region, self.b.loc)
        self.b.add(control.Yield, *self.steps(steps, k, sums))
        self.b = outer
        return region


def function(program: Program) -> Function:
    """At level TILE."""
    return _Maker(program).function()
