"""What there is to know of a compiled kernel, gathered for a page or a terminal."""
from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from tilelang import targets
from tilelang.bound import Bound
from tilelang.errors import TargetError
from tilelang.explain.banks import Heat, counted, derived
from tilelang.ir.core import BufferType, Function, Op, TensorType, TileType
from tilelang.ir.memory import CopyAsync
from tilelang.ir.reduction import DOTS
from tilelang.ir.text import print_function
from tilelang.layouts import RegisterLayout, SharedLayout
from tilelang.passes.work import Work, work

Place = tuple[str, int]
"""A line of the user's source: file and number."""
DRAWN = 16, 32
"""Rows and columns of a layout that are drawn: the pattern repeats beyond them, or nobody would look."""


@dataclass(frozen=True)
class Line:
    """One line of a text, and the line of the user's source it comes from."""

    text: str
    place: Place | None = None


@dataclass(frozen=True)
class Level:
    """The kernel at one level of the compiler."""

    title: str
    lines: list[Line]


@dataclass(frozen=True)
class Picture:
    """A layout: the tiles that have it, and for the first cells (thread, register), or (bank, place in elements), on a
    CPU (line of the cache, place)."""

    layout: str
    kind: str
    shape: tuple[int, ...]
    values: list[str]
    cells: list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Buffer:
    """Memory of a block: where it lies, in bytes, and from which to which operation it is in use."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    start: int
    end: int


@dataclass(frozen=True)
class Decision:
    """Something the compiler chose, where, and what it did not choose, with the reason."""

    place: Place | None
    chosen: str
    rejected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """Everything the page shows. `heat` is counted by the emulator where there are `counters`, else derived."""

    name: str
    target: str
    sources: list[tuple[str, list[tuple[int, str]]]]
    levels: list[Level]
    report: dict[str, Any]
    missing: list[str]
    pictures: list[Picture]
    conversions: list[Decision]
    decisions: list[Decision]
    buffers: list[Buffer]
    loops: list[Loop]
    accesses: list[tuple[Place | None, str, str, int]]
    shapes: str = ""
    work: Work | None = None
    least_bytes: int = 0
    counters: dict[Place, Any] = field(default_factory=dict)
    heat: list[Heat] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """A loop whose copies run `ahead` turns: each turn waits until all but `pending` groups of them have landed.
    `schedule` is how it moves data beside its products, where the target has several ways."""

    place: Place | None
    ahead: int
    pending: int
    copies: int
    products: int
    schedule: str = ""


def gather(lowered: Any, target: str, bound: Bound | None = None, run: bool = False) -> Facts:
    """The facts of a lowered kernel; for the arguments of a call, if there are any, its work too, and with `run` the
    counters of the emulator. What a missing compiler would tell is named in `missing`."""
    levels, missing = _levels(lowered, target)
    report: dict[str, Any] = {}
    try:
        report = dict(lowered.report)
    except TargetError as error:
        missing.append(str(error))
    simt = targets.on_device(target)
    done, shapes, least = None, "", 0
    counters: dict[Place, Any] = {}
    heat: list[Heat] = []
    if bound is not None:
        _, extents, _ = bound.memory(on_host=False)
        done = work(lowered.tile, extents)
        shapes = ", ".join(f"{n}: {a.dtype}{list(a.shape)}" for n, a in bound.tensors.items())
        least = sum(_size(a.shape, a.dtype.bits) for a in bound.tensors.values())
        if run and simt:
            counters, heat = _counters(lowered, bound)
        elif simt:
            heat = derived(lowered.thread, lowered.target.ports, lowered.target.warp, extents)
    return Facts(
        lowered.tile.name, target, _sources(lowered, levels), levels, report, missing, _pictures(lowered, simt),
        _conversions(lowered) if simt else [], _decisions(lowered) if simt else [],
        _buffers(lowered.thread) if simt else [], _loops(lowered.placed) if simt else [], _accesses(lowered.thread),
        shapes, done, least, counters, heat)


def _size(shape: Sequence[int], bits: int) -> int:
    n = bits
    for extent in shape:
        n *= extent
    return -(-n // 8)


# -- texts ------------------------------------------------------------------------------------------------------------
def _levels(lowered: Any, target: str) -> tuple[list[Level], list[str]]:
    missing: list[str] = []
    out = [Level(title, _ir(fn)) for title, fn in (("TILE", lowered.tile), ("PLACED", lowered.placed),
                                                   ("THREAD", lowered.thread))]
    if target == "cpu":
        out.append(Level("LLVM", _llvm(lowered.linked_source)))
        out.append(Level("assembly", _listing(lowered.linked_assembly)))
        return out, missing
    text = _emitted(lowered.source, _files(lowered.thread))
    out.append(Level("C++", text))
    try:
        read = _nvdisasm if target.startswith("cuda") else _clang
        out.append(Level("assembly", read(lowered.linked_assembly, text)))
    except TargetError as error:
        missing.append(str(error))
    return out, missing


def _ir(fn: Function) -> list[Line]:
    out = []
    for text in print_function(fn, locs=True).splitlines():
        body, _, where = text.rpartition("  # ")
        file, _, number = where.rpartition(":")
        out.append(Line(body, (file, int(number))) if body and number.isdigit() else Line(text))
    return out


def _files(fn: Function) -> dict[str, str]:
    """The last part of a file's name, which emitted text has, to the whole."""
    return {op.loc.file.replace("\\", "/").rpartition("/")[2]: op.loc.file for op in fn.walk() if op.loc}


def _emitted(text: str, files: Mapping[str, str]) -> list[Line]:
    """Emitted text: a comment names the line of what follows."""
    out, place = [], None
    for line in text.splitlines():
        found = re.match(r"\s*// (\S+):(\d+)  ", line)
        if found and found[1] in files:
            place = files[found[1]], int(found[2])
        elif line.startswith("}"):
            place = None
        out.append(Line(line, place))
    return out


def _nvdisasm(text: str, emitted: Sequence[Line]) -> list[Line]:
    """nvdisasm's text: comments name the lines of the emitted text, innermost function first."""
    return _assembly(text, emitted, "//##", r'kernel\.cu", line (\d+)', r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;",
                     r"(\.L_\w+:.*?)\s*$")


def _clang(text: str, emitted: Sequence[Line]) -> list[Line]:
    """The kernel in clang's assembly: directives name the lines of the emitted text, innermost function first."""
    return _assembly(text.partition(".Lfunc_end")[0], emitted, r"^\s*\.loc\s", r"<stdin>:(\d+)",
                     r"\s+([a-z]\w*.*?)\s*(?:;.*)?$", r"(\.LBB\w+:|[A-Za-z]\w*:)")


def _assembly(text: str, emitted: Sequence[Line], note: str, number: str, instruction: str, label: str) -> list[Line]:
    """Instructions and labels of an assembly, all by their regular expressions, in which a `note` says by which
    `number`s of emitted lines what follows it was made."""
    out: list[Line] = []
    place: Place | None = None
    for line in text.splitlines():
        if re.search(note, line):
            numbers = re.findall(number, line)
            if numbers and int(numbers[-1]) <= len(emitted):
                place = emitted[int(numbers[-1]) - 1].place
        elif found := re.match(instruction, line):
            out.append(Line(found[1], place))
        elif found := re.match(label, line):
            out.append(Line(found[1]))
    return out


def _llvm(text: str) -> list[Line]:
    """LLVM IR without the debug information that tells where its lines come from."""
    known = dict(re.findall(r"^(!\d+) = (?:distinct )?!(.*)", text, re.M))

    def entry(number: str, name: str) -> str:
        found = re.search(rf'\b{name}: (?:"([^"]*)"|([^,)]+))', known[number])
        assert found is not None
        return found[1] if found[1] is not None else found[2]

    def place(number: str) -> Place:
        file = entry(entry(number, "scope"), "file")
        return str(PurePath(entry(file, "directory"), entry(file, "filename"))), int(entry(number, "line"))
    out = []
    for line in text.splitlines():
        body, *numbers = re.split(r"\s*,?\s*!dbg (!\d+)", line)
        if not line.startswith("!"):
            out.append(Line(body + "".join(numbers[1:]), place(numbers[0]) if numbers and body[0] == " " else None))
    return out


def _listing(text: str) -> list[Line]:
    """LLVM's assembly, of which directives tell the lines of the source."""
    files = {number: str(PurePath(folder, name)) for number, folder, name in
             re.findall(r'^\s*\.file\s+(\d+) "([^"]*)" "([^"]*)"', text, re.M)}
    out: list[Line] = []
    place: Place | None = None
    for line in re.split(r"^\s*\.section\s+\.debug_", text, maxsplit=1, flags=re.M)[0].splitlines():
        if found := re.match(r"\s*\.loc\s+(\d+) (\d+)", line):
            place = (files[found[1]], int(found[2])) if found[2] != "0" else None
        elif not re.match(r"\s*\.(file|loc|cfi_)|\.Ltmp|\.Lfunc", line):
            out.append(Line(line, place if re.match(r"\s+[a-z]", line) else None))
    return out


def _sources(lowered: Any, levels: Iterable[Level]) -> list[tuple[str, list[tuple[int, str]]]]:
    """For each file the functions that the kernel is made of, whole from the first to the last line that is used."""
    lines: dict[str, dict[str, list[int]]] = {}
    for op in lowered.tile.walk():
        loc = op.loc
        while loc is not None:
            lines.setdefault(loc.file, {}).setdefault(loc.function, []).append(loc.line)
            loc = loc.caller
    if lowered.tile.loc is not None:
        lines.setdefault(lowered.tile.loc.file, {}).setdefault(lowered.tile.loc.function, []).append(
            lowered.tile.loc.line)
    out = []
    for file, functions in lines.items():
        shown = sorted({n for used in functions.values() for n in range(_head(file, min(used)), max(used) + 1)})
        out.append((file, [(n, linecache.getline(file, n).rstrip("\n")) for n in shown]))
    return out


def _head(file: str, line: int) -> int:
    """The line of the `def` above a line."""
    for n in range(line, max(line - 60, 0), -1):
        if linecache.getline(file, n).lstrip().startswith("def "):
            return n
    return line


# -- structures -------------------------------------------------------------------------------------------------------
def _place(op: Op) -> Place | None:
    return (op.loc.file, op.loc.line) if op.loc else None


def _pictures(lowered: Any, simt: bool) -> list[Picture]:
    banks = lowered.target.ports.loads[-1].count if simt else 0
    found: dict[tuple[str, tuple[int, ...]], tuple[Any, list[str], int]] = {}
    for op in lowered.placed.walk():
        for v in op.results:
            if isinstance(v.type, TileType | BufferType) and v.type.layout is not None and v.type.shape:
                layout = v.type.layout
                values = found.setdefault((str(layout), v.type.shape), (
                    layout, [], v.dtype.storage.itemsize))[1]
                values.append(f"%{v.name or op.name}" + (f" (line {op.loc.line})" if op.loc else ""))
    memory = "shared memory" if simt else "memory"
    return [Picture(text, "registers" if isinstance(layout, RegisterLayout) else memory, shape,
                    list(dict.fromkeys(values)), _cells(layout, shape, size, banks))
            for (text, shape), (layout, values, size) in found.items()]


def _cells(layout: RegisterLayout | SharedLayout, shape: Sequence[int], size: int, banks: int
           ) -> list[list[tuple[int, int]]]:
    """(thread, register), or (which of `banks` of four bytes, place) for elements of `size` bytes, of the first cells
    of the last two dimensions; (line of 64 bytes, place) where there are no banks."""
    rows = min(shape[-2] if len(shape) > 1 else 1, DRAWN[0])
    columns = min(shape[-1], DRAWN[1])
    lead = (0,) * max(len(layout.shape) - 2, 0)

    def at(r: int, c: int) -> tuple[int, ...]:
        return (*lead, r, c) if len(layout.shape) > 1 else (c,)
    if isinstance(layout, RegisterLayout):
        wanted = {at(r, c) for r in range(rows) for c in range(columns)}
        owners: dict[tuple[int, ...], tuple[int, int]] = {}
        table = layout.table()
        for thread in range(table.shape[0]):
            for register in range(table.shape[1]):
                where = tuple(int(x) for x in table[thread, register])
                if where in wanted:
                    owners.setdefault(where, (thread, register))
        return [[owners.get(at(r, c), (-1, -1)) for c in range(columns)] for r in range(rows)]
    offsets = layout.table()
    places = [[int(offsets[at(r, c)]) for c in range(columns)] for r in range(rows)]
    return [[(x * size // 4 % banks if banks else x * size // 64, x) for x in row] for row in places]


def _conversions(lowered: Any) -> list[Decision]:
    from tilelang.backends.simt.costs import conversion_cost
    from tilelang.layouts import conversion
    how = {"none": "nothing: every thread holds it in the same registers",
           "registers": "other registers of the same thread", "shuffle": "shuffles within a warp",
           "shared": "through shared memory"}
    out = []
    for op in lowered.placed.walk():
        if op.name == "convert_layout":
            src, dst = op.operands[0].tile, op.result.tile
            if isinstance(src.layout, RegisterLayout) and isinstance(dst.layout, RegisterLayout):
                kind = conversion(src.layout, dst.layout, src.shape, lowered.target.warp).kind
                cost = conversion_cost(src.layout, dst.layout, src.shape, src.dtype.storage.itemsize,
                                       lowered.target.warp)
                out.append(Decision(_place(op), f"{src.dtype}{list(src.shape)}: {how[kind]}",
                                    [f"from {src.layout}", f"to {dst.layout}", f"{cost} bytes of work in the model"]))
    return out


def _decisions(lowered: Any) -> list[Decision]:
    """For each product the instruction, and the other rows of the target by why they were not chosen."""
    out = []
    for op in lowered.placed.walk():
        if op.name in DOTS:
            a, b = (v.tile for v in op.operands[:2])
            name = op.attrs["instruction"]
            rejected: dict[str, list[str]] = {}
            rows, _ = lowered.target.rows(op)
            for row in rows:
                if row.name != name:
                    rejected.setdefault(_rejection(row, op, rows), []).append(row.name)
            chosen = name or "no matrix instruction: products and sums of single elements"
            out.append(Decision(_place(op), f"{a.dtype}{list(a.shape)} x {b.dtype}{list(b.shape)}: {chosen}",
                                [f"{why}: {', '.join(names)}" for why, names in rejected.items()]))
    return out


def _rejection(row: Any, dot: Op, rows: Iterable[Any]) -> str:
    """Why a product is not made by a matrix instruction; the order is that of `instructions.choose`."""
    from tilelang.ir.codec import holds
    from tilelang.ir.dtypes import dtype
    a, b = (v.tile for v in dot.operands[:2])
    chosen = next((x for x in rows if x.name == dot.attrs["instruction"]), None)
    if row.acc != dot.result.dtype.name:
        return f"sums in {row.acc}"
    if not (holds(dtype(row.a), a.dtype) and holds(dtype(row.b), b.dtype)):
        return f"multiplies {row.a} by {row.b}"
    if row.k > a.shape[-1]:
        return f"k is {row.k}, the product's {a.shape[-1]}"
    if chosen is None:
        return "of one warp; here four multiply together" if dot.attrs["instruction"] else "does not fit the tile"
    if (row.a, row.b) != (chosen.a, chosen.b):
        return f"exact, too, but wider: multiplies {row.a}"
    if (row.m, row.n) == (chosen.m, chosen.n):
        return f"does less at once: k is {row.k}"
    return "another size, whose layouts cost more in the search"


def _buffers(fn: Function) -> list[Buffer]:
    from tilelang.backends.simt.shared_memory import shared_allocs, size_of, spans
    alive = {v: (found[0][0], found[-1][1]) for v, found in spans(fn).items() if found}  # the first to the last
    return [Buffer(op.result.name or "exchange", str(op.attrs["dtype"]), tuple(op.attrs["shape"]), op.attrs["offset"],
                   size_of(op), *alive.get(op.result, (0, 0))) for op in shared_allocs(fn)]


def _loops(fn: Function) -> list[Loop]:
    """Loops with copies of their own; the first extent of a buffer is how many turns it holds."""
    out = []
    for op in fn.walk():
        if op.name == "for":
            body = op.regions[0].ops
            branches = [o for b in body if b.name == "if" for r in b.regions for o in r.walk()]
            turns = [o.operands[o.buffer].type.shape[0] for o in (*body, *branches)  # type: ignore[union-attr]
                     if isinstance(o, CopyAsync)]
            waits = [o.attrs["pending"] for o in body if o.name == "wait"]
            waits += [max(turns, default=2) - 2 for o in body if o.name == "mbarrier_wait"]
            if turns and waits:
                out.append(Loop(_place(op), max(max(turns) - 1, 1), min(waits), len(turns),
                                sum(o.name in DOTS for o in op.regions[0].walk()), op.attrs["schedule"]))
    return out


def _accesses(fn: Function) -> list[tuple[Place | None, str, str, int]]:
    """(line, operation, memory, bytes at once) of every access of a thread's code, each once."""
    out: dict[tuple[Place | None, str, str, int], None] = {}
    for op in fn.walk():
        memory = next((v for v in op.operands if isinstance(v.type, TensorType | BufferType)), None)
        if memory is None or op.effects not in ("read", "write"):
            continue
        moved = [v.tile.size for v in (*op.results, *op.operands) if isinstance(v.type, TileType)
                 and v.dtype is memory.dtype]
        while memory.owner is not None and memory.owner.name in ("block", "window"):
            memory = memory.owner.operands[0]
        where = memory.type.space if isinstance(memory.type, BufferType) else "global"
        name = memory.name or ("exchange" if where == "shared" else "")
        out[_place(op), op.name, f"{where} %{name}" if name else where,
            (op.attrs.get("lanes") or max(moved, default=0)) * memory.dtype.storage.itemsize] = None
    return list(out)


def _counters(lowered: Any, bound: Bound) -> tuple[dict[Place, Any], list[Heat]]:
    from tilelang.backends.emulator.execute import observe
    from tilelang.backends.emulator.run import POLICIES
    arrays, shapes, strides = bound.memory()
    code = lowered.suited(arrays, shapes, strides)
    (result,) = observe(code.tile, code.rendered, arrays, shapes, strides, POLICIES[:1])
    by_line = targets.by_line(result.counters, code.rendered.ops)
    return {place: c for place, c in by_line.items() if place[0]}, counted(code.rendered.ops, result.counters,
                                                                           code.target.ports)
