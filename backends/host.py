"""The C++ compiler of this machine."""
from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from tilelang.errors import TargetError


@lru_cache(maxsize=1)
def compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: `$CXX`, one on the path, or the one in the `ziglang` package."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        path = shutil.which(command[0])
        if path is None:
            raise TargetError("the C++ compiler named by CXX was not found", got=command[0],
                              try_="unset CXX, or name a compiler that is on the path")
        return (path, *command[1:])
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    raise TargetError("a C++ compiler is needed and none was found",
                      needs="c++, g++ or clang++ on the path, or one named by CXX",
                      try_="install g++ with the system's package manager, or `pip install ziglang`")


def library(path: Path, entry: str, files: Mapping[str, bytes], flags: Sequence[str] = ()) -> None:
    """Compiles and links files by name, sources, headers and object code, to a shared library that shows its symbol
    `entry` alone and asks for tvm-ffi's. Raises TargetError where there is no compiler, or it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, data in files.items():
            (work / name).write_bytes(data)
        (work / "names").write_text(f"{{ global: {entry}; local: *; }};", encoding="utf-8")
        # The library of tvm-ffi is found by whoever loads this: Python has it, a program links it.
        (work / "empty.cpp").write_bytes(b"")
        stub, command = str(work / "libtvm_ffi.so"), compiler()
        inputs = [str(work / name) for name in files if not name.endswith(".h")]
        for step in (
            [*command, "-shared", "-o", stub, "-Wl,-soname,libtvm_ffi.so", str(work / "empty.cpp")],
            [*command, "-O2", "-fPIC", "-shared", "-o", str(path), *inputs,
             f"-Wl,--version-script={work / 'names'}", f"-Wl,-soname,{path.name},--no-as-needed", stub,
             "-Wl,--as-needed", "-pthread", *flags],
        ):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                raise TargetError(f"{path} could not be linked", got=done.stderr.strip()[:4000],
                                  try_="name another compiler by the variable CXX")
