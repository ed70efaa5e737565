"""Autotuning: how long a search takes and how good its choice is: `python -m benchmarks.tuning`."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import tilelang as tile
from benchmarks.latency import add, microseconds
from tilelang.ops.matmul import matmul_kernel
from tilelang.tuning import jobs, store
from tilelang.tuning.tuned import Tuned

N = 1024
START = """
import time, numpy as np
from benchmarks.tuning import small
import tilelang as tile
from tilelang.tuning import tuned
x = np.ones({n}, np.float32)
tile.get_num_threads()
from benchmarks.latency import add
add(x[:1], x[:1], x[:1].copy())
start = time.perf_counter()
small()(x, x, x.copy())
print(time.perf_counter() - start)
"""


def product() -> Tuned:
    """The library's matrix product with 240 configurations."""
    return tile.autotune(BM=[32, 64, 96, 128, 192, 256], BN=[32, 64, 96, 128, 256], BK=[32, 48, 64, 96, 128, 192, 256,
                                                                                       512], budget=60)(matmul_kernel)


def small() -> Tuned:
    """A kernel that is short beside its call."""
    return tile.autotune(B=[32, 64, 128])(add)


def exhaustive(tuned: Tuned, args: list[torch.Tensor]) -> tuple[dict[str, int], float]:
    """The fastest of all configurations, each timed as often as a search's last round does."""
    problem = tuned._problem(args[:2], {"c": args[2], "ACC": tile.f32})
    best: tuple[float, dict[str, int]] = (float("inf"), {})
    for config in problem.configs:
        code = jobs.Code.of(problem.trace(config), "cpu")
        best = min(best, (min(jobs.tried(code, args, 16, 3 * best[0])), config), key=lambda x: x[0])
    return best[1], best[0]


def new_process(n: int) -> float:
    """Seconds of the first call in a new process that finds a stored result."""
    program = START.replace("{n}", str(n))
    return min(float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                                    check=True).stdout) for _ in range(6))


def main() -> None:
    """Prints a table with the goals."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TILELANG_CACHE_DIR"] = f"{folder}/cache"
        os.environ["TILELANG_TUNING_FILE"] = f"{folder}/tuning.sqlite"
        a, b, c = torch.randn(N, N), torch.randn(N, N), torch.empty(N, N)
        tuned = product()
        start = time.perf_counter()
        candidates = tuned.tune(a, b, c=c, ACC=tile.f32)
        seconds = time.perf_counter() - start
        chosen = tuned.choice(a, b, c=c, ACC=tile.f32).config
        known = {s: sum(x.status == s for x in candidates) for s in {x.status for x in candidates}}
        other, _ = exhaustive(tuned, [a, b, c])
        ours, best = (matmul_kernel.bind(**k, ACC=tile.f32) for k in (chosen, other))
        ratio = tile.bench(lambda: ours(a, b, c), 200, 2000, against=lambda: best(a, b, c)).ratio
        x, y, z = (torch.randn(64) for _ in range(3))
        add_tuned = small()
        add_tuned(x, y, z)
        plain = microseconds(lambda: add(x, y, z))
        call = microseconds(lambda: add_tuned(x, y, z))
        start_ms = new_process(64) * 1e3
        assert Path(os.environ["TILELANG_TUNING_FILE"]).exists() and len(store.default().results()) == 2
    print("| what | measured | goal |\n|---|---|---|")
    print(f"| search over {len(candidates)} configurations of the f32 product {N}^3 ({known}) | {seconds:.1f} s "
          "| 60 s |")
    print(f"| speed of its choice {chosen} beside the best of all {other} | {ratio:.3f} | 0.95 |")
    print(f"| first call in a new process, from the stored result | {start_ms:.1f} ms | 30 ms |")
    print(f"| a call | {call:.2f} us (without choosing: {plain:.2f} us) | 4 us |")


if __name__ == "__main__":
    main()
