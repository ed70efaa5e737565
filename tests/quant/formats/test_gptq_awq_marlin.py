"""GPTQ, AWQ and Marlin layouts against their definitions in loops, both ways to the byte."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang.errors import CheckpointError, QuantError
from tilelang.quant import from_awq, from_gptq, from_marlin, to_awq, to_gptq, to_marlin

RNG = np.random.default_rng(0)


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name
        assert a[name].flags.c_contiguous, name


def words(columns: list[list[int]], bits: int) -> Any:
    """i32 (words, columns): each column a stream of numbers, the first in the lowest bits."""
    out = []
    for numbers in columns:
        stream = sum(int(x) << bits * i for i, x in enumerate(numbers))
        count = -(-len(numbers) * bits // 32)
        out.append([stream >> 32 * i & 0xFFFFFFFF for i in range(count)])
    return np.array(out, np.uint32).T.astype(np.uint32).view(np.int32)


def gptq(bits: int, n: int, k: int, group: int, act_order: bool, version: int) -> tuple[dict[str, Any], Any]:
    """A checkpoint and what it means."""
    groups = -(-k // group)
    q = RNG.integers(0, 1 << bits, (k, n))
    z = RNG.integers(1 if version == 1 else 0, (1 << bits) + (version == 1), (groups, n))  # v1: 2**bits is legal
    scales = RNG.standard_normal((groups, n)).astype(np.float16)
    g_idx = np.arange(k) // group
    if act_order:
        g_idx = RNG.permutation(g_idx)
    state = {"qweight": np.ascontiguousarray(words(q.T.tolist(), bits)), "scales": scales,
             "qzeros": np.ascontiguousarray(words((z - (version == 1)).tolist(), bits).T),
             "g_idx": g_idx.astype(np.int32)}
    w = [[float(scales[g_idx[i], j]) * (int(q[i, j]) - int(z[g_idx[i], j])) for i in range(k)] for j in range(n)]
    return state, np.array(w)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("n", "k", "group"), [(32, 96, 32), (64, 64, 64), (40, 72, 32)])
def test_gptq(bits: int, act_order: bool, version: int, n: int, k: int, group: int) -> None:
    state, w = gptq(bits, n, k, group, act_order, version)
    q = from_gptq({f"l.0.{name}": x for name, x in state.items()}, "l.0", version=version)
    assert q.shape == (n, k) and (q.scale.index is not None) == (act_order and k > group)
    np.testing.assert_array_equal(q.dequantize(), w)
    same(to_gptq(q, version), state)
    torch_state = {name: torch.from_numpy(x) for name, x in state.items()}
    assert from_gptq(torch_state, bits=bits, version=version) == q
    if not act_order and k % 32 == 0:
        del torch_state["g_idx"]
        assert from_gptq(torch_state, version=version) == q


def test_three_bits_straddle_words() -> None:
    """As AutoGPTQ writes them: number 10 has 2 bits in word 0 and 1 in word 1, number 21 has 1 and 2."""
    state, _ = gptq(3, 32, 32, 32, False, 2)
    c = from_gptq(state, version=2).codes.codes().astype(np.int64)
    w = state["qweight"].view(np.uint32)[:, 5]
    assert w[0] >> 30 == c[5, 10] & 3 and w[1] & 1 == c[5, 10] >> 2
    assert w[1] >> 31 == c[5, 21] & 1 and w[2] & 3 == c[5, 21] >> 1
    assert w[1] >> 1 & 7 == c[5, 11] and w[2] >> 2 & 7 == c[5, 22]


@pytest.mark.parametrize("name", ["u4", "i4", "u2", "i8"])
def test_our_quantisation_as_gptq(name: str) -> None:
    q = tile.quantize(RNG.standard_normal((32, 96)) + 0.5, name, 32, symmetric=True)
    for version in (1, 2):
        np.testing.assert_array_equal(from_gptq(to_gptq(q, version), version=version).dequantize(), q.dequantize())


GPTQ, _ = gptq(4, 32, 64, 32, True, 1)


@pytest.mark.parametrize(("message", "change"), [
    ("`m.scales` is missing", {"scales": None}), ("`m.qweight` has the wrong dtype", {"qweight": np.zeros((8, 32))}),
    ("`m.qweight` has the wrong shape", {"qweight": np.zeros((8, 31), np.int32)}),
    ("`m.qweight` has the wrong shape", {"qweight": np.zeros((7, 32), np.int32)}),
    ("`m.qzeros` has the wrong shape", {"qzeros": np.zeros((3, 4), np.int32)}),
    ("`m.g_idx` is out of range", {"g_idx": np.full(64, 2, np.int32)}),
    ("`m.g_idx` is out of range", {"g_idx": np.full(64, -1, np.int32)}),
    ("`m.g_idx` has the wrong dtype", {"g_idx": np.zeros(64, np.float32)}),
    ("`m.scales` is not a tensor", {"scales": [1.0]}),
    ("`m.scales` has the wrong shape", {"scales": np.zeros(3, np.float16)}),
])
def test_broken_gptq(message: str, change: dict[str, Any]) -> None:
    state = {f"m.{name}": x for name, x in {**GPTQ, **change}.items() if x is not None}
    with pytest.raises(CheckpointError) as error:
        from_gptq(state, "m")
    assert str(error.value).startswith(message) and "needs:" in str(error.value) and "got:" in str(error.value)


def test_zeros_that_v1_cannot_hold() -> None:
    q = tile.quantize(np.abs(RNG.standard_normal((32, 64))), "u4", 32)  # nothing below 0: the zero is 0
    with pytest.raises(QuantError, match="`zero` differs cannot be written as GPTQ v1"):
        to_gptq(q, 1)
    np.testing.assert_array_equal(from_gptq(to_gptq(q, 2), version=2).dequantize(), q.dequantize())


def awq(n: int, k: int, group: int) -> tuple[dict[str, Any], Any]:
    q, z = RNG.integers(0, 16, (k, n)), RNG.integers(0, 16, (k // group, n))
    scales = RNG.standard_normal((k // group, n)).astype(np.float16)

    def pack(codes: Any) -> Any:
        out = np.zeros((len(codes), n // 8), np.uint32)
        for row in range(len(codes)):
            for word in range(n // 8):
                for i, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                    out[row, word] |= np.uint32(int(codes[row, 8 * word + column]) << 4 * i)
        return out.view(np.int32)

    w = [[float(scales[i // group, j]) * (int(q[i, j]) - int(z[i // group, j])) for i in range(k)] for j in range(n)]
    return {"qweight": pack(q), "qzeros": pack(z), "scales": scales}, np.array(w)


@pytest.mark.parametrize(("n", "k", "group"), [(8, 32, 32), (24, 128, 32), (32, 96, 96)])
def test_awq(n: int, k: int, group: int) -> None:
    state, w = awq(n, k, group)
    q = from_awq({f"a.{name}": torch.from_numpy(x) for name, x in state.items()}, "a")
    np.testing.assert_array_equal(q.dequantize(), w)
    same(to_awq(q), state)


def test_broken_awq() -> None:
    state, _ = awq(16, 64, 32)
    for message, change in (("`qweight` has the wrong shape", {"qweight": state["qweight"][:, :1]}),
                            ("`qzeros` is missing", {"qzeros": None}),
                            ("`scales` has the wrong shape", {"qweight": state["qweight"][:63]})):
        with pytest.raises(CheckpointError, match=message):
            from_awq({k: v for k, v in {**state, **change}.items() if v is not None})
    for q in (tile.quantize(np.ones((8, 64)), "u3", 32), tile.quantize(np.ones((7, 64)), "u4", 32),
              tile.quantize(np.ones((8, 64)), "u4", 48), tile.quantize(np.ones((8, 64)), "u4", 32, scale_dtype="f32")):
        with pytest.raises(QuantError, match="cannot be written as AWQ"):
            to_awq(q)


def marlin_loops(codes: Any, bits: int) -> Any:
    """i32 (K / 16, N * bits / 2) of codes (K, N), as marlin.layer packs them."""
    interleave = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}[bits]
    order: list[int] = []
    for i in range(32):
        one = []
        for block in (0, 1):
            for row in (2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1):
                one.append(16 * row + i // 4 + 8 * block)
        for j in range(4):
            order += [x + 256 * j for x in one]
    per, (k, n) = len(interleave), codes.shape
    order = [order[at - at % per + interleave[at % per]] for at in range(1024)]
    out = np.zeros((k // 16, n * bits // 2), np.uint32)
    for tile_row in range(k // 16):
        line = [codes[16 * tile_row + r, 16 * t + c] for t in range(n // 16) for r in range(16) for c in range(16)]
        line = [line[at - at % 1024 + order[at % 1024]] for at in range(len(line))]
        for at, code in enumerate(line):
            out[tile_row, at // (32 // bits)] |= np.uint32(int(code) << bits * (at % (32 // bits)))
    return out.view(np.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("zeros", [False, True])
def test_marlin(bits: int, group: int, zeros: bool) -> None:
    n, k = 128, 64
    groups = k // group
    q = RNG.integers(0, 1 << bits, (k, n))
    z = RNG.integers(0, 1 << bits, (groups, n)) if zeros else np.full((groups, n), 1 << bits - 1)
    scales = RNG.standard_normal((groups, n)).astype(np.float16)
    grouped = [i + 8 * j for i in range(8) for j in range(8)]
    single = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    order = grouped if group < k else single
    state = {"B": marlin_loops(q, bits), "s": scales.reshape(-1, len(order))[:, order].reshape(groups, n)}
    if zeros:
        interleave = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}[bits]
        moved = z.reshape(-1, 64)[:, grouped].reshape(-1, len(interleave))[:, interleave].reshape(groups, n)
        state["qzeros"] = np.ascontiguousarray(words(moved.tolist(), bits).T)
    got = from_marlin({f"x.{name}": torch.from_numpy(x) for name, x in state.items()}, "x")
    rows = np.arange(k) // group
    np.testing.assert_array_equal(got.dequantize(), (scales.astype(float)[rows] * (q - z[rows])).T)
    same(to_marlin(got), state)


def test_one_weight_in_three_layouts() -> None:
    q = tile.quantize(RNG.standard_normal((64, 128)), "u4", 32)
    for there, back in ((to_awq, from_awq), (to_marlin, from_marlin)):
        np.testing.assert_array_equal(back(there(q)).dequantize(), q.dequantize())


def test_broken_marlin() -> None:
    state = to_marlin(tile.quantize(RNG.standard_normal((64, 64)), "i4", 32))
    for message, change in (("`B` has the wrong shape", {"B": state["B"][:, :5]}), ("`s` is missing", {"s": None}),
                            ("`s` has the wrong dtype", {"s": state["s"].astype(np.float32)}),
                            ("`s` has the wrong shape", {"B": state["B"][:3]})):
        with pytest.raises(CheckpointError, match=message):
            from_marlin({k: v for k, v in {**state, **change}.items() if v is not None})
    for q in (tile.quantize(np.ones((64, 64)), "u3", 32), tile.quantize(np.ones((32, 64)), "u4", 32),
              tile.quantize(np.ones((64, 40)), "u4", 20)):
        with pytest.raises(QuantError, match="cannot be written as Marlin"):
            to_marlin(q)


@pytest.mark.parametrize(("read", "write", "field"), [(from_gptq, to_gptq, "scales"), (from_awq, to_awq, "scales"),
                                                      (from_marlin, to_marlin, "s")])
def test_scales_in_bf16(read: Any, write: Any, field: str) -> None:
    state = {name: torch.from_numpy(x) for name, x in write(tile.quantize(RNG.standard_normal((64, 128)), "u4", 32,
                                                                          True)).items()}
    state[field] = state[field].bfloat16()
    q = read(state)
    assert q.scale.values.dtype.name == "bf16"
    back = write(q)
    assert back[field].buffer.tobytes() == state[field].view(torch.uint8).numpy().tobytes()
    assert all(back[name].tobytes() == x.numpy().tobytes() for name, x in state.items() if name != field)
