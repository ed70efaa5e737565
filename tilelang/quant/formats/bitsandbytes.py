"""bitsandbytes' 4-bit weights (NF4, FP4), with single or double quantisation.

Source: bitsandbytes.functional (`quantize_4bit`, `QuantState.as_dict`). Blocks of `blocksize` numbers run over the
flattened matrix, rows or not; the first of two numbers is in the high half of a byte. `absmax` is f32, or with double
quantisation `map[code] * absmax2 + offset`, in blocks of 256 of the first scales.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tilelang.ir import codec
from tilelang.ir.dtypes import DType, codebook
from tilelang.ir.dtypes import dtype as dtype_named
from tilelang.ir.packed import Packed
from tilelang.quant.formats.state import State, array_codes, fail, plain, require
from tilelang.quant.nodes import values_of
from tilelang.quant.tensor import Parameter, QuantTensor

NF4 = codebook(4, map(float, np.array([
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1], np.float32)))
"""Quantiles of the normal distribution (QLoRA, 2305.14314)."""
FP4 = codebook(4, map(float, np.array([x / 12 for x in (0, 0.0625, 8, 12, 4, 6, 2, 3)] +
                                      [-x / 12 for x in (0, 0.0625, 8, 12, 4, 6, 2, 3)], np.float32)))
"""Sign, two exponent bits and one mantissa bit, in the order of bitsandbytes, scaled to 1."""
_KIND = "quant_state.bitsandbytes__"


def from_bitsandbytes(state: Mapping[str, Any], prefix: str = "weight") -> QuantTensor:
    """The weight under the key `prefix` of a state dict.

    `prefix` u8 (ceil(N * K / 2), 1), `prefix.absmax`, `prefix.quant_map` f32 (16), the JSON in
    `prefix.quant_state.bitsandbytes__nf4` (or fp4), and with double quantisation `prefix.nested_absmax` and
    `prefix.nested_quant_map` f32 (256). Raises CheckpointError.
    """
    s = State(state, prefix)
    name = next((_KIND + kind for kind in ("nf4", "fp4") if _KIND + kind in s), _KIND + "nf4")
    meta = _meta(s, name)
    n, k = meta["shape"]
    size = meta["blocksize"]
    blocks = -(-n * k // size)
    data = State(state).take(prefix, ("u8",), (-(-n * k // 2), 1)).reshape(-1)
    codes = np.stack([data >> 4, data & 15], 1).reshape(-1)[:n * k].reshape(n, k)
    dt = codebook(4, s.take("quant_map", ("f32",), (16,)).astype(float))
    # Blocks that do not cross rows are plain blocks along K.
    grid, block = ((n, k // size), (1, size)) if k % size == 0 else ((1, blocks), size)
    if "nested_offset" not in meta:
        scale: Any = s.take("absmax", ("f32",), (blocks,)).reshape(grid)
    else:
        step = meta["nested_blocksize"]
        second = s.take("nested_absmax", ("f32",), (-(-blocks // step),)).reshape(1, -1)
        table = codebook(8, s.take("nested_quant_map", ("f32",), (256,)).astype(float))
        scale = QuantTensor(Packed.from_codes(s.take("absmax", ("u8",), (blocks,)).reshape(grid), table),
                            Parameter(second, step),
                            minimum=Parameter(np.full((1, 1), meta["nested_offset"], np.float32), grid))
    return QuantTensor(Packed.from_codes(codes, dt), Parameter(scale, block))


def _meta(s: State, name: str) -> dict[str, Any]:
    """The JSON of the quantisation state, checked."""
    raw = s.take(name, ("u8",), (None,))
    try:
        meta = json.loads(bytes(raw))
    except ValueError as error:
        s.fail(name, "is not JSON", "the state as bytes of JSON", error)
    for field in ("shape", "blocksize", *(["nested_blocksize"] if "nested_offset" in meta else [])):
        if not isinstance(meta, dict) or field not in meta:
            s.fail(name, f"lacks the field {field}", "shape and blocksize", meta)
        numbers = meta[field] if field == "shape" else [meta[field]]
        if not isinstance(numbers, list) or len(numbers) != (2 if field == "shape" else 1) \
                or not all(isinstance(x, int) and x > 0 for x in numbers):
            s.fail(name, f"has a wrong {field}", "[N, K]" if field == "shape" else "a positive integer", meta[field])
    return dict(meta)


def to_bitsandbytes(q: QuantTensor, prefix: str = "weight", dtype: str = "float16") -> dict[str, Any]:
    """The state dict `from_bitsandbytes` reads, as NumPy arrays; `dtype` is torch's name of the compute dtype.

    Needs a codebook of 4 bits (`NF4`, `FP4`) and f32 scales of blocks along the flattened matrix, themselves
    of a codebook of 8 bits where doubly quantised. Raises QuantError.
    """
    name, (n, k) = "bitsandbytes", q.shape
    codes = q.codes
    if not isinstance(codes, Packed) or codes.dtype.kind != "codebook" or codes.dtype.bits != 4:
        fail(name, "codes", "a codebook of 4 bits, as NF4", codes)
    require(q.zero is None and q.minimum is None and q.permutation is None and not q.corrections, name,
            "zero, minimum, permutation, corrections", "none", q)
    block = q.scale.block if q.scale is not None else 0
    size = block if isinstance(block, int) else block[1]
    require(block == size or block == (1, size) and k % size == 0, name, "scale", "blocks of consecutive elements",
            q.scale)
    values = plain(q.scale, block, name, "scale")
    end = codec.encode(np.zeros(n * k % 2), codes.dtype)  # half a byte left over holds a zero's code
    data = np.concatenate([codes.codes().astype(np.uint8).reshape(-1), end]).reshape(-1, 2)
    kind = "nf4" if _same(codes.dtype, NF4) else "fp4"
    meta = {"quant_type": kind, "blocksize": size, "dtype": dtype, "shape": [n, k]}
    out = {"": data[:, :1] << 4 | data[:, 1:], "quant_map": np.array(codes.dtype.table, np.float32)}
    if isinstance(values, QuantTensor):
        grid, inner = values.shape, values.codes
        if not isinstance(inner, Packed) or inner.dtype.kind != "codebook" or inner.dtype.bits != 8 \
                or values.scale is None or not isinstance(values.scale.block, int):
            fail(name, "scale", "a codebook of 8 bits with f32 scales of runs", values)
        offset = values_of(plain(values.minimum, grid, name, "scale.minimum"))
        second = plain(values.scale, values.scale.block, name, "scale.scale")
        out |= {"absmax": inner.codes().astype(np.uint8).reshape(-1), "nested_absmax": _f32(second, "scale.scale"),
                "nested_quant_map": np.array(inner.dtype.table, np.float32)}
        meta |= {"nested_blocksize": values.scale.block, "nested_dtype": "float32",
                 "nested_offset": float(offset[0, 0])}
    else:
        out["absmax"] = _f32(values, "scale")
    out[_KIND + kind] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return {f"{prefix}.{field}" if field else prefix: array for field, array in out.items()}


def _f32(values: Any, field: str) -> Any:
    codes = array_codes(values, dtype_named("f32"), tuple(values.shape), "bitsandbytes", field)
    return codes.astype("<u4").view("<f4").reshape(-1)


def _same(a: DType, b: DType) -> bool:
    return np.array_equal(np.array(a.table, np.float32), np.array(b.table, np.float32))
