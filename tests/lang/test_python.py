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


@pytest.mark.parametrize(("kernel", "error", "message"), [
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
