"""The way from machine code to a callable."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import numpy as np
import tilelang as tile

@tile.kernel
def double(x: tile.Tensor[tile.T, "N"], y: tile.Out[tile.T, "N"]):
    tile.store(y, 0, tile.load(x, 0, 8) * 2)

assert double(np.ones(8, np.float32)).sum() == 16
assert "torch" not in sys.modules, "tvm-ffi has imported torch, which takes a second"
import torch
assert torch.equal(double(torch.ones(8).bfloat16()), torch.full((8,), 2).bfloat16())
assert not [x for x in sys.meta_path if type(x).__module__.startswith("tilelang")]
"""


def test_calls_with_arrays_import_no_torch(tmp_path: Path) -> None:
    """And tensors are taken by the same kernels when it is imported later."""
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
