"""One kernel for each mistake; tests/lang/test_errors.py holds the full text of every report."""
# ruff: noqa: F841, B007
from __future__ import annotations

import tilelang as tile

X = tile.Tensor[tile.f32, "N"]
Y = tile.Out[tile.f32, "N"]


@tile.kernel
def syntax(x: X, y: Y):
    with x:
        pass


@tile.kernel
def shapes(x: X, y: Y):
    a = tile.load(x, (0,), (8,)) + tile.load(x, (0,), (4,))


@tile.kernel
def dtypes(x: X, y: Y):
    a = tile.load(x, (0,), (8,)) & 1


@tile.kernel
def undefined(x: X, y: Y):
    if x.shape[0] > 4:
        a = tile.load(x, (0,), (8,))
    tile.store(y, (0,), a)


@tile.kernel
def extents(x: X, y: Y):
    a = tile.zeros((x.shape[0],))


@tile.kernel
def index(x: X, y: Y):
    a = tile.load(x, (0,), (8,))[8]


@tile.kernel
def axis(x: X, y: Y):
    a = tile.load(x, (0,), (8,)).sum(axis=1)


@tile.function
def again(a):
    return again(a)


@tile.kernel
def recursion(x: X, y: Y):
    a = again(tile.load(x, (0,), (8,)))


@tile.function
def inner(a, b):
    return a + b


@tile.kernel
def chain(x: X, y: Y):
    a = inner(tile.load(x, (0,), (8,)), tile.zeros((3,)))


@tile.kernel
def carried(x: X, y: Y):
    a = tile.zeros((8,))
    for i in tile.range(0, 4):
        a = tile.zeros((4,))


@tile.kernel
def callee(x: X, y: Y):
    a = input("f")


@tile.kernel
def writes(x: X, y: Y):
    tile.store(x, (0,), tile.zeros((8,)))


@tile.kernel
def too_large(x: X, y: Y):
    tile.store(y, (0,), tile.load(x, (0,), (1 << 31,)))


@tile.kernel
def unrolled(x: X, y: Y):
    for _ in tile.static_range(10 ** 9):
        pass


@tile.kernel
def overflow(x: X, y: Y):
    tile.store(y, (0,), tile.full((8,), 1 << 40, tile.i32).to(tile.f32))


@tile.kernel
def two_grids(x: X, y: Y):
    m = tile.grid(2)
    n = tile.grid(3)


@tile.kernel
def unknown_keyword(x: X, y: Y):
    for k in tile.range(0, 8, stage=2):
        pass


@tile.kernel
def unknown_to_a_method(x: X, y: Y):
    a = tile.load(x, (0,), (8,)).sum(0, keep=True)


@tile.kernel
def too_many(x: X, y: Y):
    a = tile.exp(tile.load(x, (0,), (8,)), 2)


@tile.kernel
def slope_of_integers(x: X, y: Y):
    a = tile.arange(8)
    b = tile.derivative(a * a, a)


@tile.kernel
def not_loaded(x: X, y: Y):
    a = x * 2


@tile.kernel
def misspelt(x: X, y: Y):
    a = tile.sqroot(tile.load(x, (0,), (8,)))


@tile.kernel
def half(x: X, y: Y):
    a = tile.load(x, (0,), (16 / 2,))
