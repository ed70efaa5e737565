"""The state of one wave: registers, and how instructions read and write them."""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tilelang.backends.emulator.gcn.parse import GcnError, Instruction, Operand

Array = np.ndarray[Any, Any]
LANES = 64
LANE = np.arange(LANES)
VCC, M0, EXEC = 106, 124, 126
ALL = (1 << 64) - 1
U8, U16, U32, U64 = (np.dtype(f"u{n}") for n in (1, 2, 4, 8))
I16, I32, I64 = (np.dtype(f"i{n}") for n in (2, 4, 8))
F16, F32, F64 = (np.dtype(f"f{n}") for n in (2, 4, 8))
UNSIGNED = {1: U8, 2: U16, 4: U32, 8: U64}
Rule = Callable[["Wave", Instruction], None]


class Wave:
    """Registers are `v` [512, 64] (those for accumulation from 256 on) and `s`; `arriving` are the accesses to global
    memory under way, oldest first: what is still to be done when each ends. `jump` is the label to go on at."""

    def __init__(self, threads: int, memory: Any, local: Any) -> None:
        self.v = np.full((512, LANES), 0xa5a5a5a5, U32)
        self.s = [0xa5a5a5a5] * 128
        self.scc, self.jump = False, ""
        self.memory, self.local = memory, local
        self.arriving: list[Callable[[], None] | None] = []
        self.set_scalar(Operand("s", EXEC, 2), (1 << threads) - 1)

    def arrive(self, left: int) -> None:
        """Waits until at most `left` accesses are under way."""
        while len(self.arriving) > left:
            end = self.arriving.pop(0)
            if end is not None:
                end()

    # -- scalars ------------------------------------------------------------------------------------------------------
    def scalar(self, o: Operand, bits: int = 32, signed: bool = False) -> int:
        """A scalar operand as a number."""
        if o.kind == "v":
            raise GcnError("a vector register where a scalar is needed", got=o.text)
        if o.kind:
            value = self.s[o.first] | (self.s[o.first + 1] << 32 if bits == 64 else 0)
        else:
            value = _constant(o.text, bits)
        value &= (1 << bits) - 1
        return value - (1 << bits) if signed and value >> bits - 1 else value

    def set_scalar(self, o: Operand, value: int) -> None:
        """Writes a scalar register, or a pair."""
        self.s[o.first] = value & 0xffffffff
        if o.size == 2:
            self.s[o.first + 1] = value >> 32 & 0xffffffff

    def mask(self, o: Operand) -> Array:
        """A pair of scalar registers as a truth for each lane."""
        return (np.uint64(self.scalar(o, 64)) >> LANE.astype(U64) & np.uint64(1)).astype(bool)

    def set_mask(self, o: Operand, truth: Array) -> None:
        """Writes one, false for lanes that are not active."""
        bits = np.packbits(truth & self.active, bitorder="little").view(U64)[0]
        self.set_scalar(Operand("s", o.first, 2), int(bits))

    @property
    def active(self) -> Array:
        """Which lanes take part."""
        return self.mask(Operand("s", EXEC, 2))

    # -- vectors ------------------------------------------------------------------------------------------------------
    def registers(self, o: Operand, count: int) -> Array:
        """Words [64, count] of an operand."""
        if o.kind == "v":
            return self.v[o.first:o.first + count].T.copy()
        if o.kind:
            return np.tile(np.array(self.s[o.first:o.first + count], U32), (LANES, 1))
        return np.zeros((LANES, count), U32) | np.array([_constant(o.text, 32) & 0xffffffff], U32)

    def read(self, o: Operand, t: np.dtype[Any]) -> Array:
        """A value of a type for each lane."""
        size = t.itemsize
        if not o.kind:
            bits = _constant(o.text, 8 * size, t.kind == "f") & (1 << 8 * size) - 1
            return np.full(LANES, bits, UNSIGNED[size]).view(t)
        words = self.registers(o, max(size // 4, 1))
        value = words.view(t)[:, 0] if size >= 4 else words.view(UNSIGNED[size])[:, 0].copy().view(t)
        value = np.abs(value) if o.absolute else value
        return -value if o.negative else value

    def source(self, i: Instruction, n: int, t: np.dtype[Any]) -> Array:
        """Operand n of an instruction, as its form moves or cuts it."""
        value = self.read(i.operands[n], t)
        if i.form == "dpp" and n == 1:
            return self._moved(value, i.modifiers)
        if i.form == "sdwa" and (select := i.modifiers.get(f"src{n - 1}_sel", "DWORD")) != "DWORD":
            what, number = select.split("_")
            width = 8 if what == "BYTE" else 16
            word = self.registers(i.operands[n], 1)[:, 0]  # of instructions of 16 bits, too
            value = (word >> U32.type(width * int(number)) & U32.type((1 << width) - 1)).astype(
                UNSIGNED[t.itemsize]).view(t)
        return value

    def _moved(self, value: Array, modifiers: dict[str, str]) -> Array:
        """Values as data-parallel primitives take them from other lanes of the row of 16."""
        row, place = LANE & ~15, LANE & 15
        known: dict[str, Callable[[str], Array]] = {
            "quad_perm": lambda x: (LANE & ~3) + np.array([int(k) for k in x.strip("[]").split(",")])[LANE & 3],
            "row_mirror": lambda x: row + 15 - place, "row_half_mirror": lambda x: (LANE & ~7) + 7 - (LANE & 7),
            "row_ror": lambda x: row + (place - int(x)) % 16,
            "row_shr": lambda x: np.where(place >= int(x), LANE - int(x), -1),
            "row_shl": lambda x: np.where(place + int(x) < 16, LANE + int(x), -1)}
        name = next((k for k in modifiers if k in known), None)
        if name is None or (modifiers.get("row_mask"), modifiers.get("bank_mask")) != ("0xf", "0xf"):
            raise GcnError("this movement of lanes is not covered", got=str(modifiers))
        source = known[name](modifiers[name])
        return np.where((source >= 0) & self.active[source], value[source], value.dtype.type(0))

    def result(self, i: Instruction, value: Array) -> None:
        """Writes what an instruction gives, to the part of a register that its form names; the rest becomes 0."""
        if i.form == "sdwa" and (select := i.modifiers.get("dst_sel", "DWORD")) != "DWORD":
            if (unused := i.modifiers.get("dst_unused")) != "UNUSED_PAD":
                raise GcnError("this use of parts of registers is not covered", got=str(unused))
            what, number = select.split("_")
            width = 8 if what == "BYTE" else 16
            word = np.ascontiguousarray(value).view(UNSIGNED[value.dtype.itemsize]).astype(U32)
            value = (word & U32.type((1 << width) - 1)) << U32.type(width * int(number))
        self.write(i.operands[0], value)

    def write(self, o: Operand, value: Array) -> None:
        """A value for each lane, into the active ones; small ones take the low part of a register."""
        size = value.dtype.itemsize
        words = np.ascontiguousarray(value).view(UNSIGNED[size])
        self.write_words(o, words.astype(U32)[:, None] if size <= 4 else
                         np.stack([words & U64.type(0xffffffff), words >> U64.type(32)], 1).astype(U32))

    def write_words(self, o: Operand, words: Array) -> None:
        """Words [64, count] into the registers of the active lanes."""
        if o.kind != "v":
            raise GcnError("a result for each lane needs a vector register", got=o.text)
        for k in range(words.shape[1]):
            self.v[o.first + k] = np.where(self.active, words[:, k], self.v[o.first + k])


def _constant(text: str, bits: int, real: bool = False) -> int:
    """The bits of a constant; one with a point is a float, of `bits`, and a long literal of 64 its upper half."""
    if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", text):
        return int(np.array(float(text), f"f{bits // 8}").view(UNSIGNED[bits // 8]))
    try:
        value = int(text, 0)
    except ValueError:
        raise GcnError("this operand is not covered", got=text) from None
    return value << 32 if real and bits == 64 and text.startswith("0x") else value
