"""Sorting: the elements, bits included, and positions of NumPy's stable sort, for any length, axis and target."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile
from tests.backends.cpu.native import compile_for


@tile.kernel
def both(x: tile.Tensor[tile.T, "M N"], v: tile.Out[tile.T, "M N"], i: tile.Out[tile.i32, "M N"],
         M: tile.Const, N: tile.Const, AXIS: tile.Const, DOWN: tile.Const):
    rows = tile.load(x, (0, 0), (M, N))
    tile.store(v, (0, 0), tile.sort(rows, AXIS, DOWN))
    tile.store(i, (0, 0), tile.argsort(rows, AXIS, DOWN))


@tile.kernel
def alone(x: tile.Tensor[tile.T, "M N"], v: tile.Out[tile.T, "M N"],
          M: tile.Const, N: tile.Const, AXIS: tile.Const, DOWN: tile.Const):
    tile.store(v, (0, 0), tile.sort(tile.load(x, (0, 0), (M, N)), AXIS, DOWN))


def elements(dt: str, shape: tuple[int, int]) -> np.ndarray:
    """Many are equal; of floats some are infinite, zeros of either sign or NaN of several bit patterns."""
    rng = np.random.default_rng(0)
    if dt == "bool":
        return rng.random(shape) < 0.5
    if dt.startswith("float"):
        x = rng.choice(np.array([-np.inf, -1.5, -0.0, 0.0, 2.5, np.inf, np.nan, -np.nan], dt), shape)
        bits = x.view(f"u{x.itemsize}")
        bits[np.isnan(x)] |= rng.integers(0, 4, np.isnan(x).sum()).astype(bits.dtype)
        return x
    info = np.iinfo(dt)
    return np.where(rng.random(shape) < 0.5, rng.integers(info.min, info.max, shape, dt, True),
                    rng.choice(np.array([info.min, 0, 1, info.max], dt), shape)).astype(dt)


def check(dt: str, shape: tuple[int, int], axis: int, down: bool) -> None:
    x = elements(dt, shape)
    if down:  # equal elements keep their order in either direction
        order = shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    wanted = np.take_along_axis(x, order, axis)
    values, positions = both(x, AXIS=axis, DOWN=down)
    assert np.array_equal(positions, order)
    assert values.tobytes() == wanted.tobytes()
    if dt in ("int8", "uint64"):  # sorted without their positions
        assert alone(x, AXIS=axis, DOWN=down).tobytes() == wanted.tobytes()


CASES = [("float32", (2, 1000), 1, False), ("float32", (65, 9), 0, True), ("float16", (3, 33), 1, True),
         ("float64", (1, 300), 1, False), ("int8", (2, 600), 1, True), ("uint64", (20, 17), 0, False),
         ("int64", (1, 129), 1, True), ("uint16", (3, 7), 1, False), ("bool", (5, 2), 1, False),
         ("int32", (2, 1), 1, False)]


@pytest.mark.parametrize(("dt", "shape", "axis", "down"), CASES)
def test_stable_sort(dt: str, shape: tuple[int, int], axis: int, down: bool) -> None:
    check(dt, shape, axis, down)


@pytest.mark.parametrize("processor", ["avx2", "x86-64-v4"])
@pytest.mark.parametrize(("dt", "shape", "axis", "down"), CASES[2:4])
def test_stable_sort_with_other_registers(dt: str, shape: tuple[int, int], axis: int, down: bool, processor: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for(processor, monkeypatch, both, alone)
    check(dt, shape, axis, down)


@pytest.mark.parametrize(("target", "case"), [
    ("emulate:cuda:sm_90a", ("uint16", (1, 1100), 1, False)),  # across warps
    ("emulate:hip:gfx942", ("float64", (70, 3), 0, True)),
])
def test_stable_sort_by_threads(target: str, case: tuple[str, tuple[int, int], int, bool]) -> None:
    with tile.target(target):
        check(*case)
