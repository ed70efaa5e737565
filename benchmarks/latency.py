"""Times that are not throughput: a call, a launch, a cold compile, a warm start from the disk cache."""
from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tilelang as tile
from tests.backends.simt.fake import fake_gpu, on_device
from tilelang import ops


@tile.kernel
def add(a: tile.Tensor[tile.f32, "N"], b: tile.Tensor[tile.f32, "N"], c: tile.Out[tile.f32, "N"], B: tile.Const = 64):
    n = tile.grid(tile.cdiv(a.shape[0], B))
    tile.store(c, (n * B,), tile.load(a, (n * B,), (B,)) + tile.load(b, (n * B,), (B,)))


@tile.kernel
def matmul(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f16, "M N"],
           BM: tile.Const = 128, BN: tile.Const = 128, BK: tile.Const = 32):
    """The example of the README."""
    (M, K), N = a.shape, b.shape[1]
    m, n = tile.grid(tile.cdiv(M, BM), tile.cdiv(N, BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, K, BK, stages=3):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, n * BN), (BK, BN)))
    tile.store(c, (m * BM, n * BN), acc.to(tile.f16))


def microseconds(call: Callable[[], object]) -> float:
    """One call; median of 9 times 20,000."""
    call()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(20_000):
            call()
        times.append((time.perf_counter() - start) / 20_000)
    return statistics.median(times) * 1e6


def first_call() -> float:
    """Seconds from having imported everything (pool started, LLVM loaded) to the first result of `matmul`."""
    a, b, c = (torch.randn(8, 8).half() for _ in range(3))
    tile.get_num_threads()
    add(torch.ones(1), torch.ones(1), torch.ones(1))
    start = time.perf_counter()
    matmul(a, b, c)
    return time.perf_counter() - start


def starts() -> tuple[float, float]:
    """(cold, warm) seconds of the first call in new processes: medians of 5, with an empty, then a filled cache."""
    cold, warm = [], []
    program = "from benchmarks.latency import first_call; print(first_call())"
    for _ in range(5):
        with tempfile.TemporaryDirectory() as cache:
            for out in (cold, warm):
                run = subprocess.run(
                    [sys.executable, "-c", program],
                    env={**os.environ, "TILELANG_CACHE_DIR": f"{cache}/c"},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                out.append(float(run.stdout))
    return statistics.median(cold), statistics.median(warm)


def launch() -> float:
    """Microseconds of a call with three tensors on a GPU whose driver does nothing: all that is not the driver's.

    torch exports the tensors and tvm-ffi calls native code as on a device; what differs is that the stream is no
    question to torch's CUDA half, and that the tensors are of a subclass, of which Python reads properties slower."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, \
            fake_gpu("cuda", Path(folder), patch) as gpu:
        gpu.library.fake_callback(None)
        gpu.library.fake_enter(0)  # as torch leaves it
        here = add.bind()  # knows no calls of `add`
        tensors = [on_device(torch.randn(64)) for _ in range(3)]
        here(*tensors)
        return microseconds(lambda: here(*tensors))


def main() -> None:
    """Prints a small table with the goals."""
    cold, warm = starts()
    a, b, c = (torch.randn(64) for _ in range(3))
    x, w, bias = torch.randn(4, 16), torch.randn(8, 16), torch.randn(8)
    print("| what | measured | goal |\n|---|---|---|")
    print(f"| call with three torch tensors | {microseconds(lambda: add(a, b, c)):.2f} us | 3 us |")
    print(f"| torch.empty | {microseconds(lambda: torch.empty((64,))):.2f} us | |")
    print(f"| call that allocates its output | {microseconds(lambda: add(a, b)):.2f} us | 10 us + torch.empty |")
    print(f"| call with everything by name | {microseconds(lambda: add(a=a, b=b, c=c, B=64)):.2f} us | 10 us |")
    print(f"| `ops.linear` of [4, 16] and [8, 16] | {microseconds(lambda: ops.linear(x, w, bias)):.2f} us | |")
    print(f"| call on a GPU whose driver does nothing | {launch():.2f} us | 3 us |")
    print(f"| first call of the README's matmul, empty cache | {cold * 1e3:.0f} ms | 1500 ms |")
    print(f"| the same in a new process, filled cache | {warm * 1e3:.1f} ms | 30 ms |\n")


if __name__ == "__main__":
    main()
