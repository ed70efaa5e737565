"""What a search asks of other processes or machines: to compile a function, and to try and time it.

Jobs are plain data: a TILE function travels as its text.
"""
from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tilelang import cache, jit, targets
from tilelang.args import torch_dtype
from tilelang.errors import Loc, TileError
from tilelang.ir import codec
from tilelang.ir.core import Function, TensorType, Type
from tilelang.ir.packed import Packed
from tilelang.parsed import ParsedKernel, parsed
from tilelang.passes.meaning import difference
from tilelang.profiling import clock


@dataclass(frozen=True)
class Code:
    """A TILE function for a target with its architecture; `locs` keep what is compiled equal to the byte, because
    emitted text names the lines of the source."""

    text: str
    locs: tuple[Loc | None, ...]
    target: str

    @classmethod
    def of(cls, tile: Function, target: str) -> Code:
        return cls(str(tile), tuple(op.loc for op in tile.walk()), target)


@dataclass(frozen=True)
class Compiled:
    """The report of a compilation, or why there is none; machine code of the CPU, for the cache of who asked."""

    report: dict[str, Any]
    error: str = ""
    key: str = ""
    code: bytes = b""

    def keep(self) -> None:
        """Puts the machine code into the cache of this process, if another machine made it."""
        if self.key and cache.default().get(self.key) is None:
            cache.default().put(self.key, self.code)


@lru_cache(maxsize=256)
def _kernel(code: Code) -> ParsedKernel:
    return parsed(code.text, code.locs)


def compiled(code: Code) -> Compiled:
    """Compiles into the cache of this process."""
    tile = _kernel(code).tile
    try:
        if code.target != "cpu":
            return Compiled(targets.lowered(tile, code.target).report)
        from tilelang.backends.cpu.compile import cache_key
        key = cache_key(tile)
        data = cache.default().get(key)
        if data is None:
            data = targets.lowered(tile, "cpu").object_code
            cache.default().put(key, data)
        return Compiled({"code_bytes": len(data)}, "", key, data)
    except (TileError, RecursionError, MemoryError) as error:
        return Compiled({}, f"{type(error).__name__}: {error}")


def checked(code: Code) -> str:
    """What shows, on small random inputs, that the machine code means something else than the interpreter; or ""."""
    kernel = _kernel(code)

    def machine(args: list[Any]) -> None:
        given = [_given(p.type, a) for p, a in zip(kernel.tile.params, args, strict=True)]
        with jit.target(code.target):
            kernel(*given)
        for x, a in zip(given, args, strict=True):
            if isinstance(x, Packed):
                a[...] = codec.from_bits(x.codes(), x.dtype)
    return difference(kernel.tile, machine, np.random.default_rng(0), trials=1)


def _given(t: Type, a: Any) -> Any:
    """An array in storage form as an argument of a call; of the same memory unless packed."""
    if not isinstance(t, TensorType):
        return codec.decode(a, t.dtype).item()
    if t.dtype.native:
        return a
    if not t.dtype.packed and importlib.util.find_spec("torch"):
        import torch
        return torch.from_numpy(a).view(torch_dtype(t.dtype))
    return Packed.from_codes(codec.to_bits(a, t.dtype), t.dtype)


def tried(code: Code, args: Sequence[Any], runs: int, enough: float = math.inf) -> tuple[float, ...]:
    """Milliseconds of `runs` calls, or of one where that takes more than `enough`."""
    kernel = _kernel(code)
    timer = clock("event" if targets.on_device(code.target) else "wall")

    def call() -> None:
        kernel(*args)
    with jit.target(code.target):
        call()  # loads the code
        times = [timer.milliseconds(call)]
        while len(times) < runs and times[0] <= enough:
            times.append(timer.milliseconds(call))
    return tuple(times)
