"""`make gpu` claims nothing on a machine without a GPU."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not gpu.missing(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    results = tmp_path / "results.md"
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", str(results)], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 1 and not results.exists()
    assert "nothing was run" in done.stderr and "try:" in done.stderr


def test_what_it_would_run_exists() -> None:
    assert all((ROOT / path).exists() for path in gpu.TESTS)
