"""Runs the kernels of a listing on NumPy arrays, block by block; a block is one wave."""
from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tilelang.backends.emulator.gcn import arithmetic, matrix, memory
from tilelang.backends.emulator.gcn.memory import Space
from tilelang.backends.emulator.gcn.parse import GcnError, Kernel, kernels
from tilelang.backends.emulator.gcn.wave import LANE, LANES, U32, Rule, Wave
from tilelang.backends.emulator.run import Buffer, scalar

LIMIT = 1_000_000
"""Instructions after which a block is taken to hang."""
GLOBAL, POISON = 1 << 40, 0xa5
_RULES = {**arithmetic.RULES, **memory.RULES}
# Registers that a kernel starts with, in this order (LLVM's guide, "Initial Kernel Execution State").
_USER = {"private_segment_buffer": 4, "dispatch_ptr": 2, "queue_ptr": 2, "kernarg_segment_ptr": 2}


@lru_cache(maxsize=256)
def _rules(listing: str, name: str) -> tuple[Kernel, list[Rule]]:
    k = kernels(listing)[name]
    target = re.search(r'\.amdgcn_target "[^"]*-(gfx\w+)', listing)
    fnuz = target is not None and target[1] == "gfx942"
    out: list[Rule] = []
    for i in k.code:
        if matrix.SMALL.fullmatch(i.name):
            out.append(matrix.small)
        elif i.name.startswith("v_mfma"):
            out.append(lambda w, i: matrix.mfma(w, i, fnuz))
        elif i.name in _RULES or i.name == "s_endpgm":
            out.append(_RULES.get(i.name, arithmetic.nothing))
        else:
            raise GcnError(f"`{i.name}` is not covered by the interpreter of AMD's assembly", got=i.text)
    return k, out


def run(listing: str, name: str, args: Sequence[Any], *, programs: int = 1, threads: int = LANES) -> None:
    """Runs `programs` blocks of kernel `name`. Arguments are `Buffer`s, written in place, and NumPy scalars, which
    fix their C types.

    Registers and local memory that nothing has written hold 0xA5 bytes. Raises GcnError for an instruction that is
    not covered, an access outside the buffers, a failed `tl::check`, copies that nothing waits for, and more than a
    wave."""
    k, rules = _rules(listing, name)
    if not 0 < threads <= LANES:
        raise GcnError("a block is one wave here", needs=f"1 to {LANES} threads", got=str(threads))
    buffers = [a.array for a in args if isinstance(a, Buffer)]
    world = Space(GLOBAL, [(4096, 0), *((a.nbytes, a.ctypes.data % 256) for a in buffers)])
    for n, a in enumerate(buffers):
        world.region(n + 1)[:] = np.ascontiguousarray(a).view(np.uint8).ravel()
    addresses = iter(world.starts[1:])
    values = b""
    for a in args:
        value = np.uint64(next(addresses)) if isinstance(a, Buffer) else scalar(a)
        values = values.ljust(-(-len(values) // value.nbytes) * value.nbytes, b"\0") + value.tobytes()
    world.region(0)[:len(values)] = np.frombuffer(values, np.uint8)
    with np.errstate(all="ignore"):
        for block in range(programs):
            local = Space(0, [(k.directives["group_segment_fixed_size"], 0)], POISON)
            _run(k, rules, _start(k, Wave(threads, world, local), world.starts[0], block))
    for n, a in enumerate(buffers):
        a[...] = world.region(n + 1).view(a.dtype).reshape(a.shape)


def _start(k: Kernel, w: Wave, arguments: int, block: int) -> Wave:
    at = 0
    for what, count in _USER.items():
        if k.directives.get(f"user_sgpr_{what}"):
            if what == "kernarg_segment_ptr":
                w.s[at], w.s[at + 1] = arguments & 0xffffffff, arguments >> 32
            at += count
    if at != k.directives["user_sgpr_count"]:
        raise GcnError("the kernel starts with registers that are not covered", got=str(k.directives))
    w.s[at] = block
    w.v[0] = LANE.astype(U32)
    return w


def _run(k: Kernel, rules: Sequence[Rule], w: Wave) -> None:
    at = 0
    for _ in range(LIMIT):
        i = k.code[at]
        if i.name == "s_endpgm":
            if any(end is not None for end in w.arriving):
                raise GcnError("copies into local memory are under way when the kernel ends", needs="a wait for each")
            return
        rules[at](w, i)
        at = at + 1
        if w.jump:
            at, w.jump = k.labels[w.jump], ""
    raise GcnError(f"the kernel still runs after {LIMIT} instructions")
