"""Machine code of AMD's for emitted text: from the compile cache, from hiprtc where ROCm has it, else from clang."""
from __future__ import annotations

from functools import cache
from pathlib import Path

from tilelang.backends.hip import clang, code_object, hiprtc
from tilelang.backends.simt.products import Uses, cached, identity


def compiler(arch: str) -> str:
    """What compiles for a processor such as `gfx942` here."""
    return hiprtc.version() if hiprtc.supports(arch) else f"ziglang {clang.version()}"


@cache
def _identity(compiler: str) -> str:
    """What machine code depends on besides the text: the compiler, its options, the prelude."""
    return identity(compiler + Path(hiprtc.__file__).read_text(encoding="utf-8"), clang.__file__, clang.INCLUDE)


def product(text: str, kernel: str, arch: str) -> tuple[bytes, Uses]:
    """The code object of a text and what `kernel` uses. Raises TargetError, where there is no compiler too."""
    def make() -> tuple[bytes, Uses]:
        code = hiprtc.compile(text, arch) if hiprtc.supports(arch) else clang.compile(text, arch).code
        return code, code_object.uses(code)[kernel]
    return cached(("code object", _identity(compiler(arch)), arch, kernel, text), make)
