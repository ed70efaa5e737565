"""What becomes of emitted text: machine code and what it uses, from the compile cache or NVRTC; its assembly."""
from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tilelang.backends.cuda import nvrtc
from tilelang.backends.simt.products import Uses, cached, identity
from tilelang.errors import TargetError


class Product(NamedTuple):
    """Machine code of one kernel, and what it uses: registers, spill_bytes, stack_bytes, shared_bytes (static),
    serialized (0 or 1)."""

    cubin: bytes
    uses: Uses


@lru_cache(maxsize=1)
def _compiler() -> str:
    found = nvrtc.find()
    info = found[1].stat() if found else None
    version = str((nvrtc.version(), info and (info.st_size, info.st_mtime_ns)))
    return identity(version, nvrtc.__file__, nvrtc.INCLUDE)


def product(text: str, kernel: str, arch: str, blocks: int = 0) -> Product:
    """The machine code of `kernel` in a text for a processor such as `sm_90a`; with `blocks`, of so few registers that
    so many fit onto a multiprocessor. Raises TargetError."""
    def make() -> tuple[bytes, Uses]:
        made = nvrtc.compile(text, arch, blocks=blocks)
        return made.cubin, made.report[kernel]
    return Product(*cached(("cubin", _compiler(), arch, str(blocks), kernel, text), make))


def nvdisasm() -> str | None:
    """The disassembler: of the `nvidia-cuda-nvdisasm` package, else on the path."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(root).glob("*/bin/nvdisasm"), reverse=True):
            return str(path)
    return shutil.which("nvdisasm")


def assembly(cubin: bytes, lines: bool = False) -> str:
    """The instructions of machine code; with `lines` also, in comments, which line of the text they come from. Raises
    TargetError where the disassembler is missing."""
    tool = nvdisasm()
    if tool is None:
        raise TargetError("reading machine code for CUDA needs nvdisasm, which is not installed",
                          needs="the package nvidia-cuda-nvdisasm, or nvdisasm on the path", got="neither",
                          try_="pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, *(["-gi"] if lines else []), "-c", file.name], capture_output=True, text=True)
    if done.returncode:
        raise TargetError("nvdisasm refused the machine code", got=done.stderr.strip()[:4000],
                          why="nvdisasm may be older than NVRTC", try_="pip install --upgrade nvidia-cuda-nvdisasm")
    return done.stdout
