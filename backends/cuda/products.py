"""What becomes of emitted text: machine code and what it uses, from the compile cache or NVRTC; its assembly."""
from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tilelang import cache
from tilelang.backends.cuda import nvrtc
from tilelang.errors import TargetError


class Product(NamedTuple):
    """Machine code of one kernel, and what it uses: registers, spill_bytes, stack_bytes, shared_bytes (static)."""

    cubin: bytes
    uses: dict[str, int]


@lru_cache(maxsize=1)
def _compiler() -> str:
    """Changes whenever machine code may: NVRTC itself, how it is called, or the prelude."""
    found = nvrtc.find()
    info = found[1].stat() if found else None
    parts = [str((nvrtc.version(), info and (info.st_size, info.st_mtime_ns))), Path(nvrtc.__file__).read_text()]
    for header in (h for d in (nvrtc.INCLUDE, nvrtc.COMMON) for h in sorted(d.glob("*.h"))):
        parts += [header.name, header.read_text()]
    return cache.key(*parts)


def product(text: str, kernel: str, arch: str) -> Product:
    """The machine code of `kernel` in a text for a processor such as `sm_90a`. Raises TargetError."""
    name = cache.key("cubin", _compiler(), arch, kernel, text)
    stored = cache.default().get(name)
    if stored is None:
        made = nvrtc.compile(text, arch)
        stored = json.dumps(made.report[kernel]).encode() + b"\n" + made.cubin
        cache.default().put(name, stored)
    uses, _, cubin = stored.partition(b"\n")
    return Product(cubin, json.loads(uses))


def nvdisasm() -> str | None:
    """The disassembler: of the `nvidia-cuda-nvdisasm` package, else on the path."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(root).glob("*/bin/nvdisasm"), reverse=True):
            return str(path)
    return shutil.which("nvdisasm")


def assembly(cubin: bytes) -> str:
    """The instructions of machine code. Raises TargetError where the disassembler is missing."""
    tool = nvdisasm()
    if tool is None:
        raise TargetError("reading machine code for CUDA needs nvdisasm, which is not installed",
                          needs="the package nvidia-cuda-nvdisasm, or nvdisasm on the path", got="neither",
                          try_="pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True)
    if done.returncode:
        raise TargetError("nvdisasm refused the machine code", got=done.stderr.strip()[:4000],
                          why="nvdisasm may be older than NVRTC", try_="pip install --upgrade nvidia-cuda-nvdisasm")
    return done.stdout
