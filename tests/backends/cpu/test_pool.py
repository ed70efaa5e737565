"""The thread pool: any number of threads, more and fewer, gives the same."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numpy as np
import tilelang as tile

@tile.kernel
def sums(x: tile.Tensor[tile.f32, 'M N'], y: tile.Out[tile.f32, 'M'], B: tile.Const = 64):
    m = tile.grid(x.shape[0])
    v = tile.load(x, (m, 0), (B,))
    tile.store(y, (m,), tile.sort(v).sum() if B < 100 else tile.cumsum(v, 0).sum())

x = np.ones((999, 4096), np.float32)
for threads in (2, 4, 3, 8, 1, 2):
    tile.set_num_threads(threads + 4)  # these have seen no job when there are fewer again
    tile.set_num_threads(threads)
    for width in (16, 4096) * 5:  # more scratch memory, then a job that needs less
        got = sums(x[:, :width], B=width)
        assert (got == (width if width < 100 else width * (width + 1) // 2)).all(), (threads, width)
print("same")
"""


def test_fewer_threads_after_more(tmp_path: Path) -> None:
    """In a process of its own, which memory that belongs to nobody would end."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = subprocess.run([sys.executable, str(program)], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert run.stdout == "same\n", (run.returncode, run.stderr)
