"""Small kernels for the emulator, and how to run them under every policy."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilelang.backends.emulator.run import POLICIES, Buffer, Policy, Result, load

F = "tl::gptr<const float> a, tl::gptr<float> o"


def kernel(params: str, body: str, threads: int = 64, head: str = "") -> str:
    """The text of kernel `k`: `t` is the thread, `p` the block."""
    return f"""{head}
#include "tl.h"
TL_KERNEL(k, {threads})({params}) {{
  const int t = tl::thread();
  const tl::i64 p = tl::program();
{body}
}}
TL_EXPORT(k)
"""


def run(text: str, args: Sequence[Any] = (), threads: int = 64, shared: int = 0, programs: int = 1,
        policy: Policy = "forward", seed: int = 0) -> Result:
    return load(text).launch("k", args, programs=programs, threads=threads, shared_bytes=shared, policy=policy,
                             seed=seed)


def found(text: str, args: Sequence[Any] = (), threads: int = 64, shared: int = 0,
          programs: int = 1) -> list[set[tuple[str, int, int]]]:
    """What each run finds: kind and ops. The outputs are cleared before each."""
    out = []
    for policy in POLICIES:
        for seed in range(3 if policy == "random" else 1):
            for a in args:
                if isinstance(a, Buffer) and not a.initialised:
                    a.array[...] = 0
            result = run(text, args, threads, shared, programs, policy, seed)
            out.append({(f.kind, f.op, f.other_op) for f in result.findings})
    return out


def values(n: int, dtype: Any = np.float32) -> Buffer:
    return Buffer(np.arange(n).astype(dtype))


def output(n: int, dtype: Any = np.float32) -> Buffer:
    return Buffer(np.zeros(n, dtype), initialised=False)


@dataclass
class Case:
    """A kernel with a mistake and its repair: `body` holds a `$` where they differ."""

    name: str
    body: str
    wrong: str
    right: str
    finds: tuple[str, int, int]
    params: str = F
    threads: int = 64
    programs: int = 1
    args: list[Any] = field(default_factory=lambda: [values(256), output(256)])
    also: tuple[str, ...] = ()  # kinds that may follow from the mistake
    shared: int = 1024
    head: str = ""
    always: bool = True  # whether every run finds it; else one of them does


@dataclass
class Template:
    """A correct kernel of named parts: its cases have a mistake in the place of one."""

    body: str
    parts: dict[str, str]
    arguments: Callable[[], list[Any]]
    params: str
    shared: int
    programs: int = 1
    head: str = ""

    def wrong(self, name: str, part: str, mistake: str, finds: tuple[str, int, int], *also: str, always: bool = True,
              right: str | None = None) -> Case:
        """The kernel with `mistake` in the place of a part, or of what is `right` there."""
        return Case(name, self.body.format(**{**self.parts, part: "$"}), mistake,
                    self.parts[part] if right is None else right, finds, self.params, programs=self.programs,
                    args=self.arguments(), also=also, shared=self.shared, head=self.head, always=always)
