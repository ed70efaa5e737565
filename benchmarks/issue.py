"""The machine code of AMD's pipelined loops, played instruction by instruction: `python -m benchmarks.issue
[part of a row]` prints for products of blocks which schedule the compiler chooses, and for each that fits the cycles
in which a vector unit gets through what clang made of an iteration. Needs ziglang.

The unit plays its waves: of each kind of instruction one in four cycles, from the wave of the highest priority that
can, in a wave's order. A product has the matrix unit as long as its numbers take; local memory serves the same request
of all four units one after the other by its width, and answers `LATENCY` later; waits count as the text says. Global
memory is always there in time. Nothing here was measured on a device.
"""
from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

import tilelang as tile
from benchmarks import gcn
from tilelang.backends.hip import clang
from tilelang.backends.hip.compile import Lowered
from tilelang.backends.hip.target import target
from tilelang.backends.simt import schedule
from tilelang.errors import TargetError

BLOCKS = ((256, 256, 32, 4), (256, 256, 64, 2), (128, 128, 64, 2), (256, 128, 64, 2), (256, 128, 32, 3))
TAKEN_BY = {"matrix": "vector", "vector": "vector", "local": "local", "global": "global"}
"""What kinds of instructions one in four cycles is of; all others are one kind."""
WAYS = "plain", "interleave", "pingpong"
SLOT, MEETING, QUEUE = schedule.ISSUE, 16, 256
"""Cycles between two instructions of a wave, of a barrier or branch, and of requests that local memory takes before
they are due: assumptions."""
_REGISTERS = re.compile(r"\b([va])(?:\[(\d+):(\d+)\]|(\d+)\b)")
_PRODUCT = re.compile(r"v_mfma_\w+?_(\d+)x(\d+)x(\d+)")
_LOCAL = re.compile(r"ds_(read|write)(2?)\w*?_b(\d+)")


def _registers(text: str) -> set[tuple[str, int]]:
    return {(kind, i) for kind, low, high, one in _REGISTERS.findall(text)
            for i in range(int(one or low), int(one or high) + 1)}


@dataclass(frozen=True)
class Instruction:
    """`kind` is the unit that takes it, or "wait", "barrier", "priority", "nop"; `amount` cycles, or its number."""

    kind: str
    amount: int
    writes: set[tuple[str, int]]
    reads: set[tuple[str, int]]


def instruction(line: str, arch: str) -> Instruction | None:
    """One line of a listing; None for a wait that is for nothing here."""
    name, _, operands = line.partition(" ")
    first, _, rest = operands.partition(",")
    writes, reads = _registers(first), _registers(rest)
    machine = target(f"hip:{arch}")
    if found := _PRODUCT.match(name):
        m, n, k = map(int, found.groups())
        return Instruction("matrix", m * n * k * 16 // machine.multiplied, writes, reads | writes)
    if found := _LOCAL.match(name):
        banks = machine.ports.of(16, found[1] == "write")
        cycles = 64 * int(found[3]) // 8 * (2 if found[2] else 1) // (banks.count * banks.width)
        return Instruction("local", max(cycles, 1), writes if found[1] == "read" else set(), reads | writes)
    if name == "s_waitcnt":
        count = re.search(r"lgkmcnt\((\d+)\)", operands)
        return Instruction("wait", int(count[1]), set(), set()) if count else None
    kind = {"s_barrier": "barrier", "s_setprio": "priority", "s_nop": "nop"}.get(name)
    if kind:
        return Instruction(kind, int(operands or 0), set(), set())
    unit = "global" if name.startswith(("buffer_", "global_")) else "scalar" if name.startswith("s_") else "vector"
    return Instruction(unit, 0, writes if unit == "vector" else set(), reads | writes)


@dataclass
class _Wave:
    place: int = 0
    turns: int = 0
    free: int = 0
    priority: int = 0
    meets: bool = False
    pending: list[int] = field(default_factory=list)
    ready: dict[tuple[str, int], int] = field(default_factory=dict)


def cycles(loop: Sequence[str], arch: str, waves: int, turns: bool = False, count: int = 12) -> float:
    """Of an iteration of so many waves of a unit, once they run evenly. With `turns` the second half of them has come
    to a barrier when the first begins."""
    code = [i for i in (instruction(line, arch) for line in loop) if i is not None]
    unit = [_Wave(meets=turns and i >= waves // 2) for i in range(waves)]
    now, matrix, local, ends = 0, 0, 0, list[int]()
    while len(ends) < count:
        busy = set[str]()
        for i, w in sorted(enumerate(unit), key=lambda x: (-x[1].priority, (x[0] - now // SLOT) % waves)):
            op = code[w.place]
            taken = TAKEN_BY.get(op.kind, "scalar")
            late = max((w.ready.get(r, 0) for r in op.reads | op.writes), default=0) > now
            w.pending = [t for t in w.pending if t > now]
            if w.meets or w.free > now or taken in busy or late or op.kind == "matrix" and matrix > now or \
                    op.kind == "local" and local > now + QUEUE or op.kind == "wait" and len(w.pending) > op.amount:
                continue
            if op.kind == "matrix":
                matrix = now + op.amount
            elif op.kind == "local":
                local = max(local, now) + op.amount * schedule.UNITS
                w.pending.append(local + schedule.LATENCY)
            w.ready.update(dict.fromkeys(op.writes, now + op.amount if op.kind == "matrix" else
                                         now + SLOT if op.kind == "vector" else 0))
            w.meets, w.priority = op.kind == "barrier", op.amount if op.kind == "priority" else w.priority
            w.free = now + SLOT * (op.amount + 1 if op.kind == "nop" else 1)
            w.place = (w.place + 1) % len(code)
            busy.add(taken)
            if w.place == 0:
                w.free += MEETING
                if i == 0:
                    ends.append(now)
        if all(w.meets for w in unit):
            for w in unit:
                w.meets, w.free = False, now + MEETING
        now += SLOT
    return (ends[-1] - ends[3]) / (count - 4)


@tile.kernel
def product(a: tile.Tensor[tile.T, "M K"], b: tile.Tensor[tile.T, "N K"], c: tile.Out[tile.f32, "M N"],
            BM: tile.Const, BN: tile.Const, BK: tile.Const, STAGES: tile.Const, SCHEDULE: tile.Const):
    """c = a @ b.T by one block for each program."""
    m, n = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[0], BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, a.shape[1], BK, stages=STAGES, schedule=SCHEDULE):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (n * BN, k), (BN, BK)).T)
    tile.store(c, (m * BM, n * BN), acc)


def played(arch: str, block: Sequence[int], way: str = "") -> tuple[str, int, float, float]:
    """(schedule, registers, cycles of the products alone, cycles of an iteration) of a product. Raises TargetError
    where the schedule does not fit."""
    x, consts = np.zeros((512, 512), ml_dtypes.bfloat16), dict(zip(("BM", "BN", "BK", "STAGES"), block, strict=True))
    code = product.lower(x, x, np.zeros((512, 512), np.float32), target=f"hip:{arch}", SCHEDULE=way, **consts)
    assert isinstance(code, Lowered)
    loop = gcn.main_loop(code.assembly, code.rendered.name)
    waves, (way,) = code.rendered.threads // 64 // schedule.UNITS, code.schedules.split(": ")[1:]
    alone = waves * sum(i.amount for line in loop if (i := instruction(line, arch)) and i.kind == "matrix")
    return way, int(code.report["registers"]), alone, cycles(loop, arch, waves, way == "pingpong")


def main(pattern: str = "") -> None:
    """Prints the table."""
    print(f"ziglang {clang.version()}, {datetime.date.today()}\n")
    print(f"| bf16, b transposed | target | chosen | products alone | {' | '.join(WAYS)} |")
    print(f"|{'---|' * (4 + len(WAYS))}")
    for arch in ("gfx942", "gfx950"):
        for block in BLOCKS:
            m, n, k, stages = block
            name = f"{m}x{n}x{k}, {stages} stages"
            if pattern not in f"{name} {arch}":
                continue
            found: dict[str, float] = {}
            chosen, _, alone, _ = played(arch, block)
            for way in WAYS:
                try:
                    found[way] = played(arch, block, way)[3]
                except TargetError:
                    continue
            cells = [f"{found[w]:.0f}" if w in found else "-" for w in WAYS]
            print(f"| {name} | {arch} | {chosen} | {alone:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
