"""Loads, stores, async copies and atomics."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilelang.backends.emulator.ptx import bulk
from tilelang.backends.emulator.ptx.build import Builder, Rule
from tilelang.backends.emulator.ptx.forms import WINDOWS, Mnemonic
from tilelang.backends.emulator.ptx.machine import Machine, Space, Step
from tilelang.backends.emulator.ptx.numbers import DTYPES, Array
from tilelang.backends.emulator.ptx.parse import (
    TYPES,
    Address,
    Instruction,
    Operand,
    PtxError,
    Symbol,
    Vector,
    uncovered,
)

SPACES = ("global", "shared", "local", "param", "const")
_CACHING = {"ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "volatile", "weak", "relaxed", "acquire", "release",
            "acq_rel", "cta", "cluster", "gpu", "sys", "v2", "v4", "noftz", "async"}


def _checked(m: Mnemonic, *known: str) -> None:
    unknown = set(m.mods) - _CACHING - set(known) - set(SPACES)
    if unknown := {u for u in unknown if not u.startswith(("L1::", "L2::"))}:
        raise uncovered(f"`{m.name}` with `.{sorted(unknown)[0]}`")


def _space(m: Mnemonic, address: Operand) -> str:
    """The space an access names: "" for generic addresses. Parameters of calls are variables of the caller."""
    space = m.one_of(*SPACES)
    if space == "param":
        base = address.base if isinstance(address, Address) else None
        return base.space if isinstance(base, Symbol) else "local"
    return "global" if space == "const" else space


def located(c: Builder, address: Operand, space: str, size: int,
            partly: bool = False) -> Callable[[Machine], tuple[Space, Array]]:
    """The space and the offsets that the active threads access, checked."""
    at = c.address(address)
    if space == "local":
        def local(m: Machine) -> tuple[Space, Array]:
            a = at(m)
            if ((a < 0) | (a + size > c.local)).any():
                raise PtxError("an access outside the thread's local memory")
            memory = m.spaces["local"]
            return memory, memory.check(np.arange(m.width)[m.index] * c.local + a, size)
        return local
    if space:
        def direct(m: Machine) -> tuple[Space, Array]:
            memory = m.spaces[space]
            return memory, memory.check(at(m), size, partly)
        return direct

    def generic(m: Machine) -> tuple[Space, Array]:
        a = at(m)
        window = "shared" if a.size and (a >= WINDOWS["shared"]).all() else "global"
        memory = m.spaces[window]
        return memory, memory.check(a - WINDOWS.get(window, 0), size)
    return generic


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


def _load(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    _checked(m)
    result, address = i.operands
    size, space, dtype = TYPES[m.type], _space(m, address), DTYPES[m.type]
    puts = [c.write(o, m.type) for o in _items(result)]
    if space == "arguments":
        assert isinstance(address, Address) and isinstance(address.base, Symbol)
        start = address.base.offset + address.offset
        slots = [c.argument(start + j * size, m.type) for j in range(len(puts))]

        def argument(m: Machine) -> None:
            for put, slot in zip(puts, slots, strict=True):
                put(m, m.registers[slot].view(dtype))
        return argument
    where = located(c, address, space, size * len(puts))

    def step(m: Machine) -> None:
        memory, offsets = where(m)
        for j, put in enumerate(puts):
            put(m, m.spread(memory.load(offsets + j * size, size)).view(dtype))
    return step


def _store(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    _checked(m)
    address, value = i.operands
    size = TYPES[m.type]
    takes = [c.read(o, f"b{8 * size}") for o in _items(value)]
    where = located(c, address, _space(m, address), size * len(takes))

    def step(m: Machine) -> None:
        memory, offsets = where(m)
        for j, take in enumerate(takes):
            memory.store(offsets + j * size, take(m)[m.index])
    return step


# -- async copies -----------------------------------------------------------------------------------------------------
def _async(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    if "bulk" in m.mods:
        return bulk.copy(c, i, m, at)
    _checked(m, "commit_group", "wait_group", "wait_all", "16")
    if "commit_group" in m.mods:
        return _commit
    if "wait_all" in m.mods:
        return lambda m: _land(m, 0, True)
    if "wait_group" in m.mods:
        pending = c.read(i.operands[0], "u32")
        return lambda m: _land(m, int(pending(m)[0]), False)
    to, source, bytes_, *rest = i.operands
    size = int(c.registers[c.source(bytes_, 4)][0])
    wanted = c.read(rest[0] if rest else bytes_, "u32")
    target, origin = located(c, to, "shared", size), c.address(source)
    unit = min(size, 8)  # in words that NumPy has

    def step(m: Machine) -> None:
        """Reads now and writes at the wait: late, as the hardware may. Bytes that are not wanted are zeros."""
        memory, count = m.spaces["global"], wanted(m)[m.index].astype(np.int64)
        if not np.isin(count, (0, size)).all():
            raise uncovered(f"an async copy of other than 0 or {size} bytes")
        _, places = target(m)
        read = count > 0
        offsets = memory.check(origin(m)[read], size)
        words = np.zeros((len(places), size // unit), f"u{unit}")
        for j in range(size // unit):
            words[read, j] = memory.load(offsets + j * unit, unit)
        threads = np.flatnonzero(m.active)
        m.copies.append((threads, m.group[threads], places, words))
    return step


def _commit(m: Machine) -> None:
    m.group = m.group + m.active


def _land(m: Machine, pending: int, all_: bool) -> None:
    """Copies of the active threads arrive, but for the last `pending` groups and those not committed."""
    left = []
    for threads, groups, places, words in m.copies:
        done = m.active[threads] & (all_ | (groups < m.group[threads] - pending))
        for j in range(words.shape[1]):
            m.spaces["shared"].store(places[done] + j * words.itemsize, words[done, j])
        if not done.all():
            keep = ~done
            left.append((threads[keep], groups[keep], places[keep], words[keep]))
    m.copies = left


# -- atomics ----------------------------------------------------------------------------------------------------------
_ATOMS: dict[str, Callable[..., Any]] = {
    "add": lambda old, b: old + b,
    "min": min,
    "max": max,
    "and": lambda old, b: old & b,
    "or": lambda old, b: old | b,
    "xor": lambda old, b: old ^ b,
    "exch": lambda old, b: b,
    "cas": lambda old, b, new: new if old == b else old,
}


def _atomic(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """One thread after another. Those on bits may reach past a buffer: the prelude changes a few bits in the aligned
    word around them and leaves the others alone."""
    _checked(m, *_ATOMS)
    bits = m.one_of("and", "or") != ""
    f = _ATOMS[m.one_of(*_ATOMS)]
    result, address, *values = i.operands if m.name == "atom" else (None, *i.operands)
    dtype = DTYPES[m.type]
    put, takes = c.write(result, m.type), [c.read(o, m.type) for o in values]
    where = located(c, address, _space(m, address), TYPES[m.type], bits)

    def step(m: Machine) -> None:
        memory, offsets = where(m)
        cells, given = memory.data.view(dtype), [take(m)[m.index] for take in takes]
        old = np.empty(len(offsets), dtype)
        for j, cell in enumerate(offsets // old.itemsize):
            old[j] = cells[cell]
            cells[cell] = f(old[j], *(g[j] for g in given))
        put(m, m.spread(old))
    return step


RULES: dict[str, Rule] = {"ld": _load, "ldu": _load, "st": _store, "cp": _async, "atom": _atomic, "red": _atomic}
