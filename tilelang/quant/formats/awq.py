"""AWQ checkpoints (AutoAWQ's GEMM layout): `W = scale * (code - zero)`, u4, groups along K.

Source: AutoAWQ's packing. An i32 word holds eight columns of N; nibble i holds column ORDER[i] of them.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tilelang.ir.dtypes import dtype
from tilelang.ir.packed import Packed
from tilelang.quant.formats.record import Field, Record, places
from tilelang.quant.formats.state import State, require, scale_leaf, transposed, unsigned_codes
from tilelang.quant.tensor import Parameter, QuantTensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
WORD = Record(4, codes=Field(dtype("u4"), places(0, 4 * np.argsort(ORDER), 4)))


def from_awq(state: Mapping[str, Any], prefix: str = "") -> QuantTensor:
    """The weight of one layer: `prefix.qweight` i32 (K, N / 8), `prefix.qzeros` i32 (groups, N / 8), `prefix.scales`
    f16 or bf16 (groups, N). Raises CheckpointError."""
    s = State(state, prefix)
    scales = s.take("scales", ("f16", "bf16"), (None, None))
    groups, n = scales.shape
    if n % 8:
        s.fail("scales", "has the wrong shape", "columns in eights", scales.shape)
    qweight = s.take("qweight", ("i32",), (None, n // 8))
    qzeros = s.take("qzeros", ("i32",), (groups, n // 8))
    k = len(qweight)
    if k % groups:
        s.fail("scales", "has the wrong shape", f"groups that divide K = {k}", scales.shape)
    block = (1, k // groups)
    return QuantTensor(_unpack(qweight, n), Parameter(transposed(scales), block), Parameter(_unpack(qzeros, n), block))


def to_awq(q: QuantTensor) -> dict[str, Any]:
    """`qweight`, `qzeros` and `scales` as NumPy leaves: what `from_awq` reads. Needs codes of 4 bits, N in eights, and
    f16 or bf16 scales of groups that divide K. Raises QuantError."""
    codes, zeros = unsigned_codes(q, "AWQ", (4,))
    scales = scale_leaf(q, "AWQ", ("f16", "bf16"), True)
    require(q.shape[0] % 8 == 0, "AWQ", "codes", "N in eights", q.shape)
    require(bool(((zeros >= 0) & (zeros < 16)).all()), "AWQ", "zero", "0 to 15", f"{zeros.min()} to {zeros.max()}")
    return {"qweight": _pack(codes), "qzeros": _pack(zeros), "scales": transposed(scales)}


def _unpack(words: Any, n: int) -> Packed:
    data = np.ascontiguousarray(words, "<i4").view(np.uint8).reshape(-1, 4)
    return Packed.from_codes(WORD.unpack(data)["codes"].reshape(-1, n).T, dtype("u4"))


def _pack(codes: Any) -> Any:
    """i32 (K, N / 8) of codes (N, K)."""
    return WORD.pack({"codes": codes.T.reshape(-1, 8)}).view("<i4").reshape(codes.shape[1], -1)
