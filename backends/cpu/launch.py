"""The callable of a compiled kernel behind tvm-ffi's C ABI: checks arguments, fills the context, runs the grid.

The checks here are a guard for the fast path only. Where one fails the function raises `GUARD` and the caller in
`tilelang.jit` looks at the arguments itself, to specialise anew or to explain the mistake.
"""
from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from tilelang.backends.cpu.codegen import slots
from tilelang.backends.cpu.numbers import F64, I1, I8, I32, I64
from tilelang.ir.core import TensorType, TileType, Value
from tilelang.ir.dtypes import DType

GUARD, FAILED = "TilelangGuard", "TilelangFailed"
MAX_EXTENT = (1 << 31) - (1 << 16)
"""Extents are i32 in kernels, with room for a block beyond the edge."""
PTR = ir.PointerType()
_ANY = ir.LiteralStructType([I32, I32, I64])  # TVMFFIAny: type index, padding, payload
_TENSOR = ir.LiteralStructType([PTR, I32, I32, I32, I8, I8, ir.IntType(16), PTR, PTR, I64])  # DLTensor
_INT, _BOOL, _FLOAT, _DL_POINTER, _OBJECT = 1, 2, 3, 7, 70
_OBJECT_HEADER = 24


def dlpack_code(dt: DType) -> tuple[int, int]:
    """(type code, bits) of one element in DLPack; packed and exotic types travel as unsigned bytes."""
    if dt.kind == "bool":
        return 6, 8
    if dt.name == "bf16":
        return 4, 16
    if dt.name in ("f16", "f32", "f64"):
        return 2, dt.bits
    if dt.kind in ("int", "uint") and dt.native:
        return (0 if dt.kind == "int" else 1), dt.bits
    return 1, 8 * dt.storage.itemsize if dt.bits % 8 == 0 else 8


def emit_entry(module: ir.Module, name: str, params: Sequence[Value], scratch: int) -> None:
    """Adds the tvm-ffi entry `name`, which runs `tl_body` through the pool with `scratch` bytes for each worker."""
    _Entry(module, name, params).emit(scratch)


class _Entry:
    def __init__(self, module: ir.Module, name: str, params: Sequence[Value]) -> None:
        self.module, self.params, self.slots = module, params, slots(params)
        fn = ir.Function(module, ir.FunctionType(I32, [PTR, PTR, I32, PTR]), name)
        self.fn, self.b = fn, ir.IRBuilder(fn.append_basic_block("entry"))
        self.guard = fn.append_basic_block("guard")
        self.dims: dict[str, ir.Value] = {}

    def require(self, condition: ir.Value) -> None:
        after = self.fn.append_basic_block("ok")
        self.b.cbranch(condition, after, self.guard)
        self.b.position_at_end(after)

    def emit(self, scratch: int) -> None:
        b, (_, args, count, _) = self.b, self.fn.args
        ctx = self.stack(ir.ArrayType(I64, len(self.slots)))
        self.require(b.icmp_signed("==", count, I32(len(self.params))))
        for i, v in enumerate(self.params):
            any_ = b.gep(args, [I64(i)], source_etype=_ANY)
            kind = b.load(any_, typ=I32)
            payload = b.load(b.gep(any_, [I32(0), I32(2)], source_etype=_ANY), typ=I64)
            if isinstance(v.type, TensorType):
                self.tensor(ctx, i, v.type, kind, payload)
            else:
                assert isinstance(v.type, TileType)
                self.scalar(ctx, i, v.type.dtype, kind, payload)
        workers = ir.Function(self.module, ir.FunctionType(I32, []), "tl_workers")
        self.put(ctx, "workers", b.sext(b.call(workers, []), I64))
        total = b.call(self.module.globals["tl_count"], [ctx])
        loop = ir.Function(self.module, ir.FunctionType(I32, [PTR, PTR, I64, I64]), "tl_parallel")
        code = b.call(loop, [self.module.globals["tl_body"], ctx, total, I64(max(scratch, 64))])
        failed, fine = self.fn.append_basic_block("failed"), self.fn.append_basic_block("fine")
        b.cbranch(b.icmp_signed("==", code, I32(0)), fine, failed)
        b.position_at_end(fine)
        b.ret(I32(0))
        b.position_at_end(failed)
        digits = self.stack(ir.ArrayType(I8, 8))
        for place in range(4):  # the code as four letters: no allocation, no formatting
            nibble = b.and_(b.lshr(code, I32(4 * place)), I32(15))
            b.store(b.trunc(b.add(nibble, I32(ord("a"))), I8), b.gep(digits, [I32(place)], source_etype=I8))
        b.store(I8(0), b.gep(digits, [I32(4)], source_etype=I8))
        self.throw(FAILED, digits)
        b.position_at_end(self.guard)
        self.throw(GUARD, self.text("guard"))

    def stack(self, t: ir.Type) -> ir.Value:
        place = self.b.alloca(t)
        place.type = PTR  # llvmlite gives a typed pointer; everything here is opaque
        return place

    def throw(self, kind: str, message: ir.Value) -> None:
        name = "TVMFFIErrorSetRaisedFromCStr"
        fn = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(ir.VoidType(), [PTR, PTR]), name)
        self.b.call(fn, [self.text(kind), message])
        self.b.ret(I32(-1))

    def text(self, value: str) -> ir.Value:
        name = f"text.{value}"
        if name not in self.module.globals:
            data = bytearray(value.encode() + b"\0")
            g = ir.GlobalVariable(self.module, ir.ArrayType(I8, len(data)), name)
            g.initializer, g.global_constant, g.linkage = ir.Constant(g.value_type, data), True, "internal"
        self.module.globals[name].type = PTR
        return self.module.globals[name]

    def put(self, ctx: ir.Value, key: object, value: ir.Value) -> None:
        self.b.store(value, self.b.gep(ctx, [I64(self.slots[key])], source_etype=I64))

    def scalar(self, ctx: ir.Value, i: int, dt: DType, kind: ir.Value, payload: ir.Value) -> None:
        b = self.b
        if dt.kind != "float":
            self.require(b.or_(b.icmp_signed("==", kind, I32(_INT)), b.icmp_signed("==", kind, I32(_BOOL))))
            if dt.bits < 64:
                in_range = b.and_(b.icmp_signed(">=", payload, I64(dt.min)), b.icmp_signed("<=", payload, I64(dt.max)))
                self.require(in_range)
            self.put(ctx, ("value", i), payload)
            return
        is_float = b.icmp_signed("==", kind, I32(_FLOAT))
        self.require(b.or_(is_float, b.icmp_signed("==", kind, I32(_INT))))
        value = b.select(is_float, b.bitcast(payload, F64), b.sitofp(payload, F64))
        if dt.name == "f64":
            bits = b.bitcast(value, I64)
        else:
            from tilelang.backends.cpu.numbers import Numbers
            code = Numbers(b).from_float(value, dt)
            bits = b.zext(b.bitcast(code, ir.IntType(dt.bits)), I64)
        self.put(ctx, ("value", i), bits)

    def tensor(self, ctx: ir.Value, i: int, t: TensorType, kind: ir.Value, payload: ir.Value) -> None:
        b = self.b
        is_object = b.icmp_signed("==", kind, I32(_OBJECT))
        self.require(b.or_(is_object, b.icmp_signed("==", kind, I32(_DL_POINTER))))
        tensor = b.inttoptr(b.add(payload, b.select(is_object, I64(_OBJECT_HEADER), I64(0))), PTR)

        def field(n: int, typ: ir.Type) -> ir.Value:
            return b.load(b.gep(tensor, [I32(0), I32(n)], source_etype=_TENSOR), typ=typ)
        code, bits = dlpack_code(t.dtype)
        self.require(b.icmp_signed("==", field(1, I32), I32(1)))  # device type CPU
        self.require(b.icmp_signed("==", field(3, I32), I32(t.rank)))
        self.require(b.icmp_unsigned("==", field(4, I32), I32(code | bits << 8 | 1 << 16)))
        self.put(ctx, ("data", i), b.add(b.ptrtoint(field(0, PTR), I64), field(9, I64)))
        shape, strides = field(7, PTR), field(8, PTR)
        self.require(b.icmp_unsigned("!=", strides, ir.Constant(PTR, None)) if t.rank else I1(1))
        for axis in range(t.rank):
            extent = b.load(b.gep(shape, [I64(axis)], source_etype=I64), typ=I64)
            stride = b.load(b.gep(strides, [I64(axis)], source_etype=I64), typ=I64)
            self.require(b.icmp_unsigned("<=", extent, I64(MAX_EXTENT)))
            if axis < len(t.unit) and t.unit[axis]:
                self.require(b.or_(b.icmp_signed("==", stride, I64(1)), b.icmp_signed("<=", extent, I64(1))))
            dim = t.dims[axis]
            known = I64(dim) if isinstance(dim, int) else self.dims.setdefault(dim, extent)
            if known is not extent:
                self.require(b.icmp_signed("==", extent, known))
            self.put(ctx, ("shape", i, axis), extent)
            self.put(ctx, ("stride", i, axis), stride)
