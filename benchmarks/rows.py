"""Row-wise kernels beside copies of as many bytes, all by turns: `python -m benchmarks rowwise [columns]`."""
from __future__ import annotations

import statistics
import time

import torch

import tilelang
from benchmarks.cases import rowwise
from benchmarks.timing import turns


def main(columns: str = "4096") -> None:
    """Prints the table: medians, and minima in brackets. One thread is timed by its own clock, which other work
    disturbs less."""
    print("| 4096 rows of f32 | threads | time | torch's copy / time | copy kernel / time |\n|---|---|---|---|---|")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tilelang.set_num_threads(threads)
        copy, *cases = rowwise(int(columns))
        names = ["torch's copy", "copy kernel", *(case.name for case in cases)]
        times = turns(copy.theirs, copy.ours, *(case.ours for case in cases), seconds=8.0,
                      clock=time.thread_time if threads == 1 else time.perf_counter)
        medians, least = ([pick(t) * 1e3 for t in times] for pick in (statistics.median, min))
        for name, middle, low in zip(names, medians, least, strict=True):
            shares = [f"{medians[i] / middle:.2f} ({least[i] / low:.2f})" for i in (0, 1)]
            print(f"| {name} | {threads} | {middle:.2f} ({low:.2f}) ms | {' | '.join(shares)} |", flush=True)
