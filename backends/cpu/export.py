"""A compiled kernel as a shared library behind tvm-ffi's C ABI, with threads of its own: needs no Python."""
from __future__ import annotations

from pathlib import Path

from tilelang.backends import host
from tilelang.backends.cpu import machine, pool
from tilelang.backends.cpu.compile import Lowered
from tilelang.backends.cpu.launch import Failures
from tilelang.config import MAX_THREADS
from tilelang.errors import TargetError

_THREADS = Path(__file__).parent / "runtime" / "threads.cpp"


def link(lowered: Lowered, name: str, failures: Failures, path: Path) -> None:
    """Writes the library: `name` is called as `__tvm_ffi_<name>`. Raises TargetError for kernels that print, and where
    there is no C++ compiler."""
    if lowered.prints:
        raise TargetError(f"`{name}` prints, which exported code cannot", loc=lowered.tile.loc,
                          needs="a kernel without tile.print", got="tile.print", try_="remove it before exporting")
    entry = f"__tvm_ffi_{name}"
    host.library(path, entry, {"kernel.o": machine.object_code(lowered.module(entry, failures), lowered.target),
                               "pool.o": pool.object_code(lowered.target), "threads.cpp": _THREADS.read_bytes()},
                 [f"-DMAX_WORKERS={MAX_THREADS}"])
