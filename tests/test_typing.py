"""A user's file passes the type checker, and the checker sees through the package to the user's mistakes."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GOOD = '''
import numpy as np

import tilelang as tile


@tile.function
def double(x: tile.f32) -> tile.f32:
    return x * 2


@tile.kernel
def matmul(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.T, "K N"], c: tile.Out[tile.f16, "M N"],
           d: tile.InOut[tile.u4, "8 16"], by: tile.f32, times: int, B: tile.Const = 128) -> None:
    """c = 2 * a @ b"""
    (M, K), N = a.shape, b.shape[1]
    m, n = tile.grid(tile.cdiv(M, B), tile.cdiv(N, B))
    acc = tile.zeros((B, B), tile.f32)
    for k in tile.range(0, K, 32, stages=3):
        acc += tile.dot(tile.load(a, (m * B, k), (B, 32)), tile.load(b, (k, n * B), (32, B)))
    tile.store(c, (m * B, n * B), double(acc).to(tile.f16))


a, packed = np.zeros((4, 4), np.float16), tile.Packed.pack(np.zeros((8, 16)), tile.u4)
with tile.target("reference"):
    result = matmul(a, a, d=packed, by=1.0, times=2)
size: int = packed.nbytes + tile.get_num_threads()
matmul.lower(a, a, d=packed, by=1.0, times=2)
'''
BAD = '''
import tilelang as tile

tile.set_num_threads("two")
name: str = tile.get_num_threads()
'''
CONFIGURATION = """
[mypy]
strict = true
follow_imports = silent
[mypy-torch.*,transformers.*,gguf.*]
follow_imports = skip
"""


def test_a_users_file_is_strictly_typed(tmp_path: Path) -> None:
    for name, text in (("good.py", GOOD), ("bad.py", BAD), ("mypy.ini", CONFIGURATION)):
        (tmp_path / name).write_text(text)
    run = subprocess.run([sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "good.py", "bad.py"],
                         cwd=tmp_path, capture_output=True, text=True,
                         env={"MYPYPATH": str(Path(__file__).parent.parent)})
    reports = [line for line in run.stdout.splitlines() if " error: " in line]
    assert [line.split(": error")[0] for line in reports] == ["bad.py:4", "bad.py:5"], run.stdout + run.stderr
