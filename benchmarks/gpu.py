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
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import tilelang as tile
from benchmarks.latency import add, matmul, microseconds
from tilelang import ops, targets
from tilelang.errors import TileError
from tilelang.ops.mpgemm.gpu import Tiles, blocks, product
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


@tile.kernel
def clustered(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f16, "M N"],
              CLUSTER: tile.Const):
    """c = a @ b; programs of a cluster copy blocks for each other where the GPU can (sm_90a)."""
    m, n = tile.grid(tile.cdiv(a.shape[0], 128), tile.cdiv(b.shape[1], 256), group=8, cluster=CLUSTER)
    acc = tile.zeros((128, 256), tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=4):
        acc += tile.dot(tile.load(a, (m * 128, k), (128, 64)), tile.load(b, (k, n * 256), (64, 256)))
    tile.store(c, (m * 128, n * 256), acc.to(tile.f16))


def cases() -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any], float, str]]:
    """(name, ours, torch's, work, its unit)."""
    for n in (1024, 2048, 4096):
        a, b, c = (torch.randn(n, n, device="cuda").half() for _ in range(3))
        yield (f"f16 matmul {n}^3", lambda a=a, b=b, c=c: matmul(a, b, c),  # type: ignore[misc]
               lambda a=a, b=b, c=c: torch.mm(a, b, out=c), 2 * n**3, "FLOP/s")
    for n in (4096, 8192):
        a, b, c = (torch.randn(n, n, device="cuda").half() for _ in range(3))
        for cluster in ((1, 1), (2, 1), (1, 2)):
            yield (f"f16 matmul {n}^3, 128 x 256, clusters of {cluster[0]} x {cluster[1]}",
                   lambda a=a, b=b, c=c, cluster=cluster: clustered(a, b, c, CLUSTER=cluster),  # type: ignore[misc]
                   lambda a=a, b=b, c=c: torch.mm(a, b, out=c), 2 * n**3, "FLOP/s")  # type: ignore[misc]
    x, y = (torch.randn(4096, 4096, device="cuda") for _ in range(2))
    yield "copy 4096^2 f32 (the floor)", lambda: y.copy_(x), lambda: y.copy_(x), 8 * 4096**2, "B/s"
    yield ("softmax 4096^2 f32", lambda: softmax_kernel(x, y, BM=1, BN=4096), lambda: torch.softmax(x, -1, out=y),
           8 * 4096**2, "B/s")
    for d in (64, 128):
        q, k, v = (torch.randn(4, 16, 2048, d, device="cuda").half() for _ in range(3))
        yield (f"attention S2048 D{d} f16", lambda q=q, k=k, v=v: ops.attention(q, k, v),  # type: ignore[misc]
               lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v), 4 * 4 * 16 * 2048**2 * d, "FLOP/s")


def random_tiles(target: str, dt: tile.DType, n: int, k: int, device: str) -> Tiles:
    """Weights of an unsigned type in groups of 128, drawn as they are packed: quantising some takes minutes."""
    made = blocks(target, dt, 128)
    shape = (-(-k // made.bk), -(-n // made.codes.shape[0]), made.words.shape[1])
    words = torch.randint(-1 << 31, 1 << 31, shape, dtype=torch.int32, device=device).view(torch.uint32)
    scale = torch.rand(-(-k // 128), n, device=device)
    return Tiles(words, scale, None, dt, made, 128 // made.bk, (n, k), None, tile.f16)


def quantised() -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any], float, str]]:
    """Products with quantised weights beside those of f16; the shapes of Tilus (arXiv 2504.12984), whose speed-ups on
    an L40S, all shapes together, were 2.27 (u8), 4.09 (u4), 6.39 (u2) and 7.16 (u1) at M = 1."""
    target = targets.machine(KIND)
    for n, k in ((8192, 8192), (57344, 8192), (8192, 28672)):
        dense = torch.randn(n, k, device="cuda").half()
        for m in (1, 16, 64, 4096):
            x = torch.randn(m, k, device="cuda").half()
            y, z = (torch.empty(m, n, device="cuda", dtype=torch.float16) for _ in range(2))
            for name in ("u8", "u4", "u2", "u1"):
                w = random_tiles(target, tile.dtype(name), n, k, "cuda")
                work, unit = (w.words.nbytes, "B/s of weights") if m < 1024 else (2.0 * m * n * k, "FLOP/s")
                yield (f"{name} weights, M={m} N={n} K={k}",
                       lambda x=x, w=w, y=y: product(x, w, y),  # type: ignore[misc]
                       lambda x=x, z=z, dense=dense: torch.mm(x, dense.T, out=z), work, unit)  # type: ignore[misc]


def table() -> Iterator[str]:
    """The benchmarks. A kernel that the target refuses is a row of its own."""
    a, b, c = (torch.zeros(64, device="cuda") for _ in range(3))
    yield f"Call of an empty-sized kernel: {microseconds(lambda: add(a, b, c)):.2f} us, torch.add(out=) "
    yield f"{microseconds(lambda: torch.add(a, b, out=c)):.2f} us (the host's clock, launches queueing)."
    yield "\n| case | ours | torch | ratio | rate |\n|---|---|---|---|---|"
    for name, ours, theirs, work, unit in chain(cases(), quantised()):
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
    results.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(f"{results}: tests {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
