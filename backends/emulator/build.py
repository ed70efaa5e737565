"""The host C++ compiler: the runtime library and kernels as shared libraries, cached on disk by content."""
from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from tilelang import cache, locks
from tilelang.backends.host import compiler
from tilelang.config import config
from tilelang.errors import TargetError

HERE = Path(__file__).resolve().parent
INCLUDES = (HERE / "include", HERE.parent / "clike" / "include")  # in order: `tl.h` is the emulator's
_COMMON = ("-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wl,-Bsymbolic")
RUNTIME_FLAGS = (*_COMMON, "-O2")
# No contraction and wrapping integers: the arithmetic of a kernel is the one it spells out. Most kernels are compiled
# for longer than they run, and what takes time in a run is the runtime.
KERNEL_FLAGS = (*_COMMON, "-Og", "-ffp-contract=off", "-fwrapv", "-w", *(f"-I{d}" for d in INCLUDES))


@lru_cache(maxsize=1)
def _identity() -> str:
    """Changes whenever the compiler or its target does."""
    command = compiler()
    info = os.stat(os.path.realpath(command[0]))
    return f"{command}|{info.st_size}|{info.st_mtime_ns}|{platform.machine()}|{sys.platform}"


@lru_cache(maxsize=1)
def _headers() -> str:
    """A hash of every header that a kernel or the runtime may include."""
    h = hashlib.sha256()
    for directory in INCLUDES:
        for path in sorted(directory.glob("*.h")):
            h.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()


def _directory() -> Path:
    """A folder for libraries that no other user may write: in the cache, else one of this process."""
    directory = cache.default().directory / "emulator"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.stat()
        if info.st_uid == os.getuid() and not info.st_mode & 0o022 and os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass
    return _own()


@lru_cache(maxsize=1)
def _own() -> Path:
    return Path(tempfile.mkdtemp(prefix="tilelang-emulator-"))


def _library(kind: str, source: Path | str, flags: tuple[str, ...], *more: str) -> Path:
    """The shared library of a source file or text. Processes that build one at once each rename a whole file."""
    text = source if isinstance(source, str) else source.read_text(encoding="utf-8")
    h = hashlib.sha256("\0".join((_identity(), _headers(), *flags, text, *more)).encode())
    directory = _directory()
    path = directory / f"{kind}-{h.hexdigest()[:32]}.so"
    if path.exists():
        try:
            os.utime(path)  # the age that pruning goes by
        except OSError:
            pass
        return path
    with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as folder:
        built = Path(folder) / "library.so"
        if isinstance(source, str):
            source = Path(folder) / "kernel.cpp"
            source.write_text(text, encoding="utf-8")
        done = subprocess.run([*compiler(), *flags, str(source), "-o", str(built)], capture_output=True, text=True)
        if done.returncode:
            raise TargetError(f"the C++ compiler refused the {kind}", got=done.stderr.strip()[:4000],
                              why="the emitted text or the installation is broken")
        os.replace(built, path)
    if path.name.endswith("0.so"):  # looking at every file is not worth it each time
        _prune(directory, config().cache_bytes)
    return path


def _prune(directory: Path, limit: int) -> None:
    """Removes the libraries used longest ago. Those that are loaded stay usable: their files are only unlinked."""
    try:
        files = sorted(((p.stat().st_mtime, p.stat().st_size, p) for p in directory.glob("*.so")), reverse=True)
        total = 0
        for _, size, path in files:
            total += size
            if total > limit:
                path.unlink(missing_ok=True)
    except OSError:
        pass  # another process is pruning


def runtime() -> Path:
    """The runtime library. It takes seconds to build: of several processes one does, and others wait."""
    parts = [p.read_text(encoding="utf-8") for p in sorted((HERE / "runtime").iterdir()) if p.suffix in (".cpp", ".h")]
    with locks.alone(_directory() / "runtime.lock", 600):
        return _library("runtime", HERE / "runtime" / "runtime.cpp", RUNTIME_FLAGS, *parts)


def kernel(text: str) -> Path:
    """The library of the kernels in an emitted text. It finds the runtime's functions in the process. Targets whose
    texts differ in their first line alone, a comment that names them, share it."""
    return _library("kernel", re.sub(r"\A//.*\n", "", text), KERNEL_FLAGS)
