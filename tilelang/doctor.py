"""What works on this machine, what is missing, and what would bring it: found out by trying."""
from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tilelang.errors import TargetError
from tilelang.version import __version__


@dataclass(frozen=True)
class Finding:
    """One thing: `state` is "ok", "missing" (optional) or "broken"; `fix` is a command or a step."""

    name: str
    state: str
    detail: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Tries everything, one after the other. Nothing is raised: what goes wrong is what is found."""
    for name, look, fix in _CHECKS:
        try:
            state, detail = "ok", look()
        except (_Missing, TargetError, ImportError) as error:
            state, detail = "missing", str(error).splitlines()[0]
        except Exception as error:
            state, detail = "broken", f"{type(error).__name__}: {error}".splitlines()[0]
        yield Finding(name, state, detail, "" if state == "ok" else fix)


class _Missing(Exception):
    pass


def _package() -> str:
    try:
        other = importlib.metadata.version("tilelang")
    except importlib.metadata.PackageNotFoundError:
        return f"tilelang-compiler {__version__}, Python {platform.python_version()}, {platform.platform()}"
    raise RuntimeError(f"another package, tilelang {other}, has the same import name")


def _cpu() -> str:
    import numpy as np

    from tilelang import jit
    from tilelang.backends.cpu.machine import host
    from tilelang.parsed import parsed
    kernel = parsed(_TEXT)
    with jit.target("cpu"):
        _expect(kernel(np.ones(40, np.float32)), np)
    target = host()
    return (f"{target.cpu}, {8 * target.vector_bytes}-bit vectors, {', '.join(sorted(target.features)) or 'no'} "
            f"features used, {jit.get_num_threads()} threads")


_TEXT = """func @twice(%x: tensor<in f32, N>, %y: tensor<out f32, N>) tile {
  %n = dim %x {axis=0} : i32
  %15 = const {value=15, dtype=i32} : i32
  %16 = const {value=16, dtype=i32} : i32
  %sum = add %n, %15 : i32
  %count = floordiv %sum, %16 : i32
  %p = grid %count {group=1} : i32
  %at = mul %p, %16 : i32
  %block = load %x, %at {shape=(16,), axes=(0,), fill=0} : f32[16]
  %double = add %block, %block : f32[16]
  store %y, %at, %double {axes=(0,)}
}
"""


def _expect(y: Any, np: Any) -> None:
    if not (np.asarray(y) == 2).all():
        raise RuntimeError("a small kernel computes something wrong")


def _cache() -> str:
    from tilelang import cache
    store = cache.default()
    if not store.usable():
        raise RuntimeError(f"{store.directory} cannot be used")
    probe = cache.key("doctor")
    store.put(probe, b"probe")
    if store.get(probe) != b"probe":
        raise RuntimeError(f"{store.directory} cannot be written")
    entries = list(store.entries())
    return f"{store.directory}: {len(entries)} entries, {sum(e.size for e in entries)} of {store.max_bytes} bytes"


def _tuning() -> str:
    from tilelang.tuning.store import default
    if why := default().problem(writing=True):
        raise RuntimeError(f"{default().path} cannot be used: {why}")
    return f"{default().path}: {len(default().results())} results"


def _torch() -> str:
    import torch
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() \
        else []
    return f"{torch.__version__}, GPUs: {', '.join(gpus) or 'none'}"


def _progress() -> str:
    return f"rich {importlib.metadata.version('rich')}"


def _emulator() -> str:
    import numpy as np

    from tilelang import jit
    from tilelang.backends.host import compiler
    from tilelang.parsed import parsed
    with jit.target("emulate:cuda:sm_80"):
        _expect(parsed(_TEXT)(np.ones(40, np.float32)), np)
    return " ".join(compiler())


def _lowered(target: str) -> Any:
    from tilelang import targets
    from tilelang.ir.parser import parse
    return targets.lowered(parse(_TEXT), target)


def _nvrtc() -> str:
    from tilelang.backends.cuda import nvrtc
    registers = _lowered("cuda:sm_90a").report["registers"]
    return f"NVRTC {'.'.join(map(str, nvrtc.version()))} (a small kernel takes {registers} registers)"


def _nvdisasm() -> str:
    from tilelang.backends.cuda.products import nvdisasm
    tool = nvdisasm()
    if tool is None:
        raise _Missing("nvdisasm was not found")
    return tool


def _hip() -> str:
    """What compiles for each processor: hiprtc knows those of its time."""
    from tilelang.backends.hip import clang, hiprtc
    from tilelang.backends.hip.target import PROCESSORS
    by: dict[str, list[str]] = {}
    for arch in PROCESSORS:
        found = hiprtc.find() if hiprtc.supports(arch) else None
        if found is None and clang.version() is None:
            raise _Missing(f"neither a hiprtc that knows {arch} nor the package ziglang was found")
        _lowered(f"hip:{arch}").report
        by.setdefault(f"hiprtc of {found.path}" if found else f"clang of ziglang {clang.version()}", []).append(arch)
    return "; ".join(f"{', '.join(archs)} by {name}" for name, archs in by.items())


def _clang() -> str:
    from tilelang.backends.hip import clang
    if clang.version() is None:
        raise _Missing("the package ziglang was not found")
    _lowered("hip:gfx942").assembly
    return f"clang of ziglang {clang.version()}"


def _device(name: str) -> Callable[[], str]:
    def look() -> str:
        from tilelang import targets
        return targets.machine(name)
    return look


_CHECKS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("package", _package, "pip uninstall tilelang; pip install --force-reinstall tilelang-compiler"),
    ("CPU kernels", _cpu, "pip install --force-reinstall tilelang-compiler"),
    ("compile cache", _cache, "set TILELANG_CACHE_DIR to a directory of your own, or chmod 700 it"),
    ("results of tuning", _tuning, "remove that file, or set TILELANG_TUNING_FILE to a file of your own"),
    ("PyTorch", _torch, "pip install 'tilelang-compiler[torch]'"),
    ("progress of tuning", _progress, "pip install 'tilelang-compiler[progress]'"),
    ("emulator", _emulator, "install g++ with the system's package manager, or pip install ziglang"),
    ("compiling for CUDA", _nvrtc, "pip install 'tilelang-compiler[cuda]'"),
    ("reading CUDA machine code", _nvdisasm, "pip install 'tilelang-compiler[cuda]'"),
    ("compiling for HIP", _hip, "pip install 'tilelang-compiler[hip]'"),
    ("reading HIP machine code", _clang, "pip install 'tilelang-compiler[hip]'"),
    ("NVIDIA GPU", _device("cuda"), "install NVIDIA's driver, on a machine with a GPU"),
    ("AMD GPU", _device("hip"), "install ROCm, or torch for ROCm, on a machine with a GPU"),
)
