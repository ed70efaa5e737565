"""The clang of the `ziglang` package: HIP C++ text to machine code of AMD's, with no ROCm, no driver and no GPU."""
from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tilelang.backends.simt.products import COMMON, Uses, cached, identity
from tilelang.errors import TargetError

INCLUDE = Path(__file__).resolve().parent / "include"
# No contraction: a kernel fuses where its text says fma(). Accesses are of other types than the memory they are to.
FLAGS = ("-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output", "-nogpulib", "-nogpuinc", "-nostdinc",
         "-nostdinc++", "-std=c++17", "-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-mcode-object-version=5")
_USES = {"registers": "vgpr_count", "accumulation_registers": "agpr_count", "scalar_registers": "sgpr_count",
         "spilled_registers": "vgpr_spill_count", "scalar_spills": "sgpr_spill_count",
         "stack_bytes": "private_segment_fixed_size", "shared_bytes": "group_segment_fixed_size"}


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
        raise TargetError("compiling for AMD GPUs needs clang, which is not installed", needs="the package ziglang",
                          try_="pip install ziglang")
    done = subprocess.run([sys.executable, "-m", "ziglang", *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        raise TargetError(f"clang refused the emitted text for {arch}", got=done.stderr.strip()[:4000],
                          why="the emitted text or the prelude is broken")
    return done.stdout


def assembly(text: str, arch: str, includes: tuple[Path, ...] = (INCLUDE, COMMON)) -> str:
    """The instructions of emitted text for a processor such as `gfx942`. Raises TargetError."""
    return _run(["clang", *FLAGS, f"--offload-arch={arch}", *(f"-I{d}" for d in includes), "-w", "-S", "-", "-o", "-"],
                arch, text)


def compile(text: str, arch: str) -> Compiled:
    """Compiles and links emitted text: linking shows what the prelude lacks. Raises TargetError."""
    listing = assembly(text, arch)
    with tempfile.TemporaryDirectory() as folder:
        whole, linked = f"{folder}/kernel.o", f"{folder}/kernel.co"
        _run(["clang", "--target=amdgcn-amd-amdhsa", f"-mcpu={arch}", "-x", "assembler", "-c", "-", "-o", whole], arch,
             listing)
        _run(["ld.lld", "-shared", "--no-undefined", whole, "-o", linked], arch)
        return Compiled(Path(linked).read_bytes(), listing, report(listing))


def report(listing: str) -> dict[str, Uses]:
    """What each kernel uses, from the notes that assembly ends with."""
    out = {}
    notes = listing[listing.index("amdhsa.kernels:"):listing.index("amdhsa.target:")]
    for entry in notes.split("\n  - ")[1:]:
        values = dict(re.findall(r"^ *\.(\w+): +(\S+)$", entry, re.MULTILINE))
        out[values["name"]] = {name: int(values[key]) for name, key in _USES.items()}
    return out


@lru_cache(maxsize=1)
def _compiler() -> str:
    return identity(version() or "", __file__, INCLUDE)


def product(text: str, kernel: str, arch: str) -> tuple[bytes, Uses]:
    """The code object of a text and what `kernel` uses. Raises TargetError."""
    def make() -> tuple[bytes, Uses]:
        made = compile(text, arch)
        return made.code, made.report[kernel]
    return cached(("code object", _compiler(), arch, kernel, text), make)
