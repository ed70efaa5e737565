"""Tensors of a checkpoint by name, checked; and the parts of a QuantTensor a format needs, checked."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Never

import numpy as np

from tilelang.args import is_tensor
from tilelang.errors import CheckpointError, QuantError
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
        if not is_tensor(tensor):
            self.fail(field, "is not a tensor", "a NumPy or torch tensor", type(tensor).__name__)
        if dtype_of(tensor).name not in dtypes:
            self.fail(field, "has the wrong dtype", " or ".join(dtypes), dtype_of(tensor))
        got = tuple(tensor.shape)
        if len(got) != len(shape) or any(n is not None and n != g for n, g in zip(shape, got, strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            self.fail(field, "has the wrong shape", f"({wanted})", got)
        return to_numpy(tensor)


def flipped(leaf: Any) -> Any:
    """Codes of intN as the codes of uintN with an offset of 2**(N-1), and back: the top bit inverted."""
    return leaf ^ leaf.dtype.type(1 << leaf.dtype.itemsize * 8 - 1)


def transposed(leaf: Any) -> Any:
    """The leaf (a, b) as (b, a)."""
    if isinstance(leaf, Packed):
        return Packed.from_codes(leaf.codes().T, leaf.dtype)
    return np.ascontiguousarray(leaf.T)


def words(codes: Any, bits: int) -> Any:
    """i32 words of a bit stream along the last dimension: (r, n) codes to (r, n * bits / 32)."""
    data = Packed.from_codes(codes, _unsigned(bits)).buffer
    return data.view("<i4").reshape(codes.shape[0], -1)


def from_words(array: Any, bits: int) -> Any:
    """Codes (r, n) of i32 words (r, n * bits / 32)."""
    rows, width = array.shape
    return Packed(np.ascontiguousarray(array).view(np.uint8).reshape(-1), _unsigned(bits),
                  (rows, width * 32 // bits)).codes()


def _unsigned(bits: int) -> DType:
    return dtype_named(f"u{bits}")


def unsigned_codes(q: QuantTensor, name: str, bits: Sequence[int]) -> tuple[Any, Any]:
    """Codes of unsigned integers (u64, (N, K)) and zero points (i64, by block of the scale) for formats of
    `scale * (code - zero)`. Signed codes get an offset of half their range. Raises QuantError."""
    codes, needs = q.codes, " ".join(f"u{b} i{b}" for b in bits)
    if not isinstance(codes, Packed) or codes.dtype.kind not in ("uint", "int") or codes.dtype.bits not in bits:
        fail(name, "codes", f"one of {needs}", codes)
    if q.scale is None or isinstance(q.scale.block, int):
        fail(name, "scale", "blocks along K", q.scale)
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


