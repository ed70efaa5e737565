"""Instructions to steps: every operand becomes a register, constants and hardware registers included."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilelang.backends.emulator.ptx import forms
from tilelang.backends.emulator.ptx.forms import Mnemonic
from tilelang.backends.emulator.ptx.machine import LANES, Machine, Space, Step
from tilelang.backends.emulator.ptx.numbers import DTYPES, UNSIGNED, WIDE, Array
from tilelang.backends.emulator.ptx.parse import (
    TYPES,
    Address,
    Constant,
    Instruction,
    Kernel,
    Label,
    Operand,
    PtxError,
    Register,
    Special,
    Symbol,
    Vector,
    uncovered,
)

SHARED, GLOBAL, ARGUMENTS = 1024, 1 << 32, 1 << 48
"""Where the addresses of shared and global memory start, and those of parameters, which only name tensor maps."""
POISON = 0xA5
"""The bytes of registers and shared memory that nothing has written."""

Read = Callable[[Machine], Array]
Write = Callable[[Machine, Array], None]
Rule = Callable[["Builder", Instruction, Mnemonic, int], Step]
"""Makes the step of the instruction at an index."""


@dataclass
class Builder:
    """The steps of a kernel for a number of threads, and bytes of shared memory that the launch asks for. `registers`
    holds the initial values of every block, or cluster of blocks."""

    kernel: Kernel
    threads: int
    asked: int = 0
    registers: list[Array] = field(default_factory=list)
    slots: dict[Any, int] = field(default_factory=dict)
    arguments: dict[int, tuple[int, str]] = field(default_factory=dict)  # slot: offset and type

    def __post_init__(self) -> None:
        block = -(-self.threads // LANES) * LANES
        self.width = block * self.kernel.cluster
        self.thread, self.rank = np.arange(self.width) % block, np.arange(self.width) // block
        alignment = self.kernel.dynamic_alignment
        self.dynamic = -(-self.kernel.shared_bytes // alignment) * alignment  # where dynamic shared memory starts
        self.local = -(-self.kernel.local_bytes // 16) * 16  # bytes of a thread
        first, *others = self.shared().starts
        self.apart = others[0] - first if others else 0  # bytes between the shared memory of blocks

    # -- registers ----------------------------------------------------------------------------------------------------
    def slot(self, key: Any, initial: Callable[[], Array]) -> int:
        if key not in self.slots:
            self.slots[key] = len(self.registers)
            self.registers.append(initial())
        return self.slots[key]

    def register(self, r: Register) -> int:
        if not r.size:
            return self.slot(r, lambda: np.zeros(self.width, bool))
        return self.slot(r, lambda: np.full(self.width * r.size, POISON, np.uint8).view(UNSIGNED[r.size]))

    def carry(self) -> int:
        return self.slot("carry", lambda: np.zeros(self.width, bool))

    def constant(self, value: int, size: int) -> int:
        value &= (1 << 8 * size) - 1
        return self.slot((value, size), lambda: np.full(self.width, value, UNSIGNED[size]))

    def special(self, name: str) -> int:
        """Registers of the hardware. Those about the grid are set when it is known."""
        thread = self.thread.astype(np.uint32)
        known = {"%tid.x": thread, "%laneid": thread % LANES, "%warpid": thread // LANES,
                 "%ntid.x": np.full_like(thread, self.threads), "%cluster_ctarank": self.rank.astype(np.uint32)}
        one = ("%ntid.y", "%ntid.z", "%nctaid.y", "%nctaid.z")
        return self.slot(name, lambda: known.get(name, np.full_like(thread, name in one)))

    def place(self, s: Symbol, size: int) -> int:
        """A variable's address; blocks of a cluster have their own shared memory, one behind the other."""
        base = {"shared": SHARED, "dynamic": SHARED + self.dynamic, "global": GLOBAL, "local": 0,
                "arguments": ARGUMENTS}[s.space] + s.offset
        if s.space not in ("shared", "dynamic"):
            return self.constant(base, size)
        return self.slot((s, size), lambda: (base + self.rank * self.apart).astype(UNSIGNED[size]))

    def shared(self) -> Space:
        """The shared memory of a cluster."""
        return Space("shared", SHARED, [(self.dynamic + self.asked, 0)] * self.kernel.cluster, POISON)

    def argument(self, offset: int, t: str) -> int:
        slot = self.slot(("argument", offset, t), lambda: np.zeros(self.width, UNSIGNED[TYPES[t]]))
        self.arguments[slot] = offset, t
        return slot

    def source(self, operand: Operand, size: int) -> int:
        """The register that holds an operand; a number gets one of `size` bytes."""
        if isinstance(operand, Register):
            return self.register(operand)
        if isinstance(operand, Constant):
            if operand.is_float or size:
                return self.constant(operand.bits, size)
            return self.slot(("pred", operand.bits), lambda: np.full(self.width, bool(operand.bits)))
        if isinstance(operand, Special):
            return self.special(operand.name)
        if isinstance(operand, Symbol):
            return self.place(operand, size)
        raise PtxError(f"an operand {operand} where a register is needed")

    def read(self, operand: Operand, t: str) -> Read:
        """An operand as values of a type; of a wider register the low bits."""
        size, dtype = (0 if t == "pred" else TYPES[t]), DTYPES[t]
        slot = self.source(operand, size)
        if not size:
            return lambda m: m.registers[slot]
        own = self.registers[slot].dtype.itemsize
        if own < size:
            raise PtxError(f"a register of {own} bytes where {size} are needed")
        if own > size:
            low = UNSIGNED[size]
            return lambda m: m.registers[slot].astype(low).view(dtype)
        return lambda m: m.registers[slot].view(dtype)

    def write(self, operand: Operand, t: str) -> Write:
        """Stores values of a type; a wider register is filled by its sign, or zeros."""
        if operand is None:
            return lambda m, value: None
        if not isinstance(operand, Register):
            raise PtxError(f"a result {operand} that is not a register")
        slot, size = self.register(operand), operand.size
        if not size:
            return lambda m, value: m.put(slot, value)
        bits = UNSIGNED[size]
        if size == TYPES[t]:
            return lambda m, value: m.put(slot, value.view(bits))
        if size < TYPES[t]:
            raise PtxError(f"a register of {size} bytes for a result of type {t}")
        narrow = UNSIGNED[TYPES[t]]
        if t[0] == "s":
            return lambda m, value: m.put(slot, value.astype(DTYPES[f"s{8 * size}"]).view(bits))
        return lambda m, value: m.put(slot, value.view(narrow).astype(bits))

    def address(self, operand: Operand, size: int = 8) -> Read:
        """The addresses of the active threads."""
        if not isinstance(operand, Address):
            raise PtxError("an operand that is not an address")
        offset, base = operand.offset, operand.base
        if isinstance(base, Register):
            size = base.size
        slot = self.source(base, size)
        return lambda m: m.registers[slot][m.index].astype(np.int64) + offset

    # -- steps --------------------------------------------------------------------------------------------------------
    def steps(self, rules: dict[str, Rule]) -> list[Step]:
        """The kernel's steps; falling off its end is a `ret`."""
        out = []
        for at, i in enumerate((*self.kernel.code, Instruction("ret", (), None, "the end of the kernel"))):
            m = forms.mnemonic(i.name)
            try:
                form = forms.find(m)
                if m.name == "mov" and any(isinstance(o, Vector) for o in i.operands):
                    step = self.repack(i, m)
                elif form is not None:
                    step = self.compute(i, m, form)
                elif m.name in rules:
                    step = rules[m.name](self, i, m, at)
                else:
                    raise uncovered(f"`{i.name}`")
            except PtxError as e:
                e.why = e.why or f"in `{i.text}`"
                raise
            out.append(self.guarded(step, i, m))
        return out

    def compute(self, i: Instruction, m: Mnemonic, form: forms.Form) -> Step:
        types = {"t": m.type, "d": m.types[0], "w": WIDE.get(m.type, ""), "u": "u32", "p": "pred"}
        results, _, operands = form.signature.partition("=")
        first, *given = i.operands
        out = first.items if isinstance(first, Vector) else (first,)
        operands += "p" * (m.name == "setp" and len(given) > 2)
        f = forms.function(form, m)
        take = [self.read(o, types[c]) for c, o in zip(operands.replace("c", ""), given, strict=True)]
        if "c" in operands:
            carry = self.carry()
            take.append(lambda m: m.registers[carry])
        if len(results) == 1:
            put = self.write(out[0], types[results])
            if len(take) == 1:
                (a,) = take
                return lambda m: put(m, f(a(m)))
            if len(take) == 2:
                a, b = take
                return lambda m: put(m, f(a(m), b(m)))
            return lambda m: put(m, f(*[x(m) for x in take]))
        puts = [self.write(o, types[c]) for c, o in zip(results.replace("c", ""), out, strict=False)]
        if "c" in results:
            slot = self.carry()
            puts.append(lambda m, value: m.put(slot, value))

        def step(m: Machine) -> None:
            for put, value in zip(puts, f(*[x(m) for x in take]), strict=False):
                put(m, value)
        return step

    def repack(self, i: Instruction, m: Mnemonic) -> Step:
        """`mov` between a register and the parts of it."""
        whole, result = m.type, i.operands[0]
        if isinstance(result, Vector):
            part = f"b{8 * TYPES[whole] // len(result.items)}"
            take, dtype = self.read(i.operands[1], whole), DTYPES[part]
            puts = [self.write(o, part) for o in result.items]

            def split(m: Machine) -> None:
                parts = take(m).view(dtype).reshape(m.width, -1)
                for j, put in enumerate(puts):
                    put(m, np.ascontiguousarray(parts[:, j]))
            return split
        vector = i.operands[1]
        assert isinstance(vector, Vector)
        part = f"b{8 * TYPES[whole] // len(vector.items)}"
        takes, write, joined = [self.read(o, part) for o in vector.items], self.write(result, whole), DTYPES[whole]
        return lambda m: write(m, np.stack([take(m) for take in takes], 1).view(joined)[:, 0])

    def guarded(self, step: Step, i: Instruction, m: Mnemonic) -> Step:
        if i.guard is None or m.name in ("bra", "ret", "exit"):
            return step
        holds = self.guard(i)

        def run(m: Machine) -> None:
            before, who = m.active, m.active & holds(m)
            if who.any():
                m.activate(who)
                if step(m) is not None:
                    raise PtxError("threads diverge at a guarded instruction")
                m.activate(before)
        return run

    def guard(self, i: Instruction) -> Read:
        assert i.guard is not None
        register, negated = i.guard
        slot = self.register(register)
        return (lambda m: ~m.registers[slot]) if negated else (lambda m: m.registers[slot])

    def target(self, operand: Operand) -> int:
        assert isinstance(operand, Label)
        if operand.name not in self.kernel.labels:
            raise PtxError(f"there is no label {operand.name}")
        return self.kernel.labels[operand.name]
