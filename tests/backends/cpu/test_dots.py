"""`dot` of small integers, and whole kernels for a processor with AVX2 only."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.cpu.native import HOST, avx2, compile_for, native
from tests.casting import EVERY, patterns
from tests.ir.op_examples import EXAMPLES, example, tiles
from tilelang import ops
from tilelang.backends.cpu import dots, machine
from tilelang.ir import codec
from tilelang.ir.dtypes import dtype
from tilelang.ir.parser import parse
from tilelang.ir.reduction import dot_dtype
from tilelang.ops.matmul import matmul_kernel
from tilelang.ops.softmax import softmax_kernel
from tilelang.passes.meaning import difference


@pytest.fixture(params=["host", "avx2"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for(request.param, monkeypatch, matmul_kernel, softmax_kernel, batched, both_ways)


@tile.kernel
def batched(a: tile.Tensor[tile.T, "G M K"], b: tile.Tensor[tile.U, "G K N"], c: tile.Out[tile.i32, "G M N"],
            BM: tile.Const, BN: tile.Const, BK: tile.Const):
    m, n = tile.grid(tile.cdiv(a.shape[1], BM), tile.cdiv(b.shape[2], BN))
    x, y = tile.load(a, (0, m * BM, 0), (2, BM, BK)), tile.load(b, (0, 0, n * BN), (2, BK, BN))
    tile.store(c, (0, m * BM, n * BN), tile.dot(x, y))


@pytest.mark.parametrize("types", [(torch.int8, torch.int8), (torch.uint8, torch.int8), (torch.int16, torch.int8)])
@pytest.mark.parametrize("shape", [(14, 70, 36), (12, 32, 4), (3, 5, 8), (25, 33, 21)])
@pytest.mark.usefixtures("target")
def test_packed_operands(types: tuple[torch.dtype, torch.dtype], shape: tuple[int, int, int]) -> None:
    """Extremes of the types, whole blocks and blocks that cross every edge, batches."""
    m, n, k = shape
    limits = [torch.iinfo(t) for t in types]
    a, b = (torch.randint(i.min, i.max + 1, s, dtype=t) for i, s, t in
            zip(limits, ((2, m, k), (2, k, n)), types, strict=True))
    a[0, 0], b[0, :, 0] = limits[0].min, limits[1].min
    c = torch.empty(2, m, n, dtype=torch.int32)
    want = a.long() @ b.long()
    for bm, bn in ((12, 32), (m, n)):
        batched(a, b, c, BM=bm, BN=bn, BK=-(-k // 4) * 4)
        assert torch.equal(c.long(), want)


@tile.kernel
def both_ways(x: tile.Tensor[tile.T, "M K"], w: tile.Tensor[tile.T, "N K"], v: tile.Tensor[tile.T, "K N"],
              y: tile.Out[tile.f32, "2 M N"], BM: tile.Const, BK: tile.Const = 48, BN: tile.Const = 20):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(w.shape[0], BN))
    rows, zero = tile.load(x, (m * BM, 0), (BM, BK)), tile.zeros((BM, BN), tile.f32)
    at = m * BM, n * BN
    tile.store(y, (0, *at), tile.dot(rows, tile.load(w, (n * BN, 0), (BN, BK)).T, zero + 1.0), (None, BM, BN))
    tile.store(y, (1, *at), tile.dot(rows, tile.load(v, (0, n * BN), (BK, BN)), zero + 1.0), (None, BM, BN))


@pytest.mark.parametrize("dt", [torch.float16, torch.float32])
@pytest.mark.usefixtures("target")
def test_products_of_few_rows_take_operands_as_they_lie(dt: torch.dtype) -> None:
    most = 3 * machine.host().registers // 8
    for rows in (1, 5, most, most + 1):
        x, w = torch.randn(rows, 45).to(dt), torch.randn(33, 45).to(dt)
        y = torch.empty(2, rows, 33)
        both_ways(x, w, w.T.contiguous(), y, BM=rows)
        terms = x.double().abs() @ w.double().abs().T + 1.0
        assert ((y - (x.double() @ w.double().T + 1.0)).abs() <= (45 + 1) * 2.0 ** -24 * terms).all()
        names = [op.name for op in both_ways.lower(x, w, w.T.contiguous(), y, BM=rows).placed.walk()]
        assert names.count("dot") == (2 if rows > most else 0)


@pytest.mark.usefixtures("target")
def test_kernels() -> None:
    """A matmul and a softmax, with edges."""
    a, b = torch.randn(77, 50), torch.randn(50, 91)
    torch.testing.assert_close(ops.matmul(a, b), a @ b, rtol=1e-5, atol=1e-5)
    ia, ib = (torch.randint(-128, 128, (130, 130), dtype=torch.int8) for _ in range(2))
    assert np.array_equal(ops.matmul(ia, ib), ia.int() @ ib.int())
    torch.testing.assert_close(ops.softmax(a), torch.softmax(a, -1), rtol=1e-5, atol=1e-6)


def test_avx2_code_has_no_wider_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx2" not in HOST.features:
        pytest.skip("needs a processor with AVX2")
    monkeypatch.setattr(machine, "host", avx2)
    a = torch.zeros(2, 12, 32, dtype=torch.int8)
    c = torch.zeros(2, 12, 12, dtype=torch.int32)
    code = batched.lower(a, torch.zeros(2, 32, 12, dtype=torch.int8), c, BM=12, BN=32, BK=32).assembly
    assert "%ymm" in code and "%zmm" not in code and "vpmaddwd" in code


@pytest.mark.parametrize("key", [key for key in EXAMPLES if key.startswith("lookup4")])
@pytest.mark.parametrize("features", [{"avx2"}, set()], ids=str)
def test_bytes_are_looked_up_without_vpermb(key: str, features: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx2" not in HOST.features:
        pytest.skip("needs a processor with AVX2")
    for made in (replace(avx2(), features=frozenset(features)), replace(HOST, features=HOST.features - {"vbmi"})):
        monkeypatch.setattr(machine, "host", lambda made=made: made)
        fn = example(key)
        assert difference(fn, native(fn), np.random.default_rng(1)) == ""


def test_words_of_look_ups_go_through_one_instruction() -> None:
    """Look-ups in a table of 64 bytes: a byte shuffle for 64 bytes, nothing from memory one by one."""
    if not {"vbmi", "vnni"} <= HOST.features:
        pytest.skip("needs a processor with AVX-512 VBMI and VNNI")
    lines = looked_up.lower(np.zeros(64, np.int8), np.zeros(64, np.uint32), np.zeros(64, np.int32)).assembly
    assert 0 < lines.count("vpermb") <= lines.count("vpdpbusd") and "gather" not in lines


@tile.kernel
def looked_up(table: tile.Tensor[tile.i8, "64"], words: tile.Tensor[tile.u32, "64"], y: tile.Out[tile.i32, "64"]):
    found = tile.lookup4(tile.load(table, (0,), (64,)), tile.load(words, (0,), (64,)))
    tile.store(y, (0,), tile.dot4(tile.full((64,), 0x01010101, tile.u32), found, tile.zeros((64,), tile.i32)))


def test_every_pair_has_an_instruction_that_takes_its_numbers() -> None:
    """Of all pairs of types in the table: integers are exact or wrap as the sum does, floats keep their numbers."""
    rows = {}
    for features in (frozenset[str](), frozenset({"avx2"}), frozenset({"avx2", "vnni"})):
        for a in EVERY:
            for b in EVERY:
                row = rows[a, b] = dots.choose(a, b, dtype(dot_dtype(a, b)), 4, features)
                for operand, held, bias in ((a, dtype(row.a), row.bias), (b, dtype(row.b), 0)):
                    if held.kind != "float" and held.name != row.acc:
                        assert held.min <= operand.min + bias and operand.max + bias <= held.max, (a, b, row)
    for operand, held in {(x, dtype(name)) for (a, b), row in rows.items() for x, name in ((a, row.a), (b, row.b))}:
        if operand.bits <= 16 and held.kind == "float":
            x = patterns(operand)
            with np.errstate(invalid="ignore"):  # signalling NaN
                np.testing.assert_array_equal(codec.decode(codec.cast(x, operand, held), held).astype(np.float64),
                                              codec.decode(x, operand).astype(np.float64))


PARTNERS = [dtype(n) for n in "i1 u3 s2 ternary i8 u8 i16 i32 u33 i64 f4e2m1 e8m0 f8e5m2 f16 bf16 f32 f64".split()]


@pytest.mark.parametrize("step", [1, 5])
def test_classes_of_operands(step: int) -> None:
    """Every class of types as left and as right operand."""
    pairs = list(zip(PARTNERS, [*PARTNERS[step:], *PARTNERS[:step]], strict=True))
    inputs = {f"a{i}": f"{a}[3, 5]" for i, (a, _) in enumerate(pairs)} | {
        f"b{i}": f"{b}[5, 4]" for i, (_, b) in enumerate(pairs)}
    accs = [dot_dtype(a, b) for a, b in pairs]
    body = "\n".join(f"%r{i} = dot %a{i}, %b{i} {{dtype={acc}}} : {acc}[3, 4]" for i, acc in enumerate(accs))
    fn = parse(tiles("dots", body, inputs, {f"r{i}": f"{acc}[3, 4]" for i, acc in enumerate(accs)}))
    assert difference(fn, native(fn), np.random.default_rng(0), trials=2) == ""
