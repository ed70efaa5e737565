"""Functions that touch memory, and control flow, against NumPy: interpreted and compiled."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang import errors


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def target(request: pytest.FixtureRequest) -> Iterator[None]:
    with tile.target(request.param):
        yield


X = tile.Tensor[tile.i32, "N"]
AT = np.array([5, 0, -1, 3, 9, 3, 0, 8], np.int32)  # some twice, some outside of nine elements
VALUES = np.array([4, -2, 7, 1, 5, 9, 3, -8], np.int32)
INSIDE = (AT >= 0) & (AT < 9)


@tile.kernel
def moves(at: X, values: X, table: tile.Tensor[tile.i32, "T"], got: tile.Out[tile.i32, "N"],
          masked: tile.Out[tile.i32, "N"], put: tile.InOut[tile.i32, "T"]):
    i, v = tile.load(at, (0,), (8,)), tile.load(values, (0,), (8,))
    tile.store(got, (0,), tile.gather(table, i, fill=-7))
    tile.store(masked, (0,), tile.gather(table, i, mask=v > 0))
    tile.scatter(put, i, i + 1, mask=v > 0)


@pytest.mark.parametrize(("bits", "error"), [("f32", errors.DTypeMismatch), ("u8", errors.DTypeMismatch),
                                             ("rank", errors.ShapeMismatch)])
def test_expand_load_says_what_it_needs(bits: str, error: type[Exception]) -> None:
    @tile.kernel
    def expanding(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], B: tile.Const, S: tile.Const):
        tile.store(y, 0, tile.expand_load(x, 0, tile.zeros(S, B)))
    with pytest.raises(error, match="32 bits|more dimensions"):
        expanding(np.zeros(64, np.float32), B=tile.dtype("u32" if bits == "rank" else bits),
                  S=(2, 1) if bits == "rank" else (1,))


def test_gather_and_scatter() -> None:
    table, put = np.arange(9, dtype=np.int32) * 10, np.zeros(9, np.int32)
    got, masked = moves(AT, VALUES, table, put=put)
    np.testing.assert_array_equal(got, np.where(INSIDE, AT * 10, -7))
    np.testing.assert_array_equal(masked, np.where(INSIDE & (VALUES > 0), AT * 10, 0))
    want = np.zeros(9, np.int32)
    keep = INSIDE & (VALUES > 0)
    want[AT[keep]] = AT[keep] + 1
    np.testing.assert_array_equal(put, want)


@tile.kernel
def atomics(at: X, values: X, add: tile.InOut[tile.i32, "T"], low: tile.InOut[tile.i32, "T"],
            high: tile.InOut[tile.i32, "T"], swap: tile.InOut[tile.i32, "T"], old: tile.Out[tile.i32, "N"]):
    i, v = tile.load(at, (0,), (8,)), tile.load(values, (0,), (8,))
    tile.atomic_add(add, i, v)
    tile.atomic_min(low, i, v)
    tile.atomic_max(high, i, v, mask=v != 9)
    tile.store(old, (0,), tile.atomic_cas(swap, tile.arange(8), i, v))


def test_atomics() -> None:
    add, low, high, swap = (np.arange(9, dtype=np.int32) for _ in range(4))
    old = atomics(AT, VALUES, add, low, high, swap)
    want = [np.arange(9, dtype=np.int32) for _ in range(3)]
    for operation, out, keep in zip((np.add, np.minimum, np.maximum), want, (INSIDE, INSIDE, INSIDE & (VALUES != 9)),
                                    strict=True):
        operation.at(out, AT[keep], VALUES[keep])  # type: ignore[attr-defined]
    for got, expected in zip((add, low, high), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(old, np.arange(8))
    np.testing.assert_array_equal(swap, np.append(np.where(AT == np.arange(8), VALUES, np.arange(8)), 8))


@tile.kernel
def through_shared(x: X, y: tile.Out[tile.i32, "N"]):
    s = tile.shared((8,), tile.i32)
    n = tile.grid(tile.cdiv(x.shape[0], 8))
    tile.copy(x, s, (n * 8,))
    tile.copy(s, y, (n * 8,))


def test_copies_of_blocks() -> None:
    x = np.arange(19, dtype=np.int32)
    np.testing.assert_array_equal(through_shared(x), x)


@tile.function
def halvings(n):
    """Even steps to an odd number; none for n < 1."""
    if n < 1:
        return 0
    count = 0
    while n % 2 == 0:
        n = n // 2
        count += 1
    return count


@tile.kernel
def control(x: X, y: tile.Out[tile.i32, "N"], z: tile.InOut[tile.i32, "1"], upto: tile.i32):
    n = tile.grid(x.shape[0])
    if n >= upto:
        return
    value = tile.load(x, (n,), ())
    total = halvings(value)
    for i in tile.range(0, value, 3):
        if i % 2 == 0:
            total += i
        else:
            total -= 1
    for i in tile.static_range(3):
        total += i * 100
    assert total != 12345, "never"
    tile.store(y, (n,), total)
    tile.atomic_max(z, (0,), tile.num_workers())


def test_control_flow() -> None:
    x = np.array([0, 1, 8, 12, 7, 96, 5, 4], np.int32)
    y, z = np.full(8, -1, np.int32), np.zeros(1, np.int32)
    control(x, y, z, 6)

    def value(n: int) -> int:
        twos = (n & -n).bit_length() - 1 if n > 0 else 0
        return 300 + twos + sum(i if i % 2 == 0 else -1 for i in range(0, n, 3))
    assert y.tolist() == [*(value(int(n)) for n in x[:6]), -1, -1] and z[0] >= 1


@tile.kernel
def walked(counts: tile.InOut[tile.i32, "M N"], m: tile.i32, n: tile.i32):
    for i, j in tile.persistent(m, n):
        tile.atomic_add(counts, (i, j), 1)


def test_a_persistent_grid_visits_each_block_once() -> None:
    counts = np.zeros((5, 7), np.int32)
    walked(counts, 5, 7)
    walked(counts, 0, 7)
    assert (counts == 1).all()


def test_a_persistent_grid_that_wraps_is_refused() -> None:
    """65536 x 65536 blocks once were none."""
    counts = np.zeros((5, 7), np.int32)
    with pytest.raises(errors.TargetError, match="an extent of the grid of `walked` does not fit i32"):
        walked(counts, 1 << 16, 1 << 16)


@tile.kernel
def flattened(x: tile.Tensor[tile.u8, "M"], z: tile.Tensor[tile.u8, "N"], y: tile.InOut[tile.i32, "1"], n: tile.i64):
    tile.grid(x.shape[0] * z.shape[0], 1 - (n * 3).to(tile.i32))
    tile.atomic_add(y, (0,), 1)


@pytest.mark.parametrize("target", ["cpu", "reference", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_extents_of_a_grid_that_wrap_are_refused(target: str) -> None:
    """65536 * 65537 is 65536 in 32 bits: most blocks would be left out silently."""
    y = np.zeros(1, np.int32)
    x, z = (np.zeros(n, np.uint8) for n in (1 << 16, (1 << 16) + 1))
    with tile.target(target):
        flattened(x[:3], z[:2], y, -1)
        assert y[0] == 24
        for args, got in (((x, z, y, 0), "mul of 65536 and 65537: 4295032832"),
                          ((x[:3], z[:2], y, 1 << 32), "cast of 12884901888: 12884901888"),
                          ((x[:3], z[:2], y, -(1 << 62)), "mul of -4611686018427387904 and 3: -13835058055282163712")):
            for _ in range(2):  # the second call goes the short way
                with pytest.raises(errors.TargetError, match="an extent of the grid of `flattened`") as caught:
                    flattened(*args)
                assert caught.value.got == got
        assert y[0] == 24


@tile.kernel
def blocks(y: tile.InOut[tile.i32, "N"], m: tile.i32, n: tile.i32, k: tile.i32):
    i, j, _ = tile.grid(m, n, k)
    tile.atomic_add(y, (i + j,), 1)


def test_a_grid_of_too_many_programs_is_refused() -> None:
    y: Any = np.zeros(1, np.int32)
    blocks(y, 1, 1, 1)
    for extents in ((1 << 30, 1 << 30, 1 << 4), (1 << 30, 1 << 30, 1)):
        with pytest.raises(errors.TargetError) as caught:
            blocks(y, *extents)
        assert "`blocks` has too many programs" in str(caught.value)
        assert f"{' x '.join(map(str, extents))} = {extents[0] * extents[1] * extents[2]}" in caught.value.got
    for extents in ((1 << 30, 1 << 30, 0), (-1, -1, 1), (1, 0, 1)):
        blocks(y, *extents)
    assert y[0] == 1


@pytest.mark.parametrize("move", ["load", "gather"])
def test_what_lies_outside_is_a_constant(move: str) -> None:
    """A number of the call was taken, and failed behind the front end without a line."""
    @tile.kernel
    def filling(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], f: tile.f32, MOVE: tile.Const):
        if MOVE == "load":
            a = tile.load(x, 0, 8, fill=f)
        else:
            a = tile.gather(x, tile.arange(8), fill=f)
        tile.store(y, 0, a)
    with pytest.raises(errors.DTypeMismatch, match="`fill` must be a constant number"):
        filling(np.zeros(4, np.float32), f=0.5, MOVE=move)
