"""Where ROCm's libraries are."""
from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VERSIONS = (".7", ".6", ".5", ".3", ".2")
"""Of ROCm's libraries; the last two are those of comgr."""


class Library(NamedTuple):
    """A loaded library, and the file it is."""

    library: ctypes.CDLL
    path: str

    @property
    def identity(self) -> str:
        """Changes when the file does."""
        try:
            info = Path(self.path).stat()
        except OSError:  # known by name only
            return self.path
        return f"{self.path} {info.st_size} {info.st_mtime_ns}"


def mapped(name: str) -> list[str]:
    """The files of that name, whatever version follows it, that this process has mapped: a second copy of ROCm's
    libraries would not know the first one's memory."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return list(dict.fromkeys(re.findall(rf"(/.*/{re.escape(name)}[.\d]*)$", maps, re.MULTILINE)))


def folders() -> Iterator[Path]:
    """Where ROCm is installed: with torch, then as a whole."""
    spec = importlib.util.find_spec("torch")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place) / "lib"
    if os.environ.get("ROCM_PATH"):
        yield Path(os.environ["ROCM_PATH"]) / "lib"
    yield Path("/opt/rocm/lib")


def candidates(name: str) -> Iterator[str]:
    """What to try for a library such as "libamdhip64.so", in this order: what the process has mapped, the folders, the
    versions that the loader knows, latest first."""
    yield from mapped(name)
    for folder in folders():
        for version in ("", *VERSIONS):
            if (path := folder / f"{name}{version}").exists():
                yield str(path)
    for version in VERSIONS:
        yield f"{name}{version}"


def load(name: str, function: str) -> Library | None:
    """The first candidate that loads and exports a function; None where there is none."""
    for path in candidates(name):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        if hasattr(library, function):
            return Library(library, path if "/" in path else next(iter(mapped(name)), path))
    return None
