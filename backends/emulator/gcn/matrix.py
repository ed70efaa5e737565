"""Matrix instructions (AMD's instruction set manuals, section "Matrix Arithmetic Instructions")."""
from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np

from tilelang.backends.emulator.gcn.parse import GcnError, Instruction
from tilelang.backends.emulator.gcn.wave import F32, F64, I32, LANE, U32, Array, Wave

NAME = re.compile(r"v_mfma_(f32|i32|f64)_(16x16|32x32)x(\d+)_?"
                  r"(f16|bf16_1k|bf16|xf32|f32|f64|i8|(?:fp|bf)8_(?:fp|bf)8)")
SMALL = re.compile(r"v_mfma_(scale_)?f32_(16x16x128|32x32x64)_f8f6f4")
FORMATS = ((8, 3), (8, 2), (6, 3), (6, 2), (4, 1))
"""Bits and mantissa of the formats that `cbsz` names for A and `blgp` for B (CDNA4)."""


@lru_cache(maxsize=8)
def _small(mantissa: int, fnuz: bool, width: int = 8) -> Array:
    """The values of the codes of floats of 4, 6 or 8 bits, of which only those of 8 have some that are no numbers
    (`fnuz`: the exponent's bias is one more, and 0x80 the one NaN)."""
    code, sign = np.arange(1 << width), 1 << width - 1
    exponent, fraction = (code & sign - 1) >> mantissa, code & (1 << mantissa) - 1
    bias = (1 << width - mantissa - 2) - (0 if fnuz else 1)
    value = np.where(exponent > 0, np.ldexp(1 + fraction / (1 << mantissa), exponent - bias),
                     np.ldexp(fraction / (1 << mantissa), 1 - bias))
    value = np.where(code & sign, -value, value)
    if width < 8:
        return value
    if fnuz:
        value[128] = np.nan
    elif mantissa == 3:
        value[(code & 127) == 127] = np.nan
    else:
        top = exponent == 31
        value[top] = np.where(fraction[top] > 0, np.nan, np.where(code[top] & 128, -np.inf, np.inf))
    return value


def _decoded(words: Array, kind: str, fnuz: bool) -> Array:
    """The numbers in the registers of each lane, the lowest first [64, n]."""
    if kind == "f16":
        return words.view(np.float16).astype(np.float64)
    if kind.startswith("bf16"):
        return (words.view(np.uint16).astype(U32) << 16).view(F32).astype(np.float64)
    if kind == "i8":
        return words.view(np.int8).astype(np.float64)
    if kind in ("fp8", "bf8"):
        return _small(3 if kind == "fp8" else 2, fnuz)[words.view(np.uint8)]
    if kind == "xf32":  # of the mantissa ten bits
        return (words.view(U32) & np.uint32(0xffffe000)).view(F32).astype(np.float64)
    return words.view(F32 if kind == "f32" else F64).astype(np.float64)


def mfma(w: Wave, i: Instruction, fnuz: bool) -> None:
    """D = A B + C: lane l holds row (column) l % M of A (B), and of k those of group l / M; of D column l % M."""
    found = NAME.fullmatch(i.name)
    if found is None or i.modifiers:
        raise GcnError(f"`{i.text}` is not covered by the interpreter of AMD's assembly")
    if not w.active.all():
        raise GcnError("a matrix instruction needs all lanes", why=f"in `{i.text}`")
    m, depth = int(found[2][:2]), int(found[3])
    kinds = found[4].split("_") if "8_" in found[4] else [found[4]] * 2
    t = {"f32": F32, "i32": I32, "f64": F64}[found[1]]
    parts, each = 64 // m, depth * m // 64
    blocks = [_decoded(w.registers(o, o.size), kind, fnuz) for o, kind in zip(i.operands[1:3], kinds, strict=True)]
    if any(b.shape[1] != each for b in blocks):
        raise GcnError("a matrix instruction with registers of another size", why=f"in `{i.text}`")
    # [lane, n] -> [row, k]
    a, b = (block.reshape(parts, m, each).transpose(1, 0, 2).reshape(m, depth) for block in blocks)
    _add(w, i, a @ b.T, m, t)


def _add(w: Wave, i: Instruction, product: Array, m: int, t: np.dtype[Any]) -> None:
    """Writes a product and what it is added to."""
    count, parts = m * m // 64, 64 // m
    run = 1 if t is F64 else 4
    r = np.arange(count)
    rows = (LANE[:, None] // m) * run + r // run * (run * parts) + r % run
    c = i.operands[3]
    words = count * t.itemsize // 4
    start = w.registers(c, words).view(t) if c.kind else np.zeros((64, count), t)
    w.write_words(i.operands[0], (product[rows, LANE[:, None] % m] + start).astype(t).view(U32))


def small(w: Wave, i: Instruction) -> None:
    """D = A B + C of floats of 4 to 8 bits, each row (column) by a power of two for 32 neighbours along k: lane l
    holds of row (column) l % M the 32 elements of group l / M, but of 8 bits two runs of 16, half of k apart, and the
    scale of that group, in the byte that `op_sel` names. Without scales, they are 1."""
    found = SMALL.fullmatch(i.name)
    if found is None or not i.modifiers.keys() <= {"cbsz", "blgp", "op_sel", "op_sel_hi"}:
        raise GcnError(f"`{i.text}` is not covered by the interpreter of AMD's assembly")
    if not w.active.all():
        raise GcnError("a matrix instruction needs all lanes", why=f"in `{i.text}`")
    m = int(found[2][:2])
    parts, sides = 64 // m, []
    low, high = (_bits(i.modifiers.get(k, "")) for k in ("op_sel", "op_sel_hi"))
    for n, (o, key) in enumerate(zip(i.operands[1:3], ("cbsz", "blgp"), strict=True)):
        width, mantissa = FORMATS[int(i.modifiers.get(key, "0"))]
        if o.size != width:  # 32 of them in words of 32 bits
            raise GcnError("a matrix instruction with registers of another size", why=f"in `{i.text}`")
        bits = np.unpackbits(w.registers(o, o.size).view(np.uint8), axis=1, bitorder="little").reshape(64, 32, width)
        value = _small(mantissa, False, width)[(bits * (1 << np.arange(width))).sum(2)]
        runs = 2 if width == 8 else 1
        # [part, row, run, n] -> [row, k]
        value = value.reshape(parts, m, runs, 32 // runs).transpose(1, 2, 0, 3).reshape(m, parts, 32)
        if found[1]:
            code = w.registers(i.operands[4 + n], 1)[:, 0] >> np.uint32(8 * (low[n] + 2 * high[n])) & np.uint32(255)
            scale = np.where(code == 255, np.nan, np.ldexp(1.0, code.astype(int) - 127))
            value = value * scale.reshape(parts, m).T[:, :, None]
        sides.append(value.reshape(m, parts * 32))
    _add(w, i, sides[0] @ sides[1].T, m, F32)


def _bits(text: str) -> list[int]:
    return [int(x) for x in text.strip("[]").split(",")] if text else [0, 0, 0]
