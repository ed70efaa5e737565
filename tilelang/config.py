"""The environment variables, read once."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any


def _var(name: str, default: Any, doc: str) -> Any:
    return field(default=default, metadata={"name": f"TILELANG_{name}", "doc": doc})


@dataclass(frozen=True)
class Config:
    """One field for each variable; its metadata holds the name and the documentation."""

    cache_dir: str = _var("CACHE_DIR", "", "Directory of the compile cache (default: the user's cache directory).")
    cache_bytes: int = _var("CACHE_BYTES", 256 << 20, "Size at which the oldest entries of the cache are dropped.")
    check: int = _var("CHECK", 0, "1 verifies the IR after every pass; 2 also runs it before and after.")
    dump: str = _var("DUMP", "", "Directory that receives the IR after every pass.")
    ranges: str = _var("RANGES", "", "nvtx or roctx: calls of kernels are ranges in the timelines of GPUs' profilers.")
    target: str = _var("TARGET", "", "Target of calls, as tile.target takes it: cpu, cuda, hip, emulate:cuda:sm_80 …")
    threads: int = _var("THREADS", 0, "Number of CPU threads (default: those this process may run on).")
    tune: int = _var("TUNE", 1, "0 keeps kernels marked @tile.autotune from searching; stored results are used.")
    tuning_file: str = _var("TUNING_FILE", "", "File of results of tuning (default: in the user's data directory).")


def read(environ: Mapping[str, str]) -> Config:
    """The configuration of an environment. Raises ValueError naming the variable."""
    values: dict[str, Any] = {}
    for f in fields(Config):
        text = environ.get(f.metadata["name"], "")
        if text == "":
            continue
        if isinstance(f.default, int):
            if not text.isdigit():
                raise ValueError(f"{f.metadata['name']} needs a number, got {text!r}")
            values[f.name] = int(text)
        else:
            values[f.name] = text
    if values.get("check", 0) not in (0, 1, 2):
        raise ValueError(f"TILELANG_CHECK needs 0, 1 or 2, got {values['check']}")
    if values.get("tune", 0) not in (0, 1):
        raise ValueError(f"TILELANG_TUNE needs 0 or 1, got {values['tune']}")
    if values.get("ranges", "") not in ("", "nvtx", "roctx"):
        raise ValueError(f"TILELANG_RANGES needs nvtx or roctx, got {values['ranges']!r}")
    return Config(**values)


@lru_cache(maxsize=1)
def config() -> Config:
    """The process's configuration."""
    return read(os.environ)


def table() -> str:
    """The variables as a Markdown table: docs/targets.md holds it."""
    rows = [f"| `{f.metadata['name']}` | {f.default if f.default != '' else ''} | {f.metadata['doc']} |"
            for f in fields(Config)]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])
