"""LLVM code for number types: storage, and the conversions that LLVM has.

`tilelang.passes.expand_casts` makes all others of these; the tests compare them with `tilelang.ir.codec` exhaustively.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from tilelang.ir.dtypes import DType

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


class _BFloat(ir.Type):  # type: ignore[misc]
    """bfloat, which llvmlite lacks. Numbers of bf16 are kept as their bits; only instructions that multiply them take
    this type."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BF16 = _BFloat()
_FLOATS = {"f16": F16, "f32": F32, "f64": F64}


def storage_type(dt: DType) -> ir.Type:
    """Type of a value in a register: i1, an integer of the storage width (value or code), or a float."""
    if dt.kind == "bool":
        return I1
    return _FLOATS.get(dt.name) or ir.IntType(8 * dt.storage.itemsize)


def type_name(t: ir.Type) -> str:
    """The name of a type in an intrinsic's suffix: f32, i64, v16f32."""
    if isinstance(t, ir.VectorType):
        return f"v{t.count}{type_name(t.element)}"
    return f"i{t.width}" if isinstance(t, ir.IntType) else {"half": "f16", "float": "f32", "double": "f64"}[str(t)]


def intrinsic(module: ir.Module, name: str, types: Sequence[ir.Type], signature: ir.FunctionType) -> ir.Function:
    """Declares an overloaded LLVM intrinsic."""
    full = ".".join([name, *map(type_name, types)])
    return module.globals.get(full) or ir.Function(module, signature, full)


def text_constant(module: ir.Module, text: str) -> ir.Value:
    """Address of a C string."""
    name = f"text.{text}"
    if name not in module.globals:
        data = bytearray(text.encode() + b"\0")
        g = ir.GlobalVariable(module, ir.ArrayType(I8, len(data)), name)
        g.initializer, g.global_constant, g.linkage = ir.Constant(g.value_type, data), True, "internal"
        g.type = ir.PointerType()
    return module.globals[name]


def with_lanes(t: ir.Type, like: ir.Value) -> ir.Type:
    return ir.VectorType(t, like.type.count) if isinstance(like.type, ir.VectorType) else t


class _Splat(ir.Constant):  # type: ignore[misc]
    """One constant in every lane, spelled once: as lists they are much of a kernel's text."""

    def _get_reference(self) -> str:
        return f"splat ({self.constant[0]})"


def constant(t: ir.Type, value: Any) -> ir.Constant:
    """A number, or `ir.Undefined`, in every lane of a type."""
    return (_Splat if isinstance(t, ir.VectorType) else ir.Constant)(t, value)


def full_like(x: ir.Value, value: Any) -> ir.Constant:
    return constant(x.type, value)


class Numbers:
    """Conversions emitted through one builder."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def wrap(self, x: ir.Value, dt: DType) -> ir.Value:
        """Brings an integer computed in storage width back to the type's own width."""
        width = 8 * dt.storage.itemsize
        if dt.kind == "bool" or width == dt.bits:
            return x
        amount = full_like(x, width - dt.bits)
        shifted = self.b.shl(x, amount)
        return self.b.ashr(shifted, amount) if dt.kind == "int" else self.b.lshr(shifted, amount)

    def cast(self, x: ir.Value, src: DType, dst: DType) -> ir.Value:
        """The pairs that `expand_casts` leaves."""
        b, t = self.b, with_lanes(storage_type(dst), x)
        if src.is_integer and dst.kind == "bool":
            return b.icmp_signed("!=", x, full_like(x, 0))
        if src.is_integer and dst.is_integer:
            return self.wrap(self._resize(x, t, src.kind == "int"), dst)
        if src.is_integer:
            return b.sitofp(x, t) if src.kind == "int" else b.uitofp(x, t)
        if dst.is_integer:
            return self._saturated(x, src, dst, t)
        return b.fptrunc(x, t) if dst.bits < src.bits else b.fpext(x, t)

    def _saturated(self, x: ir.Value, src: DType, dst: DType, t: ir.Type) -> ir.Value:
        """llvm.fptosi.sat, of which LLVM makes scalar code."""
        b, beyond = self.b, float(1 << dst.bits - dst.is_signed)
        largest = beyond * (1 - 2.0 ** -(src.mantissa_bits + 1))
        inside = b.select(b.fcmp_ordered("ord", x, x), x, full_like(x, 0.0))
        for sign, limit in ((">", float(dst.min)), ("<", largest)):
            inside = b.select(b.fcmp_ordered(sign, full_like(x, limit), inside), full_like(x, limit), inside)
        whole = b.fptosi(inside, t) if dst.kind == "int" else b.fptoui(inside, t)
        return b.select(b.fcmp_ordered(">=", x, full_like(x, beyond)), constant(t, dst.max), whole)

    def _resize(self, x: ir.Value, t: ir.Type, signed: bool) -> ir.Value:
        have, want = ((u.element if isinstance(u, ir.VectorType) else u).width for u in (x.type, t))
        if want == have:
            return x
        if want < have:
            return self.b.trunc(x, t)
        return self.b.sext(x, t) if signed else self.b.zext(x, t)
