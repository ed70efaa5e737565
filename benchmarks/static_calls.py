"""What can be said without a GPU of the kernels that calls of the library run there: `python -m
benchmarks.static_calls [part of a row]` prints, for decoding and Local Linear Attention, what NVRTC and clang made of
each kernel, what the emulator counted during the call, and which goals are missed. Needs nvidia-cuda-nvrtc,
nvidia-cuda-nvdisasm and ziglang."""
from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

import tilelang as tile
from benchmarks.static_attention import COLUMNS, TARGETS, Measured, measured, shown
from tests.backends.simt import kernels
from tilelang import ops, targets
from tilelang.backends.cuda import nvrtc
from tilelang.backends.hip import clang
from tilelang.backends.simt.compile import Lowered
from tilelang.ops.lla import api as lla

D = 64


def _decode(x: Callable[..., Any], **given: Any) -> None:
    """Eight heads by two of keys, which two programs share."""
    shape = (16, 2, 64, 128) if given else (1, 2, 1024, 128)
    ops.attention_decode(x(1, 8, 1, 128), x(*shape), x(*shape), splits=2, **given)


def _lla(x: Callable[..., Any]) -> None:
    """The forward and, of its results, the backward; the solver ends after two steps."""
    q, k, v, do = (x(1, 1, 128, D) for _ in range(4))
    lam = np.ones(q.shape[:3], np.float32)
    scale, options = D ** -0.5, ("rel", None, 0)
    _, *kept = lla._forward(q, k, v, lam, scale, *options, 2, None)
    lla._backward(q, k, v, lam, do, *kept, scale, *options, 2, None)


CALLS: dict[str, Callable[[Callable[..., Any]], None]] = {
    "decode d=128": _decode,
    "paged decode d=128": lambda x: _decode(x, seqused_k=np.array([1000], np.int32),
                                            block_table=np.arange(16, dtype=np.int32)[None]),
    f"LLA d={D}": _lla,
    f"LLA decode d={D}": lambda x: ops.lla_decode(x(1, 4, D), x(1, 2, 512, D), x(1, 2, 512, D), splits=2),
}


@contextmanager
def launches() -> Iterator[list[tuple[Lowered, list[Any]]]]:
    """Each kernel that is emulated inside, with its counters."""
    seen: list[tuple[Lowered, list[Any]]] = []
    emulate = targets.emulate

    def watched(code: Lowered, arrays: Any, shapes: Any, strides: Any) -> None:
        emulate(code, arrays, shapes, strides)
        seen.append((code.suited(arrays, shapes, strides), list(tile.last_counters().values())))
    with mock.patch.object(targets, "emulate", watched):
        yield seen


def rows(name: str, target: str) -> dict[str, Measured]:
    """What there is to say of each kernel of a call, f16 for NVIDIA and bf16 for AMD."""
    dt = np.float16 if target.startswith("cuda") else ml_dtypes.bfloat16
    with tile.target("emulate:" + target), launches() as seen:
        CALLS[name](lambda *shape: kernels.normal(*shape, dtype=dt))
    out = {}
    for code, counters in seen:
        sectors, sectors_ideal, waves, waves_ideal = (sum(getattr(c, n) for c in counters) for n in (
            "sectors", "ideal_sectors", "wavefronts", "ideal_wavefronts"))
        out[code.tile.name] = measured(code, sectors / max(sectors_ideal, 1), waves / waves_ideal if waves else 1.0)
    return out


def missed(row: Measured) -> list[str]:
    """The goals a row does not meet: nothing spills, no bank conflicts."""
    return [f"{COLUMNS[n].name} {COLUMNS[n].show(value)}" for n, none in (("spill_bytes", 0), ("wavefronts", 1))
            if (value := getattr(row, n)) != none]


def main(pattern: str = "") -> None:
    """Prints the table, then the goals that rows miss."""
    print(f"NVRTC {'.'.join(map(str, nvrtc.version()))}, ziglang {clang.version()}, {datetime.date.today()}\n")
    names = [f.name for f in fields(Measured)]
    print(f"| call | kernel | target | {' | '.join(COLUMNS[n].name for n in names)} |\n|{'---|' * (len(names) + 3)}")
    misses = []
    for name in CALLS:
        for target in TARGETS:
            if pattern not in f"{name} {target}":
                continue
            for kernel, row in rows(name, target).items():
                arch = target.split(":")[1]
                print(f"| {name} | {kernel} | {arch} | {shown(row)} |", flush=True)
                misses += [f"{kernel} of {name} on {arch}: {m}" for m in missed(row)]
    print("\nGoals missed: " + ("; ".join(misses) or "none"))


if __name__ == "__main__":
    main(*sys.argv[1:2])
