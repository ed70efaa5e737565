"""The order of a grid's programs: each runs once, and those that run at once share blocks."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilelang as tile
from benchmarks.order import GRIDS, MACHINES, Machine
from tests.backends.simt.order import KINDS, Kind, order, quotient
from tilelang import errors, ops, targets
from tilelang.ir.parser import parse

EXTENT = st.integers(1, 3000)


@pytest.mark.parametrize("kind", KINDS)
def test_every_program_of_a_small_grid_runs_once(kind: Kind) -> None:
    for planes in (1, 2, 5):
        for rows in range(1, 20):
            for columns in range(1, 20):
                numbers = order(planes, rows, columns, kind)
                assert (np.sort(numbers) == np.arange(len(numbers))).all(), (planes, rows, columns)


@given(st.sampled_from(KINDS), EXTENT, EXTENT, st.integers(1, 3))
def test_every_program_of_a_grid_runs_once(kind: Kind, rows: int, columns: int, planes: int) -> None:
    numbers = order(planes, rows, columns, kind)
    assert (np.bincount(numbers, minlength=len(numbers)) == 1).all()


@pytest.mark.parametrize(("rows", "columns"), [(2**31 - 1, 1), (1, 2**31 - 1), (46340, 46340), (7, 300_000_000)])
@pytest.mark.parametrize("kind", [(8, 8, 64), (32768, 1, 1)])
def test_grids_of_nearly_32_bits_do_not_overflow(rows: int, columns: int, kind: Kind) -> None:
    """Numbers stay inside, and differ, among the first, the middle and the last programs."""
    total = rows * columns
    numbers = np.concatenate([order(1, rows, columns, kind, first, 1000)
                              for first in (0, total // 2, total - 1000)])
    assert len(np.unique(numbers)) == len(numbers) and (numbers >= 0).all() and (numbers < total).all()


def test_more_programs_than_32_bits_count_run_in_order() -> None:
    assert (order(2, 1 << 15, 1 << 15, (8, 8, 64), (1 << 31) - 5, 5) == np.arange((1 << 31) - 5, 1 << 31)).all()


@given(st.integers(0, 2**62), st.integers(1, 2**31 - 1))
def test_quotients_of_any_size(a: int, b: int) -> None:
    assert quotient(a, b) == a // b and quotient(a % 2**33, b) == a % 2**33 // b


def test_a_group_of_rows_is_walked_column_by_column() -> None:
    assert order(1, 5, 3, (2, 1, 1)).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11, 12, 13, 14]


@pytest.mark.parametrize("total", [8, 200, 256, 512, 1000, 4096])
def test_each_chip_gets_neighbours(total: int) -> None:
    """Of every 8 * 64 programs (of all, in a smaller grid) each chip has 64 in a row."""
    numbers, each = order(1, 1, total, (1, 8, 64)), min(64, total // 8)
    for start in range(0, total - total % (8 * each), 8 * each):
        turn = numbers[start:start + 8 * each].reshape(each, 8)
        assert (np.diff(turn, axis=0) == 1).all() and (turn[0] % each == start % each).all()


@pytest.mark.parametrize("machine", MACHINES)
def test_programs_that_run_at_once_share_blocks(machine: Machine) -> None:
    """Of products of many sizes, a wave of programs reads at most three quarters of the blocks that it does in
    row-major order, into the caches of chips as into one of them all; and nowhere more than half again as many as the
    fewest, which are a square's."""
    for dies in {1, machine.kind[1]}:
        plain, ordered = ([machine.read(grid, kind, dies) for grid in GRIDS] for kind in ((1, 1, 1), machine.kind))
        assert np.mean(ordered) < 0.75 * np.mean(plain)
        for (rows, columns), count in zip(GRIDS, ordered, strict=True):
            assert count <= 1.5 * 2 * min(machine.multiprocessors / dies, rows * columns / dies) ** 0.5


@tile.kernel
def place(out: tile.Out[tile.i32, "P M N"], GROUP: tile.Const = 1):
    p, m, n = tile.grid(*out.shape, group=GROUP)
    tile.store(out, (p, m, n), (p * 10000 + m * 100 + n) + tile.zeros((1, 1, 1), tile.i32))


@pytest.mark.parametrize("target", ["cpu", "reference", "emulate:cuda:sm_80", "emulate:hip:gfx90a",
                                    "emulate:hip:gfx942"])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_kernels_compute_the_same_in_any_order(target: str, group: int) -> None:
    shape = (2, 7, 11)
    with tile.target(target):
        out = place(np.empty(shape, np.int32), GROUP=group)
    p, m, n = np.indices(shape)
    np.testing.assert_array_equal(out, p * 10000 + m * 100 + n)


@pytest.mark.parametrize(("target", "group", "wanted"), [
    ("cuda:sm_80", 1, None), ("cuda:sm_80", 8, "tl::ordered<8, 1, 1>("), ("hip:gfx90a", 1, None),
    ("hip:gfx942", 1, "tl::ordered<1, 8, 38>("), ("hip:gfx950", 8, "tl::ordered<8, 8, 64>(")])
def test_the_text_asks_for_the_order(target: str, group: int, wanted: str | None) -> None:
    text = place.lower(np.empty((2, 7, 11), np.int32), GROUP=group, target=target).source
    assert ("tl::ordered" in text) == (wanted is not None) and (wanted or "") in text


def test_the_order_stands_in_the_ir() -> None:
    lowered = place.lower(np.empty((2, 7, 11), np.int32), GROUP=8)
    text = str(lowered.tile)
    assert "group=8" in text and str(parse(text)) == text and "group=8" in str(lowered.placed)


def test_grids_of_one_extent_run_in_order() -> None:
    @tile.kernel
    def one(out: tile.Out[tile.i32, "N"]):
        n = tile.grid(out.shape[0])
        tile.store(out, n, n + tile.zeros((1,), tile.i32))
    assert "ordered" not in one.lower(np.empty(5, np.int32), target="hip:gfx942").source


@pytest.mark.parametrize("group", [0, -1, 1 << 16, 2.0, True])
def test_groups_that_make_no_sense_are_refused(group: object) -> None:
    with pytest.raises(errors.VerifyError, match="in groups(.|\n)*group=8"):
        place.lower(np.empty((2, 7, 11), np.int32), GROUP=group)


@pytest.mark.parametrize("target", ["emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_the_library_asks_for_it(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, seen = np.zeros((32, 32), np.float16), []
    monkeypatch.setattr(targets, "emulate", lambda code, *rest: seen.append(code.source))
    with tile.target(target):
        ops.matmul(a, a)
        ops.linear(a, a)
    assert len(seen) == 2 and all("tl::ordered<8, " in text for text in seen)
