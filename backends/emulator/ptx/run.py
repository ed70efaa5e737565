"""Runs the kernels of a PTX text on NumPy arrays, block by block."""
from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tilelang.backends.emulator.ptx import bulk, control, machine, memory
from tilelang.backends.emulator.ptx.build import ARGUMENTS, GLOBAL, POISON, Builder
from tilelang.backends.emulator.ptx.machine import Machine, Space, Step
from tilelang.backends.emulator.ptx.numbers import UNSIGNED, Array
from tilelang.backends.emulator.ptx.parse import TYPES, Kernel, PtxError, kernel
from tilelang.backends.emulator.run import Buffer, TensorMap, extent, scalar

RULES = {**memory.RULES, **control.RULES, **bulk.RULES}


@lru_cache(maxsize=64)
def _built(ptx: str, name: str, threads: int, shared_bytes: int) -> tuple[Builder, list[Step]]:
    builder = Builder(kernel(ptx, name), threads, shared_bytes)
    return builder, builder.steps(RULES)


def run(ptx: str, name: str, args: Sequence[Any], *, programs: int = 1, threads: int, shared_bytes: int = 0) -> None:
    """Runs `programs` blocks of kernel `name`, those of a cluster together. Arguments are as those of
    `backends.emulator.run.Program.launch`: `Buffer`s, written in place, and scalars; a NumPy scalar fixes its C type.

    Memory that nothing has written holds 0xA5 bytes. Raises PtxError for an instruction that is not covered, and for
    an access outside the buffers, a misaligned one, threads that wait for ever, async copies that nothing waits for,
    a member mask without the lane itself, and a failed `tl::check`; the arrays are then unchanged."""
    builder, steps = _built(ptx, name, threads, shared_bytes)
    k = builder.kernel
    if not 0 < threads <= k.threads:
        raise PtxError(f"kernel `{name}` cannot run with {threads} threads", needs=f"1 to {k.threads}")
    if programs % k.cluster:
        raise PtxError(f"kernel `{name}` cannot run in {programs} blocks", needs=f"whole clusters of {k.cluster}")
    if len(args) != len(k.params):
        raise PtxError(f"kernel `{name}` takes {len(k.params)} arguments", got=str(len(args)))
    buffers = [a.array for a in args if isinstance(a, Buffer)]
    extents = [extent(a) for a in buffers]
    # The module's own variables come first: their addresses are constants of the code.
    world = Space("global", GLOBAL, [(len(k.statics), 0), *((size, phase) for _, size, phase in extents)])
    world.region(0)[:] = np.frombuffer(k.statics, np.uint8)
    contents = [_bytes(low, size) for low, size, _ in extents]
    for i, old in enumerate(contents):
        world.region(i + 1)[:] = old
    starts = [world.starts[i + 1] + a.ctypes.data - low
              for i, (a, (low, _, _)) in enumerate(zip(buffers, extents, strict=True))]
    values, maps = _arguments(k, args, starts)
    registers = builder.registers.copy()
    for slot, (offset, t) in builder.arguments.items():
        bits = UNSIGNED[TYPES[t]]
        registers[slot] = np.full(builder.width, np.frombuffer(values, bits, 1, offset)[0])
    grid = np.full(builder.width, programs, np.uint32)
    with np.errstate(all="ignore"):
        for block in range(0, programs, k.cluster):
            own = registers.copy()
            for special, number in (("%nctaid.x", grid), ("%ctaid.x", (block + builder.rank).astype(np.uint32))):
                if special in builder.slots:
                    own[builder.slots[special]] = number
            spaces = {"global": world, "local": Space("local", 0, [(builder.local * builder.width, 0)], POISON),
                      "shared": builder.shared()}
            block_machine = Machine(threads, own, spaces, k.cluster)
            block_machine.bulk.maps = maps
            block_machine.run(steps, lambda pc: k.code[pc].text if pc < len(k.code) else "its end")
    for i, old in enumerate(contents):
        new = world.region(i + 1)
        if not np.array_equal(old, new):
            old[:] = new


def _arguments(k: Kernel, args: Sequence[Any], starts: Sequence[int]) -> tuple[bytes, dict[int, machine.TensorMap]]:
    """The parameters in memory, and by address those that are maps of tensors; the buffers begin at `starts`."""
    addresses = dict(zip((i for i, a in enumerate(args) if isinstance(a, Buffer)), starts, strict=True))
    values, maps = b"", dict[int, machine.TensorMap]()
    for i, (given, size) in enumerate(zip(args, k.params, strict=True)):
        if isinstance(given, TensorMap):
            values = values.ljust(-(-len(values) // 64) * 64, b"\0")
            of = args[given.argument].array
            maps[ARGUMENTS + len(values)] = machine.TensorMap(
                addresses[given.argument], of.itemsize, given.extents, given.strides, given.boxes, given.swizzle,
                of.dtype.kind)
            values += bytes(size)
            continue
        value = np.uint64(addresses[i]) if isinstance(given, Buffer) else scalar(given)
        if value.nbytes != size:
            raise PtxError(f"argument {i} of kernel `{k.name}` has the wrong size", needs=f"{size} bytes",
                           got=f"{value.nbytes} bytes ({type(given).__name__})")
        values = values.ljust(-(-len(values) // size) * size, b"\0") + value.tobytes()
    return values, maps


def _bytes(low: int, size: int) -> Array:
    """The memory of an array, gaps included."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(low)) if size else np.empty(0, np.uint8)
