"""NVRTC by ctypes: CUDA C++ text to machine code, with no driver and no GPU."""
from __future__ import annotations

import ctypes
import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tilelang.backends.simt.products import COMMON
from tilelang.errors import TargetError

INCLUDE = Path(__file__).resolve().parent / "include"


class Compiled(NamedTuple):
    """Machine code, what the compiler said, and by kernel: registers, spill_bytes, stack_bytes, shared_bytes, and 1
    for serialized where products of four warps wait for one another."""

    cubin: bytes
    log: str
    report: dict[str, dict[str, int]]


@lru_cache(maxsize=1)
def find() -> tuple[Path, Path] | None:
    """The builtins library and NVRTC itself, of the `nvidia-cuda-nvrtc` package; None where it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(root).glob("*/lib/libnvrtc.so.*"), reverse=True):
            builtins = sorted(library.parent.glob("libnvrtc-builtins.so.*"))
            if builtins and ".alt." not in library.name:
                return builtins[-1], library
    return None


@lru_cache(maxsize=1)
def _nvrtc() -> ctypes.CDLL:
    found = find()
    if found is None:
        raise TargetError("compiling for CUDA needs NVRTC, which is not installed",
                          try_="pip install nvidia-cuda-nvrtc")
    ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)  # NVRTC looks it up by name
    library = ctypes.CDLL(str(found[1]))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def version() -> tuple[int, int]:
    """The version of NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _call(name: str, *args: object) -> None:
    library = _nvrtc()
    code = getattr(library, name)(*args)
    if code:
        raise TargetError(f"{name} failed", got=library.nvrtcGetErrorString(code).decode())


def _blob(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    data = ctypes.create_string_buffer(max(size.value, 1))
    _call(f"nvrtcGet{what}", program, data)
    return data.raw[:size.value]


def compile(text: str, arch: str, options: tuple[str, ...] = (), blocks: int = 0) -> Compiled:
    """Compiles emitted text for a processor such as `sm_90a`. The assembler may spill a few bytes so that more blocks
    fit onto a multiprocessor, or because sums wait in registers for operands: where it did, the text is compiled
    again, for one block at least, and with only operands computed before products (`fence_registers`). With `blocks`,
    so many are to fit whatever is spilled."""
    bound = (f"-DTL_BLOCKS={blocks}",) if blocks else ()

    def made(*more: str) -> Compiled:
        flags = f"-I{INCLUDE}", "--ptxas-options=-v", "-lineinfo", *options, *more
        cubin, log = _compile(text, arch, flags, "CUBIN")
        return Compiled(cubin, log, _report(log))

    def lost(compiled: Compiled) -> tuple[int, int]:
        uses = compiled.report.values()
        return sum(u["spill_bytes"] for u in uses), sum(u["serialized"] for u in uses)
    ways = [bound, *([] if blocks else [("-DTL_ALONE",)]), (*bound, "-DTL_LATE_SUMS")]
    first = made(*ways[0])
    return min(first, *(made(*way) for way in ways[1:]), key=lost) if lost(first)[0] else first


def ptx(text: str, arch: str, options: tuple[str, ...] = (), include: Path = INCLUDE) -> str:
    """The PTX of emitted text, for reading and for tests of the prelude, which is the one in `include`."""
    return _compile(text, arch.replace("sm_", "compute_"), (f"-I{include}", *options), "PTX")[0].rstrip(b"\0").decode()


def _compile(text: str, arch: str, options: tuple[str, ...], what: str) -> tuple[bytes, str]:
    library, program = _nvrtc(), ctypes.c_void_p()
    # No contraction: a kernel fuses where its text says fma().
    flags = [f"--gpu-architecture={arch}", "--std=c++17", "--fmad=false", "--no-source-include", *options,
             f"-I{COMMON}"]
    _call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    try:
        encoded = (ctypes.c_char_p * len(flags))(*map(str.encode, flags))
        code = library.nvrtcCompileProgram(program, len(flags), encoded)
        log = _blob(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if code:
            raise TargetError(f"NVRTC refused the emitted text for {arch}", got=_quote(log, text),
                              why="the emitted text or the prelude is broken")
        return _blob(program, what), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _quote(log: str, text: str) -> str:
    """The errors of a log, each with the line of the text it is about."""
    lines, out = text.splitlines(), []
    for entry in log.splitlines():
        if "error" not in entry:
            continue
        out.append(entry.strip())
        if (found := re.match(r"kernel\.cu\((\d+)\)", entry)) and int(found[1]) <= len(lines):
            out.append(f"    {lines[int(found[1]) - 1].strip()}")
    return "\n".join(out[:40]) or log[:4000]


def _report(log: str) -> dict[str, dict[str, int]]:
    """What each kernel uses, from the assembler's notes. It also lists helper functions, which are left out."""
    out: dict[str, dict[str, int]] = {}
    kernel, about = "", ""
    serialized = re.findall(r"wgmma\S* instructions are serialized .* in the function '(\w+)'", log)  # said first
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = about = found[1]
            out[kernel] = {"registers": 0, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 0,
                           "serialized": int(kernel in serialized)}
        elif found := re.search(r"Function properties for (\w+)", line):
            about = found[1]
        elif kernel:
            for name, pattern, all_ in (("registers", r"Used (\d+) registers", True),
                                        ("shared_bytes", r"(\d+) bytes smem", True),
                                        ("spill_bytes", r"(\d+) bytes spill stores", False),
                                        ("stack_bytes", r"(\d+) bytes stack frame", False)):
                if (all_ or about == kernel) and (found := re.search(pattern, line)):
                    out[kernel][name] = int(found[1])
    return out
