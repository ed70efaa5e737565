"""What newcomers write: names of Triton, torch and NumPy are answered by ours, Python on constants is Python."""
from __future__ import annotations

import inspect
import math
import re
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang import errors
from tilelang.lang.builtins import METHODS, PUBLIC
from tilelang.lang.elsewhere import HINTS

X, Y, WHOLE = tile.Tensor[tile.f32, "N"], tile.Out[tile.f32, "N"], tile.Out[tile.i32, "N"]
NUMBERS = np.arange(1, 9, dtype=np.float32)


def half_of(n: int) -> int:
    return n // 2


@tile.function
def block(x: Any, i: Any) -> Any:
    return tile.load(x, i, 8)


@tile.kernel
def python(x: X, y: Y):
    blocks = [block(x, 0), *[block(x, i) * j for i in range(2) for j in (1.0, float(np.sqrt(4.0))) if j > 1 or i]]
    first, *others = blocks
    for i, t in enumerate(others):
        first += t * i
    tile.store(y, 0, first + half_of(5) + np.exp2(3) + np.float32(1))


@tile.kernel
def powers(x: X, y: Y):
    t = tile.load(x, 0, 8)
    tile.store(y, 0, t ** 0.5 + t ** -0.5 + t ** -2 + 2 ** t)


def test_python_on_constants() -> None:
    ahead = np.append(NUMBERS[1:], 0)
    np.testing.assert_array_equal(python.reference(NUMBERS), NUMBERS + ahead + 2 * 2 * ahead + 2 + 8 + 1)


def test_powers() -> None:
    x = NUMBERS.astype(np.float64)
    # each of the four is rounded at most three times, and then so are the sums, of positive numbers
    exact = x ** 0.5 + x ** -0.5 + x ** -2.0 + 2 ** x
    np.testing.assert_allclose(powers.reference(NUMBERS), exact, rtol=6 * 2.0 ** -24)


@tile.kernel
def named(x: X, y: Y):
    tile.store(y, 0, tile.zeros(8) + N)


@tile.kernel
def axis(x: X, y: Y):
    tile.store(y, 0, tile.load(x, 0, 8).sum(dim=0))


@tile.kernel
def masked(x: X, y: Y):
    tile.store(y, 0, tile.load(x, 0, 8, mask=tile.arange(8) < 3))


@tile.kernel
def position(x: X, y: Y):
    tile.store(y, tile.program_id(0), 1.0)


@tile.kernel
def converted(x: X, y: Y):
    tile.store(y, 0, tile.load(x, 0, 8).astype(tile.f32))


@tile.kernel
def number(x: X, y: Y):
    tile.store(y, 0, tile.zeros(8) + int(x.shape[0]))


@tile.kernel
def element(x: X, y: Y):
    tile.store(y, 0, x[0])


@tile.kernel
def shapeless(x: X, y: Y):
    tile.store(y, 0, tile.load(x, 0))


@tile.kernel
def appended(x: X, y: Y):
    tiles = [tile.load(x, 0, 8)]
    tiles.append(tiles[0] * 2)


@tile.kernel
def gathered(x: X, y: Y):
    tile.store(y, 0, tile.gather(tile.load(x, 0, 8), tile.arange(8)))


@tile.kernel
def captured(x: X, y: Y):
    tile.store(y, 0, tile.load(NUMBERS, 0, 8))


@tile.kernel
def called(x: X, y: Y):
    powers(x, y)


@tile.kernel
def nested(x: X, y: Y):
    def f(a: Any) -> Any:
        return a
    tile.store(y, 0, f(1.0))


@tile.kernel
def huge(x: X, y: Y):
    tile.store(y, 0, tile.load(x, 0, 8) + 10 ** 400)


@tile.kernel
def fraction(x: X, y: WHOLE):
    tile.store(y, 0, 1.5)


@tile.kernel
def nothing(x: X, y: WHOLE):
    tile.store(y, 0, tile.full(8, math.nan, tile.i32))


@tile.kernel
def base(x: X, y: Y):
    tile.store(y, 0, 3 ** tile.load(x, 0, 8))


@tile.kernel
def vectors(x: X, y: Y):
    tile.store(y, 0, tile.load(x, 0, 8) @ tile.load(x, 0, 8))


@pytest.mark.parametrize(("kernel", "error", "text"), [
    (named, errors.UndefinedTile, "try:   x.shape[0], or a parameter `N: tile.Const`"),
    (shapeless, errors.ArgumentCount, "try:   the extents, such as (BM, BN); () is one number"),
    (appended, errors.UnsupportedSyntax, "try:   a new list: items = [*items, x]"),
    (axis, errors.ArgumentCount, "got:   dim=0\n  try:   axis="),
    (masked, errors.ArgumentCount, "try:   leave it out at edges"),
    (position, errors.UnsupportedSyntax, "try:   m, n = tile.grid(count, count)"),
    (converted, errors.UnsupportedSyntax, "try:   x.to(dtype)"),
    (number, errors.UnsupportedSyntax, "try:   x.to(tile.i32)"),
    (element, errors.UnsupportedSyntax, "got:   tensor<in f32, N:1>\n  try:   tile.load(tensor, offsets, shape)"),
    (gathered, errors.UnsupportedSyntax, "got:   f32[8]\n  try:   a tile is in registers: tile.lookup"),
    (captured, errors.UnsupportedSyntax, "got:   ndarray\n  try:   make it a parameter of the kernel"),
    (called, errors.UnsupportedSyntax, "try:   move what both do into a @tile.function"),
    (nested, errors.UnsupportedSyntax, "`def` is not supported in a kernel"),
    (huge, errors.DTypeMismatch, "an int of 1329 bits does not fit f32"),
    (fraction, errors.DTypeMismatch, "needs: a whole number from -2147483648 to 2147483647\n  got:   1.5"),
    (nothing, errors.DTypeMismatch, "the number nan does not fit i32"),
    (base, errors.UnsupportedSyntax, "needs: 2 ** x"),
    (vectors, errors.ShapeMismatch, "got:   [8] and [8]\n  try:   (a * b).sum(-1)")])
def test_mistakes_are_answered(kernel: tile.Kernel, error: type[errors.TileError], text: str) -> None:
    with pytest.raises(error) as caught:
        kernel.reference(NUMBERS)
    assert text in str(caught.value) and "^" in str(caught.value)


def test_hints_name_what_there_is() -> None:
    """And are needed: no function has the name that is explained."""
    assert not HINTS.keys() & PUBLIC.keys()
    for text in HINTS.values():
        for name in re.findall(r"tile\.(\w+)", text):
            assert hasattr(tile, name), text
        for name in re.findall(r"\bx\.(\w+)\(", text):
            assert name in METHODS or name in ("to", "reshape", "permute"), text
        for name in re.findall(r"^(\w+)=$", text):
            assert any(name in inspect.signature(fn).parameters for fn in PUBLIC.values()), text
