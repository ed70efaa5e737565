"""One emitted text, run in both tiers: as C++ on the CPU and as the assembly of AMD's prelude."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends.emulator.ptx.tiers import Tier
from tests.backends.emulator.ptx.tiers import arguments as drawn
from tilelang.backends.emulator.gcn.run import run
from tilelang.backends.emulator.run import Buffer, load
from tilelang.backends.hip import clang
from tilelang.backends.hip.instructions import ROWS
from tilelang.ir import codec
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout

needs_clang = pytest.mark.skipif(clang.version() is None, reason="the package ziglang is not installed")


@lru_cache(maxsize=64)
def assembly(text: str, arch: str, include: Path = clang.INCLUDE) -> str:
    return clang.assembly(text, arch, (include, clang.COMMON))


def on_cpu(text: str) -> Tier:
    def call(name: str, args: Sequence[Any]) -> None:
        result = load(text).launch(name, args, programs=1, threads=64, shared_bytes=4096)
        assert not result.findings, result.findings
    return call


def on_assembly(text: str, arch: str, include: Path = clang.INCLUDE) -> Tier:
    return lambda name, args: run(assembly(text, arch, include), name, args)


def arguments(name: str, text: str, rng: np.random.Generator) -> list[Any]:
    """Arguments for a wrapper's kernel. Floats are small integers: their sums and products are exact."""
    row = next((r for r in ROWS if r.name == name), None)
    if row is None:
        return drawn(name, text, rng)
    def held(t: str, atom: RegisterLayout) -> Any:
        values = codec.encode(rng.integers(-4, 5, 64 * atom.local_size).astype(np.float64), dtype(t))
        bits = dtype(t).bits
        return values if bits >= 8 else np.packbits(
            np.unpackbits(values.view(np.uint8)[:, None], axis=1, count=bits, bitorder="little"), bitorder="little"
        ).view(np.uint32)
    scales = [rng.integers(125, 130, 128).astype(np.uint8)] if row.scales else []
    return [*(held(t, f) for t, f in ((row.a, row.a_atom), (row.b, row.b_atom), (row.acc, row.acc_atom))), *scales]


def outputs(tier: Tier, name: str, args: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """The arrays after a run on copies of `args`."""
    args = [Buffer(a.copy()) if isinstance(a, np.ndarray) else a for a in args]
    tier(name, args)
    return [a.array for a in args if isinstance(a, Buffer)]
