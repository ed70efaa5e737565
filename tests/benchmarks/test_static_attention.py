"""What the static benchmark says of attention's kernels keeps holding, as far as no compiler is needed."""
from __future__ import annotations

import pytest

from benchmarks.static_attention import KERNELS, TARGETS, Case, exchanges
from tilelang.backends.simt.shared_memory import shared_bytes


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", TARGETS)
def test_no_tile_of_a_loop_goes_through_shared_memory(name: str, d: int, target: str) -> None:
    """On gfx942 loops have as many stages as fit into 64 KiB beside the blocks that stay."""
    code = Case(name, d, target).lower()
    assert exchanges(code) == 0
    assert shared_bytes(code.thread) <= code.target.shared_bytes
