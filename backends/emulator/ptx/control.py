"""Branches, barriers and the instructions of whole warps."""
from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Sequence

import numpy as np

from tilelang.backends.emulator.ptx import mma, wgmma
from tilelang.backends.emulator.ptx.build import POISON, Builder, Read, Rule
from tilelang.backends.emulator.ptx.forms import WINDOWS, Mnemonic
from tilelang.backends.emulator.ptx.machine import LANES, Machine, Step
from tilelang.backends.emulator.ptx.memory import located
from tilelang.backends.emulator.ptx.numbers import Array
from tilelang.backends.emulator.ptx.parse import Constant, Instruction, Operand, PtxError, Vector, uncovered
from tilelang.ir.roles import GROUP, LEAST, UNIT

Body = Callable[[Machine], None]
BARRIERS = 16
"""Of a block."""


def _branch(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    to = c.target(i.operands[0])
    if i.guard is None:
        return lambda m: [(to, m.active)]
    holds = c.guard(i)

    def step(m: Machine) -> list[tuple[int, Array]] | None:
        who = m.active & holds(m)
        if not who.any():
            return None
        stay = m.active & ~who
        return [(to, who), (at + 1, stay)] if stay.any() else [(to, m.active)]
    return step


def _exit(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    holds = c.guard(i) if i.guard is not None else lambda m: m.active

    def step(m: Machine) -> list[tuple[int, Array]] | None:
        who = m.active & holds(m)
        m.live = m.live & ~who
        stay = m.active & ~who
        return [(at + 1, stay)] if stay.any() else []
    return step


def _barrier(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """`bar.sync n` waits for every thread of the block, one that has exited never comes; `bar.sync n, count` for so
    many threads, whole warps; `barrier.cluster.wait` for those of all blocks of a cluster."""
    if "warp" in m.mods:
        return _collective(c, at, c.read(i.operands[0], "u32"), lambda m: None)
    if "cluster" in m.mods and m.one_of("arrive", "wait"):
        return _meet(at, (), True) if "wait" in m.mods else _nothing(c, i, m, at)
    if set(m.mods) != {"sync"} or not 1 <= len(i.operands) <= 2 or \
            not all(isinstance(o, Constant) for o in i.operands):
        raise uncovered(f"`{i.text}`")
    number, *some = (o.bits for o in i.operands if isinstance(o, Constant))
    if number >= BARRIERS or any(not n or n % LANES for n in some):
        raise PtxError("a barrier that the hardware does not have", got=f"`{i.text}`",
                       needs=f"a number below {BARRIERS}, and whole warps of {LANES} threads")
    return _meet(at, some, False)


def _meet(at: int, some: Sequence[int], cluster: bool) -> Step:
    """Threads of a block, or of all blocks of a cluster, wait for each other: all, or `some` number of them."""
    def step(m: Machine) -> list[tuple[int, Array]] | None:
        here = m.active | m.parked.pop(at) if at in m.parked else m.active
        groups = 1 if cluster else m.cluster
        lanes, members = here.reshape(groups, -1, LANES), m.exists.reshape(groups, -1, LANES)
        warps, expected = lanes.any(2), some[0] if some else m.width // groups
        come = warps.sum(1) * LANES
        if (come > expected).any():
            raise PtxError(f"{come.max()} threads come to a barrier of {expected}")
        met = (come == expected) & ((lanes == members).all(2) | ~warps).all(1)
        ready = (met[:, None, None] & lanes).reshape(-1)
        if here is m.active and (ready == here).all():
            return None
        if (here & ~ready).any():
            m.parked[at] = here & ~ready
        return [(at + 1, ready)] if ready.any() else []
    return step


def _registers(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """`setmaxnreg`: four warps together; who takes more waits until others of the block have given them back."""
    take, (count,) = "inc" in m.mods, i.operands
    if set(m.mods) != {"inc" if take else "dec", "sync", "aligned"} or not isinstance(count, Constant) or \
            count.bits % UNIT or not LEAST <= count.bits <= 256:
        raise PtxError(f"`{i.text}` asks for a number of registers that no thread can have",
                       needs=f"a multiple of {UNIT} from {LEAST} to 256")
    each, unit = count.bits, LANES * GROUP

    def step(m: Machine) -> list[tuple[int, Array]] | None:
        here = m.active | m.parked.pop(at) if at in m.parked else m.active
        if m.block % unit:
            raise PtxError(f"a block of {m.block} threads is not made of whole groups of {unit}")
        ready = np.zeros_like(here)
        for g in np.flatnonzero(here.reshape(-1, unit).all(1)):
            have = int(m.granted[g])
            if (each < have) if take else (each > have):
                raise PtxError(f"threads of {have} registers {'take' if take else 'drop to'} {each}")
            if each - have <= m.free[g * unit // m.block]:
                m.free[g * unit // m.block] -= each - have
                m.granted[g], ready[g * unit:(g + 1) * unit] = each, True
        if (here & ~ready).any():
            m.parked[at] = here & ~ready
        if not take:
            m.look_again()
        m.waits.add(at)
        return [(at + 1, ready)] if ready.any() else []
    return step


def _collective(c: Builder, at: int, named: Read | None, body: Body, unit: int = LANES) -> Step:
    """Runs `body` for warps, or groups of `unit` threads, all of whose members have come: those `named` by a mask,
    else all lanes."""
    bit = np.left_shift(np.ones(LANES, np.uint32), np.arange(LANES, dtype=np.uint32))

    def step(m: Machine) -> list[tuple[int, Array]] | None:
        here = m.active | m.parked.pop(at) if at in m.parked else m.active
        if m.block % unit:
            raise PtxError(f"a block of {m.block} threads is not made of whole groups of {unit}")
        lanes, members = here.reshape(-1, unit), m.exists.reshape(-1, unit)
        if named is not None:
            masks = named(m).reshape(-1, LANES)
            strangers: Array = lanes & (masks & bit == 0)
            if strangers.any():
                raise PtxError(f"lane {int(np.nonzero(strangers)[1][0])} is not in its own member mask",
                               got=f"{int(masks[strangers][0]):#010x}")
            first = masks[np.arange(len(masks)), lanes.argmax(1)]
            members = members & (first[:, None] & bit != 0)
        complete = np.logical_and.reduce(lanes | ~members, 1) & np.logical_or.reduce(lanes, 1)
        ready = (complete[:, None] & lanes).reshape(-1)
        if here is m.active and (ready == here).all():
            body(m)
            return None
        wait = here & ~ready
        if wait.any():
            m.parked[at] = wait
        if not ready.any():
            return []
        m.activate(ready)
        body(m)
        return [(at + 1, ready)]
    return step


def _shuffle(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    kind = m.one_of("bfly", "idx", "up", "down")
    result, *operands = i.operands
    out = result.items if isinstance(result, Vector) else (result, None)
    put, flag = c.write(out[0], "b32"), c.write(out[1], "pred")
    value, other, bounds, named = (c.read(o, "b32") for o in operands)
    unknown = np.uint32(POISON * 0x01010101)

    def body(m: Machine) -> None:
        lane = np.arange(m.width, dtype=np.int64) % LANES
        b, clamp = other(m).astype(np.int64) & 31, bounds(m).astype(np.int64)
        segment, clamp = clamp >> 8 & 31, clamp & 31
        low, high = lane & segment, lane & segment | clamp & ~segment
        source = {"bfly": lane ^ b, "idx": low | b & ~segment, "up": lane - b, "down": lane + b}[kind]
        inside = source >= high if kind == "up" else source <= high
        source = np.where(inside, source, lane) + np.arange(m.width) // LANES * LANES
        put(m, np.where(m.active[source], value(m)[source], unknown))  # of a lane that takes no part
        flag(m, inside)
    return _collective(c, at, named, body)


def _elect(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """One lane of those that a mask names: the lowest."""
    result, mask = i.operands
    assert isinstance(result, Vector)
    put = c.write(result.items[1], "pred")

    def body(m: Machine) -> None:
        lanes = m.active.reshape(-1, LANES)
        put(m, (lanes & (np.arange(LANES) == lanes.argmax(1)[:, None])).reshape(-1))
    return _collective(c, at, c.read(mask, "u32"), body)


def _warps(m: Machine) -> Array:
    """The warps whose lanes are active: all of a warp's are."""
    return np.flatnonzero(m.active[::LANES])


def _gather(m: Machine, reads: list[Read]) -> Array:
    """Registers as [warp, lane, register] of the active warps."""
    return np.stack([r(m) for r in reads], 1).reshape(-1, LANES, len(reads))[_warps(m)]


def _scatter(m: Machine, writes: list[Callable[[Machine, Array], None]], values: Array) -> None:
    """Puts [warp, lane, register] into registers."""
    for j, put in enumerate(writes):
        put(m, m.spread(np.ascontiguousarray(values[:, :, j]).reshape(-1)))


def _vector(o: Operand) -> tuple[Operand, ...]:
    return o.items if isinstance(o, Vector) else (o,)


def _rows(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """`ldmatrix` and `stmatrix`: lane l names the 16 bytes of row l % 8 of matrix l / 8."""
    load, trans = m.name == "ldmatrix", "trans" in m.mods
    count = int(m.one_of("x1", "x2", "x4")[1:])
    address, vector = i.operands[::-1] if load else i.operands
    if not {"m8n8", "shared", "sync", "aligned"} <= set(m.mods) or m.type != "b16" or len(_vector(vector)) != count:
        raise uncovered(f"`{i.text}`")
    where, words = c.address(address), np.arange(8)
    takes = [] if load else [c.read(o, "b32") for o in _vector(vector)]
    puts = [c.write(o, "b32") for o in _vector(vector)] if load else []

    def body(m: Machine) -> None:
        memory, warps = m.spaces["shared"], len(_warps(m))
        rows = where(m).reshape(warps, LANES)[:, :8 * count]
        if (rows & 15).any():
            raise PtxError("a row of a matrix is not aligned to 16 bytes")
        offsets = memory.check(rows, 16)[..., None] + 2 * words  # [warp, row, column]
        if load:
            cells = memory.load(offsets, 2).reshape(warps, count, 8, 8)
            cells = np.ascontiguousarray(cells.swapaxes(2, 3) if trans else cells)
            fragments = cells.view(np.uint32).reshape(warps, count, LANES)
            _scatter(m, puts, fragments.swapaxes(1, 2))
        else:
            cells = np.ascontiguousarray(_gather(m, takes).swapaxes(1, 2)).view(np.uint16).reshape(warps, count, 8, 8)
            memory.store(offsets, (cells.swapaxes(2, 3) if trans else cells).reshape(warps, 8 * count, 8))
    return _collective(c, at, None, body)


def _mma(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    product = mma.find(i.name)
    if product is None:
        raise uncovered(f"`{i.name}`")
    d_type, a_type, b_type, c_type = product.registers
    puts = [c.write(o, d_type) for o in _vector(i.operands[0])]
    parts = [[c.read(o, t) for o in _vector(v)] for v, t in zip(i.operands[1:], (a_type, b_type, c_type), strict=True)]
    if (len(puts), *map(len, parts)) != product.counts:
        raise PtxError(f"`{i.text}` has other numbers of registers than its shape needs")

    def body(m: Machine) -> None:
        _scatter(m, puts, product.run(*(_gather(m, reads) for reads in parts)))
    return _collective(c, at, None, body)


def _wgmma(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    if m.name == "wgmma" and m.mods[0] in ("fence", "commit_group", "wait_group"):
        return _collective(c, at, None, lambda m: None)
    product = wgmma.find(i.name)
    if product is None:
        raise uncovered(f"`{i.name}`")
    sums, a, b, run, *rest = i.operands
    puts = [c.write(o, product.result) for o in _vector(sums)]
    takes = [c.read(o, product.result) for o in _vector(sums)]
    in_memory = not isinstance(a, Vector)
    sides = [c.read(o, "b32") for o in _vector(a)] if not in_memory else [c.read(a, "b64")]
    right, adds, flags = c.read(b, "b64"), c.read(run, "pred"), [c.read(o, "b32") for o in rest]
    if len(puts) != product.columns // 2 or len(flags) != 2 * product.signs + product.orders * (1 + in_memory) or \
            len(sides) != (1 if in_memory else 4):
        raise PtxError(f"`{i.text}` has other operands than its shape needs")

    def one(m: Machine, threads: Array, values: Array) -> int:
        found = np.unique(values[threads])
        if len(found) != 1:
            raise PtxError("threads of a group give different operands in shared memory")
        return int(found[0])

    def body(m: Machine) -> None:
        memory, out = m.spaces["shared"], np.stack([np.broadcast_to(r(m), m.width) for r in takes], 1)
        for first in np.flatnonzero(m.active[::LANES * wgmma.WARPS]) * LANES * wgmma.WARPS:
            threads = np.arange(first, first + LANES * wgmma.WARPS)
            given = [one(m, threads, np.broadcast_to(r(m), m.width)) for r in flags]
            if product.signs and given[:2] != [1, 1] or not np.broadcast_to(adds(m), m.width)[threads].all():
                raise PtxError(f"`{i.text}` has factors that the PTX interpreter does not cover")
            orders = [bool(x) for x in given[2:]] if product.orders else [False, False]
            if in_memory:
                left = wgmma.from_memory(memory, one(m, threads, np.broadcast_to(sides[0](m), m.width)), 64,
                                         product.a.bits // 8, orders[0])
            else:
                left = wgmma.from_registers(np.stack([np.broadcast_to(r(m), m.width)[threads] for r in sides], 1))
            descriptor = one(m, threads, np.broadcast_to(right(m), m.width))
            out[threads] = product.run(left, wgmma.from_memory(memory, descriptor, product.columns,
                                                               product.b.bits // 8, orders[-1]), out[threads])
        for j, put in enumerate(puts):
            put(m, np.ascontiguousarray(out[:, j]))
    return _collective(c, at, None, body, LANES * wgmma.WARPS)


def _assertion(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """CUDA's `assert`: the line is the number of the operation."""
    where = located(c, i.operands[2], "local", 4)

    def step(m: Machine) -> None:
        memory, offsets = where(m)
        raise PtxError(f"the assertion of operation {int(memory.load(offsets, 4)[0])} failed")
    return step


def _print(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """CUDA's `printf` of a format and the address of its values, which take 8 bytes each."""
    parameters = [located(c, o, "local", 8) for o in i.operands]

    def step(m: Machine) -> None:
        given = [memory.load(offsets, 8) for memory, offsets in (where(m) for where in parameters)]
        for thread, form, values in zip(np.flatnonzero(m.active), *given, strict=True):
            text, found = _string(m, int(form)), []
            for n, kind in enumerate(re.findall(r"%(ll[dux]|g|s)?", text)):
                if not kind:
                    raise uncovered(f"the format {text!r}")
                start = int(values) - WINDOWS["local"] + int(thread) * c.local + 8 * n
                raw = m.spaces["local"].data[start:start + 8].tobytes()
                found.append(_string(m, int.from_bytes(raw, "little")) if kind == "s" else
                             struct.unpack({"g": "<d", "lld": "<q"}.get(kind, "<Q"), raw)[0])
            sys.stdout.write(text.replace("%ll", "%") % tuple(found))
    return step


def _string(m: Machine, address: int) -> str:
    """The text at a generic address in global memory."""
    memory = m.spaces["global"]
    return memory.data[address - memory.base:].tobytes().partition(b"\0")[0].decode()


def _nothing(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    return lambda m: None


RULES: dict[str, Rule] = {
    "bra": _branch, "ret": _exit, "exit": _exit, "bar": _barrier, "barrier": _barrier, "shfl": _shuffle,
    "ldmatrix": _rows, "stmatrix": _rows, "mma": _mma, "wgmma": _wgmma, "__assertfail": _assertion, "vprintf": _print,
    "membar": _nothing, "fence": _nothing, "elect": _elect, "griddepcontrol": _nothing, "setmaxnreg": _registers,
}
