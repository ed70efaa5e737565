"""THREAD to LLVM IR: one case per operation, and the function that runs a range of programs of the grid."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

from llvmlite import ir

from tilelang.backends.cpu import printing
from tilelang.backends.cpu.access import Access
from tilelang.backends.cpu.arithmetic import Arithmetic
from tilelang.backends.cpu.control import Control
from tilelang.backends.cpu.debug import Lines
from tilelang.backends.cpu.numbers import (
    F32,
    I1,
    I8,
    I32,
    I64,
    Numbers,
    constant,
    full_like,
    storage_type,
    text_constant,
)
from tilelang.errors import TargetError
from tilelang.ir.control import MAX_PROGRAMS, Grid, Yield
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Type, Value
from tilelang.ir.dtypes import DType
from tilelang.ir.elementwise import Cast
from tilelang.ir.interpreter import Frame
from tilelang.passes.expand_casts import expand_casts

PTR = ir.PointerType()


def slots(params: Sequence[Value]) -> dict[Any, int]:
    """Position of every run-time value in the context, an array of i64: ("data", p), ("shape", p, axis), …"""
    out: dict[Any, int] = {}
    for p, v in enumerate(params):
        t = v.type
        if isinstance(t, TensorType):
            out[("data", p)] = len(out)
            for what in ("shape", "stride"):
                for axis in range(t.rank):
                    out[(what, p, axis)] = len(out)
        else:
            out[("value", p)] = len(out)
    out["workers"] = len(out)
    return out


def generate(fn: Function, target: Any, lines: bool = False) -> ir.Module:
    """The module of a THREAD function: `tl_count`, and `tl_body(ctx, begin, end, scratch) -> i32`, which runs a range
    of its programs; its instructions name the user's `lines` where asked for."""
    module = counting(fn, target)
    body = ir.Function(module, ir.FunctionType(I32, [PTR, I64, I64, PTR]), "tl_body")
    for argument in (0, 3):
        body.args[argument].add_attribute("noalias")
    debug = Lines(module, body, fn.loc) if lines and fn.loc else None
    _Generator(fn, _begin(body), target, debug).body()
    return module


def counting(fn: Function, target: Any, cluster: Sequence[int] = ()) -> ir.Module:
    """A module with `tl_count(ctx) -> i64`, the number of programs of a THREAD function; for clusters of such extents
    also `tl_whole(ctx) -> i64`, 1 where they make up the grid."""
    module = ir.Module(fn.name)
    module.triple, module.data_layout = target.triple, target.data_layout
    count = ir.Function(module, ir.FunctionType(I64, [PTR]), "tl_count")
    _Generator(fn, _begin(count), target).count()
    if cluster:
        whole = ir.Function(module, ir.FunctionType(I64, [PTR]), "tl_whole")
        _Generator(fn, _begin(whole), target).whole(cluster)
    return module


def _begin(function: ir.Function) -> ir.IRBuilder:
    return ir.IRBuilder(function.append_basic_block("entry"))


def emit_cast(builder: ir.IRBuilder, x: ir.Value, src: DType, dst: DType, target: Any) -> ir.Value:
    """A scalar of type `src` as `dst`, outside of a kernel."""
    value = Value(TileType((), src))
    cast = Cast([value], {"dtype": dst})
    fn = expand_casts(Function("cast", [value], Region([], [cast, Yield([cast.result])]), "thread"), target)
    generator = _Generator(fn, builder, target)
    generator.values[value] = x
    (out,) = generator.run(fn.body)
    return out


def scratch_bytes(fn: Function) -> int:
    """Scratch memory of one worker, a multiple of 64."""
    return sum(_size(op) for op in fn.body.ops if op.name == "alloc")


def _size(op: Op) -> int:
    size = op.attrs["dtype"].storage.itemsize
    for e in op.attrs["shape"]:
        size *= e
    return -(-size // 64) * 64


def evaluate(op: Op) -> Any:
    """The value of a constant operation."""
    return op.eval(Frame((), 1, print))


class _Generator(Arithmetic, Control):
    def __init__(self, fn: Function, builder: ir.IRBuilder, target: Any, lines: Lines | None = None) -> None:
        self.fn, self.b, self.function, self.target, self.lines = fn, builder, builder.function, target, lines
        self.slots = slots(fn.params)
        self.values: dict[Value, ir.Value] = {}
        self.words: dict[Value, tuple[ir.Value, ir.Value, int]] = {}
        self.params = {v: i for i, v in enumerate(fn.params)}
        self.context: dict[Any, ir.Value] = {}
        self.linear: ir.Value | None = None
        self.extents: list[ir.Value] = []
        self.scratch_at = 0
        self.offsets: dict[Value, int] = {}  # of allocations in the scratch memory

    # -- the two functions --------------------------------------------------------------------------------------------
    def _load_context(self) -> None:
        ctx = self.function.args[0]
        for key, at in self.slots.items():
            self.context[key] = self.b.load(self.b.gep(ctx, [I64(at)], source_etype=I64), typ=I64)
        for v, p in self.params.items():
            if isinstance(v.type, TileType):
                self.values[v] = self._from_slot(self.context[("value", p)], v.dtype)
            else:
                self.values[v] = self.b.inttoptr(self.context[("data", p)], PTR)

    def _from_slot(self, x: ir.Value, dt: DType) -> ir.Value:
        t = storage_type(dt)
        if isinstance(t, ir.IntType):
            return self.b.trunc(x, t) if t.width < 64 else x
        if dt.name == "f64":
            return self.b.bitcast(x, t)
        narrow = self.b.trunc(x, ir.IntType(dt.bits))
        return self.b.bitcast(narrow, t)

    def count(self) -> None:
        """Gives more than `MAX_PROGRAMS` for a grid of more, and where the arithmetic of an extent wraps."""
        checked = {step for op in self.fn.body.ops if isinstance(op, Grid) for step in op.wrapping()}
        wrapped: ir.Value = I1(0)
        for op in self._before_grid():
            if op.name == "grid":
                total: ir.Value = I64(1)
                for v in op.operands:
                    n = self.b.sext(self.values[v], I64)
                    negative = self.b.icmp_signed("<", n, I64(0))
                    product = self.b.umul_with_overflow(total, self.b.select(negative, I64(0), n))
                    total = self.b.extract_value(product, 0)
                    many = self.b.or_(wrapped, self.b.icmp_unsigned(">", total, I64(MAX_PROGRAMS)))
                    many = self.b.or_(many, self.b.extract_value(product, 1))
                    total = self.b.select(many, I64(MAX_PROGRAMS + 1), total)
                self.b.ret(total)
                return
            wrapped = self.b.or_(wrapped, self.wraps(op, self.values)) if op in checked else wrapped
        self.b.ret(I64(1))

    def whole(self, cluster: Sequence[int]) -> None:
        """For a function that has a grid."""
        *_, grid = self._before_grid()
        left = [self.b.srem(self.values[v], I32(n)) for v, n in zip(grid.operands, cluster, strict=True)]
        self.b.ret(self.b.zext(self.b.icmp_signed("==", reduce(self.b.or_, left), I32(0)), I64))

    def _before_grid(self) -> Iterator[Op]:
        """The operations that the extents of the grid follow from, each once it is done, and then the grid."""
        self._load_context()
        grid = next((op for op in self.fn.body.ops if isinstance(op, Grid)), None)
        steps = grid.leading() if grid is not None else set()
        for op in self.fn.body.ops:
            if op in steps:
                self.op(op)
            if op in steps or op is grid:
                yield op

    def body(self) -> None:
        self._load_context()
        _, begin, end, scratch = self.function.args
        for op in self.fn.body.ops:
            if op.name == "alloc":
                self.values[op.result] = self.b.gep(scratch, [I64(self.scratch_at)], source_etype=I8)
                self.offsets[op.result] = self.scratch_at
                self.scratch_at += _size(op)
        head, done = self.function.append_basic_block("program"), self.function.append_basic_block("done")
        entry = self.b.block
        self.b.cbranch(self.b.icmp_signed("<", begin, end), head, done)
        self.b.position_at_end(head)
        self.linear = self.b.phi(I64)
        self.linear.add_incoming(begin, entry)
        self.run(self.fn.body)
        following = self.b.add(self.linear, I64(1))
        self.linear.add_incoming(following, self.b.block)
        self.b.cbranch(self.b.icmp_signed("<", following, end), head, done)
        self.b.position_at_end(done)
        if any(op.name == "st" and op.attrs["stream"] for op in self.fn.walk()):
            Access(self.b, self.target).finish_streams()
        self.b.ret(I32(0))

    # -- operations ---------------------------------------------------------------------------------------------------
    def run(self, region: Region) -> list[ir.Value]:
        """Emits the operations of a region; gives what it yields."""
        for op in region.ops:
            if op.name == "yield":
                return [self.values[v] for v in op.operands]
            if op.name != "alloc":
                self.op(op)
        return []

    def op(self, op: Op) -> None:
        if self.lines and op.loc:
            self.b.debug_metadata = self.lines.at(op.loc)
        rule: Callable[[Op], Any] | None = getattr(self, f"op_{op.name}", None)
        if rule is None:
            rule = self._elementwise
        out = rule(op)
        if op.results:
            outs = out if isinstance(out, list) else [out]
            self.values.update(zip(op.results, outs, strict=True))

    def args(self, op: Op) -> list[ir.Value]:
        return [self.values[v] for v in op.operands]

    def type_of(self, t: Type) -> ir.Type:
        assert isinstance(t, TileType)
        element = storage_type(t.dtype)
        return ir.VectorType(element, t.shape[0]) if t.shape else element

    # -- elementwise --------------------------------------------------------------------------------------------------
    def _elementwise(self, op: Op) -> ir.Value:
        numbers, dt = Numbers(self.b), op.operands[0].dtype if op.operands else None
        args = self.args(op)
        if dt is None:
            raise TargetError(f"`{op.name}` cannot be compiled for the CPU yet", loc=op.loc,
                              needs="an operation with a CPU form", got=op.name,
                              try_="run the kernel with kernel.reference(...)")
        if dt.kind == "float":
            return self._float(op, args)
        return numbers.wrap(self._integer(op, args, dt), dt) if op.result.dtype.kind != "bool" \
            else self._integer(op, args, dt)

    def op_where(self, op: Op) -> ir.Value:
        return self.b.select(*self.args(op))

    def op_cast(self, op: Op) -> ir.Value:
        return Numbers(self.b).cast(self.args(op)[0], op.operands[0].dtype, op.attrs["dtype"])

    def op_bitcast(self, op: Op) -> ir.Value:
        (x,), src, dst, t = self.args(op), op.operands[0].dtype, op.attrs["dtype"], self.type_of(op.result.type)
        if dst.kind == "bool":
            return self.b.icmp_unsigned("!=", self.b.and_(x, full_like(x, 1)), full_like(x, 0))
        if src.kind == "bool":
            return self.b.zext(x, t)
        if src.kind == "int" and src.bits < 8 * src.storage.itemsize:
            x = self.b.and_(x, full_like(x, (1 << src.bits) - 1))
        return Numbers(self.b).wrap(x if x.type == t else self.b.bitcast(x, t), dst)

    # -- constants and vectors ----------------------------------------------------------------------------------------
    def op_const(self, op: Op) -> ir.Value:
        return constant(storage_type(op.attrs["dtype"]), self._number(evaluate(op), op.attrs["dtype"]))

    def _number(self, value: Any, dt: DType) -> Any:
        return float(value) if dt.name in ("f16", "f32", "f64") else int(value)

    def op_const_tile(self, op: Op) -> ir.Value:
        return ir.Constant(self.type_of(op.result.type),
                           [self._number(v, op.attrs["dtype"]) for v in evaluate(op)])

    def op_arange(self, op: Op) -> ir.Value:
        start, size = op.attrs["start"], op.attrs["size"]
        return ir.Constant(ir.VectorType(I32, size), list(range(start, start + size)))

    def op_broadcast(self, op: Op) -> ir.Value:
        (x,), t = self.args(op), self.type_of(op.result.type)
        if x.type == t:
            return x
        if isinstance(x.type, ir.VectorType):
            x = self.b.extract_element(x, I32(0))
        return Access(self.b, self.target).splat(x, t.count)

    def op_extract(self, op: Op) -> ir.Value:
        return self.b.extract_element(self.args(op)[0], I32(op.attrs["lane"]))

    def op_slice(self, op: Op) -> ir.Value:
        (start,), (size,), (step,) = op.attrs["starts"], op.attrs["shape"], op.attrs["steps"]
        return self.shuffle(self.args(op)[0], None, [start + i * step for i in range(size)])

    def op_concat(self, op: Op) -> ir.Value:
        return Access(self.b, self.target).joined(self.args(op))

    def op_lanes(self, op: Op) -> ir.Value:
        x, y = (*self.args(op), None)[:2]
        return self.shuffle(x, y, op.attrs["lanes"])

    def op_repeat(self, op: Op) -> ir.Value:
        (x,) = self.args(op)
        wide = self.b.bitcast(x, ir.IntType(x.type.count * x.type.element.width))
        return self.b.bitcast(Access(self.b, self.target).splat(wide, op.attrs["times"]), self.type_of(op.result.type))

    def op_interleave(self, op: Op) -> ir.Value:
        return self._interleaved(self.args(op))

    def _interleaved(self, vectors: list[ir.Value]) -> ir.Value:
        """One vector: the first lane of each of 2**n vectors in order, then the second of each, and so on."""
        while len(vectors) > 1:  # pairs far apart first, so that the lanes come out in order
            half, n = len(vectors) // 2, vectors[0].type.count
            lanes = [lane for i in range(n) for lane in (i, n + i)]
            vectors = [self.shuffle(vectors[i], vectors[half + i], lanes) for i in range(half)]
        return vectors[0]

    def op_transpose(self, op: Op) -> list[ir.Value]:
        rows, group = self.args(op), op.attrs["group"]
        if group == 1:
            return self._transposed(rows)
        words = ir.VectorType(ir.IntType(rows[0].type.element.width * group), len(op.results))
        columns = self._transposed([self.b.bitcast(row, words) for row in rows])
        return [self.b.bitcast(column, self.type_of(op.results[0].type)) for column in columns]

    def _transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        n, columns = len(rows), rows[0].type.count
        if n & (n - 1) or columns & (columns - 1) or n == 1 or columns == 1:
            out = []
            for j in range(columns):
                v = constant(ir.VectorType(rows[0].type.element, n), ir.Undefined)
                for i, row in enumerate(rows):
                    v = self.b.insert_element(v, self.b.extract_element(row, I32(j)), I32(i))
                out.append(v)
            return out
        return self._butterfly(rows)

    def _butterfly(self, rows: list[ir.Value]) -> list[ir.Value]:
        """The columns of 2**n rows in log2 rounds of two-vector shuffles: as many columns as rows by a butterfly,
        else all interleaved in one vector that is then cut."""
        n, lanes = len(rows), rows[0].type.count
        if n != lanes:
            wide = self._interleaved(rows)
            return [self.shuffle(wide, None, range(j * n, (j + 1) * n)) for j in range(lanes)]
        step = 1
        while step < n:
            low = [(i - step + n) if (i // step) % 2 else i for i in range(n)]
            high = [i + n if (i // step) % 2 else i + step for i in range(n)]
            out = list(rows)
            for i in range(n):
                if not (i // step) % 2:
                    out[i] = self.shuffle(rows[i], rows[i + step], low)
                    out[i + step] = self.shuffle(rows[i], rows[i + step], high)
            rows = out
            step *= 2
        return rows

    def op_reduce(self, op: Op) -> ir.Value:
        (x,), kind, dt = self.args(op), op.attrs["kind"], op.operands[0].dtype
        if not isinstance(x.type, ir.VectorType):
            return x
        out = self._fold(x, kind, dt.kind)
        return Numbers(self.b).wrap(out, dt) if dt.kind in ("int", "uint") else out

    def op_reduce_each(self, op: Op) -> ir.Value:
        dt = op.operands[0].dtype
        out = self._fold_each(self.args(op), op.attrs["kind"], dt.kind)
        return Numbers(self.b).wrap(out, dt) if dt.kind in ("int", "uint") else out

    def op_table_entry(self, op: Op) -> ir.Value:
        (index,), values = self.args(op), op.attrs["values"]
        full = self.target.vector_bytes // 4
        rows = [ir.Constant(ir.VectorType(storage_type(op.result.dtype), full), (values[i:i + full] * full)[:full])
                for i in range(0, len(values), full)]
        return Access(self.b, self.target).table_entry(rows, index)

    def op_lane_lookup(self, op: Op) -> ir.Value:
        table, index = self.args(op)
        whole, full = self.b.bitcast(table, ir.VectorType(F32, table.type.count)), self.target.vector_bytes // 4
        rows = [self.shuffle(whole, None, range(i, i + full)) for i in range(0, table.type.count, full)]
        out = Access(self.b, self.target).table_entry(rows, index)
        return self.b.bitcast(out, self.type_of(op.result.type))

    def op_lookup4(self, op: Op) -> ir.Value:
        table, words = self.args(op)
        if not op.result.shape:
            lane = self.b.insert_element(constant(ir.VectorType(I32, 1), ir.Undefined), words, I32(0))
            return self.b.extract_element(Access(self.b, self.target).byte_entries(table, lane), I32(0))
        access = Access(self.b, self.target)
        return access.by_registers([words], lambda w: access.byte_entries(table, w))

    # -- memory -------------------------------------------------------------------------------------------------------
    def op_dim(self, op: Op) -> ir.Value:
        memory, axis = op.operands[0], op.attrs["axis"]
        if isinstance(memory.type, BufferType):
            return I32(memory.type.shape[axis])
        return self.b.trunc(self.context[("shape", self.params[memory], axis)], I32)

    def op_stride(self, op: Op) -> ir.Value:
        return self.context[("stride", self.params[op.operands[0]], op.attrs["axis"])]

    def _access(self, op: Op) -> tuple[Access, DType, bool, list[ir.Value]]:
        memory = op.operands[0]
        packed = isinstance(memory.type, TensorType) and memory.dtype.packed
        return Access(self.b, self.target), memory.dtype, packed, self.args(op)

    def op_ld(self, op: Op) -> ir.Value:
        access, dt, packed, args = self._access(op)
        return access.load(dt, packed, args[0], args[1], op.attrs["lanes"], args[2] if len(args) > 2 else None)

    def op_ld_gather(self, op: Op) -> ir.Value:
        access, dt, packed, args = self._access(op)
        return access.gather(dt, packed, args[0], args[1], args[2] if len(args) > 2 else None)

    def op_st(self, op: Op) -> None:
        access, dt, packed, args = self._access(op)
        access.store(dt, packed, args[0], args[1], args[2], args[3] if len(args) > 3 else None, op.attrs["stream"])

    def op_prefetch(self, op: Op) -> None:
        access, dt, packed, (base, offset) = self._access(op)
        access.prefetch(dt, packed, base, offset, op.attrs["near"])

    def op_streams(self, op: Op) -> ir.Value:
        access, dt, _, (base, offset) = self._access(op)
        t, p = op.operands[0].type, self.params[op.operands[0]]
        assert isinstance(t, TensorType)
        extents = [self.context[("shape", p, axis)] for axis in range(t.rank)]
        steps = [self.context[("stride", p, axis)] for axis in range(t.rank) if not t.unit[axis:axis + 1] == (True,)]
        return access.streams(dt.storage.itemsize, base, offset, extents, steps, op.attrs["lines"])

    def op_to_line(self, op: Op) -> ir.Value:
        access, dt, _, (base, offset) = self._access(op)
        return access.to_line(dt.storage.itemsize, base, offset)

    def op_st_scatter(self, op: Op) -> None:
        access, dt, packed, args = self._access(op)
        access.scatter(dt, packed, args[0], args[1], args[2], args[3] if len(args) > 3 else None)

    def op_atomic_rmw(self, op: Op) -> ir.Value:
        access, dt, _, args = self._access(op)
        return access.atomic(dt, op.attrs["kind"], args[0], args[1], args[2:])

    # -- control ------------------------------------------------------------------------------------------------------
    def op_grid(self, op: Op) -> list[ir.Value]:
        assert self.linear is not None
        rest: ir.Value = self.linear
        out: list[ir.Value] = []
        for v in reversed(op.operands[1:]):
            n = self.b.sext(self.values[v], I64)
            out.insert(0, self.b.trunc(self.b.srem(rest, n), I32))
            rest = self.b.sdiv(rest, n)
        return [self.b.trunc(rest, I32), *out]

    def op_num_workers(self, op: Op) -> ir.Value:
        return self.b.trunc(self.context["workers"], I32)

    def op_print(self, op: Op) -> None:
        module = self.function.module
        fn = module.globals.get(printing.SYMBOL) or ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR, PTR]),
                                                                printing.SYMBOL)
        what = printing.description(op.attrs["text"], op.operands, [self.offsets[v] for v in op.operands])
        self.b.call(fn, [text_constant(module, what), self.function.args[3]])

    def op_assert(self, op: Op) -> None:
        """A false assertion ends the range with its number, counted from 1 over the function."""
        numbers = [o for o in self.fn.walk() if o.name == "assert"]
        failed, after = self.function.append_basic_block("failed"), self.function.append_basic_block("held")
        self.b.cbranch(self.args(op)[0], after, failed)
        self.b.position_at_end(failed)
        self.b.ret(I32(1 + numbers.index(op)))
        self.b.position_at_end(after)


