"""What attention allocates beyond its inputs and results: peak resident memory, each in a process of its own."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

HEADS, D = 8, 64


def peak(side: str, direction: str, s: int) -> float:
    """Megabytes (2**20 bytes) by which the process grows above what it holds with inputs and results, all touched.

    The kernels have run before, on a few rows, so that compiling is not counted."""
    import torch
    import torch.nn.functional as F

    from tilelang import ops

    def run(s: int) -> Callable[[], object]:
        q, k, v, do = (torch.randn(1, HEADS, s, D) for _ in range(4))
        if direction == "forward":
            if side == "ours":
                return lambda: ops.attention(q, k, v)
            return lambda: F.scaled_dot_product_attention(q, k, v)
        if side == "ours":
            o, lse = ops.attention(q, k, v, return_lse=True)
            return lambda: ops.attention_backward(do, q, k, v, o, lse)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out = F.scaled_dot_product_attention(*leaves)
        return lambda: torch.autograd.grad(out, leaves, do)
    run(128)()
    step = run(s)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # the peak begins here
    results = step()
    results = results if isinstance(results, tuple) else (results,)
    return status("VmHWM") - before - sum(x.nbytes for x in results if isinstance(x, torch.Tensor)) / 2**20


def status(name: str) -> float:
    """Megabytes from the system's record of this process."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":")) / 1024


def main(pattern: str = "") -> None:
    """Prints the table; with arguments in `pattern`, the number for one row."""
    if pattern:
        side, direction, s = pattern.split(",")
        print(peak(side, direction, int(s)))
        return
    print("| attention f32 H8 D64, 2 threads | S | inputs and results | ours | torch | the scores would be |\n"
          "|---|---|---|---|---|---|")
    for direction in "forward", "backward":
        for s in 4096, 16384:
            extra = [float(subprocess.run([sys.executable, "-m", "benchmarks", "memory", f"{side},{direction},{s}"],
                                          check=True, capture_output=True, text=True).stdout) for side in
                     ("ours", "torch")]
            each = HEADS * s * D * 4 / 2**20
            print(f"| {direction} | {s} | {each * (4 if direction == 'forward' else 8):.0f} MB | {extra[0]:.1f} MB "
                  f"| {extra[1]:.1f} MB | {HEADS * s * s * 4 / 2**20:.0f} MB |", flush=True)
