"""The environment variables, read once."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from tilelang.errors import ConfigError

MAX_THREADS = 256


def _var(name: str, default: Any, doc: str, allowed: Sequence[Any] = (), place: bool = False) -> Any:
    return field(default=default, metadata={"name": f"TILELANG_{name}", "doc": doc, "allowed": allowed,
                                            "place": place})


@dataclass(frozen=True)
class Config:
    """One field for each variable; its metadata holds the name and the documentation."""

    cache_dir: str = _var("CACHE_DIR", "", "Directory of the compile cache (default: the user's cache directory).",
                          place=True)
    cache_bytes: int = _var("CACHE_BYTES", 256 << 20, "Size at which the oldest entries of the cache are dropped.")
    check: int = _var("CHECK", 0, "1 verifies the IR after every pass; 2 also runs it before and after.", (0, 1, 2))
    dump: str = _var("DUMP", "", "Directory that receives the IR after every pass.", place=True)
    ranges: str = _var("RANGES", "", "nvtx or roctx: calls of kernels are ranges in the timelines of GPUs' profilers.",
                       ("nvtx", "roctx"))
    target: str = _var("TARGET", "", "Target of calls, as tile.target takes it: cpu, cuda, hip, emulate:cuda:sm_80 …")
    threads: int = _var("THREADS", 0, "Number of CPU threads (default: those this process may run on).",
                        range(MAX_THREADS + 1))
    tune: int = _var("TUNE", 1, "0 keeps kernels marked @tile.autotune from searching; stored results are used.",
                     (0, 1))
    tuning_file: str = _var("TUNING_FILE", "", "File of results of tuning (default: in the user's data directory).",
                            place=True)


def read(environ: Mapping[str, str]) -> Config:
    """The configuration of an environment. Raises ConfigError naming the variable."""
    values: dict[str, Any] = {}
    for f in fields(Config):
        name, allowed = f.metadata["name"], f.metadata["allowed"]
        text = environ.get(name, "")
        if text == "":
            continue
        number = isinstance(f.default, int)
        value: Any = int(text) if number and text.isdecimal() else text
        if number and value is text or allowed and value not in allowed:
            needs = (f"a number from {allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else
                     " or ".join(map(str, allowed)) if allowed else "a number of at least 0")
            raise ConfigError(f"the environment variable {name} has an invalid value", needs=needs,
                              got=repr(text), try_=f"unset {name}")
        # ~ as a shell has it, and where it is now: a process may change its directory
        values[f.name] = os.path.abspath(os.path.expanduser(text)) if f.metadata["place"] else value
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
