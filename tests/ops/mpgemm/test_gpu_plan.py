"""Which kernel multiplies on a GPU, and what its model says."""
from __future__ import annotations

from dataclasses import replace

import pytest

from tilelang.errors import TargetError
from tilelang.ops.mpgemm.gpu_plan import Shape, plan
from tilelang.ops.streamk import BANDWIDTH

DECODE = Shape(1, 8192, 64, 256, 2048, 1, 128, 8, 64, 8)
"""u4 of (8192, 8192) in groups of 128 on sm_90a."""


def test_few_rows_of_a_large_matrix_take_one_kernel() -> None:
    found = plan(DECODE)
    assert found.decomposition == "dequant_gemv"
    assert found.nanoseconds < 1.2 * DECODE.deep * DECODE.high * DECODE.bytes / BANDWIDTH


def test_many_rows_take_large_blocks() -> None:
    for m in (64, 4096):
        assert plan(replace(DECODE, m=m)).decomposition == "dequant_mma"


def test_few_blocks_are_shared_by_programs() -> None:
    """And so are a few more blocks than there are processors; not a multiple of them."""
    assert plan(replace(DECODE, m=16, n=1024, high=32), "dequant_mma").programs
    assert plan(replace(DECODE, m=64, n=140 * 128, high=140 * 4), "dequant_mma").programs
    assert not plan(replace(DECODE, m=4096 // 64 * 66, n=8192), "dequant_mma").programs


def test_groups_that_warps_cannot_share_have_no_kernel_for_few_rows() -> None:
    odd = replace(DECODE, group=3)
    assert plan(odd).decomposition == "dequant_mma"
    with pytest.raises(TargetError, match="dequant_gemv"):
        plan(odd, "dequant_gemv")
    with pytest.raises(ValueError, match="dequant_mma"):
        plan(odd, "lut_act")
