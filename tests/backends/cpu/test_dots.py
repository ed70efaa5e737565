"""`dot` of small integers, and whole kernels for a processor with AVX2 only."""
from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice

import ml_dtypes
import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.cpu.native import HOST, avx2, compile_for, native
from tests.backends.cpu.processors import assembly
from tests.casting import EVERY, patterns
from tests.ir.op_examples import EXAMPLES, example, tiles
from tilelang import ops
from tilelang.backends.cpu import dots, machine
from tilelang.ir import codec
from tilelang.ir.core import TileType, Value
from tilelang.ir.dtypes import dtype
from tilelang.ir.parser import parse
from tilelang.ir.reduction import dot_dtype
from tilelang.ir.thread import DotGroups
from tilelang.ops.matmul import matmul_kernel
from tilelang.ops.softmax import softmax_kernel
from tilelang.passes.meaning import difference, explained, noise, same_bits


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
@pytest.mark.parametrize(("shape", "turned"), [((14, 70, 36), False), ((12, 32, 4), True), ((3, 5, 8), False),
                                               ((25, 33, 21), True)])
@pytest.mark.usefixtures("target")
def test_packed_operands(types: tuple[torch.dtype, torch.dtype], shape: tuple[int, int, int], turned: bool) -> None:
    """Extremes of the types, whole blocks and blocks that cross every edge, batches, either order in memory."""
    m, n, k = shape
    limits = [torch.iinfo(t) for t in types]
    a, b = (torch.randint(i.min, i.max + 1, s, dtype=t) for i, s, t in
            zip(limits, ((2, m, k), (2, k, n)), types, strict=True))
    a[0, 0], b[0, :, 0] = limits[0].min, limits[1].min
    if turned:
        a, b = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (a, b))
    c = torch.empty(2, m, n, dtype=torch.int32)
    want = a.long() @ b.long()
    for bm, bn in ((12, 32), (m, n)):
        batched(a, b, c, BM=bm, BN=bn, BK=-(-k // 4) * 4)
        assert torch.equal(c.long(), want)


@pytest.mark.parametrize(("dt", "processor"), [(torch.int8, "newest"), (torch.int8, "avx-vnni"),
                                               (torch.int16, "newest"), (torch.bfloat16, "newest")])
def test_blocks_of_newer_processors(dt: torch.dtype, processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks and such that cross edges, by their instructions of groups; bf16 is of small integers."""
    compile_for(processor, monkeypatch, matmul_kernel)
    a, b = (torch.randint(-128, 128, shape).to(dt) for shape in ((25, 37), (37, 33)))
    acc = tile.f32 if dt.is_floating_point else tile.i32
    c = torch.empty(25, 33, dtype=torch.float32 if dt.is_floating_point else torch.int32)
    matmul_kernel(a, b, c, BM=16, BN=32, BK=40, ACC=acc)
    assert torch.equal(c.long(), a.long() @ b.long())


@tile.kernel
def both_ways(x: tile.Tensor[tile.T, "M K"], w: tile.Tensor[tile.T, "N K"], v: tile.Tensor[tile.T, "K N"],
              y: tile.Out[tile.f32, "2 M N"], BM: tile.Const, BK: tile.Const = 48, BN: tile.Const = 20):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(w.shape[0], BN))
    rows, zero = tile.load(x, (m * BM, 0), (BM, BK)), tile.zeros((BM, BN), tile.f32)
    at = m * BM, n * BN
    tile.store(y, (0, *at), tile.dot(rows, tile.load(w, (n * BN, 0), (BN, BK)).T, zero + 1.0), (None, BM, BN))
    tile.store(y, (1, *at), tile.dot(rows, tile.load(v, (0, n * BN), (BK, BN)), zero + 1.0), (None, BM, BN))


@pytest.mark.parametrize("dt", [torch.float16, torch.float32])
@pytest.mark.parametrize("depth", [45, 261])
@pytest.mark.usefixtures("target")
def test_products_of_few_rows_take_operands_as_they_lie(dt: torch.dtype, depth: int) -> None:
    """Of more rows where sums are long, with 16 registers: those along the columns of `w`."""
    registers = machine.host().registers
    most = 3 * registers // 8
    turned = dots.FEW if registers == 16 and depth > 256 else most
    for rows in (turned, turned + 1) if turned > most else (1, 5, most, most + 1):
        x, w = torch.randn(rows, depth).to(dt), torch.randn(33, depth).to(dt)
        y = torch.empty(2, rows, 33)
        v, deep = w.T.contiguous(), -(-depth // 8) * 8
        both_ways(x, w, v, y, BM=rows, BK=deep)
        terms = x.double().abs() @ w.double().abs().T + 1.0
        assert ((y - (x.double() @ w.double().T + 1.0)).abs() <= (depth + 1) * 2.0 ** -24 * terms).all()
        names = [op.name for op in both_ways.lower(x, w, v, y, BM=rows, BK=deep).placed.walk()]
        assert names.count("dot") == (rows > most) + (rows > turned)


@pytest.mark.usefixtures("target")
def test_kernels() -> None:
    """A matmul and a softmax, with edges."""
    a, b = torch.randn(77, 50), torch.randn(50, 91)
    torch.testing.assert_close(ops.matmul(a, b), a @ b, rtol=1e-5, atol=1e-5)
    x, y = a.bfloat16(), b.bfloat16()
    want, sums = x.double() @ y.double(), 50 * 2.0 ** -23 * (x.double().abs() @ y.double().abs())
    for right in (y, y.T.contiguous().T):
        assert ((ops.matmul(x, right).double() - want).abs() <= sums + 2.0 ** -8 * (want.abs() + sums)).all()
    ia, ib = (torch.randint(-128, 128, (130, 130), dtype=torch.int8) for _ in range(2))
    assert np.array_equal(ops.matmul(ia, ib), ia.int() @ ib.int())
    torch.testing.assert_close(ops.softmax(a), torch.softmax(a, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not HOST.triple.startswith("x86_64"), reason="looks at x86 instructions")
@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64-v4"])
def test_operands_of_the_other_order_are_transposed_in_registers(processor: str) -> None:
    a, b = torch.zeros(32, 24).bfloat16().T, torch.zeros(64, 32).bfloat16().T
    code = assembly(processor, matmul_kernel, a, b, torch.zeros(24, 64), BM=24, BN=64, BK=32, ACC=tile.f32)
    assert "gather" not in code and "vpunpck" in code
    if processor == "x86-64-v4":  # AVX2 has no masks for halves: LLVM takes those at the edges one by one
        assert "vpinsrw" not in code


def test_avx2_code_has_no_wider_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx2" not in HOST.features:
        pytest.skip("needs a processor with AVX2")
    monkeypatch.setattr(machine, "host", avx2)
    a = torch.zeros(2, 12, 32, dtype=torch.int8)
    c = torch.zeros(2, 12, 12, dtype=torch.int32)
    code = batched.lower(a, torch.zeros(2, 32, 12, dtype=torch.int8), c, BM=12, BN=32, BK=32).assembly
    assert "%ymm" in code and "%zmm" not in code and "vpmaddwd" in code


def test_sums_of_bytes_stay_in_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve of sixteen registers are sums; LLVM likes to add products of several steps to each other first."""
    if "avx2" not in HOST.features:
        pytest.skip("needs a processor with AVX2")
    monkeypatch.setattr(machine, "host", avx2)
    a, b = (torch.zeros(shape, dtype=torch.int8) for shape in ((12, 64), (64, 32)))
    code = matmul_kernel.lower(a, b, torch.zeros(12, 32, dtype=torch.int32), BM=12, BN=32, BK=64,
                               ACC=tile.i32).assembly
    loops = [block for block in re.split(r"\n\.L\w+:", code) if block.count("vpmaddwd") >= 48]
    assert loops and not any(re.search(r"v\w+.*%rsp.*%ymm|%ymm\d+, .*%rsp", block) for block in loops)


@pytest.mark.parametrize("key", [key for key in EXAMPLES if key.startswith(("lookup4", "dot2", "dot4"))])
@pytest.mark.parametrize("processor", ["avx2", "no avx2", "avx-vnni", "x86-64-v4", "newest"])
def test_words_with_and_without_their_instructions(key: str, processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for(processor.removeprefix("no "), monkeypatch)
    if processor == "no avx2":
        monkeypatch.setattr(machine, "host", lambda: replace(avx2(), features=frozenset()))
    fn = example(key)
    assert difference(fn, native(fn), np.random.default_rng(1)) == ""


@tile.kernel
def sevens(x: tile.Tensor[tile.u32, "N"], y: tile.Tensor[tile.i32, "N"], z: tile.Out[tile.i32, "N"]):
    codes = (tile.load(x, (0,), (40,)) >> 1) & 0x7F7F7F7F
    tile.store(z, (0,), tile.dot4(codes, tile.load(y, (0,), (40,)), tile.zeros((40,), tile.i32)))


@pytest.mark.parametrize("processor", ["host", "avx2", "avx-vnni", "x86-64-v4", "newest"])
def test_products_of_seven_bits_fit_into_words(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of two of i16 are enough for them, at the ends of the range, too; AVX2 then widens nothing."""
    compile_for(processor, monkeypatch, sevens)
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([0, 254, 255, 17], np.uint8), (40, 4))
    y = rng.choice(np.array([-128, 127, -1], np.int8), (40, 4))
    x[0], y[0], z = 254, -128, np.zeros(40, np.int32)
    words = x.view(np.uint32)[:, 0], y.view(np.int32)[:, 0]
    sevens(*words, z)
    codes = (words[0] >> 1 & 0x7F7F7F7F).view(np.uint8).reshape(40, 4).astype(int)
    np.testing.assert_array_equal(z, (codes * y).sum(1))
    if processor == "avx2":
        assert "vpmaddubsw" in sevens.lower(*words, z).assembly


@tile.kernel
def chained(x: tile.Tensor[tile.u32, "S N"], y: tile.Tensor[tile.i32, "S N"], z: tile.InOut[tile.i32, "N"],
            BITS: tile.Const, STEPS: tile.Const):
    total = tile.load(z, (0,), (40,))
    for s in tile.static_range(STEPS):
        codes = tile.load(x, (s, 0), (1, 40)).reshape(40) & ((1 << BITS) - 1) * 0x01010101
        total = tile.dot4(codes, tile.load(y, (s, 0), (1, 40)).reshape(40), total)
    tile.store(z, (0,), total)


@pytest.mark.parametrize(("bits", "processor"), [*((bits, "x86-64-v3") for bits in (1, 2, 4, 6, 7)),
                                                 (4, "x86-64-v4"), (7, "x86-64-v4")])
def test_sums_of_products_stay_narrow_as_long_as_they_fit(bits: int, processor: str,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """At the ends of the range, where one more would wrap; u4 is widened once for eight products, u7 each time."""
    compile_for(processor, monkeypatch, chained)
    steps = 128 // (1 << bits) + 2
    rng = np.random.default_rng(bits)
    x, y = rng.integers(0, 256, (steps, 40, 4), np.uint8), rng.integers(-128, 128, (steps, 40, 4), np.int8)
    x[:, :8], y[:, :4], y[:, 4:8] = 255, -128, 127
    z = rng.integers(-9, 9, 40, np.int32)
    want = z + ((x & (1 << bits) - 1).astype(int) * y).sum((0, 2))
    words = x.view(np.uint32)[:, :, 0], y.view(np.int32)[:, :, 0]
    chained(*words, z, BITS=bits, STEPS=steps)
    np.testing.assert_array_equal(z, want)
    code = assembly(processor, chained, *words, z, BITS=bits, STEPS=steps)
    each = ((1 << 15) - 1) // (2 * 128 * ((1 << bits) - 1))
    assert code.count("vpmaddwd") * steps == code.count("vpmaddubsw") * -(-steps // each) > 0


@pytest.mark.skipif(not HOST.triple.startswith("x86_64"), reason="looks at x86 instructions")
def test_words_of_look_ups_go_through_one_instruction() -> None:
    """Look-ups in a table of 64 bytes: a byte shuffle for 64 bytes, nothing from memory one by one."""
    lines = assembly("newest", looked_up, np.zeros(64, np.int8), np.zeros(64, np.uint32), np.zeros(64, np.int32))
    assert 0 < lines.count("vpermb") <= lines.count("vpdpbusd") and "gather" not in lines


@tile.kernel
def looked_up(table: tile.Tensor[tile.i8, "64"], words: tile.Tensor[tile.u32, "64"], y: tile.Out[tile.i32, "64"]):
    found = tile.lookup4(tile.load(table, (0,), (64,)), tile.load(words, (0,), (64,)))
    tile.store(y, (0,), tile.dot4(tile.full((64,), 0x01010101, tile.u32), found, tile.zeros((64,), tile.i32)))


@tile.kernel
def pairs(a: tile.Tensor[tile.u32, "N"], b: tile.Tensor[tile.u32, "N"], c: tile.InOut[tile.f32, "N"]):
    tile.store(c, 0, tile.dot2(tile.load(a, 0, 64), tile.load(b, 0, 64), tile.load(c, 0, 64)))


@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_words_are_two_numbers(target: str) -> None:
    """Integers so small that sums are exact."""
    a, b = np.random.default_rng(0).integers(-8, 9, (2, 50, 2))
    c = np.arange(50, dtype=np.float32)
    with tile.target(target):
        pairs(*(x.astype(ml_dtypes.bfloat16).view(np.uint32)[:, 0] for x in (a, b)), c)
    np.testing.assert_array_equal(c, np.arange(50) + (a * b).sum(1))


def test_every_pair_has_an_instruction_that_takes_its_numbers() -> None:
    """Of all pairs of types in the table: integers are exact or wrap as the sum does, floats keep their numbers."""
    rows = {}
    for features in (frozenset[str](), frozenset({"avx2"}), frozenset({"avx2", "vnni", "bf16"})):
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


@pytest.mark.parametrize(("operands", "sums"), [((0, 256), (0, 256)), ((120, 134), (110, 145)), ((50, 78), (0, 32)),
                                                ((0, 130), (0, 4)), ((180, 256), (230, 256))])
def test_products_of_bf16_are_rounded_as_their_meaning_says(operands: tuple[int, int], sums: tuple[int, int],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with biased exponents from these ranges: all, ordinary ones, products and sums below the smallest
    normal number, subnormal operands, overflow and what is not finite."""
    compile_for("host" if "bf16" in HOST.features else "newest", monkeypatch)
    rng = np.random.default_rng(0)

    def numbers(bits: int, exponents: tuple[int, int], *shape: int) -> np.ndarray:
        sign, rest = (rng.integers(0, 1 << b, shape) for b in (1, bits))
        return sign << bits + 8 | rng.integers(*exponents, shape) << bits | rest
    a, b = numbers(7, operands, 2, 1 << 14, 2).astype(np.uint16)
    c, y = numbers(23, sums, 1 << 14).astype(np.uint32).view(np.float32), np.zeros(1 << 14, np.float32)
    group = DotGroups([Value(TileType((n,), dtype(name))) for n, name in ((16, "f32"), (32, "bf16"), (32, "bf16"))])
    with np.errstate(all="ignore"):
        want = group.eval(None, c, a, b)
    fn = parse(tiles("pairs", "%r = dot2 %a, %b, %c : f32[16384]", {
        "a": "u32[16384]", "b": "u32[16384]", "c": "f32[16384]"}, {"r": "f32[16384]"}))
    native(fn)([a.view(np.uint32)[:, 0], b.view(np.uint32)[:, 0], c, y])
    assert same_bits(want, y, dtype("f32")).all()


@pytest.mark.usefixtures("target")
def test_bounds_know_what_products_of_bf16_leave_out() -> None:
    """2^-130 * 2^127 is 0.125, or 0 where numbers below 2^-126 count as zero: the bound allows for both."""
    fn = parse(tiles("small", "%r = dot %a, %b {dtype=f32} : f32[1, 1]", {"a": "bf16[1, 2]", "b": "bf16[2, 1]"},
                     {"r": "f32[1, 1]"}))
    args = [codec.encode(np.array(x), dtype("bf16")) for x in ([[2.0 ** -130, 1]], [[2.0 ** 127], [2.0 ** -120]])]
    args.append(np.zeros((1, 1), np.float32))
    samples = [s[-1] for s in islice(noise(fn, args, np.random.default_rng(0)), 6)]
    exact = np.full((1, 1), 0.125 + 2.0 ** -120, np.float32)
    native(fn)(args)
    for got in (args[-1], np.full((1, 1), 2.0 ** -120, np.float32), exact):
        assert explained(exact, got, samples, dtype("f32")).all()
    assert not explained(exact, exact + 16, samples, dtype("f32")).any()


PARTNERS = [dtype(n) for n in "i1 u3 s2 ternary i8 u8 i16 i32 u33 i64 f4e2m1 e8m0 f8e5m2 f16 bf16 f32 f64".split()]


@pytest.mark.parametrize(("step", "k"), [(1, 8), (5, 5)])
def test_classes_of_operands(step: int, k: int) -> None:
    """Every class of types as left and as right operand, in groups along k and not."""
    pairs = list(zip(PARTNERS, [*PARTNERS[step:], *PARTNERS[:step]], strict=True))
    inputs = {f"a{i}": f"{a}[3, {k}]" for i, (a, _) in enumerate(pairs)} | {
        f"b{i}": f"{b}[{k}, 4]" for i, (_, b) in enumerate(pairs)}
    accs = [dot_dtype(a, b) for a, b in pairs]
    body = "\n".join(f"%r{i} = dot %a{i}, %b{i} {{dtype={acc}}} : {acc}[3, 4]" for i, acc in enumerate(accs))
    fn = parse(tiles("dots", body, inputs, {f"r{i}": f"{acc}[3, 4]" for i, acc in enumerate(accs)}))
    assert difference(fn, native(fn), np.random.default_rng(0), trials=2) == ""


@tile.kernel
def rows_of_a_line(x: tile.Tensor[tile.T, "A"], w: tile.Tensor[tile.f32, "B C"], y: tile.Out[tile.f32, "16 8"],
                   z: tile.Out[tile.f32, "16 8"]):
    a = tile.load(x, 0, 1024).reshape(16, 64)
    tile.store(y, (0, 0), tile.dot(a, tile.load(x, 0, 512).reshape(8, 64).T))
    tile.store(z, (0, 0), tile.dot(a, tile.load(w, (0, 0), (64, 8))))


@pytest.mark.parametrize("dt", [np.float32, np.float16])
def test_operands_may_be_reshaped(dt: type[np.floating]) -> None:
    """How far k runs was asked of a dimension that the tile had not before the reshape: an IndexError."""
    x = np.random.default_rng(0).integers(-3, 4, 1000).astype(dt)
    w = np.random.default_rng(1).integers(-3, 4, (50, 8)).astype(np.float32)
    full = np.pad(x, (0, 24)).astype(np.float32).reshape(16, 64)
    y, z = rows_of_a_line(x, w)
    assert np.array_equal(y, full @ full[:8].T) and np.array_equal(z, full[:, :50] @ w)
