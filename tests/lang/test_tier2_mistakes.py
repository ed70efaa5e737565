"""What a user reads who misuses memory of the program, copies, waits and clusters."""
# ruff: noqa: F841, B007
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.lang.mistakes import X, Y
from tilelang import errors, layouts
from tilelang.jit import Kernel


def copy_to_a_tile(x: X, y: Y):
    tile.copy_async(x, tile.zeros(8), 0)


def copy_to_a_tensor(x: X, y: Y):
    tile.copy_async(x, y, 0)


def copy_from_memory(x: X, y: Y):
    s = tile.shared(8, tile.f32)
    tile.copy_async(s, s, 0)


def copy_to_a_neighbour(x: X, y: Y):
    m = tile.grid(2, cluster=(2,))
    s = tile.shared(8, tile.f32)
    tile.copy_async(x, tile.peer(s, 0), 0)


def wait_for_fewer_than_none(x: X, y: Y):
    tile.wait(-1)


def wait_for_parts(x: X, y: Y):
    tile.wait(1.5)


def wait_at_run_time(x: X, y: Y):
    tile.wait(x.shape[0])


def memory_of_a_name(x: X, y: Y):
    s = tile.shared(8, "f32")


def memory_in_registers(x: X, y: Y):
    s = tile.shared(8, tile.f32, layouts.spatial(8))


def memory_that_is_too_small(x: X, y: Y):
    s = tile.shared((4, 8), tile.f32, layouts.shared([4, 4]))


def elements_in_one_place(x: X, y: Y):
    s = tile.shared((4, 8), tile.f32, layouts.shared([4, 8], [4, 1]))


def a_barrier_of_no_cluster(x: X, y: Y):
    m = tile.grid(2)
    tile.cluster_barrier()


def a_number_in_no_cluster(x: X, y: Y):
    r = tile.cluster_rank()


def a_neighbour_in_no_cluster(x: X, y: Y):
    for m in tile.persistent(4):
        tile.peer(tile.shared(8, tile.f32), 1)


def a_slice_of_a_neighbour(x: X, y: Y):
    m = tile.grid(2, cluster=(2,))
    tile.peer(tile.shared((2, 8), tile.f32)[1], 0)


def clusters_by_a_word(x: X, y: Y):
    m = tile.grid(2, cluster="2")


def pinned_by_a_word(x: X, y: Y):
    tile.store(y, 0, tile.pin(tile.load(x, 0, 8), "mma"))


OWN = "a tensor argument, and memory made by tile.shared"
COUNT = "an int of at least 0, known when the kernel is compiled"
PLACE = "a tilelang.layouts.SharedLayout of [4, 8], each element in its own place"
MISTAKES = [
    (copy_to_a_tile, OWN, "tensor<in f32, N:1> and f32[8]"), (copy_to_a_tensor, OWN, "and tensor<out f32, N:1>"),
    (copy_from_memory, OWN, "buffer<shared f32, 8> and"), (copy_to_a_neighbour, OWN, "and buffer<cluster f32, 8>"),
    (wait_for_fewer_than_none, COUNT, "-1"), (wait_for_parts, COUNT, "1.5"), (wait_at_run_time, COUNT, "i32"),
    (memory_of_a_name, "a dtype such as tile.f16", "'f32'"), (memory_in_registers, "of [8]", "spatial(8)"),
    (memory_that_is_too_small, PLACE, "shared([4, 4], [4, 1])"),
    (elements_in_one_place, PLACE, "shared([4, 8], [4, 1])"),
    (a_barrier_of_no_cluster, "a grid with clusters before it", "a grid without"),
    (a_number_in_no_cluster, "a grid with clusters before it", "no grid"),
    (a_neighbour_in_no_cluster, "a grid with clusters before it", "a grid without"),
    (a_slice_of_a_neighbour, "memory made by tile.shared", "buffer<shared f32, 2, 8> at an index"),
    (clusters_by_a_word, "a number for each extent", "cluster='2'"),
    (pinned_by_a_word, "a tilelang.layouts.RegisterLayout", "'mma'"),
]


@pytest.mark.parametrize(("kernel", "needs", "got"), MISTAKES, ids=[m[0].__name__ for m in MISTAKES])
def test_what_was_needed_and_found_in_which_line(kernel: Any, needs: str, got: str) -> None:
    with pytest.raises(errors.TileError) as caught:
        Kernel(kernel).lower(np.zeros(8, np.float32), target="cpu")
    error = caught.value
    assert error.loc is not None and error.loc.file == __file__ and error.loc.function == kernel.__name__
    assert needs in error.needs and got in error.got and error.try_


def too_much(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    small, large = tile.shared(8, tile.f32), tile.shared(1 << 16, tile.f32)
    tile.store(small, 0, tile.load(x, 0, 8))
    tile.store(large, 0, tile.load(x, 0, 8))


def test_the_largest_buffer_is_what_does_not_fit() -> None:
    with pytest.raises(errors.TargetError, match=r"needs more shared memory(?s:.)*\^") as caught:
        _ = Kernel(too_much).lower(np.zeros(8, np.float32), target="cuda:sm_80").source
    loc = caught.value.loc
    assert loc is not None and loc.source_line()[loc.col:loc.end_col] == "tile.shared(1 << 16, tile.f32)"
