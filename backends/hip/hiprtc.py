"""hiprtc by ctypes: HIP C++ text to machine code with ROCm's own compiler, with no GPU."""
from __future__ import annotations

import ctypes
from functools import lru_cache

from tilelang.backends.hip.clang import INCLUDE, MEANING
from tilelang.backends.hip.libraries import Library, load
from tilelang.backends.simt.products import COMMON
from tilelang.errors import TargetError


@lru_cache(maxsize=1)
def find() -> Library | None:
    """hiprtc: a library of its own, or (before ROCm 5.5) a part of the HIP runtime; None where there is none."""
    found = load("libhiprtc.so", "hiprtcCompileProgram") or load("libamdhip64.so", "hiprtcCompileProgram")
    if found is not None:
        found.library.hiprtcGetErrorString.restype = ctypes.c_char_p
    return found


@lru_cache(maxsize=1)
def architectures() -> frozenset[str] | None:
    """The processors that its code generator knows: others end the process. None where it does not tell."""
    found = load("libamd_comgr.so", "amd_comgr_get_isa_name") if find() is not None else None
    if found is None:
        return None
    count, name = ctypes.c_size_t(), ctypes.c_char_p()
    found.library.amd_comgr_get_isa_count(ctypes.byref(count))
    names = set()
    for i in range(count.value):
        found.library.amd_comgr_get_isa_name(ctypes.c_size_t(i), ctypes.byref(name))
        names.add((name.value or b"").decode().rpartition("-")[2])
    return frozenset(names)


def supports(arch: str) -> bool:
    """Whether hiprtc is there and compiles for a processor such as `gfx942`."""
    known = architectures()
    return find() is not None and (known is None or arch in known)


def version() -> str:
    """What machine code depends on: the version hiprtc tells (old ones all tell the same), and its file."""
    found, major, minor = find(), ctypes.c_int(), ctypes.c_int()
    assert found is not None
    _call(found, "hiprtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"hiprtc {major.value}.{minor.value} {found.identity}"


def compile(text: str, arch: str) -> bytes:
    """The code object of emitted text. Raises TargetError with what the compiler says."""
    found, program = find(), ctypes.c_void_p()
    assert found is not None
    flags = [f"--offload-arch={arch}", *MEANING, "-w", f"-I{INCLUDE}", f"-I{COMMON}"]
    _call(found, "hiprtcCreateProgram", ctypes.byref(program), text.encode(), b"kernel.hip", 0, None, None)
    try:
        encoded = (ctypes.c_char_p * len(flags))(*map(str.encode, flags))
        if found.library.hiprtcCompileProgram(program, len(flags), encoded):
            log = _blob(found, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise TargetError(f"hiprtc refused the emitted text for {arch}", got=log.strip()[:4000],
                              why="the emitted text or the prelude is broken")
        return _blob(found, program, "Code")
    finally:
        found.library.hiprtcDestroyProgram(ctypes.byref(program))


def _call(found: Library, name: str, *args: object) -> None:
    if code := getattr(found.library, name)(*args):
        raise TargetError(f"{name} failed", got=found.library.hiprtcGetErrorString(code).decode())


def _blob(found: Library, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _call(found, f"hiprtcGet{what}Size", program, ctypes.byref(size))
    data = ctypes.create_string_buffer(max(size.value, 1))
    _call(found, f"hiprtcGet{what}", program, data)
    return data.raw[:size.value]
