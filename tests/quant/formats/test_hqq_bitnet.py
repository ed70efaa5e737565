"""HQQ and BitNet against their definitions in loops."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang.errors import CheckpointError, QuantError
from tilelang.quant import from_bitnet, from_hqq, from_i2s, to_bitnet, to_hqq, to_i2s
from tilelang.quant.formats.hqq import PACKING

RNG = np.random.default_rng(0)


def hqq(packing: str, n: int, k: int, group: int, axis: int) -> tuple[dict[str, Any], Any]:
    """A layer's state and what it means."""
    bits, per, word = PACKING[packing]
    rows, columns = (n * k // group, group) if axis == 1 else (group, n * k // group)
    q = RNG.integers(0, 1 << bits, (rows, columns))
    flat = (rows, 1) if axis == 1 else (1, columns)
    scale, zero = (RNG.standard_normal(flat).astype(np.float16) for _ in range(2))
    step = -(-rows // per)
    packed = np.zeros((step, columns), np.int64)
    for r in range(rows):
        for c in range(columns):
            packed[r % step, c] |= int(q[r, c]) << bits * (per - 1 - r // step)
    state = {"W_q": packed.astype(np.int32 if word == "i32" else np.uint8), "scale": scale, "zero": zero,
             "shape": torch.Size((n, k)), "nbits": bits, "group_size": group, "axis": axis, "packing": packing}
    return state, ((q - zero.astype(float)) * scale.astype(float)).reshape(n, k)


@pytest.mark.parametrize("packing", PACKING)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("n", "k", "group"), [(16, 32, 16), (32, 48, 32), (8, 24, 8)])
def test_hqq(packing: str, axis: int, n: int, k: int, group: int) -> None:
    state, w = hqq(packing, n, k, group, axis)
    q = from_hqq(state)
    np.testing.assert_array_equal(q.dequantize(), w)
    back = to_hqq(q)
    assert sorted(back) == sorted(state)
    for name, want in state.items():
        if isinstance(want, np.ndarray):
            assert back[name].dtype == want.dtype and back[name].tobytes() == want.tobytes(), name
        else:
            assert back[name] == want, name
    encoded = {  # as safetensors files hold it
        "l.shape": torch.tensor([n, k]), "l.packing": torch.tensor([ord(c) for c in packing], dtype=torch.uint8),
        **{f"l.{name}": torch.tensor(state[name], dtype=torch.int32) for name in ("nbits", "group_size", "axis")},
        **{f"l.{name}": torch.from_numpy(state[name]) for name in ("W_q", "scale", "zero")}}
    assert from_hqq(encoded, "l") == q


@pytest.mark.parametrize(("message", "change"), [
    ("`l.W_q` is missing", {"W_q": None}), ("`l.W_q` has the wrong shape", {"W_q": np.zeros((15, 16), np.uint8)}),
    ("`l.W_q` has the wrong dtype", {"W_q": np.zeros((16, 16), np.int32)}),
    ("`l.zero` has the wrong shape", {"zero": np.zeros((31, 1), np.float16)}),
    ("`l.packing` is unknown", {"packing": "5bit_u8"}), ("`l.axis` is unknown", {"axis": 2}),
    ("`l.shape` has the wrong form", {"shape": 3}), ("`l.shape` is missing", {"shape": None}),
    ("`l.group_size` does not fit", {"group_size": 7}),
    ("`l.nbits` has the wrong form", {"packing": "8bit_u8", "nbits": "a"}),
    ("`l.W_q` has codes that are too large", {"packing": "8bit_u8", "nbits": 5,
                                              "W_q": np.full((32, 16), 32, np.uint8)}),
])
def test_broken_hqq(message: str, change: dict[str, Any]) -> None:
    state, _ = hqq("4bit_u8", 16, 32, 16, 1)
    with pytest.raises(CheckpointError) as error:
        from_hqq({f"l.{name}": x for name, x in {**state, **change}.items() if x is not None}, "l")
    assert str(error.value).startswith(message) and "needs:" in str(error.value)


def test_what_hqq_cannot_hold() -> None:
    w = RNG.standard_normal((7, 48))
    for q in (tile.quantize(w, "i4", 16), tile.quantize(w, "u4", 16), tile.quantize(w, "u4", 20)):
        with pytest.raises(QuantError, match="cannot be written as HQQ"):
            to_hqq(q)


def test_bitnet() -> None:
    """The example in transformers' documentation of `unpack_weights`."""
    data = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    want = [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]]
    state = {"m.weight": torch.tensor(data), "m.weight_scale": torch.tensor([1.4], dtype=torch.bfloat16)}
    for scale in ("divide", "multiply"):
        q = from_bitnet(state, "m", scale)
        step = float(state["m.weight_scale"])
        np.testing.assert_array_equal(q.dequantize(), np.array(want) * (1 / step if scale == "divide" else step))
        back = to_bitnet(q, scale)
        assert back["weight"].tobytes() == data.tobytes()
        assert back["weight_scale"].buffer.tobytes() == state["m.weight_scale"].view(torch.uint8).numpy().tobytes()
    q = from_bitnet({"weight": data & 0x3F, "weight_scale": np.ones(1, np.float32)}, rows=6)
    assert q.shape == (6, 2) and to_bitnet(q)["weight"].tobytes() == (data & 0x3F).tobytes()


@pytest.mark.parametrize("block", [128, 64])
def test_i2s(block: Any) -> None:
    n, k = 4, 96
    ternary = RNG.integers(0, 3, n * k)
    data = np.zeros(n * k // 4 + 32, np.uint8)
    quarter = block // 4
    for i in range(n * k // block):
        for j in range(block):
            data[i * quarter + j % quarter] |= int(ternary[i * block + j]) << (6 - 2 * (j // quarter))
    data[n * k // 4:n * k // 4 + 4] = np.frombuffer(np.float32(0.37).tobytes(), np.uint8)
    q = from_i2s(data, (n, k), block)
    np.testing.assert_array_equal(q.dequantize(), (ternary.reshape(n, k) - 1) * float(np.float32(0.37)))
    assert to_i2s(q, block).tobytes() == data.tobytes()


def test_broken_bitnet() -> None:
    ones = {"weight": np.ones((2, 8), np.uint8), "weight_scale": np.ones(1, np.float32)}
    threes = np.full((2, 8), 255, np.uint8)
    for message, read in (
            ("`weight` has an invalid code", lambda: from_bitnet({**ones, "weight": threes})),
            ("`weight_scale` is not a divisor", lambda: from_bitnet({**ones, "weight_scale": np.zeros(1, "f4")})),
            ("`weight` has the wrong shape", lambda: from_bitnet(ones, rows=9)),
            ("`weight` has the wrong dtype", lambda: from_bitnet({**ones, "weight": np.ones((2, 8), np.int8)})),
            ("`w` has the wrong number of bytes", lambda: from_i2s(np.zeros(63, np.uint8), (1, 128), 128, "w")),
            ("`w` has an invalid code", lambda: from_i2s(np.full(64, 255, np.uint8), (1, 128), 128, "w"))):
        with pytest.raises(CheckpointError) as error:
            read()
        assert str(error.value).startswith(message) and "needs:" in str(error.value)


def test_what_bitnet_cannot_hold() -> None:
    w = RNG.standard_normal((4, 128)).astype(np.float32)
    whole = tile.quantize(w, "ternary", (4, 128), scale_dtype="f32")
    assert from_bitnet(to_bitnet(whole, "multiply", "f32"), "", "multiply") == whole and from_i2s(
        to_i2s(whole), (4, 128)) == whole
    for q in (tile.quantize(w, "u2", (4, 128)), tile.quantize(w, "ternary", 128), whole):
        with pytest.raises(QuantError, match="cannot be written as BitNet"):
            to_bitnet(q, "multiply", "bf16")
