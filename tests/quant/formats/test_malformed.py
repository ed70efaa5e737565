"""Whatever is wrong with a checkpoint, the error is a CheckpointError that names a tensor."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang import quant
from tilelang.errors import CheckpointError

W = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
U4 = tile.quantize(W, "u4", 32)
LAYERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gptq": (quant.from_gptq, quant.to_gptq(tile.quantize(W, "u3", 32, True))),
    "awq": (quant.from_awq, quant.to_awq(U4)), "marlin": (quant.from_marlin, quant.to_marlin(U4)),
    "mx": (quant.from_mx, quant.to_mx(quant.quantize_mx(W))),
    "nvfp4": (quant.from_nvfp4, quant.to_nvfp4(tile.quantize(W, "f4e2m1", 16, scale_dtype="f8e4m3"))),
    "bitsandbytes": (quant.from_bitsandbytes,
                     quant.to_bitsandbytes(tile.quantize(W, quant.NF4, 64, scale_dtype="f32"), "m")),
    "bitnet": (quant.from_bitnet, {"weight": np.full((16, 128), 0x15, np.uint8),
                                   "weight_scale": np.ones(1, np.float32)}),
    "hqq": (quant.from_hqq, {"W_q": np.zeros((128, 32), np.uint8), "scale": np.ones((256, 1), np.float16),
                             "zero": np.ones((256, 1), np.float16), "shape": (64, 128), "nbits": 4, "group_size": 32,
                             "axis": 1, "packing": "4bit_u8"}),
}
DAMAGE: dict[str, Callable[[Any], Any]] = {
    "absent": lambda x: None, "a string": lambda x: "gone", "complex": lambda x: np.zeros(np.shape(x), np.complex64),
    "a row less": lambda x: x[1:], "a column less": lambda x: x[:, 1:], "another dimension": lambda x: np.array([x]),
    "one dimension": lambda x: np.reshape(x, -1), "empty": lambda x: np.asarray(x)[:0],
    "wide": lambda x: np.asarray(x).astype(np.int64), "float": lambda x: np.asarray(x).astype(np.float64),
    "all ones": lambda x: np.full_like(x, -1) if np.asarray(x).dtype.kind == "i" else np.full_like(x, 255),
}


@pytest.mark.parametrize("name", LAYERS)
def test_damage_is_found_and_named(name: str) -> None:
    read, state = LAYERS[name]
    whole = read({key if key.startswith("m") else f"m.{key}": x for key, x in state.items()}, "m")
    found = 0
    for key in state:
        for kind, damage in DAMAGE.items():
            try:
                broken = damage(getattr(state[key], "buffer", state[key]))
            except (IndexError, TypeError, ValueError):
                continue  # not to be done to this field
            changed = {k if k.startswith("m") else f"m.{k}": broken if k == key else x for k, x in state.items()}
            try:
                q = read({k: x for k, x in changed.items() if x is not None}, "m")
            except CheckpointError as error:
                assert str(error).startswith("`m"), (key, kind, error)
                assert "needs:" in str(error) and "got:" in str(error), (key, kind, error)
                found += 1
            else:  # a checkpoint like any other: other numbers, or a field that may be absent or converted
                assert q.shape == whole.shape or kind in ("a row less", "a column less"), (key, kind)
    assert found >= 4 * len(state)
