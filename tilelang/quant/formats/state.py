"""Tensors of a checkpoint by name, checked; and the parts of a QuantTensor a format needs, checked."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Never

import numpy as np

from tilelang.args import is_tensor
from tilelang.errors import CheckpointError, QuantError, TileError
from tilelang.ir.dtypes import DType
from tilelang.ir.dtypes import dtype as dtype_named
from tilelang.ir.packed import Packed
from tilelang.quant.nodes import bits_of, dtype_of, to_numpy
from tilelang.quant.tensor import Parameter, QuantTensor


class State:
    """The tensors of one layer: `prefix` and a field name make the key, joined by a dot unless the prefix is empty."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def key(self, field: str) -> str:
        return f"{self.prefix}.{field}" if self.prefix else field

    def __contains__(self, field: str) -> bool:
        return self.key(field) in self.tensors

    def fail(self, field: str, what: str, needs: str, got: Any, try_: str = "") -> Never:
        raise CheckpointError(f"`{self.key(field)}` {what}", needs=needs, got=str(got), try_=try_)

    def take(self, field: str, dtypes: Sequence[str], shape: Sequence[int | None]) -> Any:
        """The tensor of that field as a NumPy leaf. `shape` has None where any extent will do."""
        if field not in self:
            near = [k for k in self.tensors if k.startswith(self.prefix)][:8]
            self.fail(field, "is missing", f"a tensor of {' or '.join(dtypes)}", f"keys {near}" if near else
                      f"no key that begins with {self.prefix!r}")
        tensor = self.tensors[self.key(field)]
        tensor = np.asarray(tensor) if isinstance(tensor, np.generic) else tensor
        if not is_tensor(tensor):
            self.fail(field, "is not a tensor", "a NumPy or torch tensor", type(tensor).__name__)
        try:
            dt = dtype_of(tensor)
        except TileError as error:
            self.fail(field, "cannot be used", f"plain memory of {' or '.join(dtypes)}", error.got)
        if dt.name not in dtypes:
            self.fail(field, "has the wrong dtype", " or ".join(dtypes), dt)
        got = tuple(tensor.shape)
        if len(got) != len(shape) or 0 in got or any(n not in (None, g) for n, g in zip(shape, got, strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            self.fail(field, "has the wrong shape", f"({wanted})", got)
        return to_numpy(tensor)


def transposed(leaf: Any) -> Any:
    """The leaf (a, b) as (b, a)."""
    if isinstance(leaf, Packed):
        return Packed.from_codes(leaf.codes().T, leaf.dtype)
    return np.ascontiguousarray(leaf.T)


def to_words(codes: Any, bits: int) -> Any:
    """Codes (r, n) as a bit stream along n in i32 words (r, ceil(n * bits / 32)), the least significant bit first."""
    width = -(-codes.shape[1] * bits // 32)
    return Packed.from_codes(codes, dtype_named(f"u{bits}"), 32 * width).buffer.view("<i4").reshape(-1, width)


def from_words(array: Any, bits: int, n: int) -> Any:
    """Codes (r, n) of words made by `to_words`."""
    data = np.ascontiguousarray(array, "<i4").view(np.uint8).reshape(-1)
    return Packed(data, dtype_named(f"u{bits}"), (len(array), n), 32 * array.shape[1]).codes()


def unsigned_codes(q: QuantTensor, name: str, bits: Sequence[int]) -> tuple[Any, Any]:
    """Codes of unsigned integers (u64, (N, K)) and zero points (i64, (N, groups)) for formats of
    `scale * (code - zero)` by groups along K. Signed codes get an offset of half their range. Raises QuantError."""
    codes, needs = q.codes, " ".join(f"u{b} i{b}" for b in bits)
    if not isinstance(codes, Packed) or codes.dtype.kind not in ("uint", "int") or codes.dtype.bits not in bits:
        fail(name, "codes", f"one of {needs}", codes)
    if q.scale is None or isinstance(q.scale.block, int) or q.scale.block[0] != 1:
        fail(name, "scale", "a Parameter with blocks (1, group)", q.scale)
    require(q.minimum is None and q.permutation is None and not q.corrections, name,
            "minimum, permutation, corrections", "none", q)
    half = 1 << codes.dtype.bits - 1 if codes.dtype.kind == "int" else 0
    zeros = np.zeros(q.scale.values.shape) if q.zero is None else q.zero.dense()
    if q.zero is not None and zeros.shape == (1, 1):
        zeros = np.broadcast_to(zeros, q.scale.values.shape)
    elif q.zero is not None:
        same = q.zero.block == q.scale.block and (q.zero.index is None) == (q.scale.index is None)
        require(same, name, "zero", f"blocks of {q.scale.block}, as the scale", q.zero.block)
    require(bool((zeros == np.rint(zeros)).all()), name, "zero", "integers", "fractions")
    return codes.codes() ^ np.uint64(half), zeros.astype(np.int64) + half


def scale_leaf(q: QuantTensor, name: str, dtypes: Sequence[str], even: bool) -> Any:
    """The scales of `unsigned_codes` as a NumPy leaf; `even`: of groups in order, all of one size."""
    scale = q.scale
    assert scale is not None and not isinstance(scale.block, int)
    if not is_tensor(scale.values) or dtype_of(scale.values).name not in dtypes:
        fail(name, "scale", f"an array of {' or '.join(dtypes)}", scale)
    require(not even or scale.index is None and q.shape[1] == scale.block[1] * scale.values.shape[1], name, "scale",
            f"groups in order that divide K = {q.shape[1]}", scale)
    return to_numpy(scale.values)


def require(ok: bool, name: str, field: str, needs: str, got: Any) -> None:
    """Raises QuantError unless `ok`: the tensor cannot be written in format `name` because of `field`."""
    if not ok:
        fail(name, field, needs, got)


def fail(name: str, field: str, needs: str, got: Any) -> Never:
    raise QuantError(f"a tensor whose `{field}` differs cannot be written as {name}", needs=needs, got=str(got))


def array_codes(source: Any, dt: DType, shape: tuple[int, ...], name: str, field: str) -> Any:
    """Bit patterns of a leaf of that dtype and shape. Raises QuantError for another."""
    require(is_tensor(source), name, field, f"an array of {dt}", type(source).__name__)
    require(dtype_of(source) is dt and tuple(source.shape) == shape, name, field, f"{dt} {shape}",
            f"{dtype_of(source)} {tuple(source.shape)}")
    return bits_of(source)


def plain(parameter: Parameter | None, block: Any, name: str, field: str) -> Any:
    """The values of a parameter with that block. Raises QuantError."""
    if parameter is None or parameter.index is not None or parameter.block != block:
        fail(name, field, f"a Parameter with block {block}", parameter)
    return parameter.values


