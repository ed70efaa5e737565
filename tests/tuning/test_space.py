"""What is tried, and in what order."""
from __future__ import annotations

import numpy as np

import tilelang as tile
from tilelang.ops.matmul import matmul_kernel
from tilelang.passes.work import work
from tilelang.tuning.space import configurations, derived, estimate


@tile.kernel
def options(x: tile.Tensor[tile.f32, "N"], B: tile.Const, FLAG: tile.Const = True, BN: tile.Const = 96,
            STAGES: tile.Const = 2, DT: tile.Const = tile.f32, SCALE: tile.Const = 2.0):
    pass


def test_choices_are_derived_from_whole_numbers() -> None:
    assert derived(options) == {"B": [16, 32, 64, 128, 256], "BN": [24, 48, 96, 192, 384], "STAGES": [1, 2, 3]}


def test_configurations_are_all_combinations_that_make_sense() -> None:
    assert configurations({"a": [1, 2], "b": [3, 4]}, lambda a, b: a + b != 5) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert configurations({"a": []}, None) == []


def test_the_model_knows_blocks_that_are_mostly_empty_or_read_too_much() -> None:
    def units(m: int, bm: int, bn: int, bk: int) -> float:
        tensors = (np.empty(shape, np.float32) for shape in ((m, 512), (512, 512), (m, 512)))
        fn = matmul_kernel.lower(*tensors, BM=bm, BN=bn, BK=bk, ACC=tile.f32).tile
        return estimate(work(fn, [(m, 512), (512, 512), (m, 512)]), "cpu")
    assert units(512, 128, 128, 64) < units(512, 16, 16, 64)  # operands are read once for every block of the result
    assert units(16, 16, 128, 64) < units(16, 256, 128, 64)
