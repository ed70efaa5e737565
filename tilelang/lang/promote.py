"""Which dtype an operation on two dtypes happens in.

| operands | result |
|---|---|
| tile with a Python number | the tile's dtype; f32 for a Python float with an integer tile |
| same kind | the wider |
| integer (or i1) with float | the float |
| f16 with bf16 | f32 |
| signed with unsigned | the one that contains the other, else refused |
| anything with a dtype without arithmetic | refused: cast first |
"""
from __future__ import annotations

import sys
from typing import Any

from tilelang.errors import DTypeMismatch, Loc
from tilelang.ir.dtypes import DType, dtype

MAX_FLOAT = sys.float_info.max


def promote(a: DType, b: DType, loc: Loc | None) -> DType:
    """The common dtype of two tiles. Raises DTypeMismatch where there is none."""
    if a is b:
        return a
    for dt in (a, b):
        if not dt.arithmetic:
            raise DTypeMismatch(f"{dt} has no arithmetic of its own", loc=loc, needs="operands of one dtype, or of "
                                "dtypes with arithmetic", got=f"{a} and {b}", try_="cast it: x.to(tile.f32)")
    if a.kind == "bool" or b.kind == "bool":
        return b if a.kind == "bool" else a
    if a.kind == b.kind:
        if a.bits == b.bits:
            return dtype("f32")  # f16 with bf16
        return a if a.bits > b.bits else b
    if "float" in (a.kind, b.kind):
        return a if a.kind == "float" else b
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    if signed.bits > unsigned.bits:
        return signed
    raise DTypeMismatch("a signed and an unsigned integer, neither of which contains the other", loc=loc,
                        needs="one dtype that holds both", got=f"{a} and {b}",
                        try_=f"cast one of them, for example x.to(tile.{signed})")


def weak(value: bool | int | float, dt: DType, loc: Loc | None) -> DType:
    """The dtype in which a Python number meets a tile of `dt`."""
    if not dt.arithmetic:
        raise DTypeMismatch(f"{dt} has no arithmetic of its own", loc=loc, needs="a dtype with arithmetic",
                            got=f"{dt} and the number {value}", try_="cast it: x.to(tile.f32)")
    if isinstance(value, float) and dt.kind != "float":
        return dtype("f32")
    if isinstance(value, bool):
        return dt
    if isinstance(value, int) and dt.kind == "bool":
        return dtype("i32")
    check_fits(value, dt, loc)
    return dt


def check_fits(value: bool | int | float, dt: DType, loc: Loc | None) -> None:
    """Raises DTypeMismatch for a number that an integer dtype does not hold, and for an int beyond all floats."""
    low, high = (dt.min, dt.max) if dt.is_integer else (-MAX_FLOAT, MAX_FLOAT)
    whole = isinstance(value, int) or value.is_integer()
    inside = isinstance(value, float) and not dt.is_integer or low <= value <= high
    if dt.kind == "bool" or inside and (whole or not dt.is_integer):
        return
    shown = str(value) if isinstance(value, float) or abs(value) < 1 << 128 else f"an int of {value.bit_length()} bits"
    raise DTypeMismatch(f"the number {shown} does not fit {dt}", loc=loc,
                        needs=f"{low} to {high}" if whole else f"a whole number from {low} to {high}", got=shown,
                        try_="a wider dtype" if whole else "round it, or a dtype of floats")


def literal_dtype(value: Any) -> DType:
    """The dtype of a Python number on its own."""
    if isinstance(value, bool):
        return dtype("i1")
    if isinstance(value, float):
        return dtype("f32")
    return dtype("i32" if -(1 << 31) <= value < 1 << 31 else "i64" if value < 1 << 63 else "u64")
