"""A kernel for a GPU as a shared library behind tvm-ffi's C ABI: machine code, and what launches it. Needs no Python.

Code of the host's (`start.py`) does what it does in a call from Python; `runtime/launcher.cpp` finds the driver and
loads the machine code.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tilelang.backends import host
from tilelang.backends.cpu import machine
from tilelang.backends.cpu.launch import Failures
from tilelang.backends.simt import start
from tilelang.backends.simt.compile import Lowered

_LAUNCHER = Path(__file__).parent / "runtime" / "launcher.cpp"


def link(lowered: Lowered, name: str, failures: Failures, path: Path) -> None:
    """Writes the library: `name` is called as `__tvm_ffi_<name>`. Raises TargetError where there is no C++ compiler or
    none for the GPU."""
    # Any processor of the host's kind will do for this little code.
    target = replace(machine.host(), cpu="generic", attributes="", vector_bytes=16, registers=16, features=frozenset(),
                     native_casts=frozenset())
    entry = f"__tvm_ffi_{name}"
    host.library(path, entry, {
        "kernel.o": machine.object_code(start.text(lowered, entry, target, failures), target),
        "kernel.h": _table(lowered, name).encode(), "launcher.cpp": _LAUNCHER.read_bytes()}, ["-ldl"])


def _table(lowered: Lowered, name: str) -> str:
    """The text of `kernel.h`."""
    gpu, found = lowered.exported, list(start.codes(lowered).values())
    numbers = {"TL_CUDA": int(lowered.target.name.startswith("cuda")), "TL_MULTIPROCESSORS": gpu.multiprocessors,
               "TL_OVERLAPS": int(lowered.rendered.overlaps), "TL_MAPS": int(any(x.rendered.maps for x in found)),
               "TL_NOT_WHOLE": start.NOT_WHOLE, "TL_TOO_MANY": start.TOO_MANY, "TL_PLACE": start.PLACE, **gpu.macros}
    lines = [*(f"#define {key} {value}" for key, value in numbers.items()),
             f'#define TL_NAME "{name}"', f'#define TL_KERNEL "{lowered.rendered.name}"',
             f'#define TL_LIBRARY "{gpu.libraries[0]}"',
             # First what the program has loaded itself.
             f"static const char* const libraries[] = {{0, {', '.join(map(_quoted, gpu.libraries))}}};",
             *(f"alignas(16) static const unsigned char image{i}[] = {{{','.join(map(str, x.product[0]))}}};"
               for i, x in enumerate(found)),
             "static const Code codes[] = {", *(f"{{image{i}, {x.dynamic_shared}}}," for i, x in enumerate(found)),
             "};"]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return f'"{text}"'
