"""BitNet's ternary weights: Hugging Face checkpoints, and the i2_s tensors of bitnet.cpp.

Sources: the packing of transformers' BitLinear, `quantize_i2_s` of bitnet.cpp. Codes 0, 1, 2 are -1, 0, 1.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tilelang.errors import CheckpointError
from tilelang.ir import codec
from tilelang.ir.dtypes import dtype
from tilelang.ir.packed import Packed
from tilelang.quant.formats.record import Field, Record, places
from tilelang.quant.formats.state import State, array_codes, plain, require
from tilelang.quant.nodes import leaf_of, values_of
from tilelang.quant.tensor import Parameter, QuantTensor

TERNARY = dtype("ternary")


def from_bitnet(state: Mapping[str, Any], prefix: str = "", scale: Literal["divide", "multiply"] = "divide",
                rows: int | None = None) -> QuantTensor:
    """The weight of one BitLinear.

    `prefix.weight` u8 (ceil(N / 4), K): bits 2 i and up of row r are row i * ceil(N / 4) + r; `prefix.weight_scale`
    float (1): a divisor in BitLinear, a factor in AutoBitLinear. `rows` is N where 4 does not divide it. Raises
    CheckpointError.
    """
    s = State(state, prefix)
    data = s.take("weight", ("u8",), (None, None))
    step, k = data.shape
    n = 4 * step if rows is None else rows
    if -(-n // 4) != step:
        s.fail("weight", "has the wrong shape", f"({-(-n // 4)}, K) for {n} rows", data.shape)
    codes = np.concatenate([data >> 2 * i & 3 for i in range(4)])[:n]
    if (codes == 3).any():
        s.fail("weight", "has an invalid code", "0, 1 and 2", 3)
    whole = values_of(s.take("weight_scale", ("bf16", "f16", "f32"), (1,)))
    if scale == "divide" and not (np.isfinite(whole).all() and whole.all()):
        s.fail("weight_scale", "is not a divisor", "a finite number other than 0", whole)
    return _tensor(codes, 1 / whole if scale == "divide" else whole.astype(np.float32))


def to_bitnet(q: QuantTensor, scale: Literal["divide", "multiply"] = "divide", scale_dtype: str = "bf16"
              ) -> dict[str, Any]:
    """`weight` and `weight_scale` as NumPy leaves: what `from_bitnet` reads. Needs ternary codes with one scale that
    (or the inverse of which) is a number of `scale_dtype`. Raises QuantError."""
    codes, whole = _parts(q, "BitNet")
    n, step = len(codes), -(-len(codes) // 4)
    padded = np.pad(codes, ((0, 4 * step - n), (0, 0))).reshape(4, step, -1)
    dt = dtype(scale_dtype)
    stored = codec.encode(1 / whole if scale == "divide" else whole, dt)
    value = codec.decode(stored, dt).astype(np.float64)
    exact = bool(np.all((1 / value if scale == "divide" else value) == whole))
    require(exact, "BitNet", "scale", f"{'1 / ' if scale == 'divide' else ''}a number of {dt}", whole)
    return {"weight": padded[0] | padded[1] << 2 | padded[2] << 4 | padded[3] << 6,
            "weight_scale": leaf_of(codec.to_bits(stored, dt), dt)}


def i2s_record(block: int) -> Record:
    """Quarters of a block lie in bits 6, 4, 2 and 0 of its bytes."""
    j = np.arange(block)
    return Record(block // 4, codes=Field(TERNARY, places(j % (block // 4), 6 - 2 * (j // (block // 4)), 2)))


def from_i2s(data: Any, shape: tuple[int, int], block: Literal[128, 64] = 128, name: str = "data") -> QuantTensor:
    """An i2_s tensor: N * K / 4 bytes of codes, then the scale as an f32, then padding to 32 bytes. `block` is 128
    as on x86, 64 as on ARM. Raises CheckpointError."""
    n, k = shape
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    count = n * k // 4
    if n * k % block or len(raw) not in (count + 4, count + 32):
        raise CheckpointError(f"`{name}` has the wrong number of bytes", got=f"{len(raw)} for {shape}",
                              needs=f"N * K a multiple of {block}, and N * K / 4 + 32 bytes")
    codes = i2s_record(block).unpack(raw[:count].reshape(-1, block // 4))["codes"].reshape(n, k)
    if (codes == 3).any():
        raise CheckpointError(f"`{name}` has an invalid code", needs="0, 1 and 2", got="3")
    return _tensor(codes, raw[count:count + 4].view("<f4"))


def to_i2s(q: QuantTensor, block: Literal[128, 64] = 128) -> Any:
    """The bytes `from_i2s` reads (u8), padding zero. Needs ternary codes with one f32 scale. Raises QuantError."""
    codes, whole = _parts(q, "i2_s")
    require(codes.size % block == 0, "i2_s", "codes", f"N * K a multiple of {block}", q.shape)
    stored = whole.astype("<f4")
    require(bool((stored == whole).all()), "i2_s", "scale", "an f32", whole)
    packed = i2s_record(block).pack({"codes": codes.reshape(-1, block)}).reshape(-1)
    return np.concatenate([packed, stored.view(np.uint8), np.zeros(28, np.uint8)])


def _tensor(codes: Any, whole: Any) -> QuantTensor:
    return QuantTensor(Packed.from_codes(codes, TERNARY), Parameter(whole.reshape(1, 1), codes.shape))


def _parts(q: QuantTensor, name: str) -> tuple[Any, Any]:
    """Codes (u8) and the one scale (f64, (1,))."""
    codes = array_codes(q.codes, TERNARY, q.shape, name, "codes").astype(np.uint8)
    require(q.zero is None and q.minimum is None and q.permutation is None and not q.corrections, name,
            "zero, minimum, permutation, corrections", "none", q)
    require(not (codes == 3).any(), name, "codes", "0, 1 and 2", 3)
    return codes, values_of(plain(q.scale, q.shape, name, "scale")).reshape(1)
