"""The full text of what a user reads for each mistake."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.lang import mistakes
from tilelang import errors

REPORTS = {
    "syntax": (errors.UnsupportedSyntax, """\
`with` is not supported in a kernel
  --> FILE:13 in syntax
  13 | with x:
     | ^^^^^^^
  needs: assignments, for, while, if, return, assert and calls
  got:   with x:
  try:   call the functions directly"""),
    "shapes": (errors.ShapeMismatch, """\
tiles whose shapes do not broadcast
  --> FILE:19 in shapes
  19 | a = tile.load(x, (0,), (8,)) + tile.load(x, (0,), (4,))
     |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: extents that are equal or 1, aligned at the last dimension
  got:   [8] and [4]
  try:   insert an axis with x[:, None], or check the block sizes"""),
    "dtypes": (errors.DTypeMismatch, """\
`and` is not defined on f32
  --> FILE:24 in dtypes
  24 | a = tile.load(x, (0,), (8,)) & 1
     |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: an integer or i1
  got:   f32
  try:   cast first, for example x.to(tile.i32)"""),
    "undefined": (errors.UndefinedTile, """\
`a` may have no value here
  --> FILE:31 in undefined
  31 | tile.store(y, (0,), a)
     |                     ^
  needs: a value on every path
  got:   a value in only one branch of the `if` in line 29
  try:   assign `a` on every path"""),
    "extents": (errors.NonConstantExtent, """\
a tile extent must be known when the kernel is compiled
  --> FILE:36 in extents
  36 | a = tile.zeros((x.shape[0],))
     |     ^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: a Python int or a tile.Const parameter
  got:   a run-time i32
  try:   use a constant block size with tile.cdiv for the grid, or make it a tile.Const; tile.static_range unrolls \
loops in which it changes"""),
    "index": (errors.IndexOutOfRange, """\
a constant index outside the tile
  --> FILE:41 in index
  41 | a = tile.load(x, (0,), (8,))[8]
     |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: -8 to 7
  got:   8
  try:   the tile's shape is [8]"""),
    "axis": (errors.MissingAxis, """\
axis 1 of a tile of rank 1
  --> FILE:46 in axis
  46 | a = tile.load(x, (0,), (8,)).sum(axis=1)
     |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: an axis from -1 to 0
  got:   1
  try:   the tile's shape is [8]"""),
    "recursion": (errors.RecursionRefused, """\
`again` calls itself
  --> FILE:51 in again
  51 | return again(a)
     |        ^^^^^^^^
  called from
  --> FILE:56 in recursion
  56 | a = again(tile.load(x, (0,), (8,)))
     |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: tile functions without recursion
  got:   again -> again
  why:   tile functions are inlined where they are called
  try:   write a loop"""),
    "chain": (errors.ShapeMismatch, """\
tiles whose shapes do not broadcast
  --> FILE:61 in inner
  61 | return a + b
     |        ^^^^^
  called from
  --> FILE:66 in chain
  66 | a = inner(tile.load(x, (0,), (8,)), tile.zeros((3,)))
     |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: extents that are equal or 1, aligned at the last dimension
  got:   [8] and [3]
  try:   insert an axis with x[:, None], or check the block sizes"""),
    "carried": (errors.ShapeMismatch, """\
`a` changes its type
  --> FILE:72 in carried
  72 | for i in tile.range(0, 4):
     | ^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: f32[8]
  got:   f32[4]
  why:   a variable keeps its shape and dtype on every path and in every iteration of a loop
  try:   start it as that type, or cast: a.to(...)"""),
    "callee": (errors.UnsupportedSyntax, """\
`input` cannot be called in a kernel
  --> FILE:78 in callee
  78 | a = input("f")
     |     ^^^^^^^^^^
  needs: functions of tile.*, functions marked @tile.function, or Python functions of constants
  got:   builtins.input
  try:   mark it @tile.function if it works on tiles"""),
    "writes": (errors.DTypeMismatch, """\
`store` writes an input tensor
  --> FILE:83 in writes
  83 | tile.store(x, (0,), tile.zeros((8,)))
     | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: tile.Out or tile.InOut
  got:   tile.Tensor
  try:   annotate the parameter as tile.Out[...] or tile.InOut[...]"""),
    "too_large": (errors.NonConstantExtent, """\
a tile with too many elements
  --> FILE:88 in too_large
  88 | tile.store(y, (0,), tile.load(x, (0,), (1 << 31,)))
     |                     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: fewer than 2**31 elements
  got:   [2147483648]
  try:   smaller blocks, and more programs in tile.grid"""),
    "unrolled": (errors.UnsupportedSyntax, """\
too many iterations to unroll
  --> FILE:93 in unrolled
  93 | for _ in tile.static_range(10 ** 9):
     |          ^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: at most 65536
  got:   range(0, 1000000000)
  try:   a loop that runs in the kernel: tile.range"""),
    "overflow": (errors.DTypeMismatch, """\
the number 1099511627776 does not fit i32
  --> FILE:99 in overflow
  99 | tile.store(y, (0,), tile.full((8,), 1 << 40, tile.i32).to(tile.f32))
     |                     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: -2147483648 to 2147483647
  got:   1099511627776
  try:   a wider dtype"""),
    "two_grids": (errors.UnsupportedSyntax, """\
a second grid
  --> FILE:105 in two_grids
  105 | n = tile.grid(3)
      |     ^^^^^^^^^^^^
  needs: one tile.grid or tile.persistent in a kernel
  got:   2
  why:   the caller launches one grid
  try:   one grid of all extents: m, n = tile.grid(M, N)"""),
    "unknown_keyword": (errors.ArgumentCount, """\
`range` has no argument `stage`
  --> FILE:110 in unknown_keyword
  110 | for k in tile.range(0, 8, stage=2):
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: lo, hi=None, step=1, stages=1, schedule=''
  got:   0, 8, stage=2
  try:   stages=2"""),
    "unknown_to_a_method": (errors.ArgumentCount, """\
`sum` has no argument `keep`
  --> FILE:116 in unknown_to_a_method
  116 | a = tile.load(x, (0,), (8,)).sum(0, keep=True)
      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: axis=None, keepdims=False
  got:   0, keep=True
  try:   keepdims=True"""),
    "too_many": (errors.ArgumentCount, """\
`exp`: too many positional arguments
  --> FILE:121 in too_many
  121 | a = tile.exp(tile.load(x, (0,), (8,)), 2)
      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: x
  got:   f32[8], 2
  try:   pass what it needs"""),
    "slope_of_integers": (errors.DTypeMismatch, """\
`derivative` needs floats, but y is i32
  --> FILE:127 in slope_of_integers
  127 | b = tile.derivative(a * a, a)
      |     ^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: f16, bf16, f32 or f64
  got:   i32[8]
  why:   integers have no derivative
  try:   convert it first: y.to(tile.f32)"""),
    "not_loaded": (errors.UnsupportedSyntax, """\
a tensor is not a tile
  --> FILE:132 in not_loaded
  132 | a = x * 2
      |     ^^^^^
  needs: tiles and numbers
  got:   tensor<in f32, N>, 2
  try:   tile.load(tensor, offsets, shape) gives a tile of it"""),
    "misspelt": (errors.UnsupportedSyntax, """\
`tile` has no `sqroot`
  --> FILE:137 in misspelt
  137 | a = tile.sqroot(tile.load(x, (0,), (8,)))
      |     ^^^^^^^^^^^
  needs: an attribute of tilelang
  got:   sqroot
  try:   sqrt or rsqrt or sort"""),
    "half": (errors.NonConstantExtent, """\
a tile extent must be a positive integer
  --> FILE:142 in half
  142 | a = tile.load(x, (0,), (16 / 2,))
      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  needs: an int of at least 1
  got:   8.0
  try:   // divides integers"""),
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_report_is_complete(name: str) -> None:
    kernel = getattr(mistakes, name)
    error, text = REPORTS[name]
    with pytest.raises(error) as caught:
        kernel.trace(kernel.types({}), {})
    assert str(caught.value).replace(mistakes.__file__, "FILE") == text


def test_a_kernel_without_source_is_refused() -> None:
    scope: dict[str, object] = {}
    exec("import tilelang as tile\ndef k(x: tile.Tensor[tile.f32, 'N']): pass\nk = tile.kernel(k)", scope)
    with pytest.raises(errors.MissingSource) as caught:
        scope["k"](np.zeros(3, np.float32))  # type: ignore[operator]
    assert str(caught.value) == """\
the source of `k` cannot be read
  needs: a function defined in a file
  got:   a function from <string>
  why:   the compiler reads the kernel's source text, not its bytecode
  try:   put the kernel in a .py file (or a notebook cell)"""


@pytest.mark.parametrize("what", [3, dict, mistakes.syntax, tile.function(lambda x: x), np.sum])
@pytest.mark.parametrize("mark", [tile.kernel, tile.function])
def test_only_functions_are_kernels(mark: Any, what: Any) -> None:
    with pytest.raises(errors.UnsupportedSyntax) as caught:
        mark(what)
    assert str(caught.value) == f"""\
only plain functions can be kernels or tile functions
  needs: def
  got:   {f"{type(what).__name__} {what!r}"[:80]}
  try:   write `def name(...)` under one decorator of tile's"""


def test_text_that_is_another_one(tmp_path: Path) -> None:
    """Of code that says it is from a file whose lines are others by now."""
    (tmp_path / "changed.py").write_text("import os\n\n\nimport sys\n")
    names: dict[str, Any] = {"tile": tile}
    text = "@tile.kernel\ndef k(x: tile.Tensor[tile.f32, 'N']):\n    tile.load(x, 0, 4)\n"
    exec(compile(text, str(tmp_path / "changed.py"), "exec"), names)
    with pytest.raises(errors.MissingSource, match="got:   other text in line 1 of .*changed.py"):
        names["k"](np.ones(4, np.float32))


def test_an_annotation_of_unknown_names() -> None:
    with pytest.raises(errors.UnsupportedSyntax, match="the annotation of `x` cannot be evaluated"):
        @tile.kernel
        def kernel(x: nowhere.f32): ...  # type: ignore[name-defined]


@tile.kernel
def of_numpy(x: mistakes.X, y: mistakes.Y):
    tile.store(y, 0, np.exp(tile.load(x, 0, 8)))


def test_functions_of_others_that_tile_has_too() -> None:
    with pytest.raises(errors.UnsupportedSyntax, match=r"(?s)`exp` cannot be called.*numpy.exp\n  try:   tile.exp"):
        of_numpy(np.ones(8, np.float32))


def test_what_is_left_out_of_a_call_and_used_is_called_so() -> None:
    @tile.kernel
    def written(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f16, "N"] = None):
        tile.store(y, 0, tile.load(x, 0, 4).to(y.dtype))
    with pytest.raises(errors.UnsupportedSyntax, match="(?s)an attribute of None.*try: +pass the tensor, or ask `if"):
        written(np.zeros(4, np.float32))
