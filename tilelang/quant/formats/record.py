"""How formats lay out bits, as data: for every element of a field, the places of its bits in a record of bytes.

Packing never has a meaning of its own: `unpack` of `pack` is the identity, and no bit belongs to two elements.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelang.ir.dtypes import DType, dtype

_CHUNK = 1 << 18  # bytes worked on at a time: their bits stay in a cache


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

    @property
    def code(self) -> Any:
        """NumPy type of a bit pattern."""
        return np.uint8 if self.dtype.bits <= 8 else np.uint16

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
        out = {name: np.empty((len(data), len(f.at)), f.code) for name, f in self.fields.items()}
        for i in range(0, len(data), step):
            for name, codes in self._unpack(data[i:i + step]).items():
                out[name][i:i + step] = codes
        return out

    def _unpack(self, data: Any) -> dict[str, Any]:
        stream = np.unpackbits(np.ascontiguousarray(data.T, np.uint8), axis=0, bitorder="little")
        out = {}
        for name, field in self.fields.items():
            kind = field.code
            codes = np.zeros((len(field.at), len(data)), kind)
            for i in range(field.dtype.bits):
                codes |= stream[field.at[:, i]].astype(kind, copy=False) << kind(i)
            out[name] = codes.T ^ kind(field.flip)
        return out

    def pack(self, codes: Mapping[str, Any]) -> Any:
        """Bytes (records, size) of bit patterns; bits of no field are zero."""
        step = max(_CHUNK // self.size, 1)
        out = np.empty((len(next(iter(codes.values()))), self.size), np.uint8)
        for i in range(0, len(out), step):
            out[i:i + step] = self._pack({name: c[i:i + step] for name, c in codes.items()})
        return out

    def _pack(self, codes: Mapping[str, Any]) -> Any:
        stream = np.zeros((8 * self.size, len(next(iter(codes.values())))), np.uint8)
        for name, field in self.fields.items():
            kind = field.code
            c = np.ascontiguousarray(np.asarray(codes[name]).T.astype(kind, copy=False)) ^ kind(field.flip)
            for i in range(field.dtype.bits):
                stream[field.at[:, i]] = (c >> kind(i)) & kind(1)
        return np.packbits(stream, axis=0, bitorder="little").T
