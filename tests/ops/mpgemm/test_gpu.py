"""Products with quantised weights by the text emitted for GPUs, against the f64 meaning of the weight."""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from benchmarks import sass
from benchmarks.static_weights import made_on_the_way, nvidia
from tests.ops.mpgemm.test_api import named, quantised, weight
from tilelang import ops
from tilelang.args import empty_like
from tilelang.backends.cuda import nvrtc
from tilelang.errors import TargetError
from tilelang.ir import codec
from tilelang.ir.pairs import pairs
from tilelang.ops.mpgemm.gpu import below, product, product_kernel, tiles
from tilelang.ops.mpgemm.gpu_plan import GpuPlan
from tilelang.quant import LowRank, Parameter, QuantTensor, Sparse

TARGETS = ("cuda:sm_80", "hip:gfx942")
NF = tile.codebook(4, [float(v) ** 3 / 512 for v in range(-8, 8)])  # f16 has these numbers


def bound(x: Any, w: QuantTensor) -> Any:
    """What the f32 roundings of a product can amount to: each column passes through at most K + 16 of them, at the
    size of its part before zeros are taken off; scale and shift were rounded before."""
    (_, k), values = w.shape, codec.values_of(w.codes.dtype)
    size = np.abs(values[np.isfinite(values)]).max() + (0.0 if w.zero is None else abs(w.zero.expand(w.shape)))
    least = values.min() if w.codes.dtype.kind != "float" else 0.0
    size = (size + abs(least)) * abs(w.scale.expand(w.shape)) + \
        (0.0 if w.minimum is None else abs(w.minimum.expand(w.shape)))
    return 2 * (k + 16) * 2.0 ** -24 * (np.abs(np.asarray(x, np.float64)) @ size.T)


def check(target: str, x: Any, w: QuantTensor, **more: Any) -> Any:
    with tile.target(f"emulate:{target}"):
        y = ops.mpgemm(x, w, out_dtype="f32", **more)
    want = x.astype(np.float64) @ w.dequantize().T
    bias = more.get("bias")
    want = want if bias is None else want + bias.astype(np.float64)
    more_bound = 0.0 if bias is None else np.abs(bias) * 2.0 ** -23
    assert (np.abs(y - want) <= bound(x, w) + more_bound).all()
    return y


@pytest.mark.parametrize("target", [*TARGETS, "cuda:sm_90a"])
@pytest.mark.parametrize("name", ["u3", "i4", "f6e3m2", NF], ids=lambda n: getattr(n, "name", n)[:9])
def test_ragged_products(target: str, name: Any) -> None:
    rng = np.random.default_rng(0)
    w = weight(rng, name, 140, 272, 128, zeros=named(name).kind == "uint")
    check(target, rng.standard_normal((17, 272)).astype(np.float16), w)


@pytest.mark.parametrize("target", TARGETS)
def test_minima_bias_small_groups_and_one_for_each_row(target: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 100)).astype(np.float16)
    check(target, x, weight(rng, "u5", 40, 100, 32, True, True), bias=rng.standard_normal(40).astype(np.float16))
    check(target, x, weight(rng, "f8e4m3", 40, 100, 100))


@pytest.mark.parametrize("target", TARGETS)
def test_activations_of_other_types(target: str) -> None:
    """f32 keeps its 24 bits, bf16 its range; quantised ones are those of a CPU."""
    rng = np.random.default_rng(0)
    w = weight(rng, "u4", 40, 272, 128, True, True)
    wide = (rng.standard_normal((3, 272)) * 2.0 ** np.array([[-60], [0], [70]])).astype(np.float32)
    check(target, wide, w)
    x = torch.from_numpy(wide).bfloat16()
    with tile.target(f"emulate:{target}"):
        y = ops.mpgemm(x, w, out_dtype="f32").numpy()
    wide = x.float().numpy()
    assert (np.abs(y - wide.astype(np.float64) @ w.dequantize().T) <= bound(wide, w)).all()
    for name, token in (("i8", True), ("i5", False), ("f8e4m3", False)):
        q, scale = quantised(wide, w, name, token)
        taken = (q * scale[..., None]).reshape(3, -1)[:, :272]
        with tile.target(f"emulate:{target}"):
            y = ops.mpgemm(wide, w, x_dtype=name, x_group="token" if token else "group")
        assert (np.abs(y - taken.astype(np.float64) @ w.dequantize().T) <= 2 * bound(taken, w)).all()


@pytest.mark.parametrize(("target", "warps"), [("cuda:sm_90a", 8), ("hip:gfx942", 4)])
def test_programs_share_steps_in_a_fixed_order(target: str, warps: int) -> None:
    """Fewer programs than blocks and more, whole blocks and parts of blocks, programs without a step."""
    rng = np.random.default_rng(0)
    w = weight(rng, "u4", 300, 640, 128)
    x, bias = rng.standard_normal((21, 640)).astype(np.float16), rng.standard_normal(300).astype(np.float32)
    found: dict[int, Any] = {}
    with tile.target(f"emulate:{target}"):
        for programs in (4, 7, 40, 7):
            y, how = np.empty((21, 300), np.float32), GpuPlan("dequant_mma", 16, warps, programs, 0.0)
            product(x, tiles(w, target), y, bias, how=how)
            np.testing.assert_array_equal(y, found.setdefault(programs, y))
            assert (np.abs(y - bias - x.astype(np.float64) @ w.dequantize().T)
                    <= bound(x, w) + np.abs(bias) * 2.0 ** -22).all(), programs


FEW = {"u3": (272, 128, True, 2, np.float16), "f6e3m2": (600, 256, False, 4, np.float32)}


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("target", ["cuda:sm_80", "hip:gfx942"])
def test_few_rows_whose_warps_have_columns_of_their_own(target: str, name: str) -> None:
    """Groups of one block and of several, ragged ends, zeros, x of f32, bias."""
    rng, (k, group, zeros, warps, kind) = np.random.default_rng(0), FEW[name]
    bias = rng.standard_normal(70).astype(np.float32)
    w, x = weight(rng, name, 70, k, group, zeros=zeros), rng.standard_normal((9, k)).astype(kind)
    with tile.target(f"emulate:{target}"):
        y, held = np.empty((9, 70), np.float32), tiles(w, target)
        product(x, held, y, bias, how=GpuPlan("dequant_gemv", held.blocks.x.shape[1], warps, 0, 0.0))
    slack = bound(x, w) + np.abs(bias) * 2.0 ** -22
    assert (np.abs(y - bias - x.astype(np.float64) @ w.dequantize().T) <= slack).all()


@pytest.mark.parametrize("target", TARGETS)
def test_corrections(target: str) -> None:
    rng = np.random.default_rng(0)
    base, values = weight(rng, "u3", 20, 64, 32), rng.standard_normal(20).astype(np.float32)
    rank = LowRank(rng.standard_normal((20, 3)).astype(np.float32), rng.standard_normal((3, 64)).astype(np.float32))
    sparse = Sparse(np.arange(21), np.arange(20) * 3, values, "replace")
    w = QuantTensor(base.codes, base.scale, corrections=(rank, sparse))
    x = rng.standard_normal((3, 64)).astype(np.float16)
    with tile.target(f"emulate:{target}"):
        y = ops.mpgemm(x, w, out_dtype="f32")
    size = np.abs(x) @ (abs(base.dequantize()) + abs(rank.a) @ abs(rank.b) + abs(w.dequantize()) + 4).T
    assert (np.abs(y - x.astype(np.float64) @ w.dequantize().T) <= bound(x, base) + 100 * 2.0 ** -24 * size).all()


@pytest.mark.parametrize("target", [*TARGETS, "cuda:sm_75", "cuda:sm_90a", "hip:gfx90a"])
@pytest.mark.parametrize("name", [*(f"u{b}" for b in range(1, 9)), "f4e2m1", "f6e2m3", "f7e3m3"])
def test_words_hold_every_code_where_its_thread_reads_it(target: str, name: str) -> None:
    rng = np.random.default_rng(0)
    w = weight(rng, name, 70, 300, 64)
    made = tiles(w, target)
    words, layout, codes = made.blocks.words, made.blocks.codes, w.codes.codes()
    order = pairs(made.dtype, made.blocks.order)
    held = order.unpack(made.words[:, :, words.table()[..., 1]])  # [K blocks, N blocks, lane, number]
    at, (bn, bk) = layout.table(), layout.shape
    assert bk == made.blocks.bk == 64
    for kb, nb in np.ndindex(held.shape[:2]):
        n, k = at[..., 0] + nb * bn, at[..., 1] + kb * bk
        inside = (k < 300) & (n < 70)
        np.testing.assert_array_equal(held[kb, nb][inside], codes[n[inside], k[inside]])
    assert layout.local_size * made.dtype.bits % 128 or words.contiguous(1) == 4  # 16 bytes


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("target", [*TARGETS, "cuda:sm_90a"])
def test_weights_go_into_products_as_they_lie(target: str, zeros: bool) -> None:
    """No arithmetic on numbers before the product, no exchange between threads, 16 bytes at a time."""
    w = tiles(weight(np.random.default_rng(0), "u4", 256, 256, 128, zeros), target)
    code = product_kernel.lower(np.zeros((16, 256), np.float16), w.words, w.scale, np.zeros((16, 256), np.float32),
                                DTYPE=w.dtype, BM=16, GROUP=w.group, STAGES=3, **below(w.blocks, 4),
                                shift=w.shift, sums=np.zeros((2, 16), np.float32) if zeros else None, target=target)
    names = [op.name for op in code.thread.walk()]
    assert "fma_halves" not in names and "shuffle" not in names and "odd_bytes" in names
    multiply = next(op for op in code.thread.walk() if op.name in ("mma", "group_mma"))
    assert (multiply.name == "group_mma") == (target == "cuda:sm_90a")
    assert target.startswith("hip") or multiply.operands[1].dtype.name == "u32"
    words = {code.thread.params[1], *(op.result for op in code.thread.walk() if op.name == "window"
                                      and op.operands[0] is code.thread.params[1])}
    loads = [op for op in code.thread.walk() if op.name in ("ld", "st_async") and words & set(op.operands)]
    assert loads and {op.attrs["lanes"] for op in loads} == {4}


def blocks_of_f8(rng: np.random.Generator, name: str, n: int, k: int) -> QuantTensor:
    """Weights with a scale for 128 x 128, as DeepSeek-V3 has them."""
    finite = np.flatnonzero(np.isfinite(codec.values_of(tile.dtype(name))))
    return QuantTensor(tile.Packed.from_codes(rng.choice(finite, (n, k)), tile.dtype(name)),
                       Parameter(rng.uniform(0.5, 2, (-(-n // 128), -(-k // 128))).astype(np.float32), (128, 128)))


@pytest.mark.parametrize(("target", "name", "m"), [("cuda:sm_90a", "f8e4m3", 21), ("cuda:sm_89", "f8e5m2", 3),
                                                   ("hip:gfx950", "f8e4m3", 21)])
def test_f8_with_scales_of_blocks(target: str, name: str, m: int) -> None:
    """1 x 128 of x, 128 x 128 of W; the emulator sums in f32."""
    rng = np.random.default_rng(0)
    w, x = blocks_of_f8(rng, name, 140, 600), rng.standard_normal((m, 600)).astype(np.float32)
    with tile.target(f"emulate:{target}"):
        y = ops.mpgemm(x, w, x_dtype=name, x_group="group", decomposition="f8_mma")
    q, scale = quantised(x, w, name, False)
    taken = (q * scale[..., None]).reshape(m, -1)[:, :600]
    assert (np.abs(y - taken.astype(np.float64) @ w.dequantize().T) <= 2 * bound(taken, w)).all()


@pytest.mark.skipif(nvrtc.find() is None or sass.find() is None, reason="NVRTC or nvdisasm is not installed")
@pytest.mark.parametrize("f8", [False, True])
def test_hopper_multiplies_weights_from_registers(f8: bool) -> None:
    """In the main loop an `HGMMA` (`QGMMA`) has A in registers; u4 takes half an instruction for each weight, f8 none;
    nothing is spilled, nothing exchanged."""
    rng, target = np.random.default_rng(0), "cuda:sm_90a"
    w = tiles(blocks_of_f8(rng, "f8e4m3", 128, 512) if f8 else weight(rng, "u4", 128, 512, 128), target, as_is=f8)
    x = empty_like(np.zeros(1), (64, 512), w.multiplied)
    code = product_kernel.lower(x, w.words, w.scale, np.zeros((64, 128), np.float32), DTYPE=w.dtype, BM=64,
                                GROUP=w.group, STAGES=3, **below(w.blocks, 4), target=target)
    assert code.report["spills"] == 0 and code.report["stack_bytes"] == 0
    loop = sass.main_loop(code.assembly, code.rendered.name)
    products = [i for i in loop if sass.opcode(i) in sass.PRODUCTS]
    name = "QGMMA.64x64x32.F32.E4M3.E4M3" if f8 else "HGMMA.64x64x16.F32"
    assert len(products) == (8 if f8 else 16)
    assert all(re.match(re.escape(name) + r" R\d+, R\d+, gdesc", i) for i in products)
    assert len(made_on_the_way([nvidia(i) for i in loop])) == (0 if f8 else 64)
    assert not {"STS", "LDSM", "SHFL"} & sass.classes(loop).keys()


def test_what_the_kernel_cannot_do_is_said() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 64)).astype(np.float16)
    with tile.target("emulate:cuda:sm_80"):
        with pytest.raises(TargetError, match="groups of 24"):
            ops.mpgemm(x, weight(rng, "u4", 16, 64, 24))
        nan = QuantTensor(tile.Packed.from_codes(np.full((16, 64), 0x7F), tile.dtype("f8e4m3")),
                          Parameter(np.ones((16, 1), np.float32), (1, 64)))
        with pytest.raises(TargetError, match="f8e4m3"):
            ops.mpgemm(x, nan)
        with pytest.raises(TargetError, match="f8 by f8"):
            ops.mpgemm(x, weight(rng, "u4", 16, 64, 32), x_dtype="f8e4m3", decomposition="f8_mma")
        with pytest.raises(TargetError, match="no product of f8e4m3"):
            ops.mpgemm(x, weight(rng, "f8e4m3", 16, 64, 32), x_dtype="f8e4m3", decomposition="f8_mma")
        with pytest.raises(TargetError, match="as f16"):
            ops.mpgemm(x, weight(rng, "f6e3m2", 16, 64, 32), x_dtype="s1")
