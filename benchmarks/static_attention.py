"""What can be said of attention's kernels without a GPU: `python -m benchmarks.static_attention [part of a row]`
prints what NVRTC and clang made of those that `ops.attention` and its backward run, what the emulator counted, and
which goals are missed. Needs nvidia-cuda-nvrtc, nvidia-cuda-nvdisasm and ziglang."""
from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import ml_dtypes
import numpy as np

import tilelang as tile
from benchmarks import gcn, sass
from benchmarks.static import COLUMNS as SHARED_COLUMNS
from benchmarks.static import Goal, counted
from tests.backends.simt import kernels
from tilelang.backends.cuda import nvrtc
from tilelang.backends.hip import clang
from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.schedule import conversion_of
from tilelang.ops.attention.backward import dkdv_kernel, dq_kernel
from tilelang.ops.attention.forward import forward_kernel
from tilelang.ops.attention.options import blocks

TARGETS = ("cuda:sm_80", "cuda:sm_90a", "hip:gfx942", "hip:gfx950")
KERNELS = {"forward": (forward_kernel, "forward"), "backward dk, dv": (dkdv_kernel, "queries"),
           "backward dq": (dq_kernel, "keys")}
KEYS, HEADS = 256, 256


@dataclass(frozen=True)
class Case:
    """A kernel of a call with one head of width `d`: f16 for NVIDIA, bf16 for AMD."""

    name: str
    d: int
    target: str
    causal: bool = False

    def arguments(self) -> tuple[Any, ...]:
        """Queries, keys and values first."""
        kernel = KERNELS[self.name][0]
        dt = np.float16 if self.target.startswith("cuda") else ml_dtypes.bfloat16
        q, k, v, do = (kernels.normal(1, 1, KEYS, self.d, dtype=dt) for _ in range(4))
        lse, delta = np.zeros((2, 1, 1, KEYS), np.float32)
        if kernel is forward_kernel:
            return q, k, v, np.empty_like(q), 0.1, lse
        out = [np.empty_like(q) for _ in range(2 if kernel is dkdv_kernel else 1)]
        return q, k, v, do, lse, delta, *out, 0.1

    def lower(self) -> Lowered:
        """The kernel at every level, in the blocks that a call with many heads chooses."""
        kernel, beside = KERNELS[self.name]
        arguments = self.arguments()
        with tile.target("emulate:" + self.target):
            sizes = blocks(*(np.broadcast_to(x, (1, HEADS, KEYS, self.d)) for x in arguments[:3]), KEYS, KEYS, beside)
        if kernel is forward_kernel:
            sizes["POSITIVE"] = True
        code = kernel.lower(*arguments, target=self.target, RIGHT=0 if self.causal else None, **sizes)
        assert isinstance(code, Lowered)
        return code


@dataclass(frozen=True)
class Measured:
    """One row."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    threads: int
    sectors: float
    wavefronts: float
    exchanges: int
    per_product: float | None


COLUMNS = {**SHARED_COLUMNS, "exchanges": Goal("conversions", str, lambda v: v == 0)}


def exchanges(code: Lowered) -> int:
    """Conversions of layout in loops that go through shared memory."""
    inside = {op for loop in code.placed.walk() if loop.name == "for" for op in loop.regions[0].walk()}
    return sum(op.name == "convert_layout" and conversion_of(op, code.target.warp) == "shared" for op in inside)


def measure(case: Case) -> Measured:
    """Lowers, compiles and emulates a case."""
    code = case.lower()
    return measured(code, *counted(case.arguments(), code)[:2])


def measured(code: Lowered, sectors: float, wavefronts: float) -> Measured:
    """What the compilers make of a kernel, beside what the emulator counted."""
    text, used, assembly = code.rendered, code.report, code.assembly  # type: ignore[attr-defined]
    if code.target.name.startswith("cuda"):
        loop = sass.main_loop(assembly, text.name)
        products: float = sum(sass.opcode(i) in sass.PRODUCTS for i in loop)
    else:
        loop = gcn.main_loop(assembly, text.name)
        products = gcn.products(loop)
    return Measured(used["registers"], used["spills"] + used["stack_bytes"], text.shared_bytes, text.threads, sectors,
                    wavefronts, exchanges(code), len(loop) / products if products else None)


def missed(row: Measured) -> Iterator[str]:
    """The goals a row does not meet."""
    for f in fields(row):
        goal, value = COLUMNS[f.name], getattr(row, f.name)
        if goal.holds and not goal.holds(value):
            yield f"{goal.name} {goal.show(value)}"


def shown(row: Measured) -> str:
    """The cells of a row."""
    values = ((COLUMNS[f.name], getattr(row, f.name)) for f in fields(row))
    return " | ".join("-" if value is None else goal.show(value) for goal, value in values)


def main(pattern: str = "") -> None:
    """Prints the table, then the goals that rows miss."""
    print(f"NVRTC {'.'.join(map(str, nvrtc.version()))}, ziglang {clang.version()}, {datetime.date.today()}\n")
    names = [f.name for f in fields(Measured)]
    print(f"| kernel | target | {' | '.join(COLUMNS[n].name for n in names)} |\n|{'---|' * (len(names) + 2)}")
    misses = []
    for case in (Case(name, d, target, causal) for causal in (False, True) for d in (64, 128) for name in KERNELS
                 for target in TARGETS):
        title = f"{case.name} d={case.d}{' causal' if case.causal else ''}"
        if pattern not in f"{title} {case.target}":
            continue
        row = measure(case)
        print(f"| {title} | {case.target.split(':')[1]} | {shown(row)} |", flush=True)
        misses += [f"{title} on {case.target.split(':')[1]}: {m}" for m in missed(row)]
    print("\nGoals missed: " + ("; ".join(misses) or "none"))


if __name__ == "__main__":
    main(*sys.argv[1:2])
