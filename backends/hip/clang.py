"""The clang of the `ziglang` package: HIP C++ text to machine code of AMD's, with no ROCm, no driver and no GPU."""
from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tilelang.backends.hip.code_object import uses
from tilelang.backends.simt.products import COMMON, Uses
from tilelang.errors import TargetError

INCLUDE = Path(__file__).resolve().parent / "include"
# No contraction: a kernel fuses where its text says fma(). Accesses are of other types than the memory they are to.
MEANING = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-strict-aliasing")
"""Options of every compiler of the text."""
FLAGS = ("-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output", "-nogpulib", "-nogpuinc", "-nostdinc",
         "-nostdinc++", *MEANING, "-mcode-object-version=5")


class Compiled(NamedTuple):
    """A code object, its assembly, and by kernel what it uses."""

    code: bytes
    assembly: str
    report: dict[str, Uses]


@lru_cache(maxsize=1)
def version() -> str | None:
    """The version of the `ziglang` package; None where it is not installed."""
    return importlib.metadata.version("ziglang") if importlib.util.find_spec("ziglang") is not None else None


def _run(arguments: list[str], arch: str, text: str | None = None) -> str:
    if version() is None:
        raise TargetError("compiling for AMD GPUs needs hiprtc or clang, of which neither was found",
                          needs="the package ziglang, or a ROCm that knows the processor",
                          try_="pip install ziglang")
    done = subprocess.run([sys.executable, "-m", "ziglang", *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        raise TargetError(f"clang refused the emitted text for {arch}", got=done.stderr.strip()[:4000],
                          why="the emitted text or the prelude is broken")
    return done.stdout


@lru_cache(maxsize=4)  # a report and the assembly of one kernel are one compilation
def assembly(text: str, arch: str, includes: tuple[Path, ...] = (INCLUDE, COMMON), lines: bool = False) -> str:
    """The instructions of emitted text for a processor such as `gfx942`; with `lines` behind directives `.loc` that
    name the lines they come from, the text's as those of `<stdin>`. Raises TargetError."""
    return _run(["clang", *FLAGS, f"--offload-arch={arch}", *(f"-I{d}" for d in includes), "-w", "-S",
                 *(["-gline-tables-only"] if lines else []), "-", "-o", "-"], arch, text)


def compile(text: str, arch: str) -> Compiled:
    """Compiles and links emitted text: linking shows what the prelude lacks. Raises TargetError."""
    listing = assembly(text, arch)
    with tempfile.TemporaryDirectory() as folder:
        whole, linked = f"{folder}/kernel.o", f"{folder}/kernel.co"
        _run(["clang", "--target=amdgcn-amd-amdhsa", f"-mcpu={arch}", "-x", "assembler", "-c", "-", "-o", whole], arch,
             listing)
        _run(["ld.lld", "-shared", "--no-undefined", whole, "-o", linked], arch)
        code = Path(linked).read_bytes()
    return Compiled(code, listing, uses(code))
