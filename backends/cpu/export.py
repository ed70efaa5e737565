"""A compiled kernel as a shared library behind tvm-ffi's C ABI, with threads of its own: needs no Python."""
from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tilelang.backends.cpu import machine, pool
from tilelang.backends.cpu.compile import Lowered
from tilelang.backends.cpu.launch import Failures
from tilelang.backends.host import compiler
from tilelang.errors import TargetError

_THREADS = Path(__file__).parent / "runtime" / "threads.cpp"


def link(lowered: Lowered, name: str, wants: str, path: Path) -> None:
    """Writes the library: `name` is called as `__tvm_ffi_<name>`, and says what it `wants` where arguments do not fit.
    Raises TargetError for kernels that print, and where there is no C++ compiler."""
    if lowered.prints:
        raise TargetError(f"`{name}` prints, which is Python's work", loc=lowered.tile.loc, needs="no tile.print",
                          got="one or more", try_="remove it before exporting")
    entry = f"__tvm_ffi_{name}"
    failures = Failures(("ValueError", f"{name}: the arguments are not what it was compiled for: {wants}"),
                        ("RuntimeError", f"{name}: an assertion failed, or there is no memory"))
    kernel = machine.object_code(lowered.module(entry, failures), lowered.target)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "kernel.o").write_bytes(kernel)
        (work / "pool.o").write_bytes(pool.object_code(lowered.target))
        (work / "names").write_text(f"{{ global: {entry}; local: *; }};")
        # The library of tvm-ffi is found by whoever loads this: Python has it, a program links it.
        (work / "empty.cpp").write_text("")
        command = compiler()
        for step in (
            [*command, "-shared", "-o", str(work / "libtvm_ffi.so"), "-Wl,-soname,libtvm_ffi.so",
             str(work / "empty.cpp")],
            [*command, "-O2", "-fPIC", "-shared", "-o", str(path), str(_THREADS), str(work / "kernel.o"),
             str(work / "pool.o"), f"-DMAX_WORKERS={pool.MAX_WORKERS}", f"-Wl,--version-script={work / 'names'}",
             f"-Wl,-soname,{path.name},--no-as-needed", str(work / "libtvm_ffi.so"), "-Wl,--as-needed", "-pthread"],
        ):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                raise TargetError(f"`{name}` could not be linked", got=done.stderr.strip()[:4000],
                                  try_="name another compiler by the variable CXX")
