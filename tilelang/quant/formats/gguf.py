"""GGUF tensors (llama.cpp, ggml): blocks of 32 or 256 numbers along a row.

Source: the block structures of ggml and the reference decoding of the package `gguf`. Offsets of half the range
become signed codes (Q4_0 is i4, Q6_K i6 with i8 scales). The super-blocks of K-quants are scales that are quantised
themselves, with f16 scales of their own; minima likewise, with the sign turned round.
"""
from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelang.errors import CheckpointError
from tilelang.ir.dtypes import codebook, dtype
from tilelang.ir.packed import Packed
from tilelang.quant.formats.record import Field, Record, places
from tilelang.quant.formats.state import array_codes, plain, require
from tilelang.quant.nodes import leaf_of
from tilelang.quant.tensor import Parameter, QuantTensor

IQ4 = codebook(4, [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


@dataclass(frozen=True)
class Format:
    """Fields by name: codes, scale, minimum, or quantised `scales` and `minima` with `scale` and `minimum` as their
    scales. The sign of minima is turned round where `subtract`."""

    record: Record
    subtract: bool = False

    @property
    def block(self) -> int:
        return len(self.record.fields["codes"].at)


def _runs(byte: int, run: int, count: int, bits: int = 4) -> Any:
    """Runs of `run` bytes hold 8 / bits runs of as many numbers, one after the other from the low bits up."""
    a, j, i = np.unravel_index(np.arange(count), (count * bits // (8 * run), 8 // bits, run))
    return places(byte + run * a + i, bits * j, bits)


def _top_bits(byte: int, count: int, run: int = 32) -> Any:
    """One bit of each number: bit j of byte i for number run * j + i."""
    j, i = np.divmod(np.arange(count), run)
    return places(byte + i, j, 1)


def _join(*parts: Any) -> Any:
    """The bits of an element from several places, the low ones first."""
    return np.concatenate(parts, axis=1)


def _k_scales(byte: int, half: int) -> Any:
    """The 6-bit scales (half 0) or minima (half 1) of Q4_K and Q5_K: 12 bytes hold two times 8 numbers."""
    i = np.arange(4)
    first = places(byte + 4 * half + i, 0, 6)
    return np.concatenate([first, _join(places(byte + 8 + i, 4 * half, 4), places(byte + 4 * half + i, 6, 2))])


def _field(name: str, at: Any) -> Field:
    """Signed integers are stored with an offset."""
    dt = dtype(name)
    return Field(dt, at, 1 << dt.bits - 1 if dt.kind == "int" else 0)


def _formats() -> dict[str, Format]:
    def half(byte: int) -> Field:
        return Field.number("f16", byte)

    e32, s16, s8 = np.arange(32), np.arange(16), np.arange(8)
    k_scales = {"scales": _field("u6", _k_scales(4, 0)), "minima": _field("u6", _k_scales(4, 1))}
    return {
        "Q4_0": Format(Record(18, scale=half(0), codes=_field("i4", _runs(2, 16, 32)))),
        "Q4_1": Format(Record(20, scale=half(0), minimum=half(2), codes=_field("u4", _runs(4, 16, 32)))),
        "Q5_0": Format(Record(22, scale=half(0), codes=_field("i5", _join(_runs(6, 16, 32), places(2, e32, 1))))),
        "Q5_1": Format(Record(24, scale=half(0), minimum=half(2),
                              codes=_field("u5", _join(_runs(8, 16, 32), places(4, e32, 1))))),
        "Q8_0": Format(Record(34, scale=half(0), codes=Field(dtype("i8"), places(2 + e32, 0, 8)))),
        "Q2_K": Format(Record(84, scales=_field("u4", places(s16, 0, 4)), minima=_field("u4", places(s16, 4, 4)),
                              codes=_field("u2", _runs(16, 32, 256, 2)), scale=half(80), minimum=half(82)), True),
        "Q3_K": Format(Record(110, codes=_field("i3", _join(_runs(32, 32, 256, 2), _top_bits(0, 256))),
                              scales=_field("i6", _join(places(96 + s16 % 8, 4 * (s16 // 8), 4),
                                                        places(104 + s16 % 4, 2 * (s16 // 4), 2))), scale=half(108))),
        "Q4_K": Format(Record(144, scale=half(0), minimum=half(2), **k_scales,
                              codes=_field("u4", _runs(16, 32, 256))), True),
        "Q5_K": Format(Record(176, scale=half(0), minimum=half(2), **k_scales,
                              codes=_field("u5", _join(_runs(48, 32, 256), _top_bits(16, 256)))), True),
        "Q6_K": Format(Record(210, codes=_field("i6", _join(_runs(0, 64, 256), _runs(128, 32, 256, 2))),
                              scales=Field(dtype("i8"), places(192 + s16, 0, 8)), scale=half(208))),
        "IQ4_NL": Format(Record(18, scale=half(0), codes=Field(IQ4, _runs(2, 16, 32)))),
        "IQ4_XS": Format(Record(136, scale=half(0), codes=Field(IQ4, _runs(8, 16, 256)),
                                scales=_field("i6", _join(places(4 + s8 // 2, 4 * (s8 % 2), 4),
                                                          places(2, 2 * s8, 2))))),
        "TQ1_0": Format(_Base3()),
        "TQ2_0": Format(Record(66, codes=_field("ternary", _runs(0, 32, 256, 2)), scale=half(64))),
        "MXFP4": Format(Record(17, scale=Field.number("e8m0", 0), codes=_field("f4e2m1", _runs(1, 16, 32)))),
        "NVFP4": Format(Record(36, scale=_field("f8e4m3", places(np.arange(4), 0, 8)),
                               codes=_field("f4e2m1", _runs(4, 8, 64)))),
    }


class _Base3(Record):
    """TQ1_0: five ternary digits to a byte, as the top of a fraction of 256: digit n of byte b is
    ((b * 3**n mod 256) * 3) >> 8. 32 bytes hold 160 numbers, 16 hold 80, 4 hold the last 16, four digits each."""

    PARTS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))  # first byte, bytes, digits

    def __init__(self) -> None:
        self.size = 54
        self.fields = {"codes": Field(dtype("ternary"), np.zeros((256, 2), int)), "scale": Field.number("f16", 52)}

    def _unpack(self, data: Any) -> dict[str, Any]:
        runs = []
        for first, count, digits in self.PARTS:
            for n in range(digits):
                shifted = data[:, first:first + count].astype(np.uint32) * 3**n % 256
                runs.append((shifted * 3 >> 8).astype(np.uint8))
        scale = np.ascontiguousarray(data[:, 52:54]).view("<u2")
        return {"codes": np.concatenate(runs, axis=1), "scale": scale}

    def _pack(self, codes: Any) -> Any:
        out, at = np.zeros((len(codes["scale"]), 54), np.uint8), 0
        for first, count, digits in self.PARTS:
            number = np.zeros((len(out), count), np.uint32)
            for n in range(5):
                number *= 3
                if n < digits:
                    number += codes["codes"][:, at:at + count].astype(np.uint32)
                    at += count
            out[:, first:first + count] = (number * 256 + 242) // 243
        out[:, 52:54] = codes["scale"].astype("<u2").view(np.uint8)
        return out


FORMATS = _formats()


def from_gguf(data: Any, format: str, shape: tuple[int, ...], name: str = "data") -> QuantTensor:
    """The tensor of raw GGUF bytes.

    `data`: u8, as many as the shape needs; `format`: one of `FORMATS` ("Q4_K"); `shape`: as NumPy gives it, (N, K) or
    with more leading dimensions, which become rows. `name` is for messages. Raises CheckpointError.
    """
    if format not in FORMATS:
        raise CheckpointError(f"`{name}` has an unknown format", needs=" ".join(FORMATS), got=str(format))
    f = FORMATS[format]
    if not shape or not all(isinstance(extent, int) and extent > 0 for extent in shape):
        raise CheckpointError(f"`{name}` has an impossible shape", needs="positive extents", got=str(shape))
    k, n = shape[-1], math.prod(shape[:-1])
    if k % f.block:
        raise CheckpointError(f"`{name}` has the wrong shape", needs=f"rows of whole {format} blocks of {f.block}",
                              got=str(tuple(shape)))
    array = np.ascontiguousarray(data)
    if array.dtype.kind not in "iuf":
        raise CheckpointError(f"`{name}` is no tensor of bytes", needs="u8", got=str(array.dtype))
    raw = array.view(np.uint8).reshape(-1)
    blocks, size = k // f.block, f.record.size
    if len(raw) != n * blocks * size:
        raise CheckpointError(f"`{name}` has the wrong number of bytes", got=str(len(raw)),
                              needs=f"{n * blocks * size} for {n} x {blocks} blocks of {size} bytes ({format})")
    parts = {key: c.reshape(n, -1) for key, c in f.record.unpack(raw.reshape(-1, size)).items()}
    for of, field, top in (("TQ2_0", "codes", 2), ("NVFP4", "scale", 0x7E)):
        if format == of and (parts[field] > top).any():
            raise CheckpointError(f"`{name}` has an invalid code", needs=f"{of} {field} of 0 to {top}",
                                  got=str(parts[field].max()))

    def parameter(one: str, many: str) -> Parameter | None:
        if one not in parts:
            return None
        sign = 1 << 15 if f.subtract and one == "minimum" else 0
        values = leaf_of(parts[one] ^ sign if sign else parts[one], f.record.fields[one].dtype)
        if many not in parts:
            return Parameter(values, (1, f.block // len(f.record.fields[one].at)))
        count = parts[many].shape[1] // blocks
        inner = Packed.from_codes(parts[many], f.record.fields[many].dtype)
        return Parameter(QuantTensor(inner, Parameter(values, (1, count))), (1, f.block // count))

    return QuantTensor(Packed.from_codes(parts["codes"], f.record.fields["codes"].dtype), parameter("scale", "scales"),
                       minimum=parameter("minimum", "minima"))


def to_gguf(q: QuantTensor, format: str) -> Any:
    """Raw GGUF bytes, u8 (N, bytes of a row): what `from_gguf` reads. Raises QuantError where `q` is not composed as
    the format needs."""
    require(format in FORMATS, str(format), "format", " ".join(FORMATS), format)
    f, (n, k) = FORMATS[format], q.shape
    require(k % f.block == 0, format, "codes", f"rows of whole blocks of {f.block}", q.shape)
    require(q.zero is None and q.permutation is None and not q.corrections, format,
            "zero, permutation, corrections", "none", q)
    blocks, fields = k // f.block, f.record.fields
    parts = {"codes": array_codes(q.codes, fields["codes"].dtype, (n, k), format, "codes")}
    require("minimum" in fields or q.minimum is None, format, "minimum", "none", q.minimum)
    for one, many, given in (("scale", "scales", q.scale), ("minimum", "minima", q.minimum)):
        if one not in fields:
            continue
        held = len(fields[one].at)
        block = f.block // held
        if many in fields:
            count = len(fields[many].at)
            inner = plain(given, (1, f.block // count), format, one)
            require(isinstance(inner, QuantTensor), format, one, f"a QuantTensor of {fields[many].dtype}", inner)
            parts[many] = array_codes(inner.codes, fields[many].dtype, (n, blocks * count), format, f"{one}.codes")
            given, block = inner.scale, count
        values = plain(given, (1, block), format, f"{one}.scale" if many in fields else one)
        sign = np.uint64(1 << 15 if f.subtract and one == "minimum" else 0)
        parts[one] = array_codes(values, fields[one].dtype, (n, blocks * held), format, one).astype(np.uint64) ^ sign
    return f.record.pack({key: c.reshape(n * blocks, -1) for key, c in parts.items()}).reshape(n, -1)


def load_gguf(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """Name and tensor of everything in a GGUF file, in its order: a QuantTensor (N, K) where quantised (leading
    dimensions become rows), else a NumPy array or, for bf16, a `tile.Packed`.

    Needs the package `gguf`. Raises CheckpointError for a file that cannot be read or a format not in `FORMATS`.
    """
    where = os.fspath(path)
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"{where} cannot be read", needs="the package gguf", got="it is not installed",
                              try_="pip install gguf") from None
    try:
        reader = gguf.GGUFReader(where)
    except (ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{where} cannot be read", needs="a whole GGUF file", got=str(error)) from error
    for tensor in reader.tensors:
        format, shape = tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape))
        if format == "BF16":
            yield tensor.name, leaf_of(np.asarray(tensor.data).view("<u2").reshape(shape), dtype("bf16"))
        elif tensor.data.dtype != np.uint8:
            yield tensor.name, np.array(tensor.data)
        else:
            yield tensor.name, from_gguf(tensor.data, format, shape, tensor.name)
