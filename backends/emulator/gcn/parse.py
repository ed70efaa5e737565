"""The assembly of AMD's GPUs as LLVM writes it, of one wave (LLVM's "User Guide for AMDGPU Backend")."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from tilelang.errors import TileError


class GcnError(TileError):
    """Assembly that the interpreter does not cover, or that does what it must not."""


class Operand(NamedTuple):
    """`kind` is "v" (vector registers, accumulation registers from 256 on), "s" (scalar registers) or "" (a constant,
    as text); `size` registers from `first` on."""

    kind: str
    first: int = 0
    size: int = 1
    text: str = ""
    negative: bool = False
    absolute: bool = False


@dataclass(frozen=True)
class Instruction:
    """`name` is without the suffix of its encoding; `form` is "dpp" or "sdwa" where that matters."""

    name: str
    form: str
    operands: tuple[Operand, ...]
    modifiers: dict[str, str]
    text: str


@dataclass
class Kernel:
    """The code of a kernel, where its labels stand, and its directives `.amdhsa_*` as numbers."""

    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    directives: dict[str, int] = field(default_factory=dict)


NAMED = {"vcc": (106, 2), "vcc_lo": (106, 1), "vcc_hi": (107, 1), "m0": (124, 1), "exec": (126, 2),
         "exec_lo": (126, 1), "exec_hi": (127, 1)}
_REGISTERS = re.compile(r"([vas])(?:(\d+)|\[(\d+):(\d+)\])")


@lru_cache(maxsize=4096)
def operand(text: str) -> Operand:
    """One operand."""
    bare, negative, absolute = text, False, False
    if re.match(r"-[vas|]", bare):
        bare, negative = bare[1:], True
    if bare.startswith("|"):
        bare, absolute = bare[1:-1], True
    if bare in NAMED:
        return Operand("s", *NAMED[bare], text, negative, absolute)
    if found := _REGISTERS.fullmatch(bare):
        first = int(found[2] or found[3])
        count = 1 if found[2] else int(found[4]) - first + 1
        kind, first = ("v", first + 256) if found[1] == "a" else (found[1], first)
        return Operand(kind, first, count, text, negative, absolute)
    return Operand("", 0, 1, text)


def _instruction(text: str) -> Instruction:
    name, _, rest = text.partition(" ")
    form = ""
    if found := re.fullmatch(r"(.*)_(e32|e64|dpp|sdwa)", name):
        name, form = found[1], found[2] if found[2] in ("dpp", "sdwa") else ""
    parts = [p for p in re.findall(r"(?:[^,\[(]|\[[^\]]*\]|\([^)]*\))+", rest) if p.strip()]
    # What follows the last operand after blanks are modifiers.
    words = re.findall(r"(?:[^\s\[(]|\[[^\]]*\]|\([^)]*\))+", parts[-1]) if parts else []
    if name in ("s_waitcnt", "s_nop"):
        operands, extra = [], words
    else:
        operands, extra = [*parts[:-1], *words[:1]], words[1:]
    modifiers = {}
    for word in extra:
        key, separator, value = word.partition("(" if name == "s_waitcnt" else ":")
        modifiers[key] = value.rstrip(")") if name == "s_waitcnt" else value if separator else "1"
    return Instruction(name, form, tuple(operand(o.strip()) for o in operands), modifiers, text)


@lru_cache(maxsize=16)
def kernels(listing: str) -> dict[str, Kernel]:
    """The kernels of a listing, by name."""
    out: dict[str, Kernel] = {}
    functions: dict[str, Kernel] = {}
    current: Kernel | None = None
    about = ""
    for line in listing.splitlines():
        text = " ".join(line.split(";")[0].split())
        if not text:
            continue
        if found := re.fullmatch(r"([\w.$]+):", text):
            if current is None or not found[1].startswith(".L"):
                current = functions[found[1]] = Kernel()
            current.labels[found[1]] = len(current.code)
        elif text.startswith(".amdhsa_kernel "):
            about = text.split()[1]
            out[about] = functions[about]
        elif about and (found := re.fullmatch(r"\.amdhsa_(\w+) (\d+)", text)):
            out[about].directives[found[1]] = int(found[2])
        elif not text.startswith(".") and current is not None:
            current.code.append(_instruction(text))
    return out
