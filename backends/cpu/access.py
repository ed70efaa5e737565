"""LLVM code for memory access: vectors, masks, gathers, bit streams of sub-byte elements, atomics, dots."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from tilelang.backends.cpu.dots import DotRow
from tilelang.backends.cpu.machine import LINE
from tilelang.backends.cpu.numbers import (
    BF16,
    I1,
    I8,
    I16,
    I32,
    I64,
    Numbers,
    constant,
    full_like,
    storage_type,
    type_name,
)
from tilelang.ir.dtypes import DType

PTR = ir.PointerType()


class Access:
    """Memory operations emitted through one builder. Offsets count elements, or bits of a packed tensor."""

    def __init__(self, builder: ir.IRBuilder, target: Any) -> None:
        self.b, self.target = builder, target

    # -- types in memory ----------------------------------------------------------------------------------------------
    def _memory_type(self, dt: DType) -> ir.Type:
        return I8 if dt.kind == "bool" else storage_type(dt)

    def _from_memory(self, x: ir.Value, dt: DType) -> ir.Value:
        return self.b.icmp_unsigned("!=", x, full_like(x, 0)) if dt.kind == "bool" else x

    def _to_memory(self, x: ir.Value, dt: DType) -> ir.Value:
        if dt.kind != "bool":
            return x
        return self.b.zext(x, ir.VectorType(I8, x.type.count) if isinstance(x.type, ir.VectorType) else I8)

    def _intrinsic(self, name: str, result: ir.Type, args: Sequence[ir.Value]) -> Any:
        module = self.b.module
        fn = module.globals.get(name)
        if fn is None:
            fn = ir.Function(module, ir.FunctionType(result, [a.type for a in args]), name)
        return self.b.call(fn, list(args))

    # -- elements next to each other ----------------------------------------------------------------------------------
    def load(self, dt: DType, packed: bool, base: ir.Value, offset: ir.Value, lanes: int | None,
             mask: ir.Value | None) -> ir.Value:
        if packed:
            return self._load_bits(dt, base, offset, lanes, mask)
        t = self._memory_type(dt)
        at = self.b.gep(base, [offset], source_etype=t)
        if lanes is None:
            if mask is None:
                return self._from_memory(self.b.load(at, typ=t, align=1), dt)
            return self._guarded_load(at, t, dt, mask)
        vector = ir.VectorType(t, lanes)
        if mask is None:
            return self._from_memory(self.b.load(at, typ=vector, align=1), dt)
        value = self._intrinsic(f"llvm.masked.load.{type_name(vector)}.p0", vector,
                                [at, I32(1), mask, constant(vector, 0)])
        return self._from_memory(value, dt)

    def _guarded_load(self, at: ir.Value, t: ir.Type, dt: DType, mask: ir.Value) -> ir.Value:
        """A scalar read that happens only where the mask holds, 0 otherwise."""
        vector = ir.VectorType(t, 1)
        lanes = self.b.insert_element(constant(ir.VectorType(I1, 1), ir.Undefined), mask, I32(0))
        value = self._intrinsic(f"llvm.masked.load.{type_name(vector)}.p0", vector,
                                [at, I32(1), lanes, constant(vector, 0)])
        return self._from_memory(self.b.extract_element(value, I32(0)), dt)

    def store(self, dt: DType, packed: bool, base: ir.Value, offset: ir.Value, value: ir.Value,
              mask: ir.Value | None, stream: bool = False) -> None:
        if packed:
            self._store_bits(dt, base, offset, value, mask)
            return
        value = self._to_memory(value, dt)
        t = self._memory_type(dt)
        at = self.b.gep(base, [offset], source_etype=t)
        if stream:
            self._stream(value, at, self.target.vector_bytes // dt.storage.itemsize)
            return
        if mask is None:
            self.b.store(value, at, align=1)
            return
        if not isinstance(value.type, ir.VectorType):
            with self.b.if_then(mask):
                self.b.store(value, at, align=1)
            return
        self._intrinsic(f"llvm.masked.store.{type_name(value.type)}.p0", ir.VoidType(), [value, at, I32(1), mask])

    def _stream(self, value: ir.Value, at: ir.Value, lanes: int) -> None:
        """Stores registers of `lanes` one after the other: LLVM would write the parts of a longer vector in another
        order, and memory takes lines faster in order."""
        for start in range(0, value.type.count, lanes):
            store = self.b.store(self._lanes(value, range(start, start + lanes)),
                                 self.b.gep(at, [I64(start)], source_etype=value.type.element),
                                 align=self.target.vector_bytes)
            store.set_metadata("nontemporal", self.b.module.add_metadata([I32(1)]))

    def streams(self, size: int, base: ir.Value, offset: ir.Value, extents: Sequence[ir.Value],
                steps: Sequence[ir.Value], lines: bool) -> ir.Value:
        """Whether a tensor of elements of `size` bytes is larger than the caches, the address at `offset` begins an
        element (a line), and so does every step between rows from there: lines written in part would go to memory
        piece by piece."""
        b, total = self.b, I64(size)
        for extent in extents:
            total = b.mul(total, extent)
        bits = b.add(b.ptrtoint(base, I64), b.mul(offset, I64(size)))
        for step in steps:
            bits = b.or_(bits, b.mul(step, I64(size)))
        aligned = b.icmp_unsigned("==", b.and_(bits, I64((LINE if lines else size) - 1)), I64(0))
        return b.and_(b.icmp_unsigned(">", total, I64(self.target.cache_bytes)), aligned)

    def to_line(self, size: int, base: ir.Value, offset: ir.Value) -> ir.Value:
        """How many elements of `size` bytes lie between `offset` and the next line."""
        b = self.b
        at = b.add(b.ptrtoint(base, I64), b.mul(offset, I64(size)))
        return b.udiv(b.and_(b.neg(at), I64(LINE - 1)), I64(size))

    def prefetch(self, dt: DType, packed: bool, base: ir.Value, offset: ir.Value, near: bool) -> None:
        """Starts to bring a line into the first or the second level of the caches."""
        if packed:
            offset = self.b.ashr(offset, I64(3))
        at = self.b.gep(base, [offset], source_etype=I8 if packed else self._memory_type(dt))
        self._intrinsic("llvm.prefetch.p0", ir.VoidType(), [at, I32(0), I32(3 if near else 2), I32(1)])

    def finish_streams(self) -> None:
        """Orders streamed stores, which x86 may otherwise complete after whatever tells others about them."""
        if self.target.triple.startswith("x86_64"):
            self._intrinsic("llvm.x86.sse.sfence", ir.VoidType(), [])

    # -- elements anywhere --------------------------------------------------------------------------------------------
    def gather(self, dt: DType, packed: bool, base: ir.Value, offsets: ir.Value, mask: ir.Value | None) -> ir.Value:
        if packed:
            return self._gather_bits(dt, base, offsets, mask)
        t = ir.VectorType(self._memory_type(dt), offsets.type.count)
        pointers = self._pointers(base, offsets, t.element)
        every = mask if mask is not None else constant(ir.VectorType(I1, t.count), 1)
        value = self._intrinsic(f"llvm.masked.gather.{type_name(t)}.v{t.count}p0", t,
                                [pointers, I32(1), every, constant(t, 0)])
        return self._from_memory(value, dt)

    def _pointers(self, base: ir.Value, offsets: ir.Value, element: ir.Type) -> ir.Value:
        width = element.width // 8 if isinstance(element, ir.IntType) else {"half": 2, "float": 4, "double": 8}[
            str(element)]
        lanes = offsets.type.count
        start = self.splat(self.b.ptrtoint(base, I64), lanes)
        return self.b.inttoptr(self.b.add(start, self.b.mul(offsets, full_like(offsets, width))),
                               ir.VectorType(PTR, lanes))

    def splat(self, x: ir.Value, lanes: int) -> ir.Value:
        t = ir.VectorType(x.type, lanes)
        if isinstance(x, ir.Constant):
            return constant(t, x.constant)
        first = self.b.insert_element(constant(t, ir.Undefined), x, I32(0))
        return self.b.shuffle_vector(first, constant(t, ir.Undefined), constant(ir.VectorType(I32, lanes), 0))

    def scatter(self, dt: DType, packed: bool, base: ir.Value, offsets: ir.Value, value: ir.Value,
                mask: ir.Value | None) -> None:
        if packed:
            self._write_codes(dt, base, self._held(offsets), value, mask)
            return
        value = self._to_memory(value, dt)
        every = mask if mask is not None else constant(ir.VectorType(I1, value.type.count), 1)
        self._intrinsic(f"llvm.masked.scatter.{type_name(value.type)}.v{value.type.count}p0", ir.VoidType(),
                        [value, self._pointers(base, offsets, value.type.element), I32(1), every])

    # -- bit streams --------------------------------------------------------------------------------------------------
    def _load_bits(self, dt: DType, base: ir.Value, offset: ir.Value, lanes: int | None,
                   mask: ir.Value | None) -> ir.Value:
        b = self.b
        if lanes is None:
            return self._from_code(self._code(dt.bits, base, offset, mask), dt)

        def each() -> ir.Value:
            return self._codes(dt, base, lambda lane: b.add(offset, b.mul(lane, I64(dt.bits))), lanes, mask)
        word = next((w for w in (I16, I32, I64) if w.width >= dt.bits + 7), None)
        if mask is not None or word is None:
            return each()
        with b.if_else(b.icmp_unsigned("==", b.and_(offset, I64(7)), I64(0))) as (bytewise, otherwise):
            with bytewise:
                together, end = self._byte_codes(dt, base, offset, lanes, word), b.block
            with otherwise:
                single, other = each(), b.block
        value = b.phi(together.type)
        value.add_incoming(together, end)
        value.add_incoming(single, other)
        return value

    def _byte_codes(self, dt: DType, base: ir.Value, offset: ir.Value, lanes: int, word: ir.IntType) -> ir.Value:
        """A vector of elements that begins on a byte: the bytes of each are brought into one word, and shifted."""
        b, size = self.b, -(-lanes * dt.bits // 8)
        held = b.load(b.gep(base, [b.lshr(offset, I64(3))], source_etype=I8), typ=ir.VectorType(I8, size), align=1)
        if dt.bits < 8 and "vbmi" in self.target.features:
            codes = self._shifted(held, dt.bits, lanes)
            return self._from_code(b.and_(codes, full_like(codes, (1 << dt.bits) - 1)), dt)
        bits = range(0, lanes * dt.bits, dt.bits)
        found = self._lanes(held, [min(bit // 8 + i, size - 1) for bit in bits for i in range(word.width // 8)])
        t = ir.VectorType(word, lanes)
        words = b.lshr(b.bitcast(found, t), ir.Constant(t, [bit % 8 for bit in bits]))
        return self._from_code(b.and_(words, full_like(words, (1 << dt.bits) - 1)), dt)

    def _shifted(self, held: ir.Value, bits: int, lanes: int) -> ir.Value:
        """For each element the byte that begins with it: eight elements lie in eight bytes, of which an instruction
        takes bits from anywhere."""
        full, size = self.target.vector_bytes, held.type.count
        t = ir.VectorType(I8, full)
        begins = ir.Constant(t, [bits * (i % 8) for i in range(full)])
        parts = []
        for first in range(0, lanes, full):
            eights = self._lanes(held, [min((first // 8 + i // 8) * bits + i % 8, size - 1) for i in range(full)])
            found = self._intrinsic("llvm.x86.avx512.pmultishift.qb.512", t, [begins, eights])
            parts.append(self._lanes(found, range(min(full, lanes - first))))
        return self.joined(parts)

    def _gather_bits(self, dt: DType, base: ir.Value, offsets: ir.Value, mask: ir.Value | None) -> ir.Value:
        """Elements at bit offsets."""
        return self._codes(dt, base, self._held(offsets), offsets.type.count, mask)

    def _codes(self, dt: DType, base: ir.Value, offset: Callable[[ir.Value], ir.Value], lanes: int,
               mask: ir.Value | None) -> ir.Value:
        """A vector of elements, in a loop: code for each lane would be long."""
        t = ir.VectorType(I64, lanes)
        made, inside = self._stack(t), self._held(mask) if mask is not None else None
        with self._each(lanes) as lane:
            code = self._code(dt.bits, base, offset(lane), inside(lane) if inside is not None else None)
            self.b.store(code, self.b.gep(made, [lane], source_etype=I64))
        return self._from_code(self.b.load(made, typ=t), dt)

    def _from_code(self, code: ir.Value, dt: DType) -> ir.Value:
        b, t = self.b, storage_type(dt)
        if t.width == 1:
            return b.icmp_unsigned("!=", code, full_like(code, 0))
        lanes = code.type.count if isinstance(code.type, ir.VectorType) else None
        have = (code.type.element if lanes else code.type).width
        narrow = b.trunc(code, ir.VectorType(t, lanes) if lanes else t) if t.width < have else code
        return Numbers(b).wrap(narrow, dt)

    def _code(self, bits: int, base: ir.Value, at: ir.Value, mask: ir.Value | None) -> ir.Value:
        """The bits of one element, read byte by byte so that nothing past the last byte is touched; 0 where the mask
        does not hold."""
        b, place = self.b, self._stack(I64)
        b.store(I64(0), place)

        def read() -> None:
            first, shift = b.lshr(at, I64(3)), b.and_(at, I64(7))
            for byte in range((bits + 14) // 8):
                with b.if_then(b.icmp_unsigned(">", b.add(shift, I64(bits)), I64(8 * byte))):
                    found = b.load(b.gep(base, [b.add(first, I64(byte))], source_etype=I8), typ=I8, align=1)
                    b.store(b.or_(b.load(place, typ=I64), self._from_byte(b.zext(found, I64), byte, shift)), place)
        if mask is None:
            read()
        else:
            with b.if_then(mask):
                read()
        return b.and_(b.load(place, typ=I64), I64((1 << bits) - 1))

    def _from_byte(self, x: ir.Value, byte: int, shift: ir.Value) -> ir.Value:
        """Byte `byte` of a code that begins at bit `shift` of byte 0, at its place in the code."""
        if byte == 0:
            return self.b.lshr(x, shift)
        return self.b.shl(x, self.b.sub(I64(8 * byte), shift))

    def _store_bits(self, dt: DType, base: ir.Value, offset: ir.Value, value: ir.Value, mask: ir.Value | None) -> None:
        if not isinstance(value.type, ir.VectorType):
            return self._write_code(dt.bits, base, offset, value, mask)
        self._write_codes(dt, base, lambda lane: self.b.add(offset, self.b.mul(lane, I64(dt.bits))), value, mask)

    def _write_codes(self, dt: DType, base: ir.Value, offset: Callable[[ir.Value], ir.Value], value: ir.Value,
                     mask: ir.Value | None) -> None:
        held, inside = self._held(value), self._held(mask) if mask is not None else None
        with self._each(value.type.count) as lane:
            self._write_code(dt.bits, base, offset(lane), held(lane), inside(lane) if inside is not None else None)

    def _write_code(self, bits: int, base: ir.Value, at: ir.Value, value: ir.Value, mask: ir.Value | None) -> None:
        """Writes one element byte by byte, atomically: neighbours in a byte may belong to others."""
        b, every = self.b, I64((1 << bits) - 1)

        def write() -> None:
            code = b.and_(b.zext(value, I64) if value.type.width < 64 else value, every)
            first, shift = b.lshr(at, I64(3)), b.and_(at, I64(7))
            for byte in range((bits + 14) // 8):
                with b.if_then(b.icmp_unsigned(">", b.add(shift, I64(bits)), I64(8 * byte))):
                    keep, part = (self._to_byte(x, byte, shift) for x in (every, code))
                    place = b.gep(base, [b.add(first, I64(byte))], source_etype=I8)
                    b.atomic_rmw("and", place, b.not_(keep), "monotonic")
                    b.atomic_rmw("or", place, part, "monotonic")
        if mask is None:
            write()
        else:
            with b.if_then(mask):
                write()

    def _to_byte(self, code: ir.Value, byte: int, shift: ir.Value) -> ir.Value:
        """The inverse of `_from_byte`."""
        if byte == 0:
            return self.b.trunc(self.b.shl(code, shift), I8)
        by = self.b.sub(I64(8 * byte), shift)
        return self.b.trunc(self.b.lshr(code, by), I8)

    def _stack(self, t: ir.Type) -> ir.Value:
        with self.b.goto_entry_block():
            place = self.b.alloca(t)
        place.type = PTR
        return place

    def _held(self, x: ir.Value) -> Callable[[ir.Value], ir.Value]:
        """The lanes of a vector by a run-time number."""
        return lambda lane: self.b.extract_element(x, lane)

    @contextmanager
    def _each(self, lanes: int) -> Iterator[ir.Value]:
        """A loop over lanes."""
        b = self.b
        before, loop = b.block, b.append_basic_block("lane")
        b.branch(loop)
        b.position_at_end(loop)
        lane = b.phi(I64)
        lane.add_incoming(I64(0), before)
        yield lane
        following = b.add(lane, I64(1))
        lane.add_incoming(following, b.block)
        after = b.append_basic_block("lanes")
        b.cbranch(b.icmp_unsigned("<", following, I64(lanes)), loop, after)
        b.position_at_end(after)

    # -- atomics ------------------------------------------------------------------------------------------------------
    def atomic(self, dt: DType, kind: str, base: ir.Value, offset: ir.Value, args: Sequence[ir.Value]) -> ir.Value:
        """One update with sequential consistency; floats go through compare and swap of their bits."""
        b, t = self.b, storage_type(dt)
        at = b.gep(base, [offset], source_etype=t)
        bits = ir.IntType(dt.bits)
        if kind == "cas":
            expected, new = (b.bitcast(a, bits) for a in args)
            return b.bitcast(b.extract_value(b.cmpxchg(at, expected, new, "seq_cst", "seq_cst"), 0), t)
        if dt.kind != "float":
            name = {"add": "add", "max": "max" if dt.kind == "int" else "umax",
                    "min": "min" if dt.kind == "int" else "umin"}[kind]
            return b.atomic_rmw(name, at, args[0], "seq_cst")
        from tilelang.backends.cpu import math
        start, loop, done = b.block, b.append_basic_block("retry"), b.append_basic_block("swapped")
        first = b.load(at, typ=bits, align=1)
        b.branch(loop)
        b.position_at_end(loop)
        seen = b.phi(bits)
        seen.add_incoming(first, start)
        old = b.bitcast(seen, t)
        new = b.fadd(old, args[0]) if kind == "add" else math.emit(b, kind, [old, args[0]], self.target)
        pair = b.cmpxchg(at, seen, b.bitcast(new, bits), "seq_cst", "seq_cst")
        seen.add_incoming(b.extract_value(pair, 0), loop)
        b.cbranch(b.extract_value(pair, 1), done, loop)
        b.position_at_end(done)
        return old

    # -- dot instructions ---------------------------------------------------------------------------------------------
    def dot_groups(self, acc: ir.Value, x: ir.Value, y: ir.Value, row: DotRow) -> ir.Value:
        """acc + grouped products by a row's instruction, of at most a register of sums."""
        lanes, full = acc.type.count, self.target.vector_bytes // 4
        if lanes < full:  # the instruction works on whole registers
            wide = self.dot_groups(self._resize(acc, full), self._resize(x, full * row.group),
                                   self._resize(y, full * row.group), row)
            return self._resize(wide, lanes)
        name = row.spelling[self.target.vector_bytes == 64]
        if row.a == "bf16":
            x, y = (self.b.bitcast(v, ir.VectorType(BF16, v.type.count)) for v in (x, y))
        if row.adds:
            return self._intrinsic(name, acc.type, [acc, x, y])
        out = self.b.add(acc, self._intrinsic(name, acc.type, [x, y]))
        return out if self.target.registers >= 32 else self._in_order(out)

    def _in_order(self, x: ir.Value) -> ir.Value:
        """`x`, made as it is written: LLVM shortens chains of integer sums, acc + (p + q) for (acc + p) + q, however
        many registers the parts take. Nothing stands for this in machine code."""
        return self.b.asm(ir.FunctionType(x.type, [x.type]), "", "=x,0", [x], False)

    def pairs_of_bytes(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The sums i16 of the products of two neighbours of bytes without and with signs, at most a register of them;
        they must fit (`vpmaddubsw` saturates)."""
        have, full = x.type.count, self.target.vector_bytes
        if have < full:
            return self._resize(self.pairs_of_bytes(self._resize(x, full), self._resize(y, full)), have // 2)
        name = "llvm.x86.avx512.pmaddubs.w.512" if full == 64 else "llvm.x86.avx2.pmadd.ub.sw"
        return self._intrinsic(name, ir.VectorType(ir.IntType(16), full // 2), [x, y])

    def table_entry(self, rows: Sequence[ir.Value], index: ir.Value) -> ir.Value:
        """The entry of a table, cut into registers, or of four numbers on AVX2, for each lane."""
        return self.by_registers([index], lambda part: self._entry(rows, part))

    def _entry(self, rows: Sequence[ir.Value], index: ir.Value) -> ir.Value:
        """The same for at most a register of lanes."""
        lanes, full, t = index.type.count, self.target.vector_bytes // 4, rows[0].type
        if lanes < full:
            return self._resize(self._entry(rows, self._resize(index, full)), lanes)
        if t.count < full:
            row = self._lanes(rows[0], range(full))
            return self._intrinsic("llvm.x86.avx.vpermilvar.ps.256", row.type, [row, index])
        if full == 8:
            each = [self._intrinsic("llvm.x86.avx2.permps", t, [row, index]) for row in rows]
            return self._chosen(each, index, t.count)
        if len(rows) == 1:
            return self._intrinsic("llvm.x86.avx512.permvar.sf.512", t, [rows[0], index])
        found = [self._intrinsic("llvm.x86.avx512.vpermi2var.ps.512", t, [rows[i], index, rows[i + 1]])
                 for i in range(0, len(rows), 2)]
        return self._chosen(found, index, 2 * t.count)

    def _chosen(self, found: Sequence[ir.Value], index: ir.Value, bit: int) -> ir.Value:
        """For each lane the one of `found`, a power of two of them, that the bits of `index` from `bit` on number."""
        while len(found) > 1:
            above = self.b.icmp_unsigned("!=", self.b.and_(index, full_like(index, bit)), full_like(index, 0))
            found = [self.b.select(above, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
            bit *= 2
        return found[0]

    def by_registers(self, vectors: Sequence[ir.Value], step: Callable[..., ir.Value]) -> ir.Value:
        """`step` for each register of 32-bit lanes; the last may be short."""
        lanes, full = vectors[0].type.count, self.target.vector_bytes // 4
        return self.joined([step(*(self._lanes(v, range(i, min(i + full, lanes))) for v in vectors))
                            for i in range(0, lanes, full)])

    def joined(self, vectors: Sequence[ir.Value]) -> ir.Value:
        """The lanes of vectors one after the other, none of which is longer than the first."""
        out, *parts = vectors
        for part in parts:
            n = out.type.count
            both = ir.Constant(ir.VectorType(I32, n + part.type.count), list(range(n + part.type.count)))
            out = self.b.shuffle_vector(out, self._lanes(part, range(n)), both)
        return out

    def byte_entries(self, table: ir.Value, words: ir.Value) -> ir.Value:
        """The entry of a table of 16 to 256 bytes for each byte of at most a register of words."""
        entries, lanes, full = table.type.count, words.type.count, self.target.vector_bytes
        if lanes < full // 4:
            return self._resize(self.byte_entries(table, self._resize(words, full // 4)), lanes)
        t = ir.VectorType(ir.IntType(8), full)
        index = self.b.bitcast(words, t)
        if "vbmi" in self.target.features:  # takes the lowest six bits, of two registers the lowest seven
            rows = [self._lanes(table, range(first, first + 64)) for first in range(0, entries, 64)]
            found = [self._intrinsic("llvm.x86.avx512.permvar.qi.512", t, [rows[0], index])] if len(rows) == 1 else \
                [self._intrinsic("llvm.x86.avx512.vpermi2var.qi.512", t, [rows[i], index, rows[i + 1]])
                 for i in range(0, len(rows), 2)]
            bit = 128
        else:
            shuffle = "llvm.x86.avx512.pshuf.b.512" if full == 64 else "llvm.x86.avx2.pshuf.b"
            low = self.b.and_(index, full_like(index, 15))
            found = [self._intrinsic(shuffle, t, [self._lanes(table, [first + i % 16 for i in range(full)]), low])
                     for first in range(0, entries, 16)]
            bit = 16
        return self.b.bitcast(self._chosen(found, index, bit), words.type)

    def _lanes(self, x: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """These lanes of a vector, modulo its length."""
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), [i % x.type.count for i in lanes])
        return self.b.shuffle_vector(x, x, mask)

    def _resize(self, x: ir.Value, lanes: int) -> ir.Value:
        have = x.type.count
        mask = ir.Constant(ir.VectorType(I32, lanes), [min(i, have) if i >= have else i for i in range(lanes)])
        return self.b.shuffle_vector(x, constant(x.type, 0), mask)
