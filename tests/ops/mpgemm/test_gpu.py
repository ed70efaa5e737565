"""Products with quantised weights by the text emitted for GPUs, against the f64 meaning of the weight."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.ops.mpgemm.test_api import named, weight
from tilelang import ops
from tilelang.errors import TargetError
from tilelang.ir import codec
from tilelang.ir.pairs import pairs
from tilelang.ops.mpgemm.gpu import product_kernel, tiles
from tilelang.quant import Parameter, QuantTensor

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


@pytest.mark.parametrize("target", TARGETS)
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


@pytest.mark.parametrize("target", [*TARGETS, "cuda:sm_75", "cuda:sm_90a", "hip:gfx90a"])
@pytest.mark.parametrize("name", [*(f"u{b}" for b in range(1, 9)), "f4e2m1", "f7e3m3"])
def test_words_hold_every_code_where_its_thread_reads_it(target: str, name: str) -> None:
    rng = np.random.default_rng(0)
    w = weight(rng, name, 70, 300, 64)
    made = tiles(w, target)
    blocks, order, codes = made.blocks, pairs(made.dtype), w.codes.codes()
    assert blocks.bk == 64 and blocks.layout.shape == (blocks.bk, blocks.bn)
    held = order.unpack(made.words[:, :, blocks.source.table()[..., 0]])  # [K blocks, N blocks, thread, number]
    at = blocks.layout.table()
    for kb, nb in np.ndindex(held.shape[:2]):
        k, n = at[..., 0] + kb * blocks.bk, at[..., 1] + nb * blocks.bn
        inside = (k < 300) & (n < 70)
        np.testing.assert_array_equal(held[kb, nb][inside], codes[n[inside], k[inside]])
    assert blocks.layout.local_size * made.dtype.bits % 128 or blocks.source.contiguous(0) == 4  # 16 bytes


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_weights_go_into_products_as_they_lie(target: str, zeros: bool) -> None:
    """No arithmetic on numbers before the product, no exchange between threads, 16 bytes at a time."""
    w = tiles(weight(np.random.default_rng(0), "u4", 256, 256, 128, zeros), target)
    b = w.blocks
    code = product_kernel.lower(np.zeros((16, 256), np.float16), w.words, w.scale, np.zeros((16, 256), np.float32),
                                DTYPE=w.dtype, SOURCE=b.source, LAYOUT=b.layout, BM=16, SIZE=b.size, GROUP=w.group,
                                STAGES=3, shift=w.shift, sums=np.zeros((2, 16), np.float32) if zeros else None,
                                target=target)
    names = [op.name for op in code.thread.walk()]
    assert "fma_halves" not in names and "shuffle" not in names
    product = next(op for op in code.thread.walk() if op.name == "mma")
    assert target.startswith("hip") or product.operands[2].dtype.name == "u32"
    words = {code.thread.params[1], *(op.result for op in code.thread.walk() if op.name == "window"
                                      and op.operands[0] is code.thread.params[1])}
    loads = [op for op in code.thread.walk() if op.name in ("ld", "st_async") and words & set(op.operands)]
    assert loads and {op.attrs["lanes"] for op in loads} == {4}


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
