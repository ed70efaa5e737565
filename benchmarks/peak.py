"""The peak of the instruction that an int8 dot is made of: as many operations on registers alone."""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import llvmlite.ir as ll

import tilelang
from tilelang.backends.cpu.access import Access
from tilelang.backends.cpu.dots import blocking, choose
from tilelang.backends.cpu.machine import Loaded, host, object_code
from tilelang.ir.dtypes import dtype


def int8_dot(operations: float) -> tuple[str, Callable[[], None]]:
    """(name of the instruction, a function that does so many multiplications and additions on every thread's share).

    The register block is that of the micro-kernel. Every instruction takes its own accumulator as an operand, so that
    none can be left out or taken out of the loop."""
    target, i8 = host(), dtype("i8")
    row = choose(i8, i8, dtype("i32"), 1 << 10, target.features)
    block = blocking(row, target)
    module, i64 = ll.Module(), ll.IntType(64)
    module.triple, module.data_layout = target.triple, target.data_layout
    vector = ll.VectorType(ll.IntType(32), block.lanes)
    operand = ll.VectorType(ll.IntType(dtype(row.a).bits), block.lanes * row.group)
    fn = ll.Function(module, ll.FunctionType(ll.VoidType(), [i64, vector.as_pointer()]), "peak")
    entry, loop, done = (fn.append_basic_block(n) for n in ("entry", "loop", "done"))
    b = ll.IRBuilder(entry)
    x = b.bitcast(b.load(fn.args[1], align=4), operand)
    b.branch(loop)
    b.position_at_end(loop)
    count = b.phi(i64)
    count.add_incoming(i64(0), entry)
    accumulators = [b.phi(vector) for _ in range(block.rows * block.vectors)]
    after = b.add(count, i64(1))
    for i, acc in enumerate(accumulators):
        acc.add_incoming(ll.Constant(vector, [i + 1] * block.lanes), entry)
        step = Access(b, target).dot_groups(acc, b.bitcast(acc, operand), x, dtype(row.a), dtype(row.b))
        acc.add_incoming(step, loop)
    count.add_incoming(after, loop)
    b.cbranch(b.icmp_signed("<", after, fn.args[0]), loop, done)
    b.position_at_end(done)
    total = accumulators[0].incomings[1][0]
    for acc in accumulators[1:]:
        total = b.add(total, acc.incomings[1][0])
    b.store(total, fn.args[1], align=4)
    b.ret_void()
    code = Loaded(object_code(str(module), target), "peak")
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(code.address("peak"))
    threads = tilelang.get_num_threads()
    rounds = int(operations / threads / (2 * row.group * block.lanes * len(accumulators)))
    memory = [ctypes.create_string_buffer(b"\1" * target.vector_bytes) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def run(loaded: Loaded = code) -> None:  # which keeps the code in memory
        list(pool.map(lambda m: call(rounds, ctypes.addressof(m)), memory))
    return row.name, run
