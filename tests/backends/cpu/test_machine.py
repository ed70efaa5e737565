"""Machine code in memory."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAR_APART = """
import ctypes, mmap
import numpy as np
import tilelang as tile

@tile.kernel
def waves(x: tile.Tensor[tile.f32, 'N'], y: tile.Out[tile.f32, 'N']):
    n = tile.grid(tile.cdiv(x.shape[0], 16))
    tile.store(y, (n * 16,), tile.sin(tile.load(x, (n * 16,), (16,))))

x = np.arange(99, dtype=np.float32)
waves.lower(x).object_code
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

NO_RESERVE = 0x4000

def take(size):  # of addresses, without memory
    return libc.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE, -1, 0)

wall, holes, size = take(8 << 30), [], 1 << 24
while size >= mmap.PAGESIZE:  # Linux maps from high addresses down: fill what is free above the wall
    at = take(size)
    if at > wall:
        holes.append((at, size))
    else:
        libc.munmap(at, size)
        size //= 2
for at, size in holes[-3:]:  # there is room for a section or two above it
    libc.munmap(at, size)
np.testing.assert_allclose(waves(x), np.sin(x), rtol=1e-6, atol=1e-6)
print("linked")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="maps memory as Linux does")
def test_sections_stay_together(tmp_path: Path) -> None:
    """With 8 GB of others' memory between free pages, LLVM's other linker ended the process."""
    program = tmp_path / "program.py"
    program.write_text(FAR_APART)
    run = subprocess.run([sys.executable, str(program)], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert run.stdout == "linked\n", (run.returncode, run.stderr)
