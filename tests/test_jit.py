"""Calling kernels: what is accepted, what is refused and with which words."""
from __future__ import annotations

import copy
import pickle
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import errors, native


@tile.kernel
def scale(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"], by: tile.f32, BM: tile.Const = 4,
          BN: tile.Const = 32):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    v = tile.load(x, (m * BM, n * BN), (BM, BN)).to(tile.f32)
    tile.store(y, (m * BM, n * BN), (v * by).to(y.dtype))


@tile.kernel
def widen(x: tile.Tensor[tile.u3, "M N"], y: tile.Out[tile.i32, "M N"], z: tile.Out[tile.u3, "M N"]):
    v = tile.load(x, (0, 0), (4, 16))
    tile.store(y, (0, 0), v.to(tile.i32))
    tile.store(z, (0, 0), v + 1)


@tile.kernel
def positive(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 8))
    v = tile.load(x, (n * 8,), (8,))
    assert v >= 0.0, "x is negative"
    tile.store(y, (n * 8,), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (0, 7), (7, 0), (64, 64)])
def test_torch_tensors(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = torch.randn(shape).to(dtype)
    got = scale(x, by=2.0)
    assert got.dtype == dtype and torch.equal(got.float(), (x.float() * 2).to(dtype).float())


@pytest.mark.parametrize("make", [
    lambda x: x.T.contiguous().T, lambda x: x[:, ::2], lambda x: x[::3, 1:], lambda x: x[:1].expand(9, -1),
    lambda x: torch.flip(x, [0])], ids=["transposed", "columns", "rows", "expanded", "flipped"])
def test_strided_inputs(make: Any) -> None:
    x = make(torch.randn(12, 20))
    assert torch.equal(scale(x, by=3.0), x * 3)
    assert torch.equal(scale.reference(x, by=3.0), x * 3)


def test_numpy_arrays_also_read_only_and_negative_strides() -> None:
    x = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    x.flags.writeable = False
    np.testing.assert_array_equal(scale(x, by=2.0), x * 2)
    np.testing.assert_array_equal(scale(x[::-1, ::-1], by=2.0), x[::-1, ::-1] * 2)


def test_outputs_may_be_given_by_name_and_place() -> None:
    x, y = torch.randn(5, 7), torch.empty(5, 7)
    assert scale(x, y=y, by=2.0) is y and scale(x, y, 2.0) is y and torch.equal(y, x * 2)


def test_misaligned_memory_is_fine() -> None:
    raw = np.zeros(4 * 64 + 1, np.uint8)
    x = raw[1:].view(np.float32).reshape(8, 8)
    x[...] = np.arange(64).reshape(8, 8)
    np.testing.assert_array_equal(scale(x, by=2.0), x * 2)


def test_an_input_that_overlaps_the_output_is_read_from_a_copy() -> None:
    x = torch.arange(40.0)
    want = x[:32].reshape(4, 8) * 2
    scale(x[:32].reshape(4, 8), x[4:36].reshape(4, 8), 2.0)
    assert torch.equal(x[4:36].reshape(4, 8), want)


def test_packed_tensors_of_rows_that_begin_within_bytes() -> None:
    codes = np.arange(4 * 9).reshape(4, 9) % 8
    for row_bits in (27, 28, 32, 29):
        x = tile.Packed.from_codes(codes, tile.u3, row_bits)
        for call in (widen, widen.reference):
            y, z = call(x)
            np.testing.assert_array_equal(y, codes)
            np.testing.assert_array_equal(z.values(), (codes + 1) % 8)


def test_assertions_name_the_line() -> None:
    with pytest.raises(errors.AssertFailed, match="x is negative"):
        positive(torch.tensor([1.0, -1.0]))
    with pytest.raises(errors.AssertFailed, match="x is negative"):
        positive.reference(torch.tensor([1.0, -1.0]))
    assert positive(torch.ones(20)).sum() == 20


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda x: scale(), errors.ArgumentCount, """\
`scale` is missing an argument
PLACE
  needs: x, by
  got:   no arguments
  try:   pass x=..."""),
    (lambda x: scale(x, by=1.0, color=3), errors.ArgumentCount, """\
`scale` has no parameter 'color'
PLACE
  needs: x, y, by, BM, BN
  got:   color
  try:   check the spelling"""),
    (lambda x: scale(x, by=1.0, x=x), errors.ArgumentCount, """\
`scale` got `x` twice
PLACE
  needs: each parameter once
  got:   x by position and by name
  try:   drop one"""),
    (lambda x: scale(x, None, 1.0, 4, 32, 7), errors.ArgumentCount, """\
`scale` got too many arguments
PLACE
  needs: at most 5: x, y, by, BM, BN
  got:   6
  try:   pass constants by name"""),
    (lambda x: scale(x[0], by=1.0), errors.ArgumentRank, """\
parameter `x` of `scale` has the wrong rank
PLACE
  needs: 2 dimensions "M N"
  got:   1 of shape [4]
  try:   reshape or unsqueeze the argument"""),
    (lambda x: scale(x, torch.empty(3, 4).double(), 1.0), errors.ArgumentDType, """\
parameter `y` of `scale` has the wrong dtype
PLACE
  needs: f32 (as 'T' of an earlier argument)
  got:   f64
  try:   convert the argument, or annotate with a type variable such as tile.Tensor[tile.T, ...]"""),
    (lambda x: scale(x, torch.empty(3, 5), 1.0), errors.DimMismatch, """\
dimension `N` of `scale` has two extents
PLACE
  needs: N = 4 (from x)
  got:   5 in y of shape [3, 5]
  try:   pass tensors whose shapes agree"""),
    (lambda x: scale(x, by="two"), errors.ArgumentDType, """\
parameter `by` of `scale` is not a valid f32
PLACE
  needs: f32
  got:   str 'two'
  try:   pass a number"""),
    (lambda x: scale(x.to("meta"), torch.empty(3, 4), 1.0), errors.ArgumentDevice, """\
arguments are on different devices
PLACE
  needs: all tensors on one device
  got:   x on meta, y on cpu
  try:   .to('meta')"""),
])
def test_the_report_of_wrong_arguments_is_complete(call: Any, error: type[Exception], text: str) -> None:
    line = scale.source.first_line
    place = f"  --> {__file__}:{line} in scale\n  {line} | @tile.kernel\n  {' ' * len(str(line))} | ^^^^^^^^^^^^"
    with pytest.raises(error) as caught:
        call(torch.randn(3, 4))
    assert str(caught.value) == text.replace("PLACE", place)


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda x: scale([[1.0]], by=1.0), errors.ArgumentDType, "a torch tensor, a NumPy array"),
    (lambda x: scale(x, torch.empty(1, 4).expand(3, 4), 1.0), errors.ArgumentLayout, "output `y` overlaps itself"),
    (lambda x: scale(x.to(torch.complex64), by=1.0), errors.ArgumentDType, "has an unsupported dtype"),
])
def test_wrong_arguments_are_explained(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call(torch.randn(3, 4))
    assert text in str(caught.value) and "test_jit.py" in str(caught.value)


def test_calls_from_many_threads() -> None:
    x = torch.randn(64, 64)
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not torch.equal(scale(x, by=float(i)), x * i):
                wrong.append(i)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_targets() -> None:
    x = torch.randn(3, 4)
    with tile.target("reference"):
        assert torch.equal(scale(x, by=2.0), x * 2)
    with pytest.raises(errors.TargetError, match="unknown target 'tpu'"), tile.target("tpu"):
        pass


def test_the_variable_for_targets_takes_them_all(monkeypatch: pytest.MonkeyPatch, fresh_config: None) -> None:
    x, y = torch.ones(3, 4), torch.zeros(3, 4)
    monkeypatch.setenv("TILELANG_TARGET", "shapes")
    tile.config.config.cache_clear()
    scale(x, by=2.0, y=y)
    assert not y.any()  # nothing ran
    with tile.target("cpu"):
        scale(x, by=2.0, y=y)
    assert (y == 2).all()


def test_every_level_is_text() -> None:
    lowered = scale.lower(torch.randn(3, 4), by=1.0)
    assert "func @scale" in str(lowered.tile) and "nest" in str(lowered.placed) and "ld " in str(lowered.thread)
    assert "define i32" in lowered.source and "tl_entry" in lowered.assembly and lowered.report["code_bytes"] > 0


def test_a_value_that_changes_while_another_thread_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What that thread compiles is of the old value, and was once kept as if it were of the new one."""
    shift, change = shifting(10.0)
    x, load, started = np.zeros(8, np.float32), native.load, threading.Event()

    def slow(tile: Any) -> Any:
        started.set()
        time.sleep(0.2)
        return load(tile)
    monkeypatch.setattr(native, "load", slow)
    thread = threading.Thread(target=shift, args=(x,))
    thread.start()
    started.wait()
    offset = shift.reference(x)[0] - 10
    change(20.0)
    assert shift(x)[0] == offset + 20
    thread.join()
    assert shift(x)[0] == offset + 20


@tile.kernel
def times(x: tile.Tensor[tile.i32, "N"], y: tile.Out[tile.f32, "N"], C: tile.Const):
    tile.store(y, (0,), (tile.load(x, (0,), (4,)) * C).to(tile.f32))


def test_equal_constants_of_other_types_are_other_kernels() -> None:
    x, y = torch.full((4,), 1 << 30, dtype=torch.int32), torch.empty(4)
    for c, wanted in ((3, float(3 * (1 << 30) - (1 << 32))), (3.0, float(3 * (1 << 30)))) * 2:
        assert times(x, y, C=c)[0] == wanted


@pytest.mark.parametrize("name", ["f16", "bf16", "f32", "f64", "i8", "u8", "i64"])
def test_a_named_dtype_accepts_torch_numpy_and_long_names(name: str) -> None:
    dt = tile.dtype(name)
    long = {"bf16": "bfloat16"}.get(name) or {"f": "float", "i": "int", "u": "uint"}[name[0]] + name[1:]
    assert tile.dtype(long) is dt and getattr(tile, long) is dt
    assert tile.args.describe("x", torch.zeros(2, dtype=getattr(torch, long)), None).dtype is dt


class Exported:
    """Memory that others see through DLPack only."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __dlpack__(self, **options: Any) -> Any:
        return self.owner.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.owner.__dlpack_device__()  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])
def test_dlpack_is_enough(make: Any) -> None:
    x, y = (make(np.arange(12, dtype=np.float32).reshape(3, 4)) for _ in range(2))
    for call in (scale, scale, scale.reference):
        np.testing.assert_array_equal(np.asarray(call(Exported(x), by=2.0)), np.asarray(x) * 2)
    for by in (3.0, 4.0):  # the second call takes the short way
        out = Exported(y)
        scale(Exported(x), out, by)
        np.testing.assert_array_equal(np.asarray(y), np.asarray(x) * by)


def test_dlpack_of_another_device_is_refused() -> None:
    class Elsewhere(Exported):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0
    with pytest.raises(errors.ArgumentDevice, match=r"DLPack device \(2, 0\)"):
        scale(Elsewhere(torch.zeros(3, 4)), by=1.0)


def test_numbers_of_numpy_and_of_other_kinds() -> None:
    """Constants and scalars may be NumPy's; bools and ints become floats where a float is wanted."""
    @tile.kernel
    def fill(y: tile.InOut[tile.f32, "N"], v: tile.f32, B: tile.Const = 8):
        n = tile.grid(tile.cdiv(y.shape[0], B))
        tile.store(y, (n * B,), tile.full((B,), v, tile.f32))
    y = np.zeros(5, np.float32)
    for v in (np.float64(2), np.bool_(True), True, 10 ** 19, torch.tensor(3), np.float32(-1)):
        for size in (8, np.int64(4)):
            fill(y, v, B=size)
            np.testing.assert_array_equal(y, np.full(5, v, np.float32))
    for wrong in ("a", None, 1j, 10 ** 400, [1.0]):
        with pytest.raises(errors.ArgumentDType, match="parameter `v` of `fill` is not a valid f32"):
            fill(y, wrong)


FACTOR, SHIFTS, BLOCKS = 2.0, [1.0, 5.0], SimpleNamespace(rows=4)


@tile.function
def scaled(x):
    return x * FACTOR


def shifting(by: float) -> tuple[Any, Any]:
    """A kernel that captures `by`, and what changes it."""
    def change(value: float) -> None:
        nonlocal by
        by = value

    @tile.kernel
    def shift(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
        n = tile.grid(tile.cdiv(x.shape[0], BLOCKS.rows))
        v = tile.load(x, (n * BLOCKS.rows,), (BLOCKS.rows,))
        tile.store(y, (n * BLOCKS.rows,), scaled(v) + SHIFTS[0] + by)
    return shift, change


def test_names_from_around_a_kernel_have_the_values_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """They once kept those of the first call: names of the kernel's and of its tile functions' module, variables
    around it, contents of lists, attributes."""
    shift, change = shifting(10.0)
    x, y = np.zeros(8, np.float32) + 1, np.empty(8, np.float32)

    def is_now(value: float) -> bool:
        return bool((shift(x, y) == value).all() and (shift(x) == value).all())
    assert is_now(13)
    compiled = shift._compiled
    assert is_now(13) and shift._compiled is compiled
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert is_now(14)
    SHIFTS[0] += 1
    assert is_now(15)
    change(20.0)
    assert is_now(25)
    monkeypatch.setattr(BLOCKS, "rows", 2)
    assert is_now(25) and "f32[2]" in str(shift.lower(x).tile)
    change(20)  # equal, of another type
    compiled = shift._compiled
    assert is_now(25) and shift._compiled is not compiled


TABLE, TENSOR, NESTED = np.array([1.0, 2.0]), torch.tensor([3.0]), [[4.0], {"a": [5.0]}]


def doubled(x: float) -> float:
    return 2 * x


def test_contents_of_arrays_nested_lists_and_functions_are_those_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels once kept what they were compiled with: arrays and lists in lists that were written to, and functions
    defined again, as by a cell of a notebook."""
    @tile.kernel
    def total(y: tile.Out[tile.f32, "1"]):
        values = tile.constant(TABLE, tile.f32).sum() + doubled(NESTED[0][0])
        tile.store(y, 0, values + float(TENSOR[0]) + NESTED[1]["a"][0])
    y = np.zeros(1, np.float32)

    def is_now(value: float) -> bool:
        return total(y)[0] == value
    assert is_now(19)
    compiled = total._compiled
    assert is_now(19) and total._compiled is compiled
    TABLE[1] += 1
    assert is_now(20)
    TENSOR[0] += 1
    assert is_now(21)
    NESTED[0][0] += 1
    assert is_now(23)
    NESTED[1]["a"][0] += 1
    assert is_now(24)
    monkeypatch.setitem(globals(), "doubled", lambda x: 3 * x)
    assert is_now(29)


@tile.kernel
def product(x: tile.Tensor[tile.f32, "1"], y: tile.Out[tile.f32, "1"], C: tile.Const):
    v = tile.load(x, 0, 1)
    for c in C:
        v = v * float(c)
    tile.store(y, 0, v)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda v: {v[0]: 0}])
def test_constants_are_told_from_others_at_the_same_place(make: Any) -> None:
    """A list, or an array, that came to lie where one of an earlier call had been, once was taken for that."""
    one = np.ones(1, np.float32)
    assert [product(one, C=make([c]))[0] for c in (2.0, 3.0, 4.0, 2.0)] == [2, 3, 4, 2]
    kept = make([2.0])
    if not isinstance(kept, dict):
        assert product(one, C=kept)[0] == 2
        kept[0] = 5.0
        assert product(one, C=kept)[0] == 5


class Silent:
    def __repr__(self) -> str:
        raise AssertionError("made a text")


TABLES = {1: (2.0,), 2: (3.0,), 3: Silent()}


def test_calls_make_no_text_of_captured_tables() -> None:
    """Each call once took 0.15 ms more for the text of a dict with 256 numbers."""
    @tile.kernel
    def add(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], ROW: tile.Const):
        tile.store(y, (0,), tile.load(x, (0,), (8,)) + TABLES[ROW][0])
    x = np.ones(8, np.float32)
    assert [add(x, ROW=row)[0] for row in (1, 2, 1, 2)] == [3, 4, 3, 4]


def test_advice_on_methods_and_on_foreign_byte_orders_helps() -> None:
    """np.array(x), as was said, keeps the byte order; `self` is no tensor."""
    x = np.ones((3, 4), np.float32)
    foreign = x.astype(">f4")
    with pytest.raises(errors.ArgumentLayout, match=r"np.array\(x, x.dtype.newbyteorder\('='\)\)"):
        scale(foreign, by=2.0)
    np.testing.assert_array_equal(scale(np.array(foreign, foreign.dtype.newbyteorder("=")), by=2.0), 2 * x)
    with pytest.raises(errors.UnsupportedSyntax, match="@staticmethod above the kernel"):
        @tile.kernel
        def method(self, y: tile.Out[tile.f32, "N"]):
            tile.store(y, 0, self.value)


def test_masked_arrays_are_refused() -> None:
    """The mask was once ignored, by the first call and by later ones."""
    x, y = np.ones((3, 4), np.float32), np.empty((3, 4), np.float32)
    scale(x, y, 2.0)
    for masked in (np.ma.masked_array(x, x > 0), np.ma.masked_array(x)):
        for call in (lambda m: scale(m, by=2.0), lambda m: scale(m, y, 2.0), lambda m: scale.reference(m, by=2.0)):
            with pytest.raises(errors.ArgumentLayout, match="`x` is a masked array"):
                call(masked)


def test_kernels_are_copied_and_pickled_as_functions_are() -> None:
    scale(np.ones((4, 4), np.float32), by=2.0)  # what is compiled could not be copied
    assert copy.deepcopy(scale) is scale and pickle.loads(pickle.dumps(scale)) is scale
    bound = scale.bind(BM=2)
    assert copy.deepcopy(bound) is bound and bound.params != scale.params
    again = pickle.loads(pickle.dumps(bound.bind(BN=4)))
    assert [p.default for p in again.params if p.kind == "const"] == [2, 4]


def test_bit_patterns_for_numbers_that_numpy_lacks_are_refused_with_what_holds_them() -> None:
    @tile.kernel
    def widened(s: tile.Tensor[tile.e8m0, "N"], y: tile.Out[tile.f32, "N"]):
        tile.store(y, 0, tile.load(s, 0, 4).to(tile.f32))
    codes = np.array([127, 128, 126, 130], np.uint8)
    with pytest.raises(errors.ArgumentDType, match=r"try: +tile\.Packed\.from_codes\(s, tile\.e8m0\), if these are"):
        widened(codes)
    assert widened(tile.Packed.from_codes(codes, tile.e8m0)).tolist() == [1, 2, 0.5, 8]
