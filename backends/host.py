"""The C++ compiler of this machine."""
from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from functools import lru_cache

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
