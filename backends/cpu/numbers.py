"""LLVM code for number types: storage, arithmetic types, and the conversion between every pair.

Mirrors `tilelang.ir.codec` operation by operation; the tests compare the two exhaustively.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from tilelang.ir import codec
from tilelang.ir.dtypes import DType, dtype

I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
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


def constant(t: ir.Type, value: Any) -> ir.Constant:
    if isinstance(t, ir.VectorType):
        return ir.Constant(t, [value] * t.count)
    return ir.Constant(t, value)


def full_like(x: ir.Value, value: Any) -> ir.Constant:
    return constant(x.type, value)


class Numbers:
    """Conversions emitted through one builder."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    # -- integers -----------------------------------------------------------------------------------------------------
    def wrap(self, x: ir.Value, dt: DType) -> ir.Value:
        """Brings an integer computed in storage width back to the type's own width."""
        width = 8 * dt.storage.itemsize
        if dt.kind == "bool" or width == dt.bits:
            return x
        amount = full_like(x, width - dt.bits)
        shifted = self.b.shl(x, amount)
        return self.b.ashr(shifted, amount) if dt.kind == "int" else self.b.lshr(shifted, amount)

    def _resize(self, x: ir.Value, width: int, signed: bool) -> ir.Value:
        t = with_lanes(ir.IntType(width), x)
        have = (x.type.element if isinstance(x.type, ir.VectorType) else x.type).width
        if width == have:
            return x
        if width < have:
            return self.b.trunc(x, t)
        return self.b.sext(x, t) if signed else self.b.zext(x, t)

    # -- to and from arithmetic types ---------------------------------------------------------------------------------
    def to_float(self, x: ir.Value, dt: DType, wide: bool) -> ir.Value:
        """Exact value of any type as f32 (f64 where `wide`, or where f32 cannot hold it: integers round)."""
        target = F64 if wide else F32
        t = with_lanes(target, x)
        if dt.name in _FLOATS:
            have = _FLOATS[dt.name]
            return x if have is target else self.b.fptrunc(x, t) if have is F64 else self.b.fpext(x, t)
        if dt.kind in ("int", "uint", "bool"):
            return self.b.sitofp(x, t) if dt.kind == "int" else self.b.uitofp(x, t)
        if dt.kind in ("bipolar", "ternary"):
            return self.b.sitofp(self.to_int(x, dt), t)
        if dt.name in ("bf16", "tf32"):
            bits = self._resize(x, 32, False)
            if dt.name == "bf16":
                bits = self.b.shl(bits, full_like(bits, 16))
            value = self.b.bitcast(bits, with_lanes(F32, x))
        else:
            value = self._table(x, dt)
        return self.b.fpext(value, t) if wide else value

    def to_int(self, x: ir.Value, dt: DType) -> ir.Value:
        """Exact value of bipolar and ternary codes as i32."""
        code = self._resize(x, 32, False)
        if dt.kind == "bipolar":
            return self.b.sub(self.b.shl(code, full_like(code, 1)), full_like(code, (1 << dt.bits) - 1))
        value = self.b.sub(code, full_like(code, 1))
        return self.b.select(self.b.icmp_signed("==", code, full_like(code, 3)), full_like(code, 0), value)

    def _table(self, x: ir.Value, dt: DType) -> ir.Value:
        """Codes of at most 8 bits through a table of their values."""
        values = codec.values_of(dt)
        module = self.b.module
        name = f"values.{dt.name}"
        table = module.globals.get(name)
        if table is None:
            t = ir.ArrayType(F32, len(values))
            table = ir.GlobalVariable(module, t, name)
            table.initializer = ir.Constant(t, [float(v) for v in values])
            table.global_constant, table.linkage = True, "internal"
        index = self._resize(x, 32, False)

        def one(i: ir.Value) -> ir.Value:
            return self.b.load(self.b.gep(table, [I32(0), i], inbounds=True))
        if not isinstance(x.type, ir.VectorType):
            return one(index)
        out = ir.Constant(with_lanes(F32, x), ir.Undefined)
        for lane in range(x.type.count):
            out = self.b.insert_element(out, one(self.b.extract_element(index, I32(lane))), I32(lane))
        return out

    def from_float(self, x: ir.Value, dt: DType) -> ir.Value:
        """Nearest value of `dt` to an f32 or f64 value, by the rules of `codec`."""
        element = x.type.element if isinstance(x.type, ir.VectorType) else x.type
        if dt.name in _FLOATS:
            target = _FLOATS[dt.name]
            t = with_lanes(target, x)
            if target is element:
                return x
            if target is F64:
                return self.b.fpext(x, t)
            if target is F16 and element == F64:
                x = self._odd_f32(x)
            return self.b.fptrunc(x, t)
        if dt.kind == "bool":
            return self.b.fcmp_unordered("!=", x, full_like(x, 0.0))
        if dt.kind in ("int", "uint"):
            return self._float_to_int(x, dt)
        if element == F64:
            x = self._odd_f32(x)
        if dt.kind in ("bipolar", "ternary", "codebook"):
            return self._nearest(x, dt)
        if dt.kind == "scale":
            return self._scale(x)
        return self._small_float(x, dt)

    def _odd_f32(self, x: ir.Value) -> ir.Value:
        """f64 to f32 rounded to odd: a second rounding to a narrower type is then correct."""
        b = self.b
        near = b.fptrunc(x, with_lanes(F32, x))
        bits = b.bitcast(near, with_lanes(I32, x))
        back = b.fpext(near, x.type)
        exact = b.fcmp_unordered("==", back, x)
        fabs = intrinsic(self.b.module, "llvm.fabs", [x.type], ir.FunctionType(x.type, [x.type]))
        above = b.fcmp_ordered(">", b.call(fabs, [back]), b.call(fabs, [x]))
        lower = b.sub(bits, b.zext(above, bits.type))
        odd = b.or_(lower, full_like(bits, 1))
        return b.bitcast(b.select(exact, bits, odd), near.type)

    def _float_to_int(self, x: ir.Value, dt: DType) -> ir.Value:
        t = with_lanes(ir.IntType(max(dt.bits, 8)), x)
        signed = dt.kind == "int"
        name = f"llvm.fpto{'s' if signed else 'u'}i.sat"
        width = with_lanes(ir.IntType(dt.bits), x)
        fn = intrinsic(self.b.module, name, [width, x.type], ir.FunctionType(width, [x.type]))
        return self._resize(self.b.call(fn, [x]), 8 * dt.storage.itemsize, signed) if t else x

    def _nearest(self, x: ir.Value, dt: DType) -> ir.Value:
        b = self.b
        t = with_lanes(ir.IntType(8), x)
        if dt.kind == "codebook":
            table = codec.values_of(dt)
            best, where = None, None
            fabs = intrinsic(b.module, "llvm.fabs", [with_lanes(F64, x)],
                                              ir.FunctionType(with_lanes(F64, x), [with_lanes(F64, x)]))
            wide = b.fpext(x, with_lanes(F64, x))
            limit = full_like(wide, 1e300)
            wide = b.select(b.fcmp_ordered(">", wide, limit), limit, wide)
            wide = b.select(b.fcmp_ordered("<", wide, full_like(wide, -1e300)), full_like(wide, -1e300), wide)
            wide = b.select(b.fcmp_unordered("uno", wide, wide), full_like(wide, float(table[0])), wide)
            for code, value in enumerate(table):
                distance = b.call(fabs, [b.fsub(wide, full_like(wide, float(value)))])
                if best is None or where is None:
                    best, where = distance, constant(t, 0)
                else:
                    nearer = b.fcmp_ordered("<", distance, best)
                    best, where = b.select(nearer, distance, best), b.select(nearer, constant(t, code), where)
            return where
        top = float((1 << dt.bits) - 1) if dt.kind == "bipolar" else 1.0
        clean = b.select(b.fcmp_unordered("uno", x, x), full_like(x, 0.0), x)
        clean = b.select(b.fcmp_ordered(">", clean, full_like(x, top)), full_like(x, top), clean)
        clean = b.select(b.fcmp_ordered("<", clean, full_like(x, -top)), full_like(x, -top), clean)
        wide = b.fpext(clean, with_lanes(F64, x))
        if dt.kind == "bipolar":
            wide = b.fmul(b.fadd(wide, full_like(wide, top)), full_like(wide, 0.5))
        rint = intrinsic(b.module, "llvm.roundeven", [wide.type], ir.FunctionType(wide.type, [wide.type]))
        wide = b.call(rint, [wide])
        if dt.kind == "ternary":
            wide = b.fadd(wide, full_like(wide, 1.0))
        return b.trunc(b.fptosi(wide, with_lanes(I32, x)), t)

    def _scale(self, x: ir.Value) -> ir.Value:
        """e8m0: the nearest power of two, ties upwards."""
        b = self.b
        bits = b.bitcast(x, with_lanes(I32, x))
        subnormal = b.fcmp_ordered("<", x, full_like(x, 2.0 ** -126))
        up = b.lshr(b.add(bits, full_like(bits, 0x400000)), full_like(bits, 23))  # adds where the fraction >= 1.5
        low = b.zext(b.fcmp_ordered(">=", x, full_like(x, 0.75 * 2.0 ** -126)), bits.type)
        code = b.select(subnormal, low, up)
        code = b.select(b.icmp_unsigned(">", code, full_like(code, 254)), full_like(code, 254), code)
        bad = b.or_(b.fcmp_unordered("<", x, full_like(x, 0.0)), b.fcmp_ordered("==", x, full_like(x, float("inf"))))
        return b.trunc(b.select(bad, full_like(code, 255), code), with_lanes(I8, x))

    def _small_float(self, x: ir.Value, dt: DType) -> ir.Value:
        """f32 to a float of fewer bits: rounds the significand in integer arithmetic."""
        b = self.b
        bits = b.bitcast(x, with_lanes(I32, x))

        def c(value: int) -> ir.Constant:
            return full_like(bits, value & 0xFFFFFFFF)
        m, bias = dt.mantissa_bits, dt.bias
        size, sign = b.and_(bits, c(0x7FFFFFFF)), b.lshr(bits, c(31))
        if dt.exponent_bits == 8 and bias == 127:  # bf16, tf32: the same exponent, subnormals round alike
            cut = 23 - m
            odd = b.and_(b.lshr(size, c(cut)), c(1)) if m else c(1)  # without a mantissa a tie goes up
            code = b.lshr(b.add(size, b.add(odd, c((1 << cut - 1) - 1))), c(cut))
        else:
            smallest = 2.0 ** (1 - bias)  # below this the quantum is constant: let an f32 addition round
            value = b.bitcast(size, x.type)
            anchor = 2.0 ** (1 - bias - m) * 2.0 ** 23
            low = b.sub(b.bitcast(b.fadd(value, full_like(x, anchor)), bits.type),
                        b.bitcast(full_like(x, anchor), bits.type))
            cut = 23 - m
            odd = b.and_(b.lshr(size, c(cut)), c(1)) if m else c(1)  # without a mantissa a tie goes up
            rounded = b.add(size, b.add(odd, c((1 << cut - 1) - 1)))
            high = b.lshr(b.sub(rounded, c((127 - bias) << 23)), c(cut))
            code = b.select(b.fcmp_ordered("<", value, full_like(x, smallest)), low, high)
        top = (1 << dt.exponent_bits + m) - 1
        inf = ((1 << dt.exponent_bits) - 1) << m
        largest = {"ieee": inf - 1, "fn": top - 1, "fnuz": top, "none": top}[dt.nonfinite]
        over = inf if dt.nonfinite == "ieee" else largest
        too_big = b.or_(b.icmp_unsigned(">", code, c(largest)), b.icmp_unsigned(">=", size, c(0x7F800000)))
        if dt.exponent_bits < 8:  # huge values wrapped in the subtraction above
            too_big = b.or_(too_big, b.fcmp_ordered(">", b.bitcast(size, x.type), full_like(x, 2.0 * float(dt.max))))
        code = b.select(too_big, c(over), code)
        shift = dt.exponent_bits + m
        signed = b.or_(code, b.shl(sign, c(shift)))
        if dt.nonfinite == "fnuz":
            signed = b.select(b.icmp_unsigned("==", code, c(0)), c(0), signed)
        nan = {"ieee": inf | (1 << m - 1 if m else 0), "fn": top, "fnuz": 1 << (dt.bits - 1), "none": top}[
            dt.nonfinite
        ]
        signed = b.select(b.icmp_unsigned(">", size, c(0x7F800000)), c(nan), signed)
        if dt.name == "tf32":
            signed = b.shl(signed, c(13))
        return self._resize(signed, 8 * dt.storage.itemsize, False)

    # -- casts --------------------------------------------------------------------------------------------------------
    def cast(self, x: ir.Value, src: DType, dst: DType) -> ir.Value:
        """`codec.cast`."""
        if src is dst:
            return x
        integers = ("int", "uint", "bool")
        if src.kind in integers or (src.kind in ("bipolar", "ternary") and dst.kind in integers):
            if src.kind in ("bipolar", "ternary"):
                x, src = self.to_int(x, src), dtype("i32")
            if dst.kind == "bool":
                return self.b.icmp_signed("!=", x, full_like(x, 0))
            if dst.kind in integers:
                return self.wrap(self._resize(x, 8 * dst.storage.itemsize, src.kind == "int"), dst)
            if dst.name in ("f32", "f64") or (dst.name == "f16" and src.bits <= 24):
                t = with_lanes(_FLOATS[dst.name], x)
                return self.b.sitofp(x, t) if src.kind == "int" else self.b.uitofp(x, t)
            if src.bits > 53:  # f64 would round a first time
                return self.from_float(self._odd_f64(x, src.kind == "int"), dst)
            return self.from_float(self.to_float(x, src, wide=src.bits > 24), dst)
        return self.from_float(self.to_float(x, src, wide=src.name == "f64"), dst)

    def _odd_f64(self, x: ir.Value, signed: bool) -> ir.Value:
        """A 64-bit integer as f64 rounded to odd: bits beyond the significand only leave a mark."""
        b = self.b
        t = with_lanes(F64, x)
        negative = b.icmp_signed("<", x, full_like(x, 0)) if signed else None
        size = b.select(negative, b.neg(x), x) if negative is not None else x
        lost = b.icmp_unsigned("!=", b.and_(size, full_like(x, 0x7FF)), full_like(x, 0))
        marked = b.or_(
            b.and_(size, full_like(x, ~0x7FF & (1 << 64) - 1)), b.shl(b.zext(lost, x.type), full_like(x, 11))
        )
        big = b.icmp_unsigned(">=", size, full_like(x, 1 << 53))
        value = b.uitofp(b.select(big, marked, size), t)
        return b.select(negative, b.fneg(value), value) if negative is not None else value
