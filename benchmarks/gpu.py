"""`make gpu`: the tests and the benchmarks on this machine's GPU, in one results file.

The tests are those that call kernels without naming a target, run with TILELANG_TARGET=cuda (or hip), and those of
tests/gpu.
"""
from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import tilelang as tile
from benchmarks.latency import add, matmul, microseconds
from tilelang import ops, targets
from tilelang.errors import TileError
from tilelang.ops.softmax import softmax_kernel

TESTS = ("tests/gpu", "tests/ops", "tests/examples", "tests/test_testing.py")
KIND = targets.of_device("cuda")
"""What torch calls "cuda": the GPUs of NVIDIA or, in its builds for ROCm, of AMD."""
RESULTS = Path(__file__).parent / "gpu-results.md"


def missing() -> str:
    """Why nothing can be measured here; empty where it can."""
    try:
        x = np.zeros(64, np.float32)
        add.lower(x, x, target=targets.machine(KIND)).report  # which takes a compiler
    except TileError as error:
        return str(error)
    return "" if torch.cuda.is_available() else \
        f"torch {torch.__version__} cannot use the GPU\n  try:   a build of torch with CUDA or ROCm"


def tests() -> tuple[bool, str]:
    """Whether the tests pass, and the end of what they print."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "TILELANG_TARGET": KIND},
                          cwd=Path(__file__).parent.parent)
    return done.returncode == 0, "\n".join(done.stdout.splitlines()[-40:])


def seconds(call: Callable[[], Any], calls: int = 20) -> float:
    """One call by the device's clock: the median of 9 times `calls` in a row."""
    call()
    torch.cuda.synchronize()
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls * 1e-3)
    return statistics.median(times)


def cases() -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any], float, str]]:
    """(name, ours, torch's, work, its unit)."""
    for n in (1024, 2048, 4096):
        a, b, c = (torch.randn(n, n, device="cuda").half() for _ in range(3))
        yield (f"f16 matmul {n}^3", lambda a=a, b=b, c=c: matmul(a, b, c),  # type: ignore[misc]
               lambda a=a, b=b, c=c: torch.mm(a, b, out=c), 2 * n**3, "FLOP/s")
    x, y = (torch.randn(4096, 4096, device="cuda") for _ in range(2))
    yield "copy 4096^2 f32 (the floor)", lambda: y.copy_(x), lambda: y.copy_(x), 8 * 4096**2, "B/s"
    yield ("softmax 4096^2 f32", lambda: softmax_kernel(x, y, BM=1, BN=4096), lambda: torch.softmax(x, -1, out=y),
           8 * 4096**2, "B/s")
    for d in (64, 128):
        q, k, v = (torch.randn(4, 16, 2048, d, device="cuda").half() for _ in range(3))
        yield (f"attention S2048 D{d} f16", lambda q=q, k=k, v=v: ops.attention(q, k, v),  # type: ignore[misc]
               lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v), 4 * 4 * 16 * 2048**2 * d, "FLOP/s")


def table() -> Iterator[str]:
    """The benchmarks. A kernel that the target refuses is a row of its own."""
    a, b, c = (torch.zeros(64, device="cuda") for _ in range(3))
    yield f"Call of an empty-sized kernel: {microseconds(lambda: add(a, b, c)):.2f} us, torch.add(out=) "
    yield f"{microseconds(lambda: torch.add(a, b, out=c)):.2f} us (the host's clock, launches queueing)."
    yield "\n| case | ours | torch | ratio | rate |\n|---|---|---|---|---|"
    for name, ours, theirs, work, unit in cases():
        try:
            mine, other = seconds(ours), seconds(theirs)
        except TileError as error:
            yield f"| {name} | refused: {error.message} | | | |"
            continue
        yield (f"| {name} | {mine * 1e3:.3f} ms | {other * 1e3:.3f} ms | {other / mine:.2f} "
               f"| {work / mine:.3g} {unit} |")


def main(path: str = "") -> int:
    """Writes the results; gives the exit status."""
    if why := missing():
        print(f"make gpu: nothing was run, there is no usable GPU here: {why}", file=sys.stderr)
        return 1
    passed, output = tests()
    results = Path(path or RESULTS)
    lines = [f"# {torch.cuda.get_device_name()}\n", f"{platform.machine()}, Python {platform.python_version()}, torch "
             f"{torch.__version__}, tilelang {tile.__version__}, {datetime.date.today()}\n",
             f"## Tests: {'passed' if passed else 'FAILED'}\n", f"```\n{output}\n```\n", "## Benchmarks\n", *table()]
    results.write_text("\n".join([*lines, ""]))
    print(f"{results}: tests {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
