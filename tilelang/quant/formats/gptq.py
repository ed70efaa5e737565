"""GPTQ checkpoints (AutoGPTQ, GPTQModel): `W = scale * (code - zero)`, codes of 2, 3, 4 or 8 bits.

Source: the packing of AutoGPTQ's and GPTQModel's linear layers. `qweight` is a bit stream along K in i32 words,
`qzeros` one along N; `g_idx[k]` is the group of column k, in any order with activation ordering. Format v1 stores
zero - 1, and adds the 1 after unpacking without masking, so that 2**bits is a zero too; v2 stores the zero.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tilelang.ir.dtypes import dtype
from tilelang.ir.packed import Packed
from tilelang.quant.formats.state import State, from_words, require, scale_leaf, to_words, transposed, unsigned_codes
from tilelang.quant.nodes import integers_of
from tilelang.quant.tensor import Parameter, QuantTensor

BITS = (2, 3, 4, 8)


def from_gptq(state: Mapping[str, Any], prefix: str = "", bits: int | None = None, group: int | None = None,
              version: int = 1) -> QuantTensor:
    """The weight of one layer.

    `prefix.qweight` i32 (ceil(K * bits / 32), N), `prefix.qzeros` i32 (groups, ceil(N * bits / 32)), `prefix.scales`
    float (groups, N), `prefix.g_idx` integers (K), may be absent where groups are in order. `bits` and `group`
    (nominal size) follow from the shapes where possible. `version`: 1 or 2. Raises CheckpointError.
    """
    s = State(state, prefix)
    scales = s.take("scales", ("f16", "bf16", "f32"), (None, None))
    groups, n = scales.shape
    qweight = s.take("qweight", ("i32",), (None, n))
    qzeros = s.take("qzeros", ("i32",), (groups, None))
    g_idx = s.take("g_idx", ("i32", "i64"), (None,)) if "g_idx" in s else None
    if version not in (1, 2):
        s.fail("qzeros", "has an unknown convention", "version 1 or 2", version)
    choices = [b for b in (BITS if bits is None else (bits,)) if -(-n * b // 32) == qzeros.shape[1]
               and (g_idx is None or -(-len(g_idx) * b // 32) == len(qweight))]
    if len(choices) != 1 or choices[0] not in BITS:
        s.fail("qweight", "has the wrong shape", f"ceil(K * bits / 32) rows, and as many columns of qzeros as "
               f"{n} zeros of that many bits take; bits one of {BITS}", f"qweight {qweight.shape}, qzeros "
               f"{qzeros.shape}" + ("" if g_idx is None else f", K = {len(g_idx)}"), "bits=…" if choices else "")
    b = choices[0]
    k = len(qweight) * 32 // b if g_idx is None else len(g_idx)
    index = np.arange(k) // -(-k // groups) if g_idx is None else integers_of(g_idx)
    if k and not 0 <= index.min() <= index.max() < groups:
        s.fail("g_idx", "is out of range", f"groups 0 to {groups - 1}", f"{index.min()} to {index.max()}")
    size = int(np.bincount(index).max()) if group is None else group
    in_order = -(-k // size) == groups and bool((index == np.arange(k) // size).all())
    kept = None if in_order else g_idx
    zero: Any = Packed.from_codes(from_words(qzeros, b, n).T, dtype(f"u{b}"))
    if version == 1:
        zero = QuantTensor(zero, minimum=Parameter(np.ones((1, 1), np.int8), (n, groups)))
    return QuantTensor(Packed.from_codes(from_words(qweight.T, b, k), dtype(f"u{b}")),
                       Parameter(transposed(scales), (1, size), kept), Parameter(zero, (1, size), kept))


def to_gptq(q: QuantTensor, version: int = 1) -> dict[str, Any]:
    """`qweight`, `qzeros`, `scales` and `g_idx` (i32) as NumPy leaves: what `from_gptq` reads.

    Needs integer codes of 2, 3, 4 or 8 bits, float scales of groups along K, and integer zeros from 1 to 2**bits
    (version 2: 0 to 2**bits - 1). Raises QuantError.
    """
    name = f"GPTQ v{version}"
    require(version in (1, 2), name, "version", "1 or 2", version)
    codes, zeros = unsigned_codes(q, name, BITS)
    scales, bits = scale_leaf(q, name, ("f16", "bf16", "f32"), False), q.dtype.bits
    stored = zeros - (version == 1)
    require(bool(((stored >= 0) & (stored < 1 << bits)).all()), name, "zero",
            f"{int(version == 1)} to {(1 << bits) - (version == 2)}", f"{zeros.min()} to {zeros.max()}")
    assert q.scale is not None and not isinstance(q.scale.block, int)
    index = np.arange(q.shape[1]) // q.scale.block[1] if q.scale.index is None else integers_of(q.scale.index)
    return {"qweight": np.ascontiguousarray(to_words(codes, bits).T), "qzeros": to_words(stored.T, bits),
            "scales": transposed(scales), "g_idx": index.astype(np.int32)}
