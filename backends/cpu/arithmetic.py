"""LLVM code for arithmetic on scalars and vectors: elementwise operations and the folding of a vector."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llvmlite import ir

from tilelang.backends.cpu import math
from tilelang.backends.cpu.access import Access
from tilelang.backends.cpu.dots import DotRow, of_groups
from tilelang.backends.cpu.numbers import I8, I16, I32, full_like, intrinsic
from tilelang.errors import TargetError
from tilelang.ir.bits import possible_bits
from tilelang.ir.core import Op, Value
from tilelang.ir.dtypes import DType

_ARITHMETIC = {"add": ("add", "fadd"), "sub": ("sub", "fsub"), "mul": ("mul", "fmul"), "div": ("", "fdiv")}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGIC = {"and": "and_", "or": "or_", "xor": "xor"}
_REDUCE = {"sum": ("add", "fadd"), "prod": ("mul", "fmul"), "max": ("max", "fmaximum"), "min": ("min", "fminimum"),
           "any": ("or", ""), "all": ("and", "")}


def _all_below(x: ir.Constant, limit: int) -> bool:
    """Whether an integer constant, every lane of a vector, lies in [0, limit)."""
    if isinstance(x.type, ir.VectorType):
        return all(_all_below(lane, limit) for lane in x.constant)
    return bool(0 <= x.constant < limit)


class Arithmetic:
    """Needs a builder `b`, a `target`, and the `values` that operations have."""

    b: ir.IRBuilder
    target: Any
    values: dict[Value, ir.Value]
    words: dict[Value, tuple[ir.Value, ir.Value, int]]
    """Of sums by `dot4`: i32 and sums i16 of at most so much, of which two neighbours are still to be added to it."""

    def _float(self, op: Op, args: list[ir.Value]) -> ir.Value:
        b, name = self.b, op.name
        if name in _ARITHMETIC:
            return getattr(b, _ARITHMETIC[name][1])(*args)
        if name in _COMPARE:
            compare = b.fcmp_unordered if name == "ne" else b.fcmp_ordered
            return compare(_COMPARE[name], *args)
        if name == "neg":
            return b.fneg(args[0])
        if name in ("floordiv", "mod"):
            quotient = math.emit(b, "floor", [b.fdiv(*args)], self.target)
            return quotient if name == "floordiv" else b.fsub(args[0], b.fmul(args[1], quotient))
        return math.emit(b, name, args, self.target)

    def wraps(self, op: Op, values: Mapping[Value, ir.Value]) -> ir.Value:
        """Whether an operation on integers (add, sub, mul, neg or a cast) has wrapped: twice as many bits hold the
        exact result."""
        tiles = [*op.operands, *op.results]
        wide = ir.IntType(2 * max(8 * v.dtype.storage.itemsize for v in tiles))
        *exact, given = ((self.b.sext if v.dtype.kind == "int" else self.b.zext)(values[v], wide) for v in tiles)
        made = exact[0] if op.name == "cast" else getattr(self.b, op.name)(*exact)
        return self.b.icmp_signed("!=", made, given)

    def _integer(self, op: Op, args: list[ir.Value], dt: DType) -> ir.Value:
        b, name, signed = self.b, op.name, dt.kind == "int"
        if name in _ARITHMETIC:
            return getattr(b, _ARITHMETIC[name][0])(*args)
        if name in _LOGIC:
            return getattr(b, _LOGIC[name])(*args)
        if name in _COMPARE:
            return (b.icmp_signed if signed else b.icmp_unsigned)(_COMPARE[name], *args)
        if name in ("min", "max"):
            less = (b.icmp_signed if signed else b.icmp_unsigned)("<", *args)
            first, second = args if name == "min" else args[::-1]
            return b.select(less, first, second)
        zero = full_like(args[0], 0)
        if name == "neg":
            return b.neg(args[0])
        if name == "not":
            return b.not_(args[0])
        if name == "abs":
            return b.select(b.icmp_signed("<", args[0], zero), b.neg(args[0]), args[0]) if signed else args[0]
        if name == "fma":
            return b.add(b.mul(args[0], args[1]), args[2])
        if name in ("shl", "shr"):
            return self._shift(name, args, dt)
        if name == "popcount":
            bits = args[0] if dt.bits == 1 else b.and_(args[0], full_like(args[0], (1 << dt.bits) - 1))
            fn = intrinsic(b.module, "llvm.ctpop", [bits.type], ir.FunctionType(bits.type, [bits.type]))
            return b.call(fn, [bits])
        if name in ("floordiv", "mod"):
            return self._divide(name, args, signed)
        raise TargetError(
            f"`{name}` of {dt} cannot be compiled for the CPU yet",
            loc=op.loc,
            needs="floats",
            got=str(dt),
            try_="cast to tile.f32 first",
        )

    def _shift(self, name: str, args: list[ir.Value], dt: DType) -> ir.Value:
        b, (x, count) = self.b, args
        if isinstance(count, ir.Constant) and _all_below(count, dt.bits):
            return (b.shl if name == "shl" else b.ashr if dt.kind == "int" else b.lshr)(x, count)
        inside = b.icmp_unsigned("<", count, full_like(count, dt.bits)) if dt.bits > 1 else \
            b.icmp_unsigned("==", count, full_like(count, 0))
        safe = b.select(inside, count, full_like(count, 0))
        zero = full_like(x, 0)
        if name == "shl":
            return b.select(inside, b.shl(x, safe), zero)
        if dt.kind != "int":
            return b.select(inside, b.lshr(x, safe), zero)
        fill = b.select(b.icmp_signed("<", x, zero), full_like(x, -1), zero)
        return b.select(inside, b.ashr(x, safe), fill)

    def _divide(self, name: str, args: list[ir.Value], signed: bool) -> ir.Value:
        """Floor division without traps: x // 0 and x % 0 are 0, the most negative // -1 wraps."""
        b, (x, y) = self.b, args
        zero, one = full_like(x, 0), full_like(x, 1)
        none = b.icmp_signed("==", y, zero)
        if not signed:
            safe = b.select(none, one, y)
            return b.select(none, zero, b.udiv(x, safe) if name == "floordiv" else b.urem(x, safe))
        minus = b.icmp_signed("==", y, full_like(y, -1))
        safe = b.select(b.or_(none, minus), one, y)
        quotient, rest = b.sdiv(x, safe), b.srem(x, safe)
        differ = b.and_(b.icmp_signed("!=", rest, zero),
                        b.icmp_signed("<", b.xor(rest, safe), zero))
        if name == "floordiv":
            out = b.select(minus, b.neg(x), b.sub(quotient, b.zext(differ, x.type)))
        else:
            out = b.select(minus, zero, b.select(differ, b.add(rest, safe), rest))
        return b.select(none, zero, out)

    def _fold(self, x: ir.Value, kind: str, number: str) -> ir.Value:
        """Halves a vector by lane-wise combination, a fixed order; odd lanes are combined last."""
        integer, floating = _REDUCE[kind]
        rest: list[ir.Value] = []
        element = x.type.element
        while x.type.count > 1:
            n = x.type.count
            if n % 2:
                rest.append(self.b.extract_element(x, I32(n - 1)))
                n -= 1
                if n == 0:
                    break
            x = self._pair(self.shuffle(x, None, range(n // 2)), self.shuffle(x, None, range(n // 2, n)), integer,
                           floating, number)
        out = self.b.extract_element(x, I32(0))
        for value in rest:
            out = self._pair(out, value, integer, floating, number)
        assert out.type == element
        return out

    def _fold_each(self, vectors: list[ir.Value], kind: str, number: str) -> ir.Value:
        """Merges n vectors of n lanes in pairs, n = 4, 8, …: two shuffles that each processor has, one combination,
        and a vector that has half of the lanes for each of the two. All lanes of 128 bits stay together."""
        n = len(vectors)
        low: Sequence[int]
        for step in (1 << i for i in range(n.bit_length() - 1)):
            if step == 1:
                low = [lane for g in range(0, n, 4) for lane in (g, n + g, g + 1, n + g + 1)]
                high = [lane + 2 for lane in low]
            elif step == 2:
                low = [lane for g in range(0, n, 4) for lane in (g, g + 1, n + g, n + g + 1)]
                high = [lane + 2 for lane in low]
            else:  # the vectors already merged have n // step lanes * 4 each; halves of those
                part = n // step * 2
                low = [lane for g in range(0, 2 * n, 2 * part) for lane in range(g, g + part)]
                high = [lane + part for lane in low]
            vectors = [self._pair(self.shuffle(x, y, low), self.shuffle(x, y, high), *_REDUCE[kind], number)
                       for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    def _pair(self, x: ir.Value, y: ir.Value, integer: str, floating: str, number: str) -> ir.Value:
        b = self.b
        if number == "float":
            return b.fadd(x, y) if floating == "fadd" else b.fmul(x, y) if floating == "fmul" else \
                math.emit(b, floating[1:4], [x, y], self.target)
        if integer in ("min", "max"):
            compare = b.icmp_signed if number == "int" else b.icmp_unsigned
            return b.select(compare("<" if integer == "min" else ">", x, y), x, y)
        return {"add": b.add, "mul": b.mul, "or": b.or_, "and": b.and_}[integer](x, y)

    def op_dot_groups(self, op: Op) -> ir.Value:
        (acc, x, y), (_, a, b) = (self.values[v] for v in op.operands), (v.dtype.name for v in op.operands)
        row = of_groups(a, b, self.target.features)
        assert row is not None, "`lower` takes what the same host has"
        return Access(self.b, self.target).dot_groups(acc, x, y, row)

    def op_dot4(self, op: Op) -> ir.Value:
        b, access, features = self.b, Access(self.b, self.target), self.target.features
        (first, signed), (second, y_signed) = sorted([(v, v.dtype.kind == "int") for v in op.operands[:2]],
                                                     key=lambda operand: operand[1])
        acc, x, y = self.values[op.operands[2]], self.values[first], self.values[second]
        by_fours, by_pairs = of_groups("u8", "i8", features), of_groups("i16", "i16", features)
        if not isinstance(acc.type, ir.VectorType) or by_pairs is None:
            for shift in (24, 16, 8, 0):
                u, v = ((b.ashr if with_sign else b.lshr)(b.shl(w, full_like(w, shift)), full_like(w, 24))
                        for w, with_sign in ((x, signed), (y, y_signed)))
                acc = b.add(acc, b.mul(u, v))
            return acc
        if signed != y_signed and by_fours is None and not possible_bits(first) & 0x80808080:
            return self._by_words(op, first, (acc, x, y), by_pairs)

        def multiply(acc: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
            if signed != y_signed and by_fours:
                u, v = (b.bitcast(w, ir.VectorType(I8, 4 * w.type.count)) for w in (x, y))
                return access.dot_groups(acc, u, v, by_fours)
            for left in (8, 0):  # the even bytes, then the odd ones
                u, v = ((b.ashr if with_sign else b.lshr)(b.shl(w, full_like(w, left)), full_like(w, 8))
                        for w, with_sign in ((b.bitcast(w, ir.VectorType(I16, 2 * w.type.count)), with_sign)
                                             for w, with_sign in ((x, signed), (y, y_signed))))
                acc = access.dot_groups(acc, u, v, by_pairs)
            return acc
        return access.by_registers([acc, x, y], multiply)

    def _by_words(self, op: Op, small: Value, args: Sequence[ir.Value], by_pairs: DotRow) -> ir.Value:
        """`dot4` of bytes of at most seven bits, `small`, and eight with a sign: two products fit into i16. As many
        such sums as do are added up before they are widened; those that another `dot4` goes on with are not used."""
        acc, x, y = args
        b, access = self.b, Access(self.b, self.target)
        largest = 2 * 128 * max(possible_bits(small).to_bytes(4, "little"))
        words = access.by_registers([x, y], lambda *both: access.pairs_of_bytes(
            *(b.bitcast(w, ir.VectorType(I8, 4 * w.type.count)) for w in both)))
        before = self.words.get(op.operands[2])
        if before is not None and before[2] + largest < 1 << 15:
            acc, words, largest = before[0], b.add(before[1], words), before[2] + largest
        self.words[op.result] = acc, words, largest
        return access.by_registers([acc, b.bitcast(words, acc.type)], lambda acc, sums: access.dot_groups(
            acc, two := b.bitcast(sums, ir.VectorType(I16, 2 * sums.type.count)), full_like(two, 1), by_pairs))

    def op_dot2(self, op: Op) -> ir.Value:
        a, b, c = (self.values[v] for v in op.operands)
        row = of_groups("bf16", "bf16", self.target.features)
        assert row is not None, "`decompose` leaves it to such a host"
        access = Access(self.b, self.target)

        def multiply(acc: ir.Value, *words: ir.Value) -> ir.Value:
            x, y = (self.b.bitcast(w, ir.VectorType(I16, 2 * w.type.count)) for w in words)
            return access.dot_groups(acc, x, y, row)
        if op.result.shape:
            return access.by_registers([c, a, b], multiply)
        return self.b.extract_element(multiply(*(access.splat(v, 1) for v in (c, a, b))), I32(0))

    def shuffle(self, x: ir.Value, y: ir.Value | None, lanes: Sequence[int]) -> ir.Value:
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return self.b.shuffle_vector(x, y if y is not None else full_like(x, ir.Undefined), mask)
