"""Machine code of emitted text in the compile cache."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from tilelang import cache

COMMON = Path(__file__).resolve().parents[1] / "clike" / "include"
"""What the preludes of all GPUs include."""
Uses = dict[str, int]


def identity(compiler: str, caller: str, *includes: Path) -> str:
    """Changes whenever machine code may: the compiler, the module that calls it, or the prelude."""
    parts = [compiler, Path(caller).read_text(encoding="utf-8")]
    for header in (h for directory in (*includes, COMMON) for h in sorted(directory.glob("*.h"))):
        parts += [header.name, header.read_text(encoding="utf-8")]
    return cache.key(*parts)


def cached(key: Iterable[str], make: Callable[[], tuple[bytes, Uses]]) -> tuple[bytes, Uses]:
    """The machine code of a kernel and what it uses, made where the cache does not have it."""
    def stored() -> bytes:
        code, uses = make()
        return json.dumps(uses).encode() + b"\n" + code
    line, _, code = cache.default().made(cache.key(*key), stored).partition(b"\n")
    return code, json.loads(line)
