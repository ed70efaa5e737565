"""Runs every case on one and two threads and prints a Markdown table; `python -m benchmarks [name]` runs some,
`python -m benchmarks ops [name]` operators beside their floors, `python -m benchmarks rowwise [columns]` row-wise
kernels beside copies, `python -m benchmarks memory` what attention takes."""
from __future__ import annotations

import datetime
import platform
import sys

import torch

import tilelang
from benchmarks import latency, memory, ops, rows
from benchmarks.cases import cases
from benchmarks.timing import compare
from tilelang.backends.cpu.machine import host


def main(pattern: str = "") -> None:
    """Prints the table. A case whose results differ from its peer's by more than its tolerance is marked; where the
    peer is an instruction's peak there is none to compare with."""
    print(
        f"{platform.machine()} {host().cpu}, {host().vector_bytes}-byte vectors, Python {platform.python_version()}, "
        f"torch {torch.__version__}, tilelang {tilelang.__version__}, {datetime.date.today()}\n"
    )
    if not pattern:
        latency.main()
    print("| case | threads | ours | torch | ratio | goal | rate |\n|---|---|---|---|---|---|---|")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tilelang.set_num_threads(threads)
        for case in cases():
            if pattern not in case.name:
                continue
            got, want = case.ours(), case.theirs()
            want = want[0] if isinstance(want, tuple) else want
            bad = want is not None and case.tolerance < float("inf") and \
                (got.reshape(want.shape).double() - want.double()).abs().max().item() > case.tolerance
            ours, theirs = compare(case.ours, case.theirs)
            rate = f"{case.work / ours / 1e9:.1f} {'GFLOP/s' if case.kind == 'flop' else 'GB/s'}"
            mark = "WRONG" if bad else "" if theirs / ours >= case.goal else "below"
            print(f"| {case.name} | {threads} | {ours * 1e3:.2f} ms | {theirs * 1e3:.2f} ms | {theirs / ours:.2f} "
                  f"| {case.goal} {mark} | {rate} |", flush=True)


if __name__ == "__main__":
    tables = {"ops": ops.main, "memory": memory.main, "rowwise": rows.main}
    name = "".join(sys.argv[1:2])
    tables.get(name, main)(*sys.argv[2 if name in tables else 1:][:1])
