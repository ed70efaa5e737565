"""HQQ weights: `W = scale * (code - zero)` with zero points that are not integers; 1 to 8 bits.

Source: hqq.core (`Quantizer`, `BitPack`). The matrix is reshaped to (-1, group) with axis 1, so that groups are runs
along K, or to (group, -1) with axis 0, so that they are rows a constant distance apart. Packing stacks runs of rows:
the first run is in the highest bits of a word.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tilelang.args import is_tensor, is_torch
from tilelang.ir.dtypes import dtype
from tilelang.ir.packed import Packed
from tilelang.quant.formats.state import State, fail, plain, require
from tilelang.quant.nodes import bits_of, dtype_of, integers_of, leaf_of, to_numpy
from tilelang.quant.tensor import Parameter, QuantTensor, RowParts

PACKING = {"8bit_u8": (8, 1, "u8"), "4bit_u8": (4, 2, "u8"), "3bit_32": (3, 10, "i32"), "2bit_u8": (2, 4, "u8"),
           "1bit_u8": (1, 8, "u8")}
"""Bits of an element, elements in a word, type of the word."""
FLOATS = ("f16", "bf16", "f32")


def from_hqq(state: Mapping[str, Any], prefix: str = "") -> QuantTensor:
    """The weight of one layer, from the state dict of HQQLinear (plain values, or encoded as tensors).

    `W_q` u8, or i32 for 3 bits; `scale`, `zero` float, one for each group; `shape`, `nbits`, `group_size` (absent or
    None for whole rows), `axis`, `packing`. Raises CheckpointError.
    """
    s = State(state, prefix)
    n, k = map(int, _numbers(s, "shape", 2))
    axis, = _numbers(s, "axis", 1)
    packing = _text(s, "packing")
    if packing not in PACKING:
        s.fail("packing", "is unknown", " ".join(PACKING), packing)
    bits, per, word = PACKING[packing]
    nbits = min(bits, int(np.ceil(_numbers(s, "nbits", 1)[0]))) if packing == "8bit_u8" else bits
    whole = k if axis == 1 else n
    group = int(_numbers(s, "group_size", 1)[0]) if s.tensors.get(s.key("group_size")) is not None else whole
    if axis not in (0, 1):
        s.fail("axis", "is unknown", "0 or 1", axis)
    if group < 1 or n * k % group or axis == 0 and n % group:
        s.fail("group_size", "does not fit", f"a divisor of {'N * K' if axis else 'N'}, shape {(n, k)}", group)
    rows, columns = (n * k // group, group) if axis == 1 else (group, n * k // group)
    packed = s.take("W_q", (word,), (-(-rows // per), columns)).view(np.uint32 if word == "i32" else np.uint8)
    runs = np.concatenate([packed >> (per - 1 - i) * bits & (1 << bits) - 1 for i in range(per)])[:rows]
    if runs.max(initial=0) >= 1 << nbits:
        s.fail("W_q", "has codes that are too large", f"{nbits} bits", runs.max())
    dt, flat = dtype(f"u{nbits}"), (rows, 1) if axis == 1 else (1, columns)
    scale, zero = (s.take(field, FLOATS, flat) for field in ("scale", "zero"))
    if axis == 1:
        grid, block = ((n, k // group), (1, group)) if k % group == 0 else ((1, rows), group)
        return QuantTensor(Packed.from_codes(runs.reshape(n, k), dt), Parameter(_reshaped(scale, grid), block),
                           Parameter(_reshaped(zero, grid), block))
    # Row t * R + r of the matrix is in group r of each column: stored next to the others of its group.
    apart = n // group
    order = np.arange(n).reshape(group, apart).T.reshape(-1)
    codes = Packed.from_codes(runs.reshape(n, k)[order], dt)
    inner = QuantTensor(codes, Parameter(_reshaped(scale, (apart, k)), (group, 1)),
                        Parameter(_reshaped(zero, (apart, k)), (group, 1)))
    return QuantTensor(RowParts((inner,), order.astype(np.int32)))


def to_hqq(q: QuantTensor) -> dict[str, Any]:
    """`W_q`, `scale`, `zero` as NumPy leaves and `shape`, `nbits`, `group_size`, `axis`, `packing` as plain values:
    what `from_hqq` reads. Raises QuantError."""
    name, (n, k), axis, inner = "HQQ", q.shape, 1, q
    if isinstance(q.codes, RowParts):
        axis, inner = 0, q.codes.parts[0]
        require(len(q.codes.parts) == 1 and q.codes.rows is not None and not q.parameters(), name, "codes",
                "one part with its rows", q)
    codes = inner.codes
    packings = [p for p, (b, _, _) in PACKING.items() if isinstance(codes, Packed) and codes.dtype.kind == "uint"
                and (b == codes.dtype.bits or p == "8bit_u8" and 4 < codes.dtype.bits <= 8)]
    if not isinstance(codes, Packed) or not packings:
        fail(name, "codes", "u1 to u8", codes)
    require(all(x.minimum is None and x.permutation is None and not x.corrections for x in (q, inner)), name,
            "minimum, permutation, corrections", "none", q)
    block: Any = inner.scale.block if inner.scale is not None else None
    group = block if isinstance(block, int) else 0 if block is None else block[1] if axis == 1 else block[0]
    require(block in ([(1, group), group] if axis == 1 else [(group, 1)]) and n * k % max(group, 1) == 0, name,
            "scale", "groups of one size along K, or down N in parts", inner.scale)
    matrix = codes.codes()
    if axis == 1:
        require(block == group or k % group == 0, name, "scale", f"groups that divide K = {k}", inner.scale)
        runs, flat = matrix.reshape(-1, group), (n * k // group, 1)
    else:
        order = np.arange(n).reshape(group, -1).T.reshape(-1)
        assert isinstance(q.codes, RowParts)
        require(np.array_equal(integers_of(q.codes.rows), order), name, "codes.rows", "rows a constant distance apart",
                q.codes)
        runs = np.empty_like(matrix)
        runs[order] = matrix
        runs, flat = runs.reshape(group, -1), (1, n * k // group)
    bits, per, word = PACKING[packings[0]]
    step = -(-len(runs) // per)
    require(per == 10 or len(runs) % per == 0, name, "codes", f"{per} runs of rows of one length", len(runs))
    padded = np.pad(runs, ((0, step * per - len(runs)), (0, 0))).reshape(per, step, -1)
    packed = np.zeros(padded.shape[1:], np.uint64)
    for i in range(per):
        packed |= padded[i] << np.uint64((per - 1 - i) * bits)
    out = {"W_q": packed.astype(np.uint32).view(np.int32) if word == "i32" else packed.astype(np.uint8)}
    for field, p in (("scale", inner.scale), ("zero", inner.zero)):
        values = plain(p, block, name, field)
        require(is_tensor(values) and dtype_of(values).name in FLOATS, name, field, " ".join(FLOATS), values)
        out[field] = _reshaped(to_numpy(values), flat)
    return {**out, "shape": (n, k), "nbits": codes.dtype.bits, "group_size": group, "axis": axis,
            "packing": packings[0]}


def _reshaped(leaf: Any, shape: tuple[int, int]) -> Any:
    return leaf_of(bits_of(leaf).reshape(shape), dtype_of(leaf))


def _numbers(s: State, field: str, count: int) -> tuple[float, ...]:
    """Numbers that are plain values or a tensor."""
    value = _value(s, field)
    values = np.ravel(value) if not isinstance(value, str) else np.array([])
    if values.dtype.kind not in "iuf" or len(values) != count or not np.isfinite(values).all():
        s.fail(field, "has the wrong form", f"{count} numbers" if count > 1 else "a number", value)
    return tuple(values.tolist())


def _text(s: State, field: str) -> str:
    """Text that is a string or the numbers of its characters."""
    value = _value(s, field)
    codes = np.ravel(value)
    return "".join(chr(c & 255) for c in codes.tolist()) if codes.dtype.kind in "iu" else str(value)


def _value(s: State, field: str) -> Any:
    value = s.tensors.get(s.key(field))
    if value is None:
        s.fail(field, "is missing", "a value", "nothing")
    return np.asarray(value.tolist()) if is_torch(value) else value
