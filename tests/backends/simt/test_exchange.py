"""Conversions of layout by shuffles, emulated."""
from __future__ import annotations

import numpy as np

from tilelang import targets
from tilelang.backends.emulator.execute import execute
from tilelang.ir.parser import parse

TEXT = """\
func @turn(%x: tensor<in f32, 4, 8:1>, %y: tensor<out f32, 4, 8:1>) placed {{
  %0 = const {{value=0, dtype=i32}} : i32
  %1 = load %x, %0, %0 {{shape=(4, 8), axes=(0, 1), fill=0}} : f32[4, 8]@<{src}>
  %2 = convert_layout %1 {{layout=<{dst}>}} : f32[4, 8]@<{dst}>
  store %y, %0, %0, %2 {{axes=(0, 1)}}
}}
"""


def test_a_conversion_within_warps_shuffles() -> None:
    for src, dst, name in (("spatial(4, 8)", "column_spatial(4, 8)", "shfl("),
                           ("spatial(4, 8)", "column_spatial(2, 1).spatial(2, 8)", None)):
        fn = parse(TEXT.format(src=src, dst=dst))
        code = targets.lowered(fn, "cuda:sm_80")
        code.placed = fn
        assert name is None or name in code.source
        assert "TL_SHARED" not in code.source
        x = np.arange(32, dtype=np.float32).reshape(4, 8)
        y = np.zeros_like(x)
        execute(fn, code.rendered, [x, y], [x.shape] * 2, [(8, 1)] * 2)
        assert np.array_equal(x, y)
