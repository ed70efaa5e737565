"""What can be said of CUDA kernels without a GPU: `python -m benchmarks.static` prints a table of what NVRTC made of
them, what the emulator counted, and which goals are met. Needs nvidia-cuda-nvrtc and nvidia-cuda-nvdisasm."""
from __future__ import annotations

import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import sass
from tests.backends.simt import kernels
from tilelang import targets
from tilelang.backends.cuda import nvrtc
from tilelang.backends.cuda.compile import Lowered
from tilelang.backends.emulator.execute import execute
from tilelang.backends.simt import compile as simt
from tilelang.ir.core import BufferType, Op, Region, TensorType
from tilelang.ops.norm import layer_norm_kernel
from tilelang.ops.softmax import softmax_kernel

ARCHS = ("sm_80", "sm_90a")
REFERENCE = Path(__file__).with_name("static_reference.cu")
ROUNDS = 5
MULTIPLY = ("mma", "group_mma")


@dataclass(frozen=True)
class Case:
    """`arguments` are small, aligned and without ragged edges; `reference` names the hand-written kernel."""

    kernel: Any
    arguments: tuple[Any, ...]
    consts: dict[str, int]
    reference: str = ""

    def lower(self, arch: str) -> Lowered:
        """The kernel at every level, from its Python source."""
        code = self.kernel.lower(*self.arguments, target=f"cuda:{arch}", **self.consts)
        assert isinstance(code, Lowered)
        return code


def _attention(d: int) -> Case:
    q, k, v = (kernels.normal(128, d, dtype=np.float16) for _ in range(3))
    return Case(kernels.attention, (q, k, v, np.empty((128, d), np.float32)),
                {"BM": 64, "BN": 64, "BD": d, "STAGES": 2}, f"products_{d}")


def cases() -> dict[str, Case]:
    """Every case by its name."""
    a, b = (kernels.normal(*shape, dtype=np.float16) for shape in ((128, 128), (128, 256)))
    x, w = kernels.normal(8, 1024), kernels.normal(1024)
    return {
        "GEMM f16 128x128x32": Case(kernels.matmul, (a, b, np.empty((128, 256), np.float32)),
                                    {"BM": 128, "BN": 128, "BK": 32, "STAGES": 3}, "gemm"),
        "GEMM f16 128x256x64": Case(kernels.matmul, (a, b, np.empty((128, 256), np.float32)),
                                    {"BM": 128, "BN": 256, "BK": 64, "STAGES": 4}, "gemm"),
        "attention f16 d=64": _attention(64),
        "attention f16 d=128": _attention(128),
        "softmax f32 x1024": Case(softmax_kernel, (x, np.empty_like(x)), {"BM": 2, "BN": 1024}),
        "layer norm f32 x1024": Case(layer_norm_kernel, (x, w, w, np.empty_like(x), 1e-5), {"BM": 2, "BN": 1024}),
    }


@dataclass(frozen=True)
class Measured:
    """One row. What a kernel without matrix products does not have is None."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    threads: int
    sectors: float  # global sectors by the fewest possible
    wavefronts: float  # the same for shared memory
    wide: float  # share of requests to load global memory that move 16 bytes a lane
    conversions: int | None  # stores to shared memory in loops with matrix products
    per_product: float | None  # instructions of the main loop by `sass.products`
    ratio: float | None  # its `matrix_work` by product beside the hand-written kernel's


def measure(case: Case, arch: str) -> Measured:
    """Lowers, compiles, disassembles and emulates a case."""
    code = case.lower(arch)
    text = code.rendered
    used = code.report
    loop = sass.main_loop(code.assembly, text.name)
    if bool(loop) != bool(case.reference):
        raise ValueError(f"a main loop of {text.name} was {'' if loop else 'not '}found")
    reference = reference_loop(case.reference, arch) if loop else []
    return Measured(used["registers"], used["spills"], text.shared_bytes, text.threads,
                    *counted(case.arguments, code),
                    conversions(code) if loop else None, len(loop) / sass.products(loop) if loop else None,
                    _work(loop) / _work(reference) if loop else None)


def _work(loop: list[str]) -> float:
    return len(sass.matrix_work(loop)) / sass.products(loop)


@cache
def _reference(arch: str) -> str:
    compiled = nvrtc.compile(REFERENCE.read_text(), arch)
    if spilled := [name for name, used in compiled.report.items() if used["spill_bytes"]]:
        raise ValueError(f"hand-written kernels spill: {', '.join(spilled)}")
    return sass.disassemble(compiled.cubin)


def reference_loop(kernel: str, arch: str) -> list[str]:
    """The main loop of a hand-written kernel."""
    return sass.main_loop(_reference(arch), kernel)


def counted(arguments: tuple[Any, ...], code: simt.Lowered) -> tuple[float, float, float]:
    """(sectors, wavefronts, wide) of the emulator's counters. Scalars that are not given are 0."""
    arrays = [np.float32(a) if isinstance(a, float) else a.copy() for a in arguments]
    arrays += [np.int32(0)] * (len(code.tile.params) - len(arrays))
    tensors = [isinstance(a, np.ndarray) for a in arrays]
    shapes = [a.shape if t else () for a, t in zip(arrays, tensors, strict=True)]
    strides = [tuple(s // a.itemsize for s in a.strides) if t else () for a, t in zip(arrays, tensors, strict=True)]
    assert code.suited(arrays, shapes, strides) is code
    counters = execute(code.tile, code.rendered, arrays, shapes, strides)
    requests = wide = 0
    for number, counter in counters.items():
        op = code.rendered.ops[number] if number >= 0 else None
        if op is not None and (width := _load_width(op)):
            requests += counter.requests
            wide += counter.requests * (width == 16)
    total = {f: sum(getattr(c, f) for c in counters.values())
             for f in ("sectors", "ideal_sectors", "wavefronts", "ideal_wavefronts")}
    return (total["sectors"] / total["ideal_sectors"],
            total["wavefronts"] / total["ideal_wavefronts"] if total["ideal_wavefronts"] else 1, wide / requests)


def _load_width(op: Op) -> int:
    """Bytes that a lane loads from global memory by an operation, 16 of a copy by one thread; 0 for any other."""
    if op.name == "tensor_load":
        return 16
    if op.name not in ("ld", "st_async", "dma"):
        return 0
    memory = op.operands[0 if op.name == "ld" else 2]
    return memory.dtype.storage.itemsize * (op.attrs["lanes"] or 1) if isinstance(memory.type, TensorType) else 0


def conversions(code: simt.Lowered) -> int:
    """Stores to shared memory in the innermost loops of the thread's code that multiply matrices."""
    def inside(region: Region) -> Iterator[Op]:
        for op in region.ops:
            for inner in op.regions:
                ops = list(inner.walk())
                nested = any(o.name in ("for", "while") and any(p.name in MULTIPLY for r in o.regions
                                                                for p in r.walk()) for o in ops)
                if op.name in ("for", "while") and not nested and any(o.name in MULTIPLY for o in ops):
                    yield from (o for o in ops if o.name in ("st", "stmatrix")
                                and isinstance(o.operands[0].type, BufferType))
                else:
                    yield from inside(inner)
    return sum(1 for _ in inside(code.thread.body))


@dataclass(frozen=True)
class Goal:
    """`name` is also a heading of the table."""

    name: str
    show: Callable[[Any], str]
    holds: Callable[[Any], bool] | None = None


COLUMNS = {
    "registers": Goal("registers", str),
    "spill_bytes": Goal("spilled bytes", str, lambda v: v == 0),
    "shared_bytes": Goal("shared bytes", str),
    "threads": Goal("threads", str),
    "sectors": Goal("sectors / ideal", "{:.2f}".format, lambda v: v == 1),
    "wavefronts": Goal("wavefronts / ideal", "{:.2f}".format, lambda v: v == 1),
    "wide": Goal("16-byte loads", "{:.0%}".format, lambda v: v == 1),
    "conversions": Goal("conversions", str, lambda v: v == 0),
    "per_product": Goal("instructions / MMA", "{:.2f}".format),
    "ratio": Goal("ratio", "{:.2f}".format, lambda v: v <= 1.3),
}
FRONT_END = Goal("front end", lambda v: f"{v * 1e3:.0f} ms", lambda v: v < 0.5)


def missed(row: Measured) -> list[str]:
    """The goals a row does not meet."""
    out = []
    for f in fields(row):
        goal, value = COLUMNS[f.name], getattr(row, f.name)
        if value is not None and goal.holds and not goal.holds(value):
            out.append(f"{goal.name} {goal.show(value)}")
    return out


def front_end(name: str, arch: str) -> float:
    """Seconds from the Python kernel to CUDA text: the first lowering of a new process, median of five."""
    program = f"from benchmarks import static; print(static.first_lowering({name!r}, {arch!r}))"
    return statistics.median(float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                                                  check=True).stdout) for _ in range(ROUNDS))


def first_lowering(name: str, arch: str) -> float:
    case = cases()[name]
    targets.check(f"cuda:{arch}", runs=False)
    start = time.perf_counter()
    case.lower(arch).source
    return time.perf_counter() - start


def main(pattern: str = "") -> None:
    """Prints the table, then each goal with the rows that miss it."""
    print(f"NVRTC {'.'.join(map(str, nvrtc.version()))}, nvdisasm {sass.version()}, {datetime.date.today()}\n")
    goals = [FRONT_END, *COLUMNS.values()]
    print(f"| kernel | target | {' | '.join(g.name for g in goals)} |\n|{'---|' * (len(goals) + 2)}")
    misses: dict[str, list[str]] = {g.name: [] for g in goals if g.holds}
    for name, case in cases().items():
        for arch in ARCHS:
            if pattern not in name:
                continue
            row = measure(case, arch)
            values = [front_end(name, arch), *(getattr(row, f) for f in COLUMNS)]
            shown = ["-" if v is None else g.show(v) for g, v in zip(goals, values, strict=True)]
            for goal, value, text in zip(goals, values, shown, strict=True):
                if goal.holds and value is not None and not goal.holds(value):
                    misses[goal.name].append(f"{name} on {arch} ({text})")
            print(f"| {name} | {arch} | {' | '.join(shown)} |", flush=True)
    print()
    for goal_name, rows in misses.items():
        print(f"- {goal_name}: {'missed by ' + ', '.join(rows) if rows else 'held'}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
