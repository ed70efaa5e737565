"""NVIDIA's matrix instructions, one row each (PTX ISA 8.7, section 9.7.14: fragments of `mma.sync`; 9.7.15: `wgmma`).

A lane l of a warp has group g = l / 4 and position t = l % 4. Elements of one 32-bit register are neighbours along k
in `a` and `b`, along n in the accumulator.
"""
from __future__ import annotations

from dataclasses import replace

from tilelang.backends.simt.instructions import GroupRow, MmaRow
from tilelang.layouts import RegisterLayout, column_spatial, local, spatial

_EVER = 999
_ACC = local(2, 1) * spatial(8, 4) * local(1, 2)


def _a(halves: int, group: int) -> RegisterLayout:
    """[16, halves * 4 * group]: row g and g + 8, then the next half of k."""
    return RegisterLayout(((2, 8), (halves, 4, group)), (1, 3), (2, 0, 4))


def _b(halves: int, group: int) -> RegisterLayout:
    """[halves * 4 * group, 8]: column g."""
    return RegisterLayout(((halves, 4, group), (8,)), (3, 1), (0, 2))


def _fraction(a: str) -> int | None:
    return F8_FRACTION if a.startswith("f8") else None


def _row(name: str, a: str, b: str, acc: str, halves: int, group: int, archs: tuple[int, int]) -> MmaRow:
    return MmaRow(name, a, b, acc, _a(halves, group), _b(halves, group), _ACC, archs, fraction=_fraction(a))


def _of_pieces(name: str, a: str, b: str, halves: int) -> MmaRow:
    """f32 as three bf16 (their sum, but for 2^-134), or beside an f16, which is a tf32, as two tf32 (2^-23 |x| off at
    most). Of two f32, products below 2^-24 |x y| are left out. So sums of n products are off by 2^-23 sum |x y| (2^-24
    of two f32, 0 beside bf16) more than the roundings of an f32 sum, n 2^-24 sum |x y|, are."""
    return replace(_row(name, a, b, "f32", halves, 2, (80, _EVER)), cut=True)


def _small(name: str, a: str, b: str, group: int) -> MmaRow:
    """m8n8 of integers, which Turing has: four groups along k."""
    return MmaRow(name, a, b, "i32", spatial(8, 4) * local(1, group), column_spatial(4, 8) * local(group, 1),
                  spatial(8, 4) * local(1, 2), (75, 79))


F8_FRACTION = 13
"""Sums of f8 keep about 14 bits on Hopper (DeepSeek-V3 Technical Report, arXiv:2412.19437, section 3.3.2), of them 13
of fraction, as on Ada (SageAttention2, arXiv:2411.10958)."""
_SIGNS = (("s", "i", "i"), ("u", "u", "u"), ("su", "i", "u"), ("us", "u", "i"))
# The first row that holds both operands exactly is taken: narrow types stand first.
ROWS = (
    _row("mma_m16n8k32_e4m3", "f8e4m3", "f8e4m3", "f32", 2, 4, (89, _EVER)),
    _row("mma_m16n8k32_e5m2", "f8e5m2", "f8e5m2", "f32", 2, 4, (89, _EVER)),
    _row("mma_m16n8k256_b1_and", "u1", "u1", "i32", 2, 32, (80, _EVER)),
    _row("mma_m16n8k128_b1_and", "u1", "u1", "i32", 1, 32, (80, _EVER)),
    _row("mma_m16n8k64_s4", "i4", "i4", "i32", 2, 8, (80, 89)),
    _row("mma_m16n8k64_u4", "u4", "u4", "i32", 2, 8, (80, 89)),
    _row("mma_m16n8k16_f16", "f16", "f16", "f32", 2, 2, (80, _EVER)),
    _row("mma_m16n8k16_bf16", "bf16", "bf16", "f32", 2, 2, (80, _EVER)),
    _row("mma_m16n8k8_f16", "f16", "f16", "f32", 1, 2, (75, 79)),
    _row("mma_m16n8k32_s8", "i8", "i8", "i32", 2, 4, (80, _EVER)),
    _row("mma_m16n8k32_u8", "u8", "u8", "i32", 2, 4, (80, _EVER)),
    _row("mma_m16n8k32_su8", "i8", "u8", "i32", 2, 4, (80, _EVER)),
    _row("mma_m16n8k32_us8", "u8", "i8", "i32", 2, 4, (80, _EVER)),
    _row("mma_m16n8k8_tf32", "tf32", "tf32", "f32", 2, 1, (80, _EVER)),
    _of_pieces("mma_m16n8k16_f32_bf16", "f32", "bf16", 2),
    _of_pieces("mma_m16n8k16_bf16_f32", "bf16", "f32", 2),
    _of_pieces("mma_m16n8k8_f32_f16", "f32", "f16", 1),
    _of_pieces("mma_m16n8k8_f16_f32", "f16", "f32", 1),
    _of_pieces("mma_m16n8k16_f32", "f32", "f32", 2),
    *(_small(f"mma_m8n8k32_{name}4", f"{a}4", f"{b}4", 8) for name, a, b in _SIGNS),
    *(_small(f"mma_m8n8k16_{name}8", f"{a}8", f"{b}8", 4) for name, a, b in _SIGNS),
    MmaRow("mma_m8n8k4_f64", "f64", "f64", "f64", spatial(8, 4), column_spatial(4, 8), spatial(8, 4) * local(1, 2),
           (80, _EVER)),
)


def _group(name: str, a: str, b: str, acc: str, per: int, transposes: bool = False) -> GroupRow:
    """m64 of four warps with 32 bytes of k; each warp holds 16 rows as `mma.sync` does."""
    return GroupRow(name, a, b, acc, spatial(4, 1) * _a(2, per), spatial(4, 1) * _ACC,
                    (8, 16, 32, 64, 96, 128, 192, 256), transposes, 4, (90, 90), _fraction(a))


GROUP_ROWS = (
    _group("wgmma_m64k32_e4m3", "f8e4m3", "f8e4m3", "f32", 4),
    _group("wgmma_m64k32_e5m2", "f8e5m2", "f8e5m2", "f32", 4),
    _group("wgmma_m64k32_e4m3_e5m2", "f8e4m3", "f8e5m2", "f32", 4),
    _group("wgmma_m64k32_e5m2_e4m3", "f8e5m2", "f8e4m3", "f32", 4),
    _group("wgmma_m64k16_f16", "f16", "f16", "f32", 2, True),
    _group("wgmma_m64k16_bf16", "bf16", "bf16", "f32", 2, True),
    _group("wgmma_m64k32_s8", "i8", "i8", "i32", 4),
    _group("wgmma_m64k32_u8", "u8", "u8", "i32", 4),
    _group("wgmma_m64k32_s8u8", "i8", "u8", "i32", 4),
    _group("wgmma_m64k32_u8s8", "u8", "i8", "i32", 4),
    _group("wgmma_m64k8_tf32", "tf32", "tf32", "f32", 1),
    _group("wgmma_m64k256_b1", "u1", "u1", "i32", 32),
    replace(_group("wgmma_m64k16_f32_bf16", "f32", "bf16", "f32", 2, True), pieces=3, of="wgmma_m64k16_bf16"),
)
