"""The callable of a compiled kernel behind tvm-ffi's C ABI: checks arguments, fills the context, runs the grid.

The checks here are a guard for the fast path only. Where one fails the function gives False instead of None, and the
caller in `tilelang.jit` looks at the arguments itself, to specialise anew or to explain the mistake.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from tilelang.backends.cpu.codegen import emit_cast, slots
from tilelang.backends.cpu.machine import CpuTarget
from tilelang.backends.cpu.numbers import F64, I1, I8, I32, I64, text_constant
from tilelang.ir.control import MAX_PROGRAMS
from tilelang.ir.core import MAX_EXTENT, TensorType, TileType, Value
from tilelang.ir.dtypes import DType, dtype

PTR = ir.PointerType()
_ANY = ir.LiteralStructType([I32, I32, I64])  # TVMFFIAny: type index, padding, payload
_TENSOR = ir.LiteralStructType([PTR, I32, I32, I32, I32, PTR, PTR, I64])  # DLTensor; the dtype is one word
_INT, _BOOL, _FLOAT, _OPAQUE, _DL_POINTER, _OBJECT = 1, 2, 3, 4, 7, 70
_OBJECT_HEADER = 24
_CPU = 1  # DLDeviceType
_SMALL_FLOATS = {"f8e4m3": 10, "f8e4m3fnuz": 11, "f8e5m2": 12, "f8e5m2fnuz": 13, "e8m0": 14}  # DLDataTypeCode


def dlpack_codes(dt: DType) -> tuple[tuple[int, ...], int]:
    """(accepted type codes, bits) of one element in DLPack; small floats may also travel as unsigned integers."""
    if dt.kind == "bool":
        return (6,), 8
    if dt.name in _SMALL_FLOATS:
        return (_SMALL_FLOATS[dt.name], 1), 8
    if dt.name == "bf16":
        return (4, 1), 16
    if dt.name in ("f16", "f32", "f64"):
        return (2,), dt.bits
    if dt.kind in ("int", "uint") and dt.native:
        return ((0,) if dt.kind == "int" else (1,)), dt.bits
    return (1,), 8 if dt.packed else dt.bits


@dataclass(frozen=True)
class Failures:
    """Kinds and messages of the errors an entry raises: for arguments it was not compiled for, and where it stops: one
    message for each assertion, and the last for no memory (none: four letters that are the code).

    Without the first it gives False for such arguments, which takes a hundredth of the time. Others may then be
    compiled: an argument whose neighbours along a dimension are adjacent is refused where the type does not say so."""

    guard: tuple[str, str] | None = None
    failed: tuple[str, tuple[str, ...]] = ("TilelangFailed", ())


def emit_entry(module: ir.Module, name: str, params: Sequence[Value], scratch: int, target: CpuTarget,
               serial: bool, failures: Failures) -> None:
    """Adds the tvm-ffi entry `name`, which runs `tl_body` through the pool with `scratch` bytes for each worker, or
    in the caller's thread, one program after the other, where `serial`."""
    _Pool(module, name, params, target, failures, scratch, serial).emit()


def width(v: Value) -> int:
    """How many tvm-ffi arguments a parameter takes: a packed tensor comes as bytes, extents and strides in bits."""
    packed = isinstance(v.type, TensorType) and v.type.dtype.packed
    return 1 + 2 * v.type.rank if packed else 1


class Entry(ABC):
    """The tvm-ffi entry `name`, for tensors on devices of a `kind` of DLPack. A subclass says who runs programs."""

    def __init__(self, module: ir.Module, name: str, params: Sequence[Value], target: CpuTarget, failures: Failures,
                 kind: int) -> None:
        self.module, self.params, self.slots, self.target = module, params, slots(params), target
        self.failures, self.kind = failures, kind
        fn = ir.Function(module, ir.FunctionType(I32, [PTR, PTR, I32, PTR]), name)
        self.fn, self.b = fn, ir.IRBuilder(fn.append_basic_block("entry"))
        self.guard = fn.append_basic_block("guard")
        self.dims: dict[str, ir.Value] = {}

    @abstractmethod
    def on(self, device: ir.Value) -> None:
        """Learns the number of the device of one tensor (i32)."""

    @abstractmethod
    def run(self, ctx: ir.Value) -> None:
        """Runs the programs of a call and returns from the entry; the context has everything but `workers`."""

    def require(self, condition: ir.Value) -> None:
        after = self.fn.append_basic_block("ok")
        self.b.cbranch(condition, after, self.guard)
        self.b.position_at_end(after)

    def emit(self) -> None:
        b, (_, args, count, result) = self.b, self.fn.args
        self.spans: list[tuple[TensorType, ir.Value, ir.Value]] = []
        ctx = self.stack(ir.ArrayType(I64, len(self.slots)))
        self.require(b.icmp_signed("==", count, I32(sum(width(v) for v in self.params))))
        at = 0
        for i, v in enumerate(self.params):
            pairs = [self.argument(args, at + n) for n in range(width(v))]
            at += width(v)
            if not isinstance(v.type, TensorType):
                assert isinstance(v.type, TileType)
                self.scalar(ctx, i, v.type.dtype, *pairs[0])
            elif width(v) > 1:
                self.packed(ctx, i, v.type, pairs)
            else:
                self.tensor(ctx, i, v.type, *pairs[0])
        self.apart()
        self.run(ctx)
        b.position_at_end(self.guard)
        if self.failures.guard is None:
            b.store(I32(_BOOL), result)
            b.store(I64(0), b.gep(result, [I32(0), I32(2)], source_etype=_ANY))
            b.ret(I32(0))
        else:
            kind, message = self.failures.guard
            self.throw(kind, text_constant(self.module, message))

    def call(self, name: str, returns: ir.Type, *args: ir.Value) -> ir.Value:
        """Calls a function of the run-time library."""
        fn = ir.Function(self.module, ir.FunctionType(returns, [a.type for a in args]), name)
        return self.b.call(fn, args)

    def letters(self, code: ir.Value) -> ir.Value:
        """A code as four letters: no allocation, no formatting."""
        b, digits = self.b, self.stack(ir.ArrayType(I8, 8))
        for place in range(4):
            nibble = b.and_(b.lshr(code, I32(4 * place)), I32(15))
            b.store(b.trunc(b.add(nibble, I32(ord("a"))), I8), b.gep(digits, [I32(place)], source_etype=I8))
        b.store(I8(0), b.gep(digits, [I32(4)], source_etype=I8))
        return digits

    def stack(self, t: ir.Type) -> ir.Value:
        place = self.b.alloca(t)
        place.type = PTR  # llvmlite gives a typed pointer; everything here is opaque
        return place

    def throw(self, kind: str, message: ir.Value) -> None:
        name = "TVMFFIErrorSetRaisedFromCStr"
        fn = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [PTR, PTR]), name
        )
        self.b.call(fn, [text_constant(self.module, kind), message])
        self.b.ret(I32(-1))

    def put(self, ctx: ir.Value, key: object, value: ir.Value) -> None:
        self.b.store(value, self.b.gep(ctx, [I64(self.slots[key])], source_etype=I64))

    def one_of(self, x: ir.Value, values: Sequence[int]) -> ir.Value:
        out = self.b.icmp_unsigned("==", x, I32(values[0]))
        for v in values[1:]:
            out = self.b.or_(out, self.b.icmp_unsigned("==", x, I32(v)))
        return out

    def scalar(self, ctx: ir.Value, i: int, dt: DType, kind: ir.Value, payload: ir.Value) -> None:
        b = self.b
        if dt.kind != "float":
            number = b.or_(b.icmp_signed("==", kind, I32(_INT)), b.icmp_signed("==", kind, I32(_BOOL)))
            if dt.name == "u64":  # those that no i64 holds come as addresses
                number = b.and_(number, b.icmp_signed(">=", payload, I64(0)))
                number = b.or_(number, b.icmp_signed("==", kind, I32(_OPAQUE)))
            self.require(number)
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
            code = emit_cast(b, value, dtype("f64"), dt, self.target)
            bits = b.zext(code if isinstance(code.type, ir.IntType) else b.bitcast(code, ir.IntType(dt.bits)), I64)
        self.put(ctx, ("value", i), bits)

    def argument(self, args: ir.Value, i: int) -> tuple[ir.Value, ir.Value]:
        """(type index, payload) of one argument."""
        any_ = self.b.gep(args, [I64(i)], source_etype=_ANY)
        payload = self.b.load(self.b.gep(any_, [I32(0), I32(2)], source_etype=_ANY), typ=I64)
        return self.b.load(any_, typ=I32), payload

    def header(
        self, t: TensorType, kind: ir.Value, payload: ir.Value, rank: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(address, shape, strides) of a DLPack tensor on the CPU with the element type and rank asked for."""
        b = self.b
        is_object = b.icmp_signed("==", kind, I32(_OBJECT))
        self.require(b.or_(is_object, b.icmp_signed("==", kind, I32(_DL_POINTER))))
        self.there(payload)
        tensor = b.inttoptr(b.add(payload, b.select(is_object, I64(_OBJECT_HEADER), I64(0))), PTR)

        def field(n: int, typ: ir.Type) -> ir.Value:
            return b.load(b.gep(tensor, [I32(0), I32(n)], source_etype=_TENSOR), typ=typ)
        codes, bits = dlpack_codes(t.dtype)
        self.require(b.icmp_signed("==", field(1, I32), I32(self.kind)))
        self.on(field(2, I32))
        self.require(b.icmp_signed("==", field(3, I32), I32(rank)))
        word = field(4, I32)
        self.require(self.one_of(b.and_(word, I32(255)), codes))
        self.require(b.icmp_unsigned("==", b.lshr(word, I32(8)), I32(bits | 1 << 8)))
        shape, strides = field(5, PTR), field(6, PTR)
        if rank:
            self.require(b.icmp_unsigned("!=", strides, ir.Constant(PTR, None)))
            self.there(b.ptrtoint(shape, I64))
        return b.add(b.ptrtoint(field(0, PTR), I64), field(7, I64)), shape, strides

    def there(self, address: ir.Value, free: ir.Value = I1(0)) -> None:
        """Requires an address of callers that are not ours, unless `free`."""
        if self.failures.guard is not None:
            self.require(self.b.or_(self.b.icmp_unsigned("!=", address, I64(0)), free))

    def tensor(self, ctx: ir.Value, i: int, t: TensorType, kind: ir.Value, payload: ir.Value) -> None:
        b = self.b
        address, shape, strides = self.header(t, kind, payload, t.rank)
        sizes = [tuple(b.load(b.gep(p, [I64(axis)], source_etype=I64), typ=I64) for p in (shape, strides))
                 for axis in range(t.rank)]
        self.layout(ctx, i, t, address, sizes, 8 * t.dtype.storage.itemsize)

    def packed(self, ctx: ir.Value, i: int, t: TensorType, pairs: Sequence[tuple[ir.Value, ir.Value]]) -> None:
        b = self.b
        address, shape, strides = self.header(t, *pairs[0], 1)
        size = b.load(shape, typ=I64)
        self.require(b.or_(b.icmp_signed("<=", size, I64(1)), b.icmp_signed("==", b.load(strides, typ=I64), I64(1))))
        for kind, _ in pairs[1:]:
            self.require(b.icmp_signed("==", kind, I32(_INT)))
        numbers = [payload for _, payload in pairs[1:]]
        first, last = self.layout(ctx, i, t, address, list(zip(numbers[:t.rank], numbers[t.rank:], strict=True)), 1)
        self.require(b.icmp_signed(">=", b.sub(first, address), I64(0)))  # the bytes must hold every element
        self.require(b.icmp_signed("<=", b.sub(last, address), size))

    def layout(self, ctx: ir.Value, i: int, t: TensorType, address: ir.Value,
               sizes: Sequence[tuple[ir.Value, ir.Value]], bits: int) -> tuple[ir.Value, ir.Value]:
        """Checks and records extents and strides (in units of `bits`); gives the bytes the tensor spans."""
        b = self.b
        self.put(ctx, ("data", i), address)
        low: ir.Value = I64(0)
        high: ir.Value = I64(0)
        empty: ir.Value = I1(0)  # then strides say nothing
        for extent, _ in sizes:
            empty = b.or_(empty, b.icmp_signed("==", extent, I64(0)))
        self.there(address, empty)
        unit = t.dtype.bits if bits == 1 else 1
        if self.failures.guard is None:
            self.neighbours(t, sizes, unit)
        repeats: ir.Value = I1(0)
        for axis, (extent, stride) in enumerate(sizes):
            self.require(b.icmp_unsigned("<=", extent, I64(MAX_EXTENT)))
            single = b.icmp_signed("<=", extent, I64(1))
            adjacent = axis < len(t.unit) and t.unit[axis]
            if t.align > 1:
                bytes_ = b.mul(extent if adjacent else stride, I64(t.dtype.storage.itemsize))
                self.aligned(t, bytes_, b.or_(empty, I1(0) if adjacent else single))
            if adjacent:
                self.require(b.or_(b.icmp_signed("==", stride, I64(unit)), b.or_(single, empty)))
            still = b.and_(b.icmp_signed("==", stride, I64(0)), b.not_(single))
            repeats = b.or_(repeats, still)
            dim = t.dims[axis]
            known = I64(dim) if isinstance(dim, int) else self.dims.setdefault(dim, extent)
            if known is not extent:
                self.require(b.icmp_signed("==", extent, known))
            self.put(ctx, ("shape", i, axis), extent)
            self.put(ctx, ("stride", i, axis), stride)
            product = b.smul_with_overflow(b.sub(extent, I64(1)), stride)
            reach = b.extract_value(product, 0)
            if bits == 1:  # `packed` adds them up to tell whether the bytes suffice: none may wrap
                small = b.icmp_unsigned("<", b.add(reach, I64(1 << 58)), I64(1 << 59))
                self.require(b.or_(b.and_(small, b.not_(b.extract_value(product, 1))), empty))
            back = b.icmp_signed("<", reach, I64(0))
            low = b.add(low, b.select(back, reach, I64(0)))
            high = b.add(high, b.select(back, I64(0), reach))
        if t.align > 1:
            self.aligned(t, address, empty)
        if t.writable:  # no element stands twice
            self.require(b.or_(b.not_(repeats), empty))
        element = t.dtype.bits if bits == 1 else bits
        first = b.select(empty, address, b.add(address, b.ashr(b.mul(low, I64(bits)), I64(3))))
        end = b.add(b.mul(high, I64(bits)), I64(element + 7))
        last = b.select(empty, first, b.add(address, b.ashr(end, I64(3))))
        self.spans.append((t, first, last))
        return first, last

    def neighbours(self, t: TensorType, sizes: Sequence[tuple[ir.Value, ir.Value]], unit: int) -> None:
        """Requires that the type says all there is to say of which neighbours are adjacent: see `Argument.unit`."""
        if not t.unit or t.unit[-1]:
            return
        b = self.b
        *others, (extent, stride) = sizes
        self.require(b.and_(b.icmp_signed(">", extent, I64(1)), b.icmp_signed("!=", stride, I64(unit))))
        for axis, (extent, stride) in enumerate(others):
            if t.unit[axis]:
                return
            self.require(b.or_(b.icmp_signed("<=", extent, I64(1)), b.icmp_signed("!=", stride, I64(unit))))

    def aligned(self, t: TensorType, bytes_: ir.Value, free: ir.Value) -> None:
        """Requires a multiple of the tensor's alignment, unless `free`."""
        low = self.b.and_(bytes_, I64(t.align - 1))
        self.require(self.b.or_(self.b.icmp_signed("==", low, I64(0)), free))

    def apart(self) -> None:
        """What is written shares no memory with any other argument."""
        b = self.b
        for i, (t, first, last) in enumerate(self.spans):
            for j, (other, start, stop) in enumerate(self.spans):
                if t.writable and i != j and not (other.writable and j < i):
                    self.require(b.or_(b.icmp_unsigned("<=", last, start), b.icmp_unsigned("<=", stop, first)))


class _Pool(Entry):
    """Programs on this machine's processors."""

    def __init__(self, module: ir.Module, name: str, params: Sequence[Value], target: CpuTarget, failures: Failures,
                 scratch: int, serial: bool) -> None:
        super().__init__(module, name, params, target, failures, _CPU)
        self.scratch, self.serial = scratch, serial

    def on(self, device: ir.Value) -> None:
        """There is one."""

    def run(self, ctx: ir.Value) -> None:
        b, body = self.b, self.module.globals["tl_body"]
        self.put(ctx, "workers", b.sext(self.call("tl_workers", I32), I64))
        total = b.call(self.module.globals["tl_count"], [ctx])
        self.require(b.icmp_signed("<=", total, I64(MAX_PROGRAMS)))
        body.type = PTR
        code = self.call("tl_serial" if self.serial else "tl_parallel", I32, body, ctx, total,
                         I64(max(self.scratch, 64)))
        failed, fine = self.fn.append_basic_block("failed"), self.fn.append_basic_block("fine")
        b.cbranch(b.icmp_signed("==", code, I32(0)), fine, failed)
        b.position_at_end(fine)
        b.ret(I32(0))
        b.position_at_end(failed)
        kind, messages = self.failures.failed
        if not messages:
            return self.throw(kind, self.letters(code))
        *asserted, memory = (text_constant(self.module, message) for message in messages)
        message = memory
        for number, text in enumerate(asserted, 1):
            message = b.select(b.icmp_signed("==", code, I32(number)), text, message)
        self.throw(kind, message)
