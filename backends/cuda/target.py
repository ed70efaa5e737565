"""NVIDIA targets."""
from __future__ import annotations

from functools import cache

from tilelang.backends.cuda.instructions import GROUP_ROWS, ROWS
from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import TargetError
from tilelang.layouts import Ports, in_order

SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10,
                120: 99 << 10}
"""Shared memory of a block, opted in (CUDA C++ Programming Guide, table of compute capabilities)."""

PORTS = Ports(*[(in_order(32, 32, 32), in_order(32, 32, 16), in_order(32, 32, 8))] * 2)
"""A request of 8 bytes a lane takes two phases, one of 16 bytes (or of matrix rows) four."""


@cache
def target(name: str) -> SimtTarget:
    """The target of a name such as "cuda:sm_80". Raises TargetError."""
    text = name.removeprefix("cuda:sm_").removesuffix("a")
    if not text.isdigit() or int(text) not in SHARED_BYTES:
        known = ", ".join(map(_name, SHARED_BYTES))
        raise TargetError(f"unknown target {name!r}", needs=known, got=name, try_='tile.target("emulate:cuda:sm_80")')
    arch = int(text)
    rows = tuple(r for r in ROWS if r.archs[0] <= arch <= r.archs[1])
    return SimtTarget(name, arch, 32, SHARED_BYTES[arch], PORTS, rows, arch >= 80, True, arch >= 90,
                      frozenset({("f16", "f32"), ("f32", "f16"), ("bf16", "f32"), ("f32", "bf16")}),
                      word_operands=True, ternary=True, bulk=arch >= 90, overlap=arch >= 90, clusters=arch >= 90,
                      multicast=arch in (90, 100),  # elsewhere it is slow (PTX ISA 8.7, section 9.7.9.25.5.2)
                      counts_bits=80 <= arch <= 90, registers=255,
                      group_mma=tuple(r for r in GROUP_ROWS if r.archs[0] <= arch <= r.archs[1]))


def runs(name: str, major: int, minor: int) -> bool:
    """Whether a device of that compute capability runs machine code for a target. Code for sm_90a and
    later ones runs on that one only."""
    arch = target(name).arch
    return arch // 10 == major and (arch % 10 <= minor if arch < 90 else arch % 10 == minor)


def for_device(major: int, minor: int) -> str:
    """The target whose machine code a device of that compute capability runs: it runs that of its own generation,
    made for no later member of it. Raises TargetError."""
    fitting = [a for a in SHARED_BYTES if runs(_name(a), major, minor)]
    if not fitting:
        known = ", ".join(map(_name, SHARED_BYTES))
        raise TargetError(f"compute capability {major}.{minor} is not supported", needs=known,
                          got=f"a device of sm_{major}{minor}", try_='tile.target("cpu")')
    return _name(max(fitting))


def _name(arch: int) -> str:
    return f"cuda:sm_{arch}{'a' if arch >= 90 else ''}"
