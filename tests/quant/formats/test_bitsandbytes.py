"""bitsandbytes' NF4 and FP4 against bytes it wrote (0.50.2, on a CPU) and its definition in loops."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang.errors import CheckpointError, QuantError
from tilelang.ir.dtypes import codebook
from tilelang.quant import FP4, NF4, from_bitsandbytes, to_bitsandbytes

WRITTEN = {  # of torch.linspace(-1, 1, 150).reshape(3, 50)**3, compress_statistics=True
    "nf4": "000011111111222223333334444445555555566666666666777777777777777777777777777"
           "7777777777777777778888888899999aaaabbbccccdddeeeeefffbcccccdddddeeeeeeeffff",
    "fp4": "bbbbbaaaaaaaaddddddcccccccfffffeeeeeeeeeee999999999999999999999999990000000"
           "888888811111111111111116666666677774444555552222233334445555552222222233333"}
DECODED = {"nf4": [-1.0003385543823242, 0.0, 0.0, 1.0003385543823242],
           "fp4": [-1.0003385543823242, -0.005210096947848797, 0.0, 1.0003385543823242]}


def dynamic_map() -> list[float]:
    """bitsandbytes' table of 8-bit numbers: signed, 7 exponents of ten, linear in between."""
    data = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles = ((edges[:-1] + edges[1:]) / 2) * 10 ** (i - 6)
        data += middles.tolist() + (-middles).tolist()
    return sorted(data)


def checkpoint(kind: str) -> dict[str, Any]:
    meta = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": [3, 50], "nested_blocksize": 256,
            "nested_dtype": "float32", "nested_offset": 0.783317506313324}
    return {"l.weight": np.frombuffer(bytes.fromhex(WRITTEN[kind]), np.uint8).reshape(-1, 1),
            "l.weight.absmax": np.array([0xDB, 0, 0xDB], np.uint8),
            "l.weight.quant_map": np.array((NF4 if kind == "nf4" else FP4).table, np.float32),
            "l.weight.nested_absmax": np.frombuffer(bytes.fromhex("06e2dd3e"), np.float32),
            "l.weight.nested_quant_map": np.array(dynamic_map(), np.float32),
            f"l.weight.quant_state.bitsandbytes__{kind}": np.frombuffer(json.dumps(meta).encode(), np.uint8)}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_what_bitsandbytes_wrote(kind: str) -> None:
    state = checkpoint(kind)
    q = from_bitsandbytes(state, "l.weight")
    got = q.dequantize()[[0, 0, 1, 2], [0, 49, 20, 49]]
    # It computes in f32: the scale rounds twice, the product once.
    np.testing.assert_allclose(got, DECODED[kind], rtol=3 * 2.0**-24)
    back = to_bitsandbytes(q, "l.weight", "float32")
    assert sorted(back) == sorted(state)
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].tobytes() == array.tobytes(), name
        assert back[name].shape == array.shape
    assert from_bitsandbytes({name: torch.tensor(x) for name, x in state.items()}, "l.weight") == q


@pytest.mark.parametrize("shape", [(4, 64), (3, 50), (5, 33), (2, 256)])
@pytest.mark.parametrize("blocksize", [64, 128])
def test_the_definition_in_loops(shape: tuple[int, int], blocksize: int) -> None:
    rng, (n, k) = np.random.default_rng(0), shape
    count = -(-n * k // blocksize)
    data = rng.integers(0, 256, -(-n * k // 2)).astype(np.uint8)
    data[-1] = data[-1] & 0xF0 | 7 if n * k % 2 else data[-1]  # the half byte left over is a zero's code
    absmax = rng.random(count).astype(np.float32)
    meta = {"quant_type": "nf4", "blocksize": blocksize, "dtype": "bfloat16", "shape": [n, k]}
    state = {"weight": data.reshape(-1, 1), "weight.absmax": absmax,
             "weight.quant_map": np.array(NF4.table, np.float32),
             "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    q = from_bitsandbytes(state)
    for i in range(n):
        for j in range(k):
            at = i * k + j
            code = data[at // 2] >> 4 if at % 2 == 0 else data[at // 2] & 15
            assert q.dequantize()[i, j] == float(NF4.table[code]) * float(absmax[at // blocksize])
    back = to_bitsandbytes(q, dtype="bfloat16")
    assert all(back[name].tobytes() == array.tobytes() for name, array in state.items()) and len(back) == 4


def test_our_quantisation() -> None:
    q = tile.quantize(np.random.default_rng(0).standard_normal((8, 128)), NF4, 64, scale_dtype="f32")
    assert from_bitsandbytes(to_bitsandbytes(q)) == q


@pytest.mark.parametrize(("message", "change"), [
    ("`l.weight.absmax` is missing", {"absmax": None}),
    ("`l.weight.absmax` has the wrong shape", {"absmax": np.zeros(4, np.uint8)}),
    ("`l.weight.absmax` has the wrong dtype", {"absmax": np.zeros(3, np.float32)}),
    ("`l.weight` has the wrong shape", {"": np.zeros((74, 1), np.uint8)}),
    ("`l.weight.quant_state.bitsandbytes__nf4` is missing", {"quant_state.bitsandbytes__nf4": None}),
    ("`l.weight.quant_state.bitsandbytes__nf4` is not JSON",
     {"quant_state.bitsandbytes__nf4": np.frombuffer(b"{'a'", np.uint8)}),
    ("`l.weight.quant_state.bitsandbytes__nf4` lacks the field shape",
     {"quant_state.bitsandbytes__nf4": np.frombuffer(b'{"blocksize": 64}', np.uint8)}),
    ("`l.weight.quant_state.bitsandbytes__nf4` has a wrong blocksize",
     {"quant_state.bitsandbytes__nf4": np.frombuffer(b'{"shape": [3, 50], "blocksize": 0}', np.uint8)}),
])
def test_broken(message: str, change: dict[str, Any]) -> None:
    changed = {f"l.weight.{field}" if field else "l.weight": x for field, x in change.items()}
    state = {name: x for name, x in {**checkpoint("nf4"), **changed}.items() if x is not None}
    with pytest.raises(CheckpointError) as error:
        from_bitsandbytes(state, "l.weight")
    assert str(error.value).startswith(message) and "needs:" in str(error.value)


def test_what_it_cannot_hold() -> None:
    w = np.random.default_rng(0).standard_normal((8, 96))
    for q, field in ((tile.quantize(w, "u4", 32), "codes"), (tile.quantize(w, NF4, 32), "scale"),
                     (tile.quantize(w, NF4, 64, scale_dtype="f32"), "scale"),
                     (tile.quantize(w, codebook(3, range(8)), 32, scale_dtype="f32"), "codes")):
        with pytest.raises(QuantError, match=f"`{field}` differs cannot be written as bitsandbytes"):
            to_bitsandbytes(q)
