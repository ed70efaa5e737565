"""What a search asks of other processes or machines: to compile a function, and to try and time it.

Jobs are plain data: a TILE function travels as its text.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tilelang import cache, jit, native, targets
from tilelang.errors import Loc, TileError
from tilelang.ir.core import Function
from tilelang.parsed import ParsedKernel, parsed
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

    @property
    def hash(self) -> str:
        """Tells the function from others."""
        return cache.key(self.text)


@dataclass(frozen=True)
class Compiled:
    """The report of a compilation, or why there is none; machine code of the CPU, for the cache of who asked."""

    report: dict[str, Any]
    error: str = ""
    key: str = ""
    code: bytes = b""

    def keep(self) -> None:
        """Puts the machine code into the cache of this process, if another machine made it."""
        if self.key:
            cache.default().made(self.key, lambda: self.code)


@lru_cache(maxsize=256)
def _kernel(code: Code) -> ParsedKernel:
    return parsed(code.text, code.locs)


def compiled(code: Code) -> Compiled:
    """Compiles into the cache of this process."""
    tile = _kernel(code).tile
    try:
        if code.target != "cpu":
            return Compiled(targets.lowered(tile, code.target).report)
        key, data = native.object_code(tile)
        return Compiled({"code_bytes": len(data)}, "", key, data)
    except (TileError, RecursionError, MemoryError) as error:
        return Compiled({}, f"{type(error).__name__}: {error}")


def checked(code: Code) -> str:
    """What shows, on small random inputs, that the machine code means something else than the interpreter; or ""."""
    return _kernel(code).check(code.target)


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
