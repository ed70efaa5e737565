"""Instructions on scalar and vector registers, and control (AMD's instruction set manuals, chapters 12 and 13)."""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tilelang.backends.emulator.gcn.parse import GcnError, Instruction, Operand
from tilelang.backends.emulator.gcn.wave import (
    ALL,
    EXEC,
    F16,
    F32,
    F64,
    I16,
    I32,
    I64,
    LANE,
    LANES,
    U8,
    U16,
    U32,
    U64,
    VCC,
    Array,
    Rule,
    Wave,
)

RULES: dict[str, Rule] = {}
_EXEC, _VCC = Operand("s", EXEC, 2), Operand("s", VCC, 2)
_TYPES = {"u16": U16, "i16": I16, "b32": U32, "u32": U32, "i32": I32, "b64": U64, "u64": U64, "i64": I64, "f32": F32,
          "f64": F64, "b16": U16, "f16": F16}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": lambda a, b: a < b, "eq": lambda a, b: a == b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b,
    "ne": lambda a, b: a != b, "ge": lambda a, b: a >= b, "lg": lambda a, b: (a < b) | (a > b),
    "u": lambda a, b: (a != a) | (b != b), "o": lambda a, b: (a == a) & (b == b)}


# ---- scalars
def _scalar(name: str, bits: int, f: Callable[[int, int], int], signed: bool = False, scc: str = "nonzero",
            amount: bool = False) -> None:
    """`amount`: the second operand is one to shift by. `scc` tells what the status becomes: "nonzero", "carry" (out of
    the bits) or "" (as it was)."""
    def rule(w: Wave, i: Instruction) -> None:
        a, b = (w.scalar(o, bits, signed) for o in (i.operands[1], i.operands[-1]))
        value = f(a, w.scalar(i.operands[2]) % bits if amount else b)
        w.set_scalar(i.operands[0], value & (1 << bits) - 1)
        if scc:
            w.scc = bool(value & (1 << bits) - 1) if scc == "nonzero" else not 0 <= value < 1 << bits
    RULES[name] = rule


for _bits in (32, 64):
    _b = f"b{_bits}"
    _scalar(f"s_and_{_b}", _bits, lambda a, b: a & b)
    _scalar(f"s_or_{_b}", _bits, lambda a, b: a | b)
    _scalar(f"s_xor_{_b}", _bits, lambda a, b: a ^ b)
    _scalar(f"s_andn2_{_b}", _bits, lambda a, b: a & ~b)
    _scalar(f"s_lshl_{_b}", _bits, lambda a, b: a << b, amount=True)
    _scalar(f"s_lshr_{_b}", _bits, lambda a, b: a >> b, amount=True)
    _scalar(f"s_mov_{_b}", _bits, lambda a, _: a, scc="")
_scalar("s_not_b32", 32, lambda a, _: ~a)
_scalar("s_ashr_i32", 32, lambda a, b: a >> b, signed=True, amount=True)
_scalar("s_brev_b32", 32, lambda a, _: int(f"{a:032b}"[::-1], 2), scc="")
_scalar("s_add_u32", 32, lambda a, b: a + b, scc="carry")
_scalar("s_sub_u32", 32, lambda a, b: a - b, scc="carry")
_scalar("s_mul_i32", 32, lambda a, b: a * b, scc="")
for _t in "iu":  # the status of signed sums is overflow, which nothing here asks for
    _scalar(f"s_max_{_t}32", 32, max, signed=_t == "i")
    _scalar(f"s_min_{_t}32", 32, min, signed=_t == "i")
_scalar("s_add_i32", 32, lambda a, b: a + b, scc="")
_scalar("s_sub_i32", 32, lambda a, b: a - b, scc="")


def _carrying(name: str, sign: int) -> None:
    def rule(w: Wave, i: Instruction) -> None:
        value = w.scalar(i.operands[1]) + sign * (w.scalar(i.operands[2]) + w.scc)
        w.set_scalar(i.operands[0], value)
        w.scc = not 0 <= value < 1 << 32
    RULES[name] = rule


_carrying("s_addc_u32", 1)
_carrying("s_subb_u32", -1)


def _movk(w: Wave, i: Instruction) -> None:
    value = w.scalar(i.operands[1]) & 0xffff
    w.set_scalar(i.operands[0], value - (value >> 15 << 16))


def _select(bits: int) -> Rule:
    return lambda w, i: w.set_scalar(i.operands[0], w.scalar(i.operands[1 if w.scc else 2], bits))


def _first_bit(w: Wave, i: Instruction) -> None:
    value = w.scalar(i.operands[1], 64)
    w.set_scalar(i.operands[0], (value & -value).bit_length() - 1)


def _bit(wanted: int) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        w.scc = w.scalar(i.operands[0]) >> (w.scalar(i.operands[1]) & 31) & 1 == wanted
    return rule


def _saving(f: Callable[[int, int], int]) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        old, given = w.scalar(_EXEC, 64), w.scalar(i.operands[1], 64)
        w.set_scalar(i.operands[0], old)
        w.set_scalar(_EXEC, f(given, old) & ALL)
        w.scc = w.scalar(_EXEC, 64) != 0
    return rule


def _compared(f: Callable[[Any, Any], Any], bits: int, signed: bool) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        w.scc = bool(f(*(w.scalar(o, bits, signed) for o in i.operands)))
    return rule


for _name, _f in _COMPARE.items():
    for _t, _signed in (("i32", True), ("u32", False), ("u64", False)):
        RULES[f"s_cmp_{_name}_{_t}"] = _compared(_f, int(_t[1:]), _signed)
RULES |= {"s_movk_i32": _movk, "s_cselect_b32": _select(32), "s_cselect_b64": _select(64), "s_ff1_i32_b64": _first_bit,
          "s_bitcmp0_b32": _bit(0), "s_bitcmp1_b32": _bit(1), "s_and_saveexec_b64": _saving(lambda a, b: a & b),
          "s_or_saveexec_b64": _saving(lambda a, b: a | b), "s_andn2_saveexec_b64": _saving(lambda a, b: a & ~b)}

# ---- vectors
_Binary = Callable[[Array, Array], Array]
_BINARY: dict[str, tuple[str, _Binary]] = {
    "and": ("b32", lambda a, b: a & b), "or": ("b32", lambda a, b: a | b), "xor": ("b32", lambda a, b: a ^ b),
    "add": ("u16 u32 f16 f32 f64", lambda a, b: a + b), "sub": ("u16 u32 f32", lambda a, b: a - b),
    "subrev": ("u32", lambda a, b: b - a), "mul": ("f32 f64", lambda a, b: a * b),
    "mul_lo": ("u16 u32", lambda a, b: a * b),
    "max": ("i32 u32 f16 f32 f64", np.fmax), "min": ("i32 u32 f16 f32 f64", np.fmin),
    "lshlrev": ("b16 b32 b64", lambda a, b: b << (a & b.dtype.type(8 * b.itemsize - 1))),
    "lshrrev": ("b16 b32 b64", lambda a, b: b >> (a & b.dtype.type(8 * b.itemsize - 1))),
    "ashrrev": ("i32 i64", lambda a, b: b >> (a & b.dtype.type(8 * b.itemsize - 1)))}


def _elementwise(count: int, f: Callable[..., Array], *types: np.dtype[Any]) -> Rule:
    return lambda w, i: w.result(i, f(*(w.source(i, n + 1, types[n % len(types)]) for n in range(count))))


for _name, (_list, _f) in _BINARY.items():
    for _t in _list.split():
        RULES[f"v_{_name}_{_t}"] = _elementwise(2, _f, _TYPES[_t])
for _t in ("b64", "i64"):  # the amount is of 32 bits
    for _name in ("lshlrev", "lshrrev", "ashrrev"):
        if f"v_{_name}_{_t}" in RULES:
            RULES[f"v_{_name}_{_t}"] = _elementwise(2, lambda a, b, f=_BINARY[_name][1]: f(a.astype(b.dtype), b), U32,
                                                    _TYPES[_t])


def _extract(a: Array, start: Array, count: Array) -> Array:
    kept = (a.view(U32) >> (start & U32.type(31))) & ((U64.type(1) << (count & U32.type(31)).astype(U64))
                                                      - U64.type(1)).astype(U32)
    if a.dtype == U32:
        return kept
    high = U32.type(32) - (count & U32.type(31))
    return np.where(count & 31, (kept << high).view(I32) >> high.view(I32), 0).astype(I32)


def _reversed(a: Array) -> Array:
    return np.packbits(np.unpackbits(a.view(U8).reshape(LANES, 4), axis=1, bitorder="little")[:, ::-1], axis=1,
                       bitorder="little").view(U32)[:, 0]


def _low24(a: Array) -> Array:
    return a & U32.type(0xffffff)


def _below(mask: Array, base: int) -> Array:
    """Bits of a mask of 32 lanes below each lane."""
    bits = np.unpackbits(mask.astype(U32).view(U8).reshape(LANES, 4), axis=1, bitorder="little").astype(np.int64)
    return ((LANE[:, None] > base + np.arange(32)) * bits).sum(1).astype(U32)


def _power(a: Array) -> Array:
    """2**a, 0 where that is below the normal numbers."""
    with np.errstate(over="ignore"):
        power = np.exp2(a.astype(F64)).astype(F32)
    return np.where(power < np.finfo(F32).tiny, F32.type(0), power)


def _legacy(a: Array, b: Array) -> Array:
    return np.where((a == 0) | (b == 0), F32.type(0), a * b)


def _fused(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(F64) * b.astype(F64) + c.astype(F64)).astype(F32)


def _halved(a: Array) -> Array:
    with np.errstate(over="ignore"):
        return a.astype(F16)


def _bf16(a: Array) -> Array:
    """The nearest bf16 of f32, in the low half of a word; ties go to the even one."""
    bits = a.view(U32)
    rounded = bits + U32.type(0x7fff) + (bits >> U32.type(16) & U32.type(1)) >> U32.type(16)
    return np.where(np.isnan(a), U32.type(0x7fff), rounded)


def _bits_of_three(w: Wave, i: Instruction) -> None:
    """Any function of the bits of three words, by the table of its values."""
    words, out = [w.source(i, n, U32) for n in (1, 2, 3)], np.zeros(LANES, U32)
    for k in range(8):
        if int(i.modifiers["bitop3"], 0) >> k & 1:
            a, b, c = (x if k >> at & 1 else ~x for x, at in zip(words, (2, 1, 0), strict=True))
            out |= a & b & c
    w.write(i.operands[0], out)


def _of_halves(f: Callable[..., Array]) -> Rule:
    """Each half of a word by itself, as they lie."""
    def rule(w: Wave, i: Instruction) -> None:
        if moved := [m for m in i.modifiers if m.startswith("op_sel")]:
            raise GcnError("halves of other places are not covered", got=moved[0])
        w.write(i.operands[0], f(*(w.source(i, n, U32).view(F16) for n in (1, 2, 3))).view(U32))
    return rule


def _accumulated(w: Wave, i: Instruction) -> None:
    w.write(i.operands[0], _fused(w.source(i, 1, F32), w.source(i, 2, F32), w.read(i.operands[0], F32)))


RULES |= {
    "v_exp_f32": _elementwise(1, _power, F32), "v_mul_legacy_f32": _elementwise(2, _legacy, F32),
    **dict.fromkeys(("v_fma_f32", "v_fmamk_f32", "v_fmaak_f32"), _elementwise(3, _fused, F32)),
    "v_pk_maximum3_f16": _of_halves(lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_pk_minimum3_f16": _of_halves(lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_fmac_f32": _accumulated, "v_bitop3_b32": _bits_of_three,
    "v_mov_b32": _elementwise(1, lambda a: a, U32), "v_mov_b64": _elementwise(1, lambda a: a, U64),
    "v_accvgpr_read_b32": _elementwise(1, lambda a: a, U32), "v_accvgpr_write_b32": _elementwise(1, lambda a: a, U32),
    "v_not_b32": _elementwise(1, lambda a: ~a, U32), "v_bfrev_b32": _elementwise(1, _reversed, U32),
    "v_add3_u32": _elementwise(3, lambda a, b, c: a + b + c, U32),
    "v_lshl_add_u32": _elementwise(3, lambda a, b, c: (a << (b & U32.type(31))) + c, U32),
    "v_lshl_add_u64": _elementwise(3, lambda a, b, c: (a << (b & U32.type(7)).astype(U64)) + c, U64, U32, U64),
    "v_add_lshl_u32": _elementwise(3, lambda a, b, c: (a + b) << (c & U32.type(31)), U32),
    "v_lshl_or_b32": _elementwise(3, lambda a, b, c: (a << (b & U32.type(31))) | c, U32),
    "v_and_or_b32": _elementwise(3, lambda a, b, c: (a & b) | c, U32),
    "v_alignbit_b32": _elementwise(
        3, lambda a, b, c: ((a.astype(U64) << U64.type(32) | b) >> (c & U32.type(31)).astype(U64)).astype(U32), U32),
    "v_or3_b32": _elementwise(3, lambda a, b, c: a | b | c, U32),
    "v_maximum3_f32": _elementwise(3, lambda a, b, c: np.maximum(np.maximum(a, b), c), F32),  # NaN where one is
    "v_minimum3_f32": _elementwise(3, lambda a, b, c: np.minimum(np.minimum(a, b), c), F32),
    "v_mad_u32_u24": _elementwise(3, lambda a, b, c: _low24(a) * _low24(b) + c, U32),
    "v_mul_u32_u24": _elementwise(2, lambda a, b: _low24(a) * _low24(b), U32),
    "v_bfe_u32": _elementwise(3, _extract, U32), "v_bfe_i32": _elementwise(3, _extract, I32, U32, U32),
    "v_mbcnt_lo_u32_b32": _elementwise(2, lambda a, b: _below(a, 0) + b, U32),
    "v_mbcnt_hi_u32_b32": _elementwise(2, lambda a, b: _below(a, 32) + b, U32),
    "v_cvt_f32_i32": _elementwise(1, lambda a: a.astype(F32), I32),
    "v_cvt_f32_u32": _elementwise(1, lambda a: a.astype(F32), U32),
    "v_cvt_f32_f16": _elementwise(1, lambda a: a.astype(F32), F16), "v_cvt_f16_f32": _elementwise(1, _halved, F32),
    "v_cvt_pk_bf16_f32": _elementwise(2, lambda a, b: _bf16(a) | _bf16(b) << U32.type(16), F32),
    "v_cvt_f64_i32": _elementwise(1, lambda a: a.astype(F64), I32),
    "v_cvt_f64_u32": _elementwise(1, lambda a: a.astype(F64), U32),
    "v_cvt_f32_ubyte0": _elementwise(1, lambda a: (a & U32.type(255)).astype(F32), U32)}


def _vector_compared(f: Callable[[Any, Any], Any], t: np.dtype[Any]) -> Rule:
    return lambda w, i: w.set_mask(i.operands[0], f(w.source(i, 1, t), w.source(i, 2, t)))


for _name, _f in _COMPARE.items():
    for _t in ("i16", "u16", "i32", "u32", "i64", "u64", "f16", "f32", "f64"):
        RULES[f"v_cmp_{_name}_{_t}"] = _vector_compared(_f, _TYPES[_t])


def _chosen(w: Wave, i: Instruction) -> None:
    truth = w.mask(i.operands[3] if len(i.operands) == 4 else _VCC)
    w.result(i, np.where(truth, w.source(i, 2, U32), w.source(i, 1, U32)))


def _with_carry(sign: int, swap: bool, takes: bool) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        a, b = (w.read(o, U32).astype(np.int64) for o in i.operands[2:4])
        a, b = (b, a) if swap else (a, b)
        value = a + sign * (b + (w.mask(i.operands[4]) if takes else 0))
        w.write(i.operands[0], (value & 0xffffffff).astype(U32))
        w.set_mask(i.operands[1], (value < 0) | (value >> 32 > 0))
    return rule


for _name, _sign, _swap in (("add", 1, False), ("sub", -1, False), ("subrev", -1, True)):
    _other = {"add": "addc", "sub": "subb", "subrev": "subbrev"}[_name]
    RULES[f"v_{_name}_co_u32"] = _with_carry(_sign, _swap, False)
    RULES[f"v_{_other}_co_u32"] = _with_carry(_sign, _swap, True)


def _read_lane(w: Wave, i: Instruction) -> None:
    w.set_scalar(i.operands[0], int(w.read(i.operands[1], U32)[w.scalar(i.operands[2]) % LANES]))


def _write_lane(w: Wave, i: Instruction) -> None:
    w.v[i.operands[0].first, w.scalar(i.operands[2]) % LANES] = w.scalar(i.operands[1])


def _read_first(w: Wave, i: Instruction) -> None:
    lanes = np.flatnonzero(w.active)
    w.set_scalar(i.operands[0], int(w.read(i.operands[1], U32)[lanes[0] if len(lanes) else 0]))


def _pair(w: Wave, i: Instruction) -> None:
    """The low word from one pair, the high one from another: of each the word that `op_sel` says."""
    chosen = [int(x) for x in re.findall(r"\d", i.modifiers.get("op_sel", "[0,0]"))]
    w.write_words(i.operands[0], np.stack([w.registers(o, 2)[:, k] if o.kind else w.read(o, U32)
                                           for o, k in zip(i.operands[1:3], chosen, strict=True)], 1))


RULES |= {"v_cndmask_b32": _chosen, "v_readlane_b32": _read_lane, "v_writelane_b32": _write_lane,
          "v_readfirstlane_b32": _read_first, "v_pk_mov_b32": _pair}


# ---- control
def _branch(taken: Callable[[Wave], bool]) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        if taken(w):
            w.jump = i.operands[0].text
    return rule


def nothing(w: Wave, i: Instruction) -> None:
    """No effect here."""


def _wait(w: Wave, i: Instruction) -> None:
    if "vmcnt" in i.modifiers:
        w.arrive(int(i.modifiers["vmcnt"]))


def _trap(w: Wave, i: Instruction) -> None:
    raise GcnError("an assertion of the kernel failed", why=f"in `{i.text}`")


RULES |= {
    "s_branch": _branch(lambda w: True), "s_cbranch_scc0": _branch(lambda w: not w.scc),
    "s_cbranch_scc1": _branch(lambda w: w.scc), "s_cbranch_vccz": _branch(lambda w: not w.scalar(_VCC, 64)),
    "s_cbranch_vccnz": _branch(lambda w: bool(w.scalar(_VCC, 64))),
    "s_cbranch_execz": _branch(lambda w: not w.scalar(_EXEC, 64)),
    "s_cbranch_execnz": _branch(lambda w: bool(w.scalar(_EXEC, 64))),
    "s_waitcnt": _wait, "s_trap": _trap,
    **dict.fromkeys(("s_nop", "s_barrier", "s_setprio", "s_sleep", "buffer_inv", "buffer_wbl2", "buffer_wbinvl1",
                     "buffer_wbinvl1_vol"), nothing)}
