"""Processors other than this one: the levels of the psABI, of which it has some, AVX-VNNI and AVX-512, in software if
need be.

Without AVX-512, LLVM cuts vectors of 64 bytes into registers that are there. What the generated code calls by name
beside that, instructions that no IR stands for, are functions of plain IR here, one lane after the other.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any
from unittest.mock import patch

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from tilelang.backends.cpu import machine
from tilelang.backends.cpu.numbers import BF16, F32, I8, I16, I32, I64
from tilelang.jit import Kernel

BASE = {"64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2"}
V2 = BASE | {"cx16", "popcnt", "sahf", "crc32", "sse3", "ssse3", "sse4.1", "sse4.2"}
V3 = V2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
NEWEST = V4 | {"avx512vnni", "avx512vbmi", "avx512bf16"}
LEVELS = {"x86-64": BASE, "x86-64-v2": V2, "x86-64-v3": V3, "avx-vnni": V3 | {"avxvnni"}, "x86-64-v4": V4,
          "newest": NEWEST}
"""LLVM's names for what each level has; the newest has all that the backend asks for, and of those without AVX-512 the
newer ones have AVX-VNNI."""


def level(name: str) -> machine.CpuTarget:
    """A processor of a level, which has nothing else of what this one has."""
    have = LEVELS[name]
    off = (f"-{f}" for f, on in llvm.get_host_cpu_features().items() if on and f not in have)
    cpu = {"avx-vnni": "x86-64-v3", "newest": "x86-64-v4"}.get(name, name)
    return machine.processor(cpu, ",".join([*(f"+{f}" for f in sorted(have)), *off]), have)


def assembly(name: str, kernel: Kernel, *args: Any, **constants: Any) -> str:
    """A kernel's, for a level."""
    target = level(name)
    with patch.object(machine, "host", lambda: target):
        return str(kernel.lower(*args, **constants).assembly)


def take_for(name: str, monkeypatch: pytest.MonkeyPatch, *kernels: Kernel) -> machine.CpuTarget:
    """This processor is taken for one of a level, kernels compile for it and run, for the length of a test, which is
    skipped where even LLVM cannot make up for what is missing."""
    here, optimise, target = llvm.get_host_cpu_features(), machine.optimise, level(name)
    if missing := [f for f in LEVELS[name] & V3 if not here.get(f)]:
        pytest.skip(f"needs a processor with {', '.join(missing)}")
    if not all(here.get(f) for f in LEVELS[name]):
        target = replace(target, cpu=machine.host().cpu, attributes=machine.host().attributes)
        monkeypatch.setattr(machine, "optimise", lambda text, made: optimise(
            in_software(text) if made.attributes == target.attributes else text, made))
    monkeypatch.setattr(machine, "host", lambda: target)
    for kernel in kernels:
        monkeypatch.setattr(kernel, "_compiled", {})
    return target


def in_software(text: str) -> str:
    """LLVM IR with functions in place of the instructions of AVX-512 and AVX-VNNI."""
    def defined(found: re.Match[str]) -> str:
        made = INSTRUCTIONS[found[1]].defined(found[1])
        assert re.findall(VECTOR, found[0]) == re.findall(VECTOR, made.partition("\n")[0]), found[0]
        return made
    text = re.sub(r'^declare .*@"llvm\.x86\.(avx512[^"]*)".*$', defined, text, flags=re.MULTILINE)
    return text.replace('@"llvm.x86.avx512', '@"software.avx512')


VECTOR = r"<\d+ x \w+>"
Lane = Callable[..., ir.Value]
"""A lane of an operand, by its number."""


@dataclass(frozen=True)
class Instruction:
    """One that makes a register of `result` of registers of the types `takes`. `lane` emits one lane of what it makes,
    from the lane's number and the operands; a processor with `feature` has it. Source: Intel 64 and IA-32
    Architectures Software Developer's Manual."""

    result: ir.Type
    takes: tuple[ir.Type, ...]
    lane: Callable[..., ir.Value]
    feature: str = "avx512bw"

    def defined(self, name: str) -> str:
        """The function `software.<name>`, whose operands are in memory so that any lane can be read. The name ends
        with the bits of a register."""
        bits = int(name.rpartition(".")[2])
        result, *takes = (ir.VectorType(t, bits // WIDTHS[t]) for t in (self.result, *self.takes))
        fn = ir.Function(ir.Module(), ir.FunctionType(result, takes), f"software.{name}")
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        b = ir.IRBuilder(fn.append_basic_block())
        places = [b.alloca(t) for t in (result, *takes)]
        for place in places:
            place.type = ir.PointerType()  # llvmlite gives it the type of what it points to
        for arg, place in zip(fn.args, places[1:], strict=True):
            b.store(arg, place)
        before, loop, done = b.block, fn.append_basic_block(), fn.append_basic_block()
        b.branch(loop)
        b.position_at_end(loop)
        i = b.phi(I32)

        def at(place: ir.Value, t: ir.Type) -> Lane:
            stored = I16 if t is BF16 else t  # as which no arithmetic is known
            return lambda k: b.load(b.gep(place, [k], source_etype=stored), typ=stored)
        operands = [at(place, t) for place, t in zip(places[1:], self.takes, strict=True)]
        b.store(self.lane(b, i, *operands), b.gep(places[0], [i], source_etype=self.result))
        following = b.add(i, I32(1))
        i.add_incoming(I32(0), before)
        i.add_incoming(following, b.block)
        b.cbranch(b.icmp_unsigned("<", following, I32(result.count)), loop, done)
        b.position_at_end(done)
        b.ret(b.load(places[0], typ=result))
        return str(fn)


WIDTHS = {I8: 8, I16: 16, BF16: 16, I32: 32, F32: 32}


def _permuted(b: ir.IRBuilder, i: ir.Value, lanes: int, index: Lane, row: Lane, other: Lane | None = None) -> Any:
    """vpermps, vpermb, and of two rows vpermi2ps, vpermi2b: only the lowest bits of an index count."""
    k = index(i)
    low = b.zext(b.and_(k, k.type(lanes - 1)), I64)
    beyond = b.icmp_unsigned("!=", b.and_(k, k.type(lanes)), k.type(0))
    return row(low) if other is None else b.select(beyond, other(low), row(low))


def _shuffled(b: ir.IRBuilder, i: ir.Value, row: Lane, index: Lane) -> Any:
    """vpshufb: within 16 bytes, and 0 where the index has its highest bit set."""
    k = index(i)
    found = row(b.or_(b.and_(i, I32(48)), b.zext(b.and_(k, I8(15)), I32)))
    return b.select(b.icmp_signed("<", k, I8(0)), I8(0), found)


def _eight_bits(b: ir.IRBuilder, i: ir.Value, begins: Lane, x: Lane) -> Any:
    """vpmultishiftqb: of the eight bytes around, as a ring, the bits from one of them on."""
    k = b.zext(begins(i), I32)
    first = b.and_(b.lshr(k, I32(3)), I32(7))
    low, high = (b.zext(x(b.or_(b.and_(i, I32(56)), byte)), I16)
                 for byte in (first, b.and_(b.add(first, I32(1)), I32(7))))
    both = b.or_(low, b.shl(high, I16(8)))
    return b.trunc(b.lshr(both, b.trunc(b.and_(k, I32(7)), I16)), I8)


def _products(b: ir.IRBuilder, i: ir.Value, n: int, x: Lane, y: Lane, unsigned: bool) -> Any:
    """The sum i32 of the products of n neighbours."""
    at = [b.add(b.mul(i, I32(n)), I32(j)) for j in range(n)]
    return reduce(b.add, [b.mul((b.zext if unsigned else b.sext)(x(k), I32), b.sext(y(k), I32)) for k in at])


def _saturated(b: ir.IRBuilder, x: ir.Value) -> Any:
    for worse, limit in (">", 32767), ("<", -32768):
        x = b.select(b.icmp_signed(worse, x, I32(limit)), I32(limit), x)
    return b.trunc(x, I16)


def _bf16(b: ir.IRBuilder, i: ir.Value, acc: Lane, x: Lane, y: Lane) -> Any:
    """vdpbf16ps: the odd product first, each added by one rounding; subnormal numbers are zeros of their sign."""
    def flushed(v: ir.Value) -> Any:
        bits = b.bitcast(v, I32)
        small = b.icmp_unsigned("==", b.and_(bits, I32(0x7F800000)), I32(0))
        return b.bitcast(b.select(small, b.and_(bits, I32(0x80000000)), bits), F32)

    def wide(v: ir.Value) -> Any:
        return flushed(b.bitcast(b.shl(b.zext(v, I32), I32(16)), F32))
    total = flushed(acc(i))
    for k in b.add(b.shl(i, I32(1)), I32(1)), b.shl(i, I32(1)):
        total = flushed(b.fma(wide(x(k)), wide(y(k)), total))
    return total


def _fours(b: ir.IRBuilder, i: ir.Value, acc: Lane, x: Lane, y: Lane) -> Any:
    """vpdpbusd: sums wrap."""
    return b.add(acc(i), _products(b, i, 4, x, y, True))


INSTRUCTIONS = {
    "avx512.permvar.sf.512": Instruction(F32, (F32, I32), lambda b, i, x, k: _permuted(b, i, 16, k, x)),
    "avx512.permvar.qi.512": Instruction(I8, (I8, I8), lambda b, i, x, k: _permuted(b, i, 64, k, x), "avx512vbmi"),
    "avx512.vpermi2var.ps.512": Instruction(F32, (F32, I32, F32), lambda b, i, x, k, y: _permuted(b, i, 16, k, x, y)),
    "avx512.vpermi2var.qi.512": Instruction(
        I8, (I8, I8, I8), lambda b, i, x, k, y: _permuted(b, i, 64, k, x, y), "avx512vbmi"),
    "avx512.pmultishift.qb.512": Instruction(I8, (I8, I8), _eight_bits, "avx512vbmi"),
    "avx512.pshuf.b.512": Instruction(I8, (I8, I8), _shuffled),
    "avx512.pmaddw.d.512": Instruction(I32, (I16, I16), lambda b, i, x, y: _products(b, i, 2, x, y, False)),
    "avx512.pmaddubs.w.512": Instruction(
        I16, (I8, I8), lambda b, i, x, y: _saturated(b, _products(b, i, 2, x, y, True))),
    "avx512.vpdpbusd.256": Instruction(I32, (I32, I8, I8), _fours, "avxvnni"),
    "avx512.vpdpbusd.512": Instruction(I32, (I32, I8, I8), _fours, "avx512vnni"),
    "avx512bf16.dpbf16ps.512": Instruction(F32, (F32, BF16, BF16), _bf16, "avx512bf16"),
}
