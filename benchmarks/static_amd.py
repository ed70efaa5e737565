"""What can be said of kernels for AMD without a GPU: `python -m benchmarks.static_amd [part of a name]` prints a table
of what clang made of them, what the emulator counted, and which goals are met. Needs the package ziglang."""
from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import gcn
from benchmarks.static import COLUMNS as SHARED_COLUMNS
from benchmarks.static import Goal, conversions, counted
from tests.backends.simt import kernels
from tilelang.backends.hip import clang, products
from tilelang.backends.hip.compile import Lowered
from tilelang.ops.attention.forward import forward_kernel

ARCHS = ("gfx942", "gfx950")


@dataclass(frozen=True)
class Case:
    """`arguments` are small, aligned and without ragged edges; `pattern` names the loop it is compared with; `consts`
    are by processor."""

    kernel: Any
    arguments: tuple[Any, ...]
    consts: dict[str, dict[str, int]]
    pattern: str

    def lower(self, arch: str) -> Lowered:
        """The kernel at every level."""
        code = self.kernel.lower(*self.arguments, target=f"hip:{arch}", **self.consts[arch])
        assert isinstance(code, Lowered)
        return code


def _bf16(*shape: int) -> Any:
    return kernels.normal(*shape, dtype=ml_dtypes.bfloat16)


def cases() -> dict[str, Case]:
    """Every case by its name."""
    block = {arch: {"BM": 256, "BN": 256, "BK": 64, "STAGES": 2} for arch in ARCHS}
    keys = {arch: {"BM": rows, "BN": 64, "BD": 128, "BE": 128, "ROUND": 1, "POSITIVE": 1}
            for arch, rows in (("gfx942", 128), ("gfx950", 256))}
    a, q, lse = _bf16(256, 256), _bf16(1, 1, 256, 128), np.empty((1, 1, 256), np.float32)
    return {
        "GEMM bf16 256x256x64, b transposed": Case(kernels.matmul_t, (a, a, np.empty_like(a)), block, "gemm"),
        "GEMM bf16 256x256x64": Case(kernels.matmul, (a, a, np.empty((256, 256), np.float32)), block, "gemm"),
        "attention bf16 d=128": Case(forward_kernel, (q, q, q, np.empty_like(q), 0.1, lse), keys, "attention"),
    }


@dataclass(frozen=True)
class Measured:
    """One row; `ratio` is the instructions of the main loop by product beside the pattern's, None where there is
    none."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    threads: int
    sectors: float
    wavefronts: float
    wide: float
    conversions: int
    per_product: float
    ratio: float | None


COLUMNS = {**SHARED_COLUMNS, "per_product": Goal("instructions / product", "{:.2f}".format)}


def main_loop(code: Lowered) -> list[str]:
    """The main loop of a kernel's machine code."""
    return gcn.main_loop(code.assembly, code.rendered.name)


def measure(case: Case, arch: str) -> Measured:
    """Lowers, compiles and emulates a case."""
    code = case.lower(arch)
    report, loop = code.report, main_loop(code)
    pattern, each = gcn.PATTERNS.get((case.pattern, arch)), len(loop) / gcn.products(loop)
    return Measured(report["registers"], report["spills"] + report["stack_bytes"], report["shared_bytes"],
                    report["threads"], *counted(case.arguments, code), conversions(code), each,
                    each / pattern.share if pattern else None)


def missed(row: Measured) -> Iterator[str]:
    """The goals a row does not meet."""
    for f in fields(row):
        goal, value = COLUMNS[f.name], getattr(row, f.name)
        if value is not None and goal.holds and not goal.holds(value):
            yield f"{goal.name} {goal.show(value)}"


def main(pattern: str = "") -> None:
    """Prints the table, then the goals that rows miss and the classes of instructions."""
    print(f"Machine code by {', '.join(sorted(set(map(products.compiler, ARCHS))))}, instructions as ziglang "
          f"{clang.version()} lists them, {datetime.date.today()}\n")
    names = [f.name for f in fields(Measured)]
    print(f"| kernel | target | {' | '.join(COLUMNS[n].name for n in names)} |\n|{'---|' * (len(names) + 2)}")
    notes = []
    for name, case in cases().items():
        for arch in ARCHS:
            if pattern not in name:
                continue
            row = measure(case, arch)
            shown = ["-" if (v := getattr(row, n)) is None else COLUMNS[n].show(v) for n in names]
            print(f"| {name} | {arch} | {' | '.join(shown)} |", flush=True)
            count = gcn.classes(main_loop(case.lower(arch)))
            against = gcn.PATTERNS.get((case.pattern, arch))
            notes.append(f"- {name} on {arch}: missed {', '.join(missed(row)) or 'nothing'}; "
                         f"{dict(count)}{f', pattern {against.counts}' if against else ''}")
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main(*sys.argv[1:2])
