"""What of Python means the same in a kernel."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang import errors

X = tile.Tensor[tile.f32, "M N"]
Y = tile.Out[tile.f32, "N"]


@tile.kernel
def limits(x: X, y: Y):
    """The second argument of `max` was taken for an axis."""
    row, n = tile.load(x, (0, 0), (4,)), tile.grid(1)
    tile.store(y, max(n - 1, 0), max(row, 1) + min(3, row, 2) + max(row))


@tile.kernel
def of_lists(x: X, y: Y):
    first, second = tile.load(x, (0, 0), (2, 4))
    tile.store(y, 0, max([first, -1]) + 10 * min((first, second - 5)) + max(*[first]))


@tile.kernel
def unpacked(x: X, y: Y):
    first, second = tile.load(x, (0, 0), (2, 4))
    tile.store(y, 0, first * sum([part for part in second]))


@tile.kernel
def lists(x: X, y: Y):
    sums = [tile.zeros(4), tile.zeros(4)]
    for m in tile.range(x.shape[0]):
        row = tile.load(x, (m, 0), (4,))
        if m > 0:
            sums = [*sums[:1], sums[1] + row]
        sums = [sums[0] + 2 * row, sums[1]]
    tile.store(y, 0, sums[0] + 100 * sums[1])


@tile.kernel
def lambdas(x: X, y: Y):
    row, c = tile.load(x, (0, 0), (4,)), 1
    times = [lambda v, c=c, d=0: v * c + d for c in (2, 3)]
    times.append(lambda v: v + c)
    c = 5
    tile.store(y, 0, times[2](times[0](row) + times[1](row, d=10)))


@tile.kernel
def written_until(n: tile.i32, y: Y):
    """What follows a `return` under a run-time condition in an unrolled loop, or under a constant one, was lost."""
    tile.store(y, 0, tile.zeros(4))
    for i in tile.static_range(2):
        if i >= 0:
            for j in (0, 1):
                if n == i * 2 + j:
                    if j == 1:
                        tile.store(y, i * 2 + j, 9.0)
                        return
                elif n > 4:
                    return
                tile.store(y, i * 2 + j, 1.0)
        tile.store(y, i * 2, 2.0)
    tile.store(y, 3, 5.0)


@tile.function
def place(n, values):
    for i, value in enumerate(values):
        if n == value:
            return i
    return -1


@tile.kernel
def found(n: tile.i32, y: Y):
    tile.store(y, 0, tile.zeros(4) + place(n, (0, 2, 3)))


@tile.kernel
def operands(n: tile.i32, y: Y):
    """`and` and `or` gave whether, where Python gives one of the operands."""
    some = tile.arange(4) - n
    chosen = (n or 7) + ((n and 5 and n + 2) or -1) * 10 + (5 and n) * 100 + ((n > 1) and 4) * 1000
    chosen += (some or 9) * 10000 + (3 if n else 5) + (n > 1 or n > 3) * 100000
    tile.store(y, 0, chosen.to(tile.f32))


TABLE, HALVES = np.array([1, 2, 5]), np.array([0.5, 1.5], np.float32)


@tile.kernel
def elements(n: tile.i32, y: Y):
    a, b = HALVES
    first, *_ = [v for v in TABLE]
    tile.store(y, 0, TABLE[2] * tile.full((4,), n, tile.f32) + HALVES[0] * n + (TABLE[1] - n) * first + a * n + b)


@tile.kernel
def bound_around(n: tile.i32, y: Y):
    """`:=` in a comprehension binds the name around it."""
    last, v = 0, 50
    total = sum([(last := v) + n for v in (1, 2, 3)])
    tile.store(y, 0, tile.zeros(4) + total + 100 * last + v)


@tile.kernel
def backwards(n: tile.i32, y: Y):
    total = 0
    for i in reversed(range(1, 4)):
        total = total * 10 + i * n
    tile.store(y, 0, tile.zeros(4) + total)


@tile.kernel
def formatted(n: tile.i32, y: Y):
    assert f"{3.14159:.2f} {'a'!r} {5:>{1 + 2}}" == "3.14 'a'   5"
    tile.store(y, 0, tile.zeros(4))


def _until(n: int) -> list[int]:
    y = [0] * 4
    for i in range(2):
        for j in (0, 1):
            if n == i * 2 + j:
                if j == 1:
                    y[i * 2 + j] = 9
                    return y
            elif n > 4:
                return y
            y[i * 2 + j] = 1
        y[i * 2] = 2
    return [*y[:3], 5]


@pytest.mark.parametrize(("kernel", "means"), [
    (written_until, _until), (found, lambda n: {0: 0, 2: 1, 3: 2}.get(n, -1)),
    (operands, lambda n: (n or 7) + ((n and 5 and n + 2) or -1) * 10 + n * 100 + ((n > 1) and 4) * 1000 + np.array(
        [i - n or 9 for i in range(4)]) * 10000 + (3 if n else 5) + (n > 1 or n > 3) * 100000),
    (elements, lambda n: 5 * n + 0.5 * n + 2 - n + 0.5 * n + 1.5),
    (bound_around, lambda n: 6 + 3 * n + 300 + 50), (backwards, lambda n: 321 * n), (formatted, lambda n: 0),
])
def test_numbers_as_in_python(kernel: Any, means: Callable[[int], Any]) -> None:
    for n in (0, 1, 2, 3, 4, 5):
        for run in (kernel, kernel.reference):
            np.testing.assert_array_equal(run(n, np.empty(4, np.float32)), np.zeros(4) + means(n))


@pytest.mark.parametrize(("kernel", "means"), [
    (limits, lambda x: np.maximum(x[0], 1) + np.minimum(x[0], 2) + x[0].max()),
    (unpacked, lambda x: x[0] * x[1].sum()), (lists, lambda x: 2 * x.sum(0) + 100 * x[1:].sum(0)),
    (of_lists, lambda x: np.maximum(x[0], -1) + 10 * np.minimum(x[0], x[1] - 5) + x[0].max()),
    (lambdas, lambda x: 5 * x[0] + 10 + 5),
])
def test_as_in_python(kernel: Any, means: Callable[[Any], Any]) -> None:
    x = np.arange(-3, 9, dtype=np.float32).reshape(3, 4)
    for run in (kernel, kernel.reference):
        np.testing.assert_array_equal(run(x), means(x))


def test_values_are_printed_where_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    @tile.kernel
    def show(x: X, i: tile.i32):
        tile.print("{} of", i, "is", tile.load(x, (0, 0), (2,)), x.shape, [i], None)

    x = np.array([[1, 2]], np.float32)
    for run in (show, show.reference):
        run(x, 7)
        assert capsys.readouterr().out == "{} of 7 is [1. 2.] (1, 2) [7] None\n"


@tile.kernel
def element(x: X, y: Y):
    row = tile.load(x, (0, 0), (4,))
    row[0] = 1


@tile.kernel
def tensor(x: X, y: Y):
    y[0] = 1


@tile.function
def half(n, x):
    if n == 0:
        return x


@tile.kernel
def sometimes(x: X, y: Y):
    tile.store(y, 0, half(tile.grid(2), tile.load(x, (0, 0), (4,))))


@tile.kernel
def scalar_parts(x: X, y: Y):
    a, = tile.grid(1)


@tile.kernel
def both_meanings(x: X, y: Y):
    row = tile.load(x, (0, 0), (4,))
    tile.store(y, 0, max(row, 1, axis=0))


@tile.kernel
def named_in_while(x: X, y: Y):
    n = tile.grid(3)
    while (n := n + 1) < 5:
        tile.print(n)


@tile.kernel
def named_perhaps(x: X, y: Y):
    n = tile.grid(3)
    m = n > 1 and (k := n) > 2
    tile.print(m, k)


@tile.kernel
def late(x: X, y: Y):
    tile.store(y, 0, [lambda v: v * c for c in (2, 3)][0](tile.load(x, (0, 0), (4,))))  # noqa: B023


@pytest.mark.parametrize(("kernel", "error", "message"), [
    (late, errors.UnsupportedSyntax, r"a lambda that reads `c` of a comprehension(.|\n)*lambda \.\.\., c=c"),
    (named_in_while, errors.UnsupportedSyntax, "`:= in the condition of a loop` is not supported(.|\n)*n := n"),
    (named_perhaps, errors.UnsupportedSyntax, "`:= in what a run-time condition decides about` is not supported"),
    (both_meanings, errors.UnsupportedSyntax, "unexpected keyword argument 'axis'"),
    (element, errors.UnsupportedSyntax, r"row\[0\]\n.*\n  try:   tile.where"),
    (tensor, errors.UnsupportedSyntax, r"y\[0\]\n.*\n  try:   tile.store"),
    (sometimes, errors.UnsupportedSyntax, "a value is returned on one path only"),
    (scalar_parts, errors.MissingAxis, "a scalar has no parts"),
])
def test_what_is_not_as_in_python_is_refused(kernel: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kernel(np.zeros((1, 4), np.float32))


def test_annotations_of_tensors() -> None:
    with pytest.raises(errors.UnsupportedSyntax, match=r"`M,` is no dimension(.|\n)*try:   'M  N'"):
        tile.Tensor[tile.f32, "M, N"]
    with pytest.raises(errors.UnsupportedSyntax, match="a constant `NAME: tile.Const`"):
        tile.Out[tile.f32, "N+1"]
    with pytest.raises(errors.UnsupportedSyntax, match="not the annotation of a tensor"):
        tile.Tensor[np.float32, "M"]


def test_scalars_out_of_range_say_the_range() -> None:
    @tile.kernel
    def small(x: X, n: tile.i8):
        tile.print(n)

    with pytest.raises(errors.ArgumentDType, match=r"needs: i8, -128 to 127\n  got:   int 300\n  try:   annotate it"):
        small(np.zeros((1, 1), np.float32), 300)
    with pytest.raises(errors.ArgumentDType, match=r"got:   float 1.5\n  try:   a parameter of a float type"):
        small(np.zeros((1, 1), np.float32), 1.5)
