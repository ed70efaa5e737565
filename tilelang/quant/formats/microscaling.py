"""OCP microscaling (MXFP8, MXFP6, MXFP4, MXINT8) and NVFP4 weights.

Sources: OCP microscaling formats (MX) 1.0; the checkpoints of compressed-tensors and ModelOpt. Elements narrower than
a byte are bit streams along K, the least significant bit first: `tile.Packed` as it is.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tilelang.args import describe
from tilelang.ir import codec
from tilelang.ir.dtypes import DType
from tilelang.ir.dtypes import dtype as dtype_named
from tilelang.ir.packed import Packed
from tilelang.quant.formats.state import State, array_codes, fail, plain, require
from tilelang.quant.nodes import bits_of, leaf_of, need, on_host, values_of
from tilelang.quant.tensor import Parameter, QuantTensor

ELEMENTS = ("f4e2m1", "f6e2m3", "f6e3m2", "f8e4m3", "f8e5m2", "i8")
BLOCK = 32
E8M0, F8E4M3 = dtype_named("e8m0"), dtype_named("f8e4m3")
INT8_UNIT = 2.0**-6
"""MXINT8's elements are i8 in units of 1/64."""


def from_mx(state: Mapping[str, Any], prefix: str = "", dtype: DType | str = "f4e2m1") -> QuantTensor:
    """A weight of MX elements of one of `ELEMENTS`, blocks of 32 along K.

    `prefix.weight_packed` u8 (N, K * bits / 8) for 4 and 6 bits, `prefix.weight` (N, K) of the dtype or u8 for 8 bits;
    `prefix.weight_scale` e8m0 or u8 (N, ceil(K / 32)), 255 being NaN. Raises CheckpointError.
    """
    dt, s = _element(dtype), State(state, prefix)
    if dt.bits == 8:
        weight = s.take("weight", (dt.name, "u8"), (None, None))
        codes = Packed.from_codes(bits_of(weight), dt)
    else:
        codes = _packed(s, "weight_packed", dt)
    scale: Any = s.take("weight_scale", ("e8m0", "u8"), (codes.shape[0], -(-codes.shape[1] // BLOCK)))
    return QuantTensor(codes, _scale(Packed.from_codes(bits_of(scale), E8M0), dt))


def to_mx(q: QuantTensor) -> dict[str, Any]:
    """`weight_packed` or `weight`, and `weight_scale` (u8), as NumPy leaves: what `from_mx` reads. Raises
    QuantError."""
    dt, (n, k) = q.dtype, q.shape
    require(dt.name in ELEMENTS, "MX", "codes", " ".join(ELEMENTS), dt)
    _only_scale(q, "MX")
    scale = plain(q.scale, (1, BLOCK), "MX", "scale")
    if dt.name == "i8":
        unit = values_of(plain(scale.scale, scale.shape, "MX", "scale.scale")) if isinstance(scale, QuantTensor) else 0
        require(np.array_equal(unit, [[INT8_UNIT]]), "MXINT8", "scale", f"e8m0 codes scaled by {INT8_UNIT}", scale)
        scale = scale.codes
    codes = array_codes(scale, E8M0, (n, -(-k // BLOCK)), "MX", "scale")
    elements = bits_of(q.codes)
    if dt.bits == 8:
        return {"weight": leaf_of(elements, dt), "weight_scale": codes.astype(np.uint8)}
    return {"weight_packed": _rows(elements, dt), "weight_scale": codes.astype(np.uint8)}


def quantize_mx(w: Any, dtype: DType | str = "f4e2m1") -> QuantTensor:
    """`w` (N, K) by the conversion of the MX specification (6.3): the shared exponent is floor(log2(max |w|)) less
    that of the largest element; elements round to nearest even and saturate.

    `tilelang.quantize(w, dtype, 32, scale_dtype="e8m0")` rounds scales up instead, and saturates nothing. Raises
    QuantError.
    """
    dt, source = _element(dtype), describe("w", on_host(w), None)
    need(len(source.shape) == 2 and source.dtype.is_float, "`w` cannot be quantised", "a float matrix (N, K)",
         f"{source.dtype} {source.shape}")
    x = codec.decode(source.storage(), source.dtype).astype(np.float64)
    need(bool(np.isfinite(x).all()), "`w` cannot be quantised", "finite numbers", "infinity or NaN")
    largest = np.maximum.reduceat(np.abs(x), range(0, x.shape[1], BLOCK), axis=1)
    unit, emax = (INT8_UNIT, 0) if dt.name == "i8" else (1.0, int(np.frexp(dt.max)[1]) - 1)
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 1 - emax, -127)
    codes = np.clip(exponent + 127, 0, 254)
    steps = np.ldexp(unit, codes - 127).repeat(BLOCK, 1)[:, :x.shape[1]]
    elements = np.clip(np.rint(x / steps), dt.min, dt.max) if dt.name == "i8" else x / steps
    stored = codec.encode(np.clip(elements, dt.min, dt.max), dt)
    return QuantTensor(Packed.from_codes(codec.to_bits(stored, dt), dt), _scale(Packed.from_codes(codes, E8M0), dt))


def from_nvfp4(state: Mapping[str, Any], prefix: str = "") -> QuantTensor:
    """A weight of f4e2m1 with f8e4m3 scales of 16 along K, and one f32 for the tensor.

    ModelOpt's keys: `weight` u8 (N, K / 2), `weight_scale` f8e4m3 or u8 (N, K / 16), `weight_scale_2` f32 (a factor);
    those of compressed-tensors: `weight_packed`, `weight_scale`, `weight_global_scale` (a divisor). Raises
    CheckpointError.
    """
    s = State(state, prefix)
    divide = "weight_packed" in s
    codes = _packed(s, "weight_packed" if divide else "weight", dtype_named("f4e2m1"))
    n, k = codes.shape
    scale = Packed.from_codes(bits_of(s.take("weight_scale", ("f8e4m3", "u8"), (n, -(-k // 16)))), F8E4M3)
    field = "weight_global_scale" if divide else "weight_scale_2"
    one = s.tensors.get(s.key(field))
    whole = s.take(field, ("f32",), (1,) * len(getattr(one, "shape", ()))).reshape(1, 1)
    if divide and not (np.isfinite(whole).all() and whole.all()):
        s.fail(field, "is not a divisor", "a finite number other than 0", whole)
    whole = 1 / whole.astype(np.float64) if divide else whole
    return QuantTensor(codes, Parameter(QuantTensor(scale, Parameter(whole, (n, scale.shape[1]))), (1, 16)))


def to_nvfp4(q: QuantTensor, layout: Literal["modelopt", "compressed-tensors"] = "modelopt") -> dict[str, Any]:
    """The tensors of one of the two layouts `from_nvfp4` reads, as NumPy leaves.

    Needs what `tilelang.quantize(w, "f4e2m1", 16, scale_dtype="f8e4m3")` makes. The layout of compressed-tensors has
    room only for scales that are 1 / an f32. Raises QuantError.
    """
    name, (n, k) = "NVFP4", q.shape
    require(layout in ("modelopt", "compressed-tensors"), name, "layout", "modelopt or compressed-tensors", layout)
    _only_scale(q, name)
    elements = array_codes(q.codes, dtype_named("f4e2m1"), (n, k), name, "codes")
    inner = plain(q.scale, (1, 16), name, "scale")
    if not isinstance(inner, QuantTensor):
        fail(name, "scale", "a QuantTensor of f8e4m3", inner)
    scale = leaf_of(array_codes(inner.codes, F8E4M3, (n, -(-k // 16)), name, "scale.codes"), F8E4M3)
    whole = values_of(plain(inner.scale, inner.shape, name, "scale.scale"))
    divide = layout == "compressed-tensors"
    stored = (1 / whole if divide else whole).astype(np.float32)
    back = 1 / stored.astype(np.float64) if divide else stored
    require(bool((back == whole).all()), name, "scale.scale", "1 / an f32" if divide else "an f32", whole)
    packed = _rows(elements, dtype_named("f4e2m1"))
    if divide:
        return {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": stored.reshape(1)}
    return {"weight": packed, "weight_scale": scale, "weight_scale_2": stored.reshape(())}


def _element(dtype: DType | str) -> DType:
    dt = dtype_named(dtype) if isinstance(dtype, str) else dtype
    need(dt.name in ELEMENTS, "`dtype` is not an MX element", " ".join(ELEMENTS), dt)
    return dt


def _scale(codes: Packed, dt: DType) -> Parameter:
    if dt.name != "i8":
        return Parameter(codes, (1, BLOCK))
    unit = Parameter(np.full((1, 1), INT8_UNIT, np.float32), (codes.shape[0], codes.shape[1]))
    return Parameter(QuantTensor(codes, unit), (1, BLOCK))


def _packed(s: State, field: str, dt: DType) -> Packed:
    """A bit stream (N, K * bits / 8) of bytes."""
    data = s.take(field, ("u8",), (None, None))
    if 8 * data.shape[1] % dt.bits:
        s.fail(field, "has the wrong shape", f"rows of whole {dt}", data.shape)
    return Packed(np.ascontiguousarray(data).reshape(-1), dt, (data.shape[0], 8 * data.shape[1] // dt.bits))


def _rows(elements: Any, dt: DType) -> Any:
    """u8 (N, K * bits / 8)."""
    n, k = elements.shape
    require(k * dt.bits % 8 == 0, "bytes", "codes", "rows of whole bytes", f"K = {k} of {dt.bits} bits")
    return Packed.from_codes(elements, dt).buffer.reshape(n, -1)


def _only_scale(q: QuantTensor, name: str) -> None:
    require(q.zero is None and q.minimum is None and q.permutation is None and not q.corrections, name,
            "zero, minimum, permutation, corrections", "none", q)


