"""Packed tensors: sub-byte elements as a bit stream, the least significant bit first, along the last dimension."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilelang.ir import codec
from tilelang.ir.dtypes import DType

_WHOLE = (8, 16, 32, 64)


def pack_bits(codes: Any, bits: int, row_bits: int) -> Any:
    """u8 buffer of the bit stream of codes [..., n]: each row takes `row_bits` >= n * bits, the rest is zero."""
    codes = np.asarray(codes, np.uint64)
    rows = codes.reshape(-1, codes.shape[-1]) if codes.ndim else codes.reshape(1, 1)
    if row_bits < rows.shape[1] * bits:
        raise ValueError(f"a row of {rows.shape[1]} elements of {bits} bits needs {rows.shape[1] * bits} bits, "
                         f"got row_bits={row_bits}")
    if bits in _WHOLE and row_bits % bits == 0:
        whole = np.zeros((len(rows), row_bits // bits), f"<u{bits // 8}")
        whole[:, :rows.shape[1]] = rows.astype(whole.dtype)
        return whole.view(np.uint8).reshape(-1)
    if bits <= 8 and row_bits % 8 == 0:  # eight elements are one word
        words = np.zeros((len(rows), -(-rows.shape[1] // 8) * 8), np.uint64)
        words[:, :rows.shape[1]] = rows & np.uint64((1 << bits) - 1)
        words = (words.reshape(len(rows), -1, 8) << np.arange(0, 8 * bits, bits, dtype=np.uint64)).sum(
            -1, dtype=np.uint64)
        data = words.astype("<u8").view(np.uint8).reshape(len(rows), -1, 8)[..., :bits].reshape(len(rows), -1)
        out = np.zeros((len(rows), row_bits // 8), np.uint8)
        out[:, :data.shape[1]] = data[:, :out.shape[1]]
        return out.reshape(-1)
    planes = (rows[..., None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    stream = np.zeros((rows.shape[0], row_bits), np.uint8)
    stream[:, :rows.shape[1] * bits] = planes.reshape(rows.shape[0], -1)
    return np.packbits(stream.reshape(-1), bitorder="little")


def unpack_bits(buffer: Any, bits: int, shape: Sequence[int], row_bits: int) -> Any:
    """u64 codes of a bit stream written by `pack_bits`."""
    count = math.prod(shape[:-1])
    n = shape[-1]
    buffer = np.asarray(buffer, np.uint8)
    if 8 * len(buffer) < (count - 1) * row_bits + n * bits and count and n:
        raise ValueError(f"{list(shape)} elements of {bits} bits in rows of {row_bits} bits need "
                         f"{((count - 1) * row_bits + n * bits + 7) // 8} bytes, got {len(buffer)}")
    aligned = 8 * len(buffer) >= count * row_bits
    if bits in _WHOLE and row_bits % bits == 0 and aligned:
        whole = np.ascontiguousarray(buffer[:count * row_bits // 8]).view(f"<u{bits // 8}")
        return whole.reshape(count, -1)[:, :n].astype(np.uint64).reshape(shape)
    if bits <= 8 and row_bits % 8 == 0 and aligned:
        groups, width = -(-n // 8), row_bits // 8
        data = np.zeros((count, groups, 8), np.uint8)
        rows = np.zeros((count, groups * bits), np.uint8)
        rows[:, :min(width, groups * bits)] = buffer[:count * width].reshape(count, width)[:, :groups * bits]
        data[..., :bits] = rows.reshape(count, groups, bits)
        words = data.view("<u8") >> np.arange(0, 8 * bits, bits, dtype=np.uint64)
        return (words & np.uint64((1 << bits) - 1)).reshape(count, -1)[:, :n].reshape(shape)
    stream = np.unpackbits(buffer, bitorder="little")
    at = np.arange(count)[:, None, None] * row_bits + np.arange(n)[None, :, None] * bits + np.arange(bits)
    planes = stream[at].astype(np.uint64) << np.arange(bits, dtype=np.uint64)
    return planes.sum(-1, dtype=np.uint64).reshape(shape)


class Packed:
    """A tensor of sub-byte elements: `buffer` (u8, NumPy or torch), `dtype`, `shape`, and `row_bits` per row.

    Rows need not begin on a byte: `row_bits` may be any number of at least `shape[-1] * dtype.bits`.
    """

    def __init__(self, buffer: Any, dtype: DType, shape: Sequence[int], row_bits: int | None = None) -> None:
        self.buffer, self.dtype, self.shape = buffer, dtype, tuple(shape)
        if not self.shape or min(self.shape) < 0:
            raise ValueError(f"a packed tensor has at least one dimension, and extents from 0 on, got {list(shape)}")
        whole = buffer.flags.c_contiguous if isinstance(buffer, np.ndarray) else buffer.is_contiguous()
        if not whole or len(buffer.shape) != 1 or str(buffer.dtype).removeprefix("torch.") != "uint8":
            raise ValueError("the buffer of a packed tensor is u8 in one dimension, one byte behind the other, got "
                             f"{buffer.dtype} {list(buffer.shape)}{'' if whole else ' with gaps'}: copy it")
        self.row_bits = -(-self.shape[-1] * dtype.bits // 8) * 8 if row_bits is None else row_bits
        rows = math.prod(self.shape[:-1])
        needed = (max(rows - 1, 0) * self.row_bits + self.shape[-1] * dtype.bits + 7) // 8 if rows else 0
        if self.row_bits < self.shape[-1] * dtype.bits or len(buffer) < needed:
            raise ValueError(f"{list(shape)} elements of {dtype} need rows of {self.shape[-1] * dtype.bits} bits and "
                             f"{needed} bytes, got rows of {self.row_bits} bits and {len(buffer)} bytes")

    @classmethod
    def pack(cls, values: Any, dtype: DType, row_bits: int | None = None) -> Packed:
        """Encodes numbers [..., n] (rounded to the nearest value of the dtype)."""
        return cls.from_codes(codec.to_bits(codec.encode(values, dtype), dtype), dtype, row_bits)

    @classmethod
    def from_codes(cls, codes: Any, dtype: DType, row_bits: int | None = None) -> Packed:
        """Packs bit patterns [..., n]: integers from 0 to 2**bits - 1. Raises ValueError for others."""
        codes = np.asarray(codes)
        if codes.size and (codes.dtype.kind not in "iub" or codes.min() < 0 or int(codes.max()) >> dtype.bits):
            raise ValueError(f"codes of {dtype} are integers from 0 to {(1 << dtype.bits) - 1}, got {codes.dtype} "
                             f"from {codes.min()} to {codes.max()}: tile.Packed.pack takes numbers")
        out = cls.empty(codes.shape, dtype, row_bits)
        if codes.size:
            out.buffer[:] = pack_bits(codes, dtype.bits, out.row_bits)
        return out

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: DType, row_bits: int | None = None) -> Packed:
        """A packed tensor of zero bits."""
        width = -(-shape[-1] * dtype.bits // 8) * 8 if row_bits is None else row_bits
        rows = math.prod(shape[:-1])
        return cls(np.zeros((rows * width + 7) // 8, np.uint8), dtype, shape, width)

    @property
    def strides(self) -> tuple[int, ...]:
        """Distance between neighbours along each dimension, in bits."""
        step = self.row_bits
        strides = [self.dtype.bits]
        for i in range(len(self.shape) - 2, -1, -1):
            strides.insert(0, step)
            step *= self.shape[i]
        return tuple(strides)

    @property
    def nbytes(self) -> int:
        return len(self.buffer)

    def codes(self) -> Any:
        """u64 bit patterns of `shape`."""
        return unpack_bits(np.asarray(self.buffer), self.dtype.bits, self.shape, self.row_bits) \
            if 0 not in self.shape else np.zeros(self.shape, np.uint64)

    def write(self, codes: Any) -> None:
        """Replaces every element by its bit pattern; padding becomes zero."""
        if 0 not in self.shape:
            data = pack_bits(codes, self.dtype.bits, self.row_bits)
            np.asarray(self.buffer)[:len(data)] = data

    def values(self) -> Any:
        """The elements as NumPy numbers (exact)."""
        return codec.decode(codec.from_bits(self.codes(), self.dtype), self.dtype)

    def __repr__(self) -> str:
        return f"Packed({self.dtype}, shape={self.shape}, row_bits={self.row_bits})"
