"""One emitted text, run in both tiers: as C++ on the CPU and as the PTX of the prelude for a GPU."""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends.emulator.ptx import texts
from tilelang.backends.cuda import nvrtc
from tilelang.backends.emulator.ptx.run import run
from tilelang.backends.emulator.run import Buffer, load

needs_nvrtc = pytest.mark.skipif(nvrtc.find() is None, reason="the package nvidia-cuda-nvrtc is not installed")
TYPES: dict[str, Any] = {"float": np.float32, "double": np.float64, "bool": np.bool_, **{
    f"tl::{k}{n}": np.dtype(f"{kind}{n}") for k, kind in (("i", "int"), ("u", "uint")) for n in (8, 16, 32, 64)}}
HEADER = '#include "tl.h"\n'
Tier = Callable[..., None]
"""Runs kernel `name` on `args`, which are written in place."""


@lru_cache(maxsize=64)
def ptx(text: str, arch: str = "compute_80", include: Path = nvrtc.INCLUDE) -> str:
    return nvrtc.ptx(text, arch, include=include)


def on_cpu(text: str) -> Tier:
    """Tier A: mistakes that it finds are errors."""
    def call(name: str, args: Sequence[Any], **launch: Any) -> None:
        result = load(text).launch(name, args, **launch)
        assert not result.findings, result.findings
    return call


def on_ptx(text: str, arch: str = "compute_80", include: Path = nvrtc.INCLUDE) -> Tier:
    """Tier C."""
    return lambda name, args, **launch: run(ptx(text, arch, include), name, args, **launch)


def outputs(tier: Tier, name: str, args: Sequence[Any], **launch: Any) -> list[np.ndarray[Any, Any]]:
    """The arrays after a run on copies of `args`."""
    args = [Buffer(a.copy()) if isinstance(a, np.ndarray) else a for a in args]
    tier(name, args, **launch)
    return [a.array for a in args if isinstance(a, Buffer)]


def arguments(name: str, text: str, rng: np.random.Generator) -> list[Any]:
    """Arguments for a wrapper's kernel. Floats are small integers: their sums and products are exact. Those that
    are cut into pieces sometimes have one bit more than a tf32."""
    out: list[Any] = []
    signature = re.search(rf"TL_KERNEL\({name}, \d+\)\(([^)]*)\)", text)
    assert signature is not None
    for p in signature[1].split(", "):
        kind, _ = p.rsplit(" ", 1)
        if kind == "tl::i64":
            out.append(np.int64(20))
        elif kind == "bool":
            out.append(np.bool_(True))
        elif pointer := re.fullmatch(r"tl::gptr<(?:const )?(.*)>", kind):
            out.append(_values(name, np.dtype(TYPES[pointer[1]]), rng))
        else:
            out.append(np.dtype(TYPES[kind]).type(rng.integers(1, 5)))
    return out


def _values(name: str, dtype: np.dtype[Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    n = 49152 if name.startswith("wgmma_") else 2048
    kind = re.search(r"_(bf16|f16|e4m3|e5m2)", name) if "mma_" in name else None
    if kind and dtype.kind == "u":
        small = rng.integers(-4, 5, n).astype(np.float32)
        bits = small.view(np.uint32)
        if kind[1] == "bf16":
            return (bits >> 16).astype(np.uint16)
        if kind[1] == "f16":
            return small.astype(np.float16).view(np.uint16)
        if "e4m3" in name and "e5m2" in name:  # as either these are small numbers
            return (128 * rng.integers(0, 2, n) + 8 * rng.integers(6, 9, n)).astype(np.uint8)
        fraction, bias = (3, 7) if kind[1] == "e4m3" else (2, 15)
        code = (bits >> 23 & 255) - 127 + bias << fraction | bits >> 23 - fraction & (1 << fraction) - 1
        return np.where(small == 0, 0, bits >> 31 << 7 | code).astype(np.uint8)
    if dtype.kind == "f" and re.search("mma_.*_f32", name):
        return rng.choice(np.array([0, 1, -2, 2051], dtype), n, p=[0.4, 0.2, 0.2, 0.2])
    if dtype.kind == "f":
        return rng.integers(-9, 10, n).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, n).astype(bool)
    if name.startswith("atomic"):
        return rng.integers(0, 100, n).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, n, dtype, endpoint=True)


def wrapper(name: str, arch: int = 80) -> str:
    """A text with one kernel only: it compiles faster."""
    return HEADER + texts.kernels(arch)[name]
