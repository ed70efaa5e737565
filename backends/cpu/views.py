"""`view`: the bits of each thread's registers read as another dtype. The threads are those of the layouts; one core
plays them in turn."""
from __future__ import annotations

from math import lcm

from tilelang.backends.cpu.buffers import Buffer, Ix
from tilelang.backends.thread.bits import codes, recut, unpair
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.ir.pairs import ORDERS, pairs
from tilelang.layouts import RegisterLayout


def emit_view(b: ThreadBuilder, source: Buffer, a: RegisterLayout, target: Buffer, c: RegisterLayout,
              order: str) -> None:
    """Fills `target`, held as `c`, from `source`, held as `a`: after every `lcm` of the two widths both sides begin a
    new element, and after every block of pairs, so that many bits make one turn of a loop."""
    wide, narrow = source.dtype.bits, target.dtype.bits
    packed = pairs(target.dtype, order) if order in ORDERS else None
    turn = wide * packed.words if packed is not None else lcm(wide, narrow)
    with b.loop(0, a.num_threads) as thread, b.loop(0, a.local_size * wide // turn) as group:
        values = [source.load(b, _index(b, a, thread.i, b.add(b.mul(group.i, turn // wide), i)))
                  for i in range(turn // wide)]
        made = codes(b, unpair(b, values, packed), packed, target.dtype) if packed is not None else \
            recut(b, values, target.dtype)
        for i, value in enumerate(made):
            target.store(b, _index(b, c, thread.i, b.add(b.mul(group.i, turn // narrow), i)), value)


def _index(b: ThreadBuilder, layout: RegisterLayout, thread: Index, local: Index) -> tuple[Ix, ...]:
    """`RegisterLayout.index` of run-time numbers."""
    digits: dict[int, Index] = {}
    for side, rest in ((layout.spatial, thread), (layout.local, local)):
        for mode in reversed(side):
            extent = -mode if mode < 0 else layout.extents[mode]
            digits[mode] = b.mod(rest, extent)
            rest = b.div(rest, extent)
    out, mode = [], 0
    for dim in layout.modes:
        at: Index = 0
        for extent in dim:
            at = b.add(b.mul(at, extent), digits[mode])
            mode += 1
        out.append(Ix(at))
    return tuple(out)
