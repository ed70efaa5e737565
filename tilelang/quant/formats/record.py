"""How formats lay out bits, as data: for every element of a field, the places of its bits in a record of bytes.

Packing never has a meaning of its own: `unpack` of `pack` is the identity, and no bit belongs to two elements.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelang.ir.dtypes import DType, dtype

_CHUNK = 1 << 22  # bytes worked on at a time


def places(byte: Any, shift: Any, bits: int) -> Any:
    """Bit positions (elements, bits) of elements that lie in one byte (or more, from `shift` up): bit 8 * byte + i."""
    return (8 * np.asarray(byte) + np.asarray(shift))[..., None] + np.arange(bits)


@dataclass(frozen=True, eq=False)
class Field:
    """`at[i]` are the positions of element i's bits, the least significant first. Bits in `flip` are inverted: an
    offset of half the range, 2**(bits - 1), makes signed numbers of unsigned ones that way."""

    dtype: DType
    at: Any
    flip: int = 0

    @staticmethod
    def number(name: str, byte: int) -> Field:
        """One number of whole bytes."""
        return Field(dtype(name), places([byte], 0, dtype(name).bits))


class Record:
    """A record of `size` bytes with fields."""

    def __init__(self, size: int, **fields: Field) -> None:
        self.size, self.fields = size, fields
        used = np.concatenate([f.at.reshape(-1) for f in fields.values()])
        assert len(np.unique(used)) == len(used) and used.max() < 8 * size

    def unpack(self, data: Any) -> dict[str, Any]:
        """Bit patterns, (records, elements of the field) for each field, of bytes (records, size)."""
        step = max(_CHUNK // self.size, 1)
        parts = [self._unpack(data[i:i + step]) for i in range(0, max(len(data), 1), step)]
        return {name: np.concatenate([p[name] for p in parts]) for name in self.fields}

    def _unpack(self, data: Any) -> dict[str, Any]:
        stream = np.unpackbits(np.ascontiguousarray(data, np.uint8), axis=1, bitorder="little")
        out = {}
        for name, field in self.fields.items():
            kind: Any = np.uint8 if field.dtype.bits <= 8 else np.uint16 if field.dtype.bits <= 16 else np.uint32
            codes = np.zeros((len(data), len(field.at)), kind)
            for i in range(field.dtype.bits):
                codes |= stream[:, field.at[:, i]].astype(kind) << kind(i)
            out[name] = codes ^ kind(field.flip)
        return out

    def pack(self, codes: Mapping[str, Any]) -> Any:
        """Bytes (records, size) of bit patterns; bits of no field are zero."""
        count = len(next(iter(codes.values())))
        step = max(_CHUNK // self.size, 1)
        return np.concatenate([self._pack({name: c[i:i + step] for name, c in codes.items()})
                               for i in range(0, max(count, 1), step)])

    def _pack(self, codes: Mapping[str, Any]) -> Any:
        stream = np.zeros((len(next(iter(codes.values()))), 8 * self.size), np.uint8)
        for name, field in self.fields.items():
            c = np.asarray(codes[name]).astype(np.uint64) ^ np.uint64(field.flip)
            for i in range(field.dtype.bits):
                stream[:, field.at[:, i]] = (c >> np.uint64(i)) & np.uint64(1)
        return np.packbits(stream, axis=1, bitorder="little")
