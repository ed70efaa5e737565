"""Peaks of instructions, on registers alone: of the one that an int8 dot is made of, and of fused f32 products."""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import llvmlite.ir as ll

import tilelang
from tilelang.backends.cpu.access import Access
from tilelang.backends.cpu.dots import blocking, choose
from tilelang.backends.cpu.machine import Loaded, host, object_code
from tilelang.backends.cpu.numbers import intrinsic
from tilelang.ir.dtypes import dtype


def int8_dot(operations: float) -> tuple[str, Callable[[], None]]:
    """(name of the instruction, a function that does so many multiplications and additions on every thread's share)"""
    target, i8 = host(), dtype("i8")
    row = choose(i8, i8, dtype("i32"), 1 << 10, target.features)
    vector = ll.VectorType(ll.IntType(32), blocking(row, target).lanes)
    operand = ll.VectorType(ll.IntType(dtype(row.a).bits), vector.count * row.group)

    def step(b: ll.IRBuilder, acc: ll.Value, x: ll.Value) -> ll.Value:
        y = b.bitcast(x, operand)
        return Access(b, target).dot_groups(acc, b.bitcast(acc, operand), y, row)
    block = blocking(row, target)
    return row.name, _repeated(vector, block.rows * block.vectors, step, operations / row.group,
                               tilelang.get_num_threads())


def fused_f32(operations: float) -> Callable[[], None]:
    """A function that does so many multiplications and additions of f32, on the caller's thread."""
    target = host()
    vector = ll.VectorType(ll.FloatType(), target.vector_bytes // 4)

    def step(b: ll.IRBuilder, acc: ll.Value, x: ll.Value) -> ll.Value:
        fma = intrinsic(b.module, "llvm.fma", [vector], ll.FunctionType(vector, [vector] * 3))
        return b.call(fma, [x, x, acc])
    return _repeated(vector, target.registers * 3 // 4, step, operations, 1)


def _repeated(vector: ll.VectorType, count: int, step: Callable[..., ll.Value], operations: float,
              threads: int) -> Callable[[], None]:
    """`step` of `count` accumulators in turn, for so many operations, two for each lane of a vector, on so many
    threads. Every step takes its own accumulator as an operand, so that none can be left out or taken out of the
    loop."""
    target, i64 = host(), ll.IntType(64)
    module = ll.Module()
    module.triple, module.data_layout = target.triple, target.data_layout
    fn = ll.Function(module, ll.FunctionType(ll.VoidType(), [i64, vector.as_pointer()]), "peak")
    entry, loop, done = (fn.append_basic_block(n) for n in ("entry", "loop", "done"))
    b = ll.IRBuilder(entry)
    x = b.load(fn.args[1], align=4)
    b.branch(loop)
    b.position_at_end(loop)
    passes = b.phi(i64)
    passes.add_incoming(i64(0), entry)
    accumulators = [b.phi(vector) for _ in range(count)]
    after = b.add(passes, i64(1))
    for i, acc in enumerate(accumulators):
        acc.add_incoming(ll.Constant(vector, [i + 1] * vector.count), entry)
        acc.add_incoming(step(b, acc, x), loop)
    passes.add_incoming(after, loop)
    b.cbranch(b.icmp_signed("<", after, fn.args[0]), loop, done)
    b.position_at_end(done)
    add = b.fadd if isinstance(vector.element, ll.FloatType) else b.add
    total = accumulators[0].incomings[1][0]
    for acc in accumulators[1:]:
        total = add(total, acc.incomings[1][0])
    b.store(total, fn.args[1], align=4)
    b.ret_void()
    code = Loaded(object_code(str(module), target), "peak")
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(code.address("peak"))
    rounds = int(operations / threads / (2 * vector.count * count))
    memory = [ctypes.create_string_buffer(target.vector_bytes) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def run(loaded: Loaded = code) -> None:  # which keeps the code in memory
        others = [pool.submit(call, rounds, ctypes.addressof(m)) for m in memory[1:]]
        call(rounds, ctypes.addressof(memory[0]))
        for other in others:
            other.result()
    return run
