"""Dots of every pair of operand types, by the instruction that has them, at shapes that do not fit it."""
from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

import tilelang as tile
from tests.backends.simt import kernels
from tests.backends.simt.emulated import emulated
from tilelang import targets
from tilelang.backends.cuda import instructions as cuda
from tilelang.backends.hip import instructions as hip
from tilelang.backends.hip.instructions import CDNA2, CDNA3, CDNA4
from tilelang.backends.hip.target import target as amd_target
from tilelang.backends.simt import infer
from tilelang.backends.simt.instructions import MmaRow, choose, plans
from tilelang.errors import TileError
from tilelang.ir.core import TensorType
from tilelang.ir.dtypes import dtype
from tilelang.ir.parser import parse
from tilelang.layouts import RegisterLayout, conversion
from tilelang.passes.meaning import difference

PARAMS = "%x: tensor<in {a} align {align}, M, K:1>, %y: tensor<in {b} align {align}, K, N:1>, " \
    "%z: tensor<out {acc} align {align}, M, N:1>"
TEXT = "func @product(" + PARAMS + """) tile {{
  %0 = const {{value=0, dtype=i32}} : i32
  %1 = load %x, %0, %0 {{shape=({m}, {k}), axes=(0, 1), fill=0}} : {a}[{m}, {k}]
  %2 = load %y, %0, %0 {{shape=({k}, {n}), axes=(0, 1), fill=0}} : {b}[{k}, {n}]
  %3 = dot %1, %2 {{dtype={acc}, bias=0, instruction='{instruction}'}} : {acc}[{m}, {n}]
  store %z, %0, %0, %3 {{axes=(0, 1)}}
}}
"""
MIXED = [
    ("f16", "u4", "f32"),
    ("bf16", "i4", "f32"),
    ("f16", "bf16", "f32"),
    ("f6e3m2", "f16", "f32"),
    ("f32", "f32", "f32"),
    ("i4", "u8", "i32"),
    ("i16", "i16", "i32"),
    ("i32", "i32", "i64"),
    ("f16", "f16", "f64"),
    ("ternary", "i8", "i32"),
    ("f8e4m3", "f8e5m2", "f32"),
    ("s2", "f16", "f32"),
]


def nvidia(a: str, archs: tuple[int, int] = (80, 80)) -> str:
    return "cuda:sm_89" if "f8" in a else "cuda:sm_80" if archs[1] >= 80 else "cuda:sm_75"


def amd(row: MmaRow) -> str:
    """A target that has the row: of those that do the one that most rows are for."""
    return next(f"hip:gfx{arch:x}" for arch in (CDNA3, CDNA4, CDNA2) if row.archs[0] <= arch <= row.archs[1])


def pair_of(row: MmaRow) -> tuple[str, str, str, str]:
    return nvidia(row.a, row.archs), row.a, row.b, row.acc


PAIRS = list(dict.fromkeys([
    *map(pair_of, cuda.ROWS), *((nvidia(a), a, b, acc) for a, b, acc in MIXED),
    ("cuda:sm_75", "i4", "u8", "i32"), ("cuda:sm_75", "u2", "u4", "i32"), ("cuda:sm_75", "f32", "f32", "f32")]))
ARRANGED = {(pair_of(row)[0], row.a_atom, row.b_atom, row.acc_atom): row for row in reversed(cuda.ROWS)}
"""The first of the rows whose fragments lie alike: others differ in what their bits mean."""
ALIKE = set(map(pair_of, cuda.ROWS)) - set(map(pair_of, ARRANGED.values()))
SCALED = [row for row in hip.ROWS if row.scales]
ROWS = [(nvidia(row.a, row.archs), row) for row in cuda.ROWS] + [
    (amd(row), row) for row in hip.ROWS if row not in SCALED or row in SCALED[::8]]
SHAPES = [(16, 16, 32), (33, 20, 40), (64, 96, 64), (1, 5, 3)]


@pytest.mark.parametrize(("pair", "shape"), [(pair, shape) for pair in PAIRS for shape in SHAPES
                                             if shape == SHAPES[1] or pair not in ALIKE], ids=str)
def test_product(pair: tuple[str, str, str, str], shape: tuple[int, int, int]) -> None:
    """Every pair of types at ragged extents, every arrangement of fragments at all of them."""
    target, a, b, acc = pair
    check(target, (a, b, acc), shape)


@pytest.mark.parametrize("pair", MIXED, ids="x".join)
def test_product_on_amd(pair: tuple[str, str, str]) -> None:
    check("hip:gfx942", pair, SHAPES[1])


def check(target: str, pair: tuple[str, str, str], shape: tuple[int, int, int], instruction: str = "") -> None:
    a, b, acc = pair
    m, n, k = shape
    fn = parse(TEXT.format(a=a, b=b, acc=acc, m=m, n=n, k=k, align=1, instruction=instruction))
    assert difference(fn, emulated(fn, target), np.random.default_rng(0), trials=2) == ""


@pytest.mark.parametrize(("target", "row"), ROWS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_a_named_instruction_is_used(target: str, row: MmaRow) -> None:
    types = row.a, row.b, row.acc
    fn = parse(TEXT.format(a=row.a, b=row.b, acc=row.acc, m=64, n=64, k=max(64, row.k), align=16,
                           instruction=row.name))
    source = targets.lowered(fn, target).source
    assert f"tl::{row.name}(" in source
    if target.startswith("cuda"):
        assert "tl::ldmatrix<4" in source or row.a not in ("f16", "bf16")
    else:
        check(target, types, SHAPES[1], row.name)


@pytest.mark.parametrize(("target", "a", "acc", "other", "names"), [
    ("cuda:sm_75", "u8", "i32", "f16", ("mma_m8n8k16_u8", "mma_m16n8k8_f16")),
    ("cuda:sm_80", "f64", "f64", "f16", ("mma_m8n8k4_f64", "mma_m16n8k16_f16")),
    ("hip:gfx942", "f64", "f64", "f16", ("mfma_16x16x8_f64", "mfma_32x32x16_f16"))])
@pytest.mark.parametrize("loads", [("%a", "%b"), ("%u", "%w")], ids=["as loaded", "computed"])
def test_sums_that_lie_otherwise_meet(target: str, a: str, acc: str, other: str, names: tuple[str, str],
                                      loads: tuple[str, str]) -> None:
    """Each product by its instruction: the sums of one are converted, of which the inference knew nothing."""
    tensors = f"%x: tensor<in {a}, M, K:1>, %y: tensor<in {a}, K, N:1>, %p: tensor<in {other}, M, K:1>, " \
              f"%q: tensor<in {other}, K, N:1>, %z: tensor<out f32, M, N:1>"
    fn = parse(f"""func @meet({tensors}) tile {{
  %o = const {{value=0, dtype=i32}} : i32
  %a = load %x, %o, %o {{shape=(16, 32), axes=(0, 1), fill=0}} : {a}[16, 32]
  %b = load %y, %o, %o {{shape=(32, 16), axes=(0, 1), fill=0}} : {a}[32, 16]
  %u = add %a, %a : {a}[16, 32]
  %w = add %b, %b : {a}[32, 16]
  %c = dot {", ".join(loads)} {{dtype={acc}, bias=0, instruction='', fallback=''}} : {acc}[16, 16]
  %d = load %p, %o, %o {{shape=(16, 32), axes=(0, 1), fill=0}} : {other}[16, 32]
  %e = load %q, %o, %o {{shape=(32, 16), axes=(0, 1), fill=0}} : {other}[32, 16]
  %f = dot %d, %e {{dtype=f32, bias=0, instruction='', fallback=''}} : f32[16, 16]
  %g = cast %c {{dtype=f32}} : f32[16, 16]
  %h = add %g, %f : f32[16, 16]
  store %z, %o, %o, %h {{axes=(0, 1)}}
}}
""")
    source = targets.lowered(fn, target).source
    assert [name for name in names if f"tl::{name}(" not in source] == []
    assert difference(fn, emulated(fn, target), np.random.default_rng(0), trials=2) == ""


@pytest.mark.parametrize("target", ["cuda:sm_75", "cuda:sm_80", "cuda:sm_90a", "hip:gfx942"])
@pytest.mark.parametrize("shape", [(64, 24, 16), (33, 20, 11)], ids=str)
def test_words_of_bits(target: str, shape: tuple[int, int, int]) -> None:
    """By b1 where there are such instructions, of several warps where shapes and memory allow; else word by word."""
    m, n, k = shape
    text = TEXT.format(a="u32", b="u32", acc="i32", m=m, n=n, k=k, align=16, instruction="")
    fn = parse(re.sub(r"= dot (%\w+, %\w+) \{.*?\}", r"= dot_bits \1", text))
    source = targets.lowered(fn, target).source
    assert ("_b1_and(" in source) == (target in ("cuda:sm_80", "cuda:sm_90a"))
    assert difference(fn, emulated(fn, target), np.random.default_rng(0), trials=2) == ""


def test_the_deepest_instruction_that_fits_is_taken() -> None:
    rows = amd_target("hip:gfx950").mma
    found = [choose(rows, dtype("f16"), dtype("f16"), dtype("f32"), k) for k in (16, 31, 32, 64, 8)]
    assert [row.k for row in found if row is not None] == [16, 16, 32, 32, 8]


@pytest.mark.parametrize("way", [1, 2, 3])
@pytest.mark.parametrize("name", ["mfma_16x16x32_f16", "mfma_16x16x64_i8", "mfma_32x32x8_bf16", "mfma_16x16x8_f64"])
def test_every_way_of_a_square_product(name: str, way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """k in the order of an accumulator, the transposed product, and both."""
    monkeypatch.setattr(infer, "plans", lambda *a: [plans(*a)[min(way, len(plans(*a)) - 1)]])
    row = next(row for row in hip.ROWS if row.name == name)
    check("hip:gfx942", (row.a, row.b, row.acc), SHAPES[1], name)


def free(have: RegisterLayout, want: RegisterLayout) -> bool:
    """Whether a conversion moves nothing: it names registers otherwise."""
    return conversion(have, want, want.shape, 64).kind in ("none", "registers")


def test_an_accumulator_is_the_next_operand() -> None:
    """The transposed product lies as the first operand of a product wants it, with k interleaved where lanes hold more
    of k than of the accumulator; CUDA's does as it is."""
    for row in hip.ROWS:
        if row.a == row.b and row.b_atom.contiguous(0) >= row.acc_atom.contiguous(0):
            ways = plans(row, *[max(64, row.k)] * 3, 4)
            assert any(free(w.acc, v.a) for w in ways for v in ways), row.name
    row = next(row for row in cuda.ROWS if row.name == "mma_m16n8k16_f16")
    only = plans(row, 64, 64, 64, 4)[-1]  # all warps along m
    assert free(only.acc, only.a)


@pytest.mark.parametrize("target", ["hip:gfx90a", "hip:gfx942", "hip:gfx950"])
def test_probabilities_stay_in_registers(target: str) -> None:
    q = np.zeros((128, 64), np.float16)
    code = kernels.attention.lower(q, q, q, np.zeros((128, 64), np.float32), BM=128, BN=64, BD=64, target=target)
    inside = [op for loop in code.placed.walk() if loop.name == "for" for op in loop.regions[0].walk()]
    assert sum(op.name == "dot" for op in inside) == 2
    for op in inside:
        if op.name == "convert_layout" and op.result.shape == (128, 64):
            have, want = op.operands[0].tile.layout, op.result.tile.layout
            assert isinstance(have, RegisterLayout) and isinstance(want, RegisterLayout) and free(have, want)


@tile.kernel
def sums(a: tile.Tensor[tile.f16, "K M"], c: tile.Out[tile.f32, "M N"]):
    """a^T a, to which the sums of columns are added: a number is an operand of a product, in each copy of a loop."""
    acc = tile.zeros((32, 32), tile.f32)
    for k in tile.range(0, a.shape[0], 32, stages=2):
        block = tile.load(a, (k, 0), (32, 32))
        acc = tile.dot(block.T, block, acc)
        acc = tile.dot(tile.full((32, 32), 1.0, tile.f16), block, acc)
    tile.store(c, (0, 0), acc)


@pytest.mark.parametrize("target", ["cuda:sm_80", "hip:gfx942"])
def test_a_number_as_operand_of_products(target: str) -> None:
    a = np.random.default_rng(0).integers(-3, 4, (80, 32)).astype(np.float16)  # sums are exact
    c = np.empty((32, 32), np.float32)
    with tile.target(f"emulate:{target}"):
        sums(a, c=c)
    exact = a.astype(np.float64)
    np.testing.assert_array_equal(c, exact.T @ exact + exact.sum(0)[None, :])


@tile.kernel
def scaled(a: tile.Tensor[tile.T, "M K"], s: tile.Tensor[tile.e8m0, "M G"], b: tile.Tensor[tile.U, "K N"],
           t: tile.Tensor[tile.e8m0, "G N"], c: tile.Out[tile.f32, "M N"], BM: tile.Const = 64, BN: tile.Const = 64,
           BK: tile.Const = 128):
    """c = (a * s) @ (b * t), a scale for 32 neighbours along k."""
    m, n = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[1], BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, a.shape[1], BK, stages=2):
        g = k // 32
        acc = tile.dot_scaled(tile.load(a, (m * BM, k), (BM, BK)), tile.load(s, (m * BM, g), (BM, BK // 32)),
                              tile.load(b, (k, n * BN), (BK, BN)), tile.load(t, (g, n * BN), (BK // 32, BN)), acc)
    tile.store(c, (m * BM, n * BN), acc)


STORED = {"f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2}


@pytest.mark.parametrize(("target", "a", "b", "block", "shape"), [
    ("emulate:hip:gfx950", "f8e4m3", "f8e4m3", 128, "16x16x128"),
    ("emulate:hip:gfx950", "f8e5m2", "f6e2m3", 128, "32x32x64"),
    ("emulate:hip:gfx950", "f4e2m1", "f8e4m3", 64, "32x32x64"),
    ("emulate:hip:gfx950", "f6e3m2", "f4e2m1", 96, "32x32x64"),
    ("emulate:hip:gfx942", "f8e4m3", "f4e2m1", 64, None), ("emulate:cuda:sm_80", "f8e4m3", "f4e2m1", 64, None),
    ("cpu", "f8e4m3", "f4e2m1", 64, None), ("reference", "f8e4m3", "f4e2m1", 64, None)])
def test_scaled_products(target: str, a: str, b: str, block: int, shape: str | None) -> None:
    """Numbers and sums are so small that everything is exact; no extent is a multiple of a block. gfx950 has
    instructions for it, for blocks that are less deep than these too."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-2, 3, shape).astype(np.float64) for shape in ((40, 160), (160, 72)))
    s, t = (2.0 ** rng.integers(-2, 3, shape) for shape in ((40, 5), (5, 72)))
    args = [v.astype(STORED[name]) if name in STORED else tile.Packed.pack(v, dtype(name))
            for v, name in ((x, a), (y, b))]
    scales = [v.astype(ml_dtypes.float8_e8m0fnu) for v in (s, t)]
    c = np.empty((40, 72), np.float32)
    arguments = (args[0], scales[0], args[1], scales[1])
    with tile.target(target):
        scaled(*arguments, c=c, BK=block)
    np.testing.assert_array_equal(c, (x * np.repeat(s, 32, 1)) @ (y * np.repeat(t, 32, 0)))
    if shape is not None:
        source = scaled.lower(*arguments, c, BK=block, target="hip:gfx950").source
        assert set(re.findall(r"tl::mfma_(\w+)\(", source)) == {f"{shape}_{a[2:]}_{b[2:]}"}


@pytest.mark.parametrize(("rows", "b", "shape"), [(128, "f4e2m1", "32x32x64"), (16, "f8e4m3", "16x16x128")])
def test_scaled_products_are_of_the_size_that_costs_least(rows: int, b: str, shape: str) -> None:
    """Large ones where they fit, small ones where they would pad the product."""
    x, s = np.zeros((128, 128), ml_dtypes.float8_e4m3fn), np.zeros((128, 4), ml_dtypes.float8_e8m0fnu)
    y = x if b in STORED else tile.Packed.pack(np.zeros((128, 128)), dtype(b))
    code = scaled.lower(x, s, y, s.T.copy(), np.zeros((128, 128), np.float32), BM=rows, BN=128, target="hip:gfx950")
    assert f"mfma_{shape}_e4m3_{b[2:]}" in code.products


@pytest.mark.parametrize(("a", "s", "wanted"), [("f16", "e8m0", "at most 8 bits"), ("i8", "f8e4m3", "significands"),
                                                ("f8e4m3", "f32", "at most 8 bits")])
def test_what_scales_exceed_is_refused(a: str, s: str, wanted: str) -> None:
    text = f"""func @f(%x: {a}, %s: {s}, %z: tensor<out f32, M, N:1>) tile {{
  %a = broadcast %x {{shape=(32, 32)}} : {a}[32, 32]
  %t = broadcast %s {{shape=(32, 1)}} : {s}[32, 1]
  %u = broadcast %s {{shape=(1, 32)}} : {s}[1, 32]
  %c = dot_scaled %a, %a, %t, %u : f32[32, 32]
}}"""
    with pytest.raises(TileError, match=wanted):
        parse(text)


@pytest.mark.parametrize("target", ["cuda:sm_75", "cuda:sm_80", "cuda:sm_90a"])
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_operands_that_memory_holds_the_other_way_round(target: str, which: tuple[int, ...]) -> None:
    """Copies move runs of neighbours: as many bytes at once as where rows are in order."""
    rng = np.random.default_rng(0)
    operands = [rng.integers(-3, 4, shape).astype(np.float16) for shape in ((72, 136), (136, 72))]
    want = operands[0].astype(np.float64) @ operands[1]
    for i in which:
        operands[i] = np.asfortranarray(operands[i])
    consts = {"BM": 64, "BN": 64, "BK": 64, "STAGES": 2}
    code = kernels.matmul.lower(*operands, target=target, **consts)
    loads = {op.attrs["lanes"] for op in code.thread.walk() if op.name in ("ld", "st_async")
             and any(isinstance(v.type, TensorType) for v in op.operands)}
    assert loads <= {8} and (target != "cuda:sm_90a" or code.copies.count("TMA,") == 1)
    with tile.target(f"emulate:{target}"):
        np.testing.assert_array_equal(kernels.matmul(*operands, **consts), want)
