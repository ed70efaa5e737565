"""NVIDIA targets."""
from __future__ import annotations

from functools import cache

from tilelang.backends.cuda.instructions import ROWS
from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import TargetError

SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}
"""Shared memory of a block, opted in (CUDA C++ Programming Guide, table of compute capabilities)."""


@cache
def target(name: str) -> SimtTarget:
    """The target of a name such as "cuda:sm_80". Raises TargetError."""
    text = name.removeprefix("cuda:sm_").removesuffix("a")
    if not text.isdigit() or int(text) not in SHARED_BYTES:
        known = ", ".join(f"cuda:sm_{a}{'a' if a == 90 else ''}" for a in SHARED_BYTES)
        raise TargetError(f"unknown target {name!r}", needs=known, got=name, try_='tile.target("emulate:cuda:sm_80")')
    arch = int(text)
    rows = tuple(r for r in ROWS if r.archs[0] <= arch <= r.archs[1])
    return SimtTarget(name, arch, 32, SHARED_BYTES[arch], rows, arch >= 80, True,
                      frozenset({("f16", "f32"), ("f32", "f16"), ("bf16", "f32"), ("f32", "bf16")}))
